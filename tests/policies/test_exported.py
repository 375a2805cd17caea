"""A base that another program exported: read, called, refused and steered."""

import json

import pytest
import torch
from torch import nn

from rheo.policies.exported import Exported
from rheo.scripts.cli import main


class Hand(nn.Module):
    """tanh(W obs + noise), the same for every step of the chunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, obs, noise):
        return torch.tanh(self.layer(obs)[:, None, :] + noise)


def write(path, module, obs_dim=4, rows: int | None = None):
    """Exports a module for chunks of 2 steps of 1 action; for `rows` rows only, if given."""
    dim = {} if rows else {0: torch.export.Dim("rows")}
    given = torch.zeros(rows or 2, obs_dim), torch.zeros(rows or 2, 2, 1)
    program = torch.export.export(module, given, dynamic_shapes=(dim, dim))
    torch.export.save(program, path)
    return str(path)


def test_a_file_acts_as_the_module_it_was_made_from(tmp_path):
    hand, obs, noise = Hand(), torch.randn(5, 4), torch.randn(5, 2, 1)
    base = Exported(4, 1, 2, path=write(tmp_path / "hand.pt2", hand))
    torch.testing.assert_close(base.act(obs, noise), hand(obs, noise))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_torchscript_is_read_too(tmp_path):
    hand, obs, noise = Hand(), torch.randn(5, 4), torch.randn(5, 2, 1)
    torch.jit.script(hand).save(tmp_path / "hand.pt")
    base = Exported(4, 1, 2, path=str(tmp_path / "hand.pt"))
    torch.testing.assert_close(base.act(obs, noise), hand(obs, noise))


def test_files_that_cannot_serve_are_named_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="policy.path=none.pt2: there is no such file"):
        Exported(4, 1, 2, path="none.pt2")
    (tmp_path / "torn.pt2").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="torn.pt2: cannot be read as an exported program"):
        Exported(4, 1, 2, path=str(tmp_path / "torn.pt2"))
    path = write(tmp_path / "hand.pt2", Hand())
    with pytest.raises(ValueError, match=r"hand.pt2: does not take obs \[2, 6\]"):
        Exported(6, 1, 2, path=path)
    path = write(tmp_path / "two.pt2", Hand(), rows=2)
    with pytest.raises(ValueError, match="two.pt2: does not take obs .*any number of rows"):
        Exported(4, 1, 2, path=path)


def test_a_file_is_steered_and_its_share_of_the_time_is_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "hand.pt2", Hand())
    words = [
        "algo=dsrl_na", "policy=exported", f"policy.path={path}", "env=gym",
        "env.id=InvertedPendulum-v5", "horizon=2", "steps=300", "source.warmup=100", "episodes=2",
        "log_every=100", "eval_every=300", "critic.width=16", "algo.actor.width=16",
        "algo.noise_critic.width=16", "critic.obs_norm.kind=none", "algo.actor.obs_norm.kind=none",
        "algo.noise_critic.obs_norm.kind=none", "name=run",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "run" / "metrics.jsonl").open()]
    shares = [row["time/base_share"] for row in rows if "time/learn_share" in row]
    assert shares and all(0 < share < 1 for share in shares)
    assert main(["eval", "run", "episodes=2"]) == 0


def test_training_a_policy_charges_nothing_to_a_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["algo=sac", "env=inverted_pendulum", "steps=300", "episodes=2", "name=run"]
    small = ["source.warmup=200", "log_every=100", "critic.width=16", "policy.width=16"]
    assert main(["train", *words, *small]) == 0
    text = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text()
    assert "time/learn_share" in text and "base_share" not in text
