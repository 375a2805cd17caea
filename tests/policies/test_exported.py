"""A base that another program exported: read, called, refused and steered."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rheo.policies.exported import Exported
from rheo.scripts.cli import main
from rheo.scripts.config import programs


class Hand(nn.Module):
    """tanh(W obs + noise), the same for every step of the chunk."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, obs, noise):
        return torch.tanh(self.layer(obs)[:, None, :] + noise)


def write(path: Path, module: nn.Module, rows: int | None = None) -> str:
    """Exports a module for chunks of 2 steps of 1 action; for `rows` rows only, if given."""
    dim = {} if rows else {0: torch.export.Dim("rows")}
    given = torch.zeros(rows or 2, 4), torch.zeros(rows or 2, 2, 1)
    torch.export.save(torch.export.export(module, given, dynamic_shapes=(dim, dim)), path)
    return str(path)


@functools.cache
def hand_of(folder: Path) -> bytes:
    """A Hand's program, exported once, so that its first call is rehearsed once."""
    return Path(write(folder / "hand.pt2", Hand())).read_bytes()


@pytest.fixture
def hand(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a Hand."""
    (tmp_path / "hand.pt2").write_bytes(hand_of(tmp_path_factory.getbasetemp()))
    return str(tmp_path / "hand.pt2")


def trace(path: Path, module: nn.Module) -> str:
    """A module as TorchScript, whose process is ready sooner."""
    traced: Any = torch.jit.trace(module, (torch.zeros(2, 4), torch.zeros(2, 2, 1)))
    traced.save(path)
    return str(path)


def test_a_file_acts_as_the_module_it_was_made_from(hand):
    obs, noise = torch.randn(5, 4), torch.randn(5, 2, 1)
    base = Exported(4, 1, 2, path=hand)
    torch.testing.assert_close(base.act(obs, noise), Hand()(obs, noise))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_torchscript_is_read_too(tmp_path):
    hand, obs, noise = Hand(), torch.randn(5, 4), torch.randn(5, 2, 1)
    torch.jit.script(hand).save(tmp_path / "hand.pt")
    base = Exported(4, 1, 2, path=str(tmp_path / "hand.pt"))
    torch.testing.assert_close(base.act(obs, noise), hand(obs, noise))


def test_files_that_cannot_serve_are_named_with_the_reason(tmp_path, hand):
    with pytest.raises(ValueError, match="policy.path=none.pt2: there is no such file"):
        Exported(4, 1, 2, path="none.pt2")
    (tmp_path / "torn.pt2").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="torn.pt2: cannot be read as an exported program"):
        Exported(4, 1, 2, path=str(tmp_path / "torn.pt2"))
    with pytest.raises(ValueError, match=r"hand.pt2: does not take obs \[2, 6\]"):
        Exported(6, 1, 2, path=hand)
    path = write(tmp_path / "two.pt2", Hand(), rows=2)
    with pytest.raises(ValueError, match="two.pt2: does not take obs .*any number of rows"):
        Exported(4, 1, 2, path=path)


class Wide(nn.Module):
    """Answers in float64, of inputs in float64 only if it has weights of that type."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1).double() if weights else None

    def forward(self, obs, noise):
        if self.layer is None:
            return torch.tanh(obs.double()[:, None, :1] + noise)
        return torch.tanh(self.layer(obs)[:, None, :] + noise)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("weights", [False, True])
def test_a_program_in_float64_acts_in_the_precision_of_its_noise(tmp_path, weights):
    wide, obs, noise = Wide(weights), torch.randn(5, 4), torch.randn(5, 2, 1)
    given = (obs.double(), noise.double()) if weights else (obs, noise)
    traced: Any = torch.jit.trace(wide, given)
    traced.save(tmp_path / "wide.pt")
    action = Exported(4, 1, 2, path=str(tmp_path / "wide.pt")).act(obs, noise)
    assert action.dtype == torch.float32
    torch.testing.assert_close(action, wide(*given).float())


class Answer(nn.Module):
    """Answers of another kind than actions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, obs, noise):
        if self.kind == "flat":
            return noise[:, 0] + obs[:, :1]
        if self.kind == "nan":
            return noise + torch.log(obs[:, None, :1] - 1)
        return (noise + obs[:, None, :1]).long()


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("flat", r"returned \[2, 1\]; for noise \[2, 2, 1\]"),
        ("nan", "returned numbers that are not finite"),
        ("whole", "returned numbers of type torch.int64"),
    ],
)
def test_answers_that_are_no_actions_are_named(tmp_path, kind, found):
    path = trace(tmp_path / "odd.pt", Answer(kind))
    with pytest.raises(ValueError, match=f"odd.pt: {found}"):
        Exported(4, 1, 2, path=path)


def test_weights_without_a_program_are_named_as_what_they_are(tmp_path):
    hand = Hand()
    held = {
        "a state_dict, the weights alone of 2 tensors": hand.state_dict(),
        "a pickled Python object": hand,
        "a dict of weights and settings": {"model": hand.state_dict(), "step": 3},
        "a tensor": torch.zeros(3),
    }
    for text, what in held.items():
        torch.save(what, tmp_path / "saved.pt")
        with pytest.raises(ValueError, match=f"saved.pt: {text}.*not a program: export") as caught:
            Exported(4, 1, 2, path=str(tmp_path / "saved.pt"))
        assert "corrupt" not in str(caught.value)
    (tmp_path / "net.safetensors").write_bytes(b"0")
    with pytest.raises(ValueError, match="a file of weights alone .safetensors., not a program"):
        Exported(4, 1, 2, path=str(tmp_path / "net.safetensors"))


def test_an_exported_program_is_read_whatever_it_is_called(tmp_path, hand):
    Path(hand).rename(tmp_path / "hand.pt")
    obs, noise = torch.randn(3, 4), torch.randn(3, 2, 1)
    base = Exported(4, 1, 2, path=str(tmp_path / "hand.pt"))
    torch.testing.assert_close(base.act(obs, noise), Hand()(obs, noise))


class Scaled(nn.Module):
    """gain * noise + shift."""

    def __init__(self, gain: float, shift: float) -> None:
        super().__init__()
        self.gain, self.shift = gain, shift

    def forward(self, obs, noise):
        return self.gain * noise + self.shift + 0 * obs[:, None, :1]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("gain", "shift", "status"), [(1.0, 5.0, 2), (50.0, 0.0, 2), (0.8, 0.0, 0), (0.1, 0.0, 0)]
)
def test_actions_in_other_units_are_told_before_any_work(
    tmp_path, monkeypatch, capsys, gain, shift, status
):
    """Most outside [-1, 1]: refused. Some: told. None (the last): nothing is said."""
    monkeypatch.chdir(tmp_path)
    path = trace(tmp_path / "far.pt", Scaled(gain, shift))
    words = [
        "algo=dsrl_na", "policy=exported", f"policy.path={path}", "env=inverted_pendulum",
        "horizon=2", "steps=24", "source.warmup=8", "source.batch_size=8", "episodes=8",
        "eval_every=1000", "critic.width=8", "algo.actor.width=8", "algo.noise_critic.width=8",
        "critic.obs_norm.kind=none", "algo.actor.obs_norm.kind=none", "algo.gate=0",
        "algo.noise_critic.obs_norm.kind=none", "name=run",
    ]  # fmt: skip
    assert main(["train", *words]) == status
    error = capsys.readouterr().err
    told = "of its actions lie outside [-1, 1] (the farthest is" in error
    assert told == (gain > 0.1)
    assert (tmp_path / "runs" / "run").exists() == (status == 0)


def test_a_file_is_steered_its_share_of_the_time_is_logged_and_it_may_move(
    tmp_path, monkeypatch, capsys, hand
):
    monkeypatch.chdir(tmp_path)
    words = [
        "algo=dsrl_na", "policy=exported", f"policy.path={hand}", "env=gym",
        "env.id=InvertedPendulum-v5", "horizon=2", "steps=300", "source.warmup=100", "episodes=2",
        "log_every=100", "eval_every=300", "critic.width=16", "algo.actor.width=16",
        "algo.noise_critic.width=16", "critic.obs_norm.kind=none", "algo.actor.obs_norm.kind=none",
        "algo.noise_critic.obs_norm.kind=none", "name=run",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "runs" / "run" / "metrics.jsonl").open()]
    shares = [row["time/base_share"] for row in rows if "time/learn_share" in row]
    assert shares and all(0 < share < 1 for share in shares)
    programs.named.clear()  # as in another process
    assert main(["eval", "run", "episodes=2"]) == 2
    assert f"runs/run calls the program {hand} (sha256 " in capsys.readouterr().err
    assert main(["eval", "run", "episodes=2", "--program", hand]) == 0
    (tmp_path / "hand.pt2").rename(tmp_path / "moved.pt2")
    assert main(["resume", "run", "steps=320"]) == 2
    assert f"policy.path={hand}: there is no such file" in capsys.readouterr().err
    assert main(["resume", "run", "steps=320", "policy.path=moved.pt2"]) == 0
    other = Hand()
    nn.init.zeros_(other.layer.bias)
    write(tmp_path / "other.pt2", other)
    assert main(["resume", "run", "steps=340", "policy.path=other.pt2"]) == 2
    assert "other.pt2: another program than the run's (sha256 " in capsys.readouterr().err
    again = ["--program", "other.pt2"]
    assert main(["resume", "run", "steps=340", "policy.path=other.pt2", *again]) == 2
    assert "policy.path: another policy than the run's" in capsys.readouterr().err
    (tmp_path / "moved.pt2").rename(tmp_path / "again.pt2")
    assert main(["eval", "run", "episodes=1", "policy.path=again.pt2"]) == 0
    assert not list((tmp_path / "runs" / "run" / "eval").glob("*path*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_is_steered_and_needs_no_name(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    given, dim = (torch.zeros(2, 4), torch.zeros(2, 2, 1)), {0: torch.export.Dim("rows")}
    how: Any = {"dynamo": True, "dynamic_shapes": (dim, dim), "verbose": False}
    torch.onnx.export(Hand(), given, "hand.onnx", external_data=False, **how)
    words = [
        "algo=dsrl_na", "policy=exported", "policy.path=hand.onnx", "env=inverted_pendulum",
        "horizon=2", "steps=24", "source.warmup=8", "source.batch_size=8", "episodes=8",
        "eval_every=1000", "critic.width=8", "algo.actor.width=8", "algo.noise_critic.width=8",
        "critic.obs_norm.kind=none", "algo.actor.obs_norm.kind=none", "algo.gate=0",
        "algo.noise_critic.obs_norm.kind=none", "name=run",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    programs.named.clear()
    assert main(["eval", "run", "episodes=2"]) == 0
    assert programs.named == set()


def test_training_a_policy_charges_nothing_to_a_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["algo=sac", "env=inverted_pendulum", "steps=300", "episodes=2", "name=run"]
    small = ["source.warmup=200", "log_every=100", "critic.width=16", "policy.width=16"]
    assert main(["train", *words, *small]) == 0
    text = (tmp_path / "runs" / "run" / "metrics.jsonl").read_text()
    assert "time/learn_share" in text and "base_share" not in text
