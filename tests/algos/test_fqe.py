"""Fitted Q evaluation: against the known value of linear policies, of recorded data alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear import GAMMA, Linear, Quadratic, form, recorded, worth
from torch import Tensor

from rheo.algos.contract import completed, give_starts
from rheo.algos.fitted import fitted_loss, start_values
from rheo.algos.fqe import FQE
from rheo.envs.batch import Batch
from rheo.errors import RheoError
from rheo.policies.normalize import Normalizer
from rheo.scripts.assemble import assemble, revived
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run

STARTS = torch.linspace(-0.9, 0.9, 7)[:, None]


@pytest.fixture
def judged(flow: Any, settings: Any, generator: torch.Generator) -> Callable[..., FQE]:
    """An evaluation of a linear policy by critics that hold its value."""

    def make(gain: float, std: float, run_updates: int, **changes: Any) -> FQE:
        policy = flow(1, 1, steps=1, action_norm=Normalizer(1, kind="none"))
        policy.net = Linear(gain, std)
        critic: Any = Quadratic()
        return FQE(policy, critic, generator, run_updates, **settings("fqe", **changes))

    return make


@pytest.mark.learns
@pytest.mark.parametrize(("gain", "std"), [(0.6, 0.1), (0.2, 0.0)])
def test_the_value_of_a_linear_policy_is_found_from_uniform_actions(judged, gain, std):
    """Also of one that nobody recorded, and by members that began apart."""
    updates = 400
    changes = {"critic_lr": 0.1, "lr_floor": 0.01, "target_rate": 0.2, "target_samples": 2}
    algo = judged(gain, std, updates, **changes)
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        algo.update(recorded(64, generator))
    algo.starts = lambda: STARTS
    told = algo.validate(recorded(64, generator), torch.Generator().manual_seed(2))
    expected = worth(gain, std, STARTS).mean().item()
    assert told["val/value"].item() == pytest.approx(expected, rel=0.01)
    assert told["val/value_std"].item() < 0.01 * abs(expected)
    assert told["val/critic_loss"].item() < 1e-3


def test_the_loss_is_zero_at_the_known_value_and_at_no_other(judged):
    """Q = r + GAMMA V(s') in closed form: the fixed point is the equation's own."""
    gain = 0.4
    algo, generator = judged(gain, 0.0, 10), torch.Generator().manual_seed(0)
    for part in (algo.critic, algo.target):
        part.weight.data[:] = form(gain, 0.0)
    batch = recorded(32, generator)
    ahead = algo.answers(batch.next_obs, generator)
    torch.testing.assert_close(ahead, -gain * batch.next_obs[:, None, None])
    assert algo.loss(batch, ahead)[0].item() < 1e-9
    algo.target.weight.data[1] *= 1.1
    loss, _ = algo.loss(batch, ahead)
    with torch.no_grad():  # each member by itself: the first is still right
        gap = GAMMA * 0.1 * start_members(algo.critic, batch.next_obs, ahead)[1]
    torch.testing.assert_close(loss.detach(), 0.5 * gap.square().mean())


def start_members(critic: Any, obs: Tensor, ahead: Tensor) -> Tensor:
    """Every member's mean over a state's actions, [E, B]."""
    return critic(obs[:, None], ahead).mean(-1)


def test_an_end_has_no_bootstrap_and_a_cut_keeps_it():
    """A chain of tables: 0 -> 1 -> end by going on, and the same cut in the middle."""

    class Table(torch.nn.Module):
        def forward(self, obs: Tensor, action: Tensor) -> Tensor:
            return (10 * obs[..., 0].expand(action.shape[:-2]))[None]

    obs, ahead = torch.tensor([[0.0], [1.0], [1.0]]), torch.zeros(3, 1, 1, 1)
    after = torch.tensor([[1.0], [2.0], [2.0]])
    discount = torch.tensor([GAMMA, 0.0, GAMMA])
    batch = Batch(obs, ahead[:, 0], torch.tensor([1.0, 2.0, 2.0]), discount, after)
    loss, _ = fitted_loss(Table(), Table(), batch, ahead)
    gaps = [0 - (1 + GAMMA * 10), 10 - 2, 10 - (2 + GAMMA * 20)]
    assert loss.item() == pytest.approx(0.5 * sum(gap**2 for gap in gaps) / 3)
    value = start_values(Table(), obs, ahead)
    assert value.item() == pytest.approx(20 / 3)


def test_the_policy_rests_and_acts_as_it_is_deployed(judged):
    """With the noise of its transitions where it has some, from scaled points."""
    algo, generator = judged(0.5, 0.3, 10), torch.Generator().manual_seed(0)
    algo.policy.deploy_scale = 0.0
    assert torch.equal(algo.answers(STARTS, generator), -0.5 * STARTS[:, None, None])
    assert torch.equal(algo.deploy(STARTS, generator), -0.5 * STARTS[:, None])
    before = algo.policy.net.gain.item()
    algo.update(recorded(16, generator))
    assert algo.policy.net.gain.item() == before and not algo.policy.net.gain.requires_grad


def episodes(path: Path, count: int = 10, steps: int = 12) -> str:
    """Episodes that begin at their number, a tenth of which is held out."""
    rng, rows = np.random.default_rng(0), count * steps
    obs = rng.normal(size=(rows, 2))
    obs[::steps] = np.arange(count)[:, None]
    ends = np.arange(1, count + 1) * steps
    action, reward = rng.uniform(-1, 1, (rows, 1)), np.ones(rows)
    np.savez(path, observations=obs, actions=action, rewards=reward, episode_ends=ends)
    return f"data={path}"


SMALL = ["init=scratch", "policy.net.width=8", "policy.net.depth=1", "critic.width=8"]


def test_starts_are_where_held_out_episodes_begin(tmp_path):
    data = episodes(tmp_path / "d.npz")
    algo, source, _, _ = assemble(compose(["algo=fqe", data, *SMALL, "source.holdout=0.3"]))
    starts = algo.starts()
    assert starts.shape == (3, 2) and len(set(starts[:, 0].tolist())) == 3
    train = source.rows(source.train_steps).obs
    assert not any((train == start).all(1).any() for start in starts)
    assert all(start[0] == start[1] == int(start[0]) for start in starts)


def test_a_run_without_held_out_episodes_is_refused(tmp_path):
    data = episodes(tmp_path / "d.npz")
    with pytest.raises(RheoError, match="no episode is held out .* set source.holdout=0.1"):
        assemble(compose(["algo=fqe", data, *SMALL, "source.holdout=0"]))
    algo: Any = completed(FQE)
    with pytest.raises(RheoError, match="source: .* set source=transitions .or mixed. with data"):
        give_starts(algo, object())


def test_a_run_judges_the_policy_of_another_and_leaves_it(tmp_path, monkeypatch):
    """What clones is judged; the weights are the clone's before and after."""
    monkeypatch.chdir(tmp_path)
    data, short = episodes(tmp_path / "d.npz"), ["steps=20", "log_every=10", "eval_every=10"]
    small = ["policy.net.width=8", "policy.net.depth=1"]
    assert main(["train", "algo=bc", data, *small, *short, "name=base"]) == 0
    words = ["algo=fqe", data, "init=base", "critic.width=8", *short, "name=told"]
    assert main(["train", *words]) == 0
    rows = [row for row in Journal(Path("runs/told/metrics.jsonl")).rows() if "val/value" in row]
    assert [row["step"] for row in rows] == [0, 10, 20]
    assert rows[0]["val/value"] != rows[-1]["val/value"]
    weights = [revived(Run.open(name))[0].deployed().state_dict() for name in ("base", "told")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
