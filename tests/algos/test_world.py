"""A model of the world: its losses by hand, linear dynamics, and what it keeps of the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped import config
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from rheo.algos.world import AHEAD, FIRST, KEPT, WorldModel, path_errors, refuse_other_steps
from rheo.envs.batch import Batch
from rheo.errors import RheoError
from rheo.policies.dynamics import Dynamics
from rheo.scripts.assemble import Sizes, assemble, make_algo
from rheo.scripts.config.compose import compose

A = torch.tensor([[0.95, 0.10], [-0.10, 0.95]])  # a damped turn
B = torch.tensor([[0.0], [0.2]])


def moved(obs: Tensor, action: Tensor) -> Tensor:
    """The next observation of the linear world."""
    return obs @ A.T + action @ B.T


def turns(rows: int, generator: torch.Generator, noise: float = 0.0) -> Batch:
    """Transitions of the linear world, rewarded by its first number and the effort."""
    obs = 2 * torch.randn((rows, 2), generator=generator)
    action = 2 * torch.rand((rows, 1), generator=generator) - 1
    after = moved(obs, action) + noise * torch.randn((rows, 2), generator=generator)
    reward = obs[:, 0] - action[:, 0]
    return Batch(obs, action[:, None], reward, torch.ones(rows), after)


@pytest.fixture
def world(generator: torch.Generator) -> Any:
    """Makes models of the linear world, `world(members=3)`, whose statistics are its own."""

    def make(members: int = 3, updates: int = 100, **changes: Any) -> WorldModel:
        torch.manual_seed(0)
        model = Dynamics(2, 1, members=members, width=32, depth=1, activation="silu")
        seen = turns(2000, torch.Generator().manual_seed(4))
        model.obs_norm.fit(seen.obs)
        model.action_norm.fit(seen.action)
        model.change.fit(torch.cat([seen.next_obs - seen.obs, seen.reward[:, None]], -1))
        node = {k: v for k, v in config("world")["algo"].items() if k not in ("_target_", "model")}
        return WorldModel(model, generator, updates, **(node | changes))

    return make


@pytest.mark.learns
def test_a_model_of_linear_dynamics_foretells_twenty_steps(world: Any) -> None:
    """Five seeds reach .006 to .009 deviations of the observations after twenty steps."""
    algo, generator = world(updates=300, lr=1e-2), torch.Generator().manual_seed(1)
    for _ in range(300):
        algo.update(turns(96, generator, noise=0.01))
    obs = [2 * torch.randn((100, 2), generator=generator)]
    action = 2 * torch.rand((100, AHEAD[-1], 1), generator=generator) - 1
    for k in range(AHEAD[-1]):
        obs.append(moved(obs[-1], action[:, k]))
    errors = path_errors(algo.model, torch.stack(obs, 1), action)
    assert list(errors) == ["error_1", "error_5", "error_20"]
    assert errors["error_1"] < 0.005 and errors["error_20"] < 0.02
    told = algo.predict(obs[0], action[:, 0])
    noise = told.std[..., :2].mean()
    assert noise == pytest.approx(0.01, rel=0.5)  # what was added to each number
    assert (told.reward.mean(0) - (obs[0] - action[:, 0])[:, 0]).abs().mean() < 0.05
    far = algo.predict(8 * obs[0], action[:, 0]).disagreement.mean()
    assert far > 5 * told.disagreement.mean()


def test_the_loss_is_that_of_the_members_likelihoods_and_ends(world: Any) -> None:
    """By torch's distributions; a last step without a successor teaches reward and end alone."""
    algo, generator = world(), torch.Generator().manual_seed(2)
    batch = turns(30, generator)
    ended = torch.arange(30) % 5 == 0
    unknown = torch.arange(30) % 10 == 0  # of those that ended
    batch = batch._replace(
        discount=(~ended).float(),
        next_obs=torch.where(unknown[:, None], batch.obs, batch.next_obs),
    )
    _, told = algo.loss(*batch[:5])
    with torch.no_grad():
        mean, log_var, logit = algo.model(batch.obs, batch.action[:, 0])
        value = torch.cat([batch.next_obs - batch.obs, batch.reward[:, None]], -1)
        target = (value - algo.model.change.shift) / algo.model.change.scale
        likely = Normal(mean, (0.5 * log_var).exp()).log_prob(target)
        known = torch.cat([~unknown[:, None].expand(30, 2), torch.ones(30, 1).bool()], 1)
        nll = -2 * likely[:, known].mean() - torch.tensor(2 * torch.pi).log()
        ends = -Bernoulli(logits=logit).log_prob(ended.float()).mean()
    torch.testing.assert_close(told["nll"].detach(), nll)
    torch.testing.assert_close(told["end_loss"].detach(), ends)
    torch.testing.assert_close(told["mse"].detach(), (mean - target)[:, known].square().mean())


def test_every_member_learns_from_rows_of_its_own(world: Any) -> None:
    batch = turns(30, torch.Generator().manual_seed(3))
    other = batch._replace(reward=torch.where(torch.arange(30) < 10, 9.0, batch.reward))
    one, two = world(max_norm=1e9), world(max_norm=1e9)
    one.update(batch)
    two.update(other)
    for mine, theirs in zip(one.model.weights, two.model.weights, strict=True):
        assert not torch.equal(mine[0], theirs[0]) and torch.equal(mine[1:], theirs[1:])


def test_members_that_are_alike_do_not_disagree_and_others_by_their_distance(world: Any) -> None:
    algo = world()
    obs, action = torch.randn(20, 2), torch.rand(20, 1)
    apart = algo.predict(obs, action).disagreement
    with torch.no_grad():
        mean = algo.model(obs, action)[0]
        far = [(one - mean.mean(0)).square().mean(-1).sqrt() for one in mean]
        torch.testing.assert_close(apart, torch.stack(far).amax(0))
        for part in (*algo.model.weights, *algo.model.biases):
            part.copy_(part[:1].expand_as(part))
    assert algo.predict(obs, action).disagreement.abs().max() < 1e-6
    assert apart.min() > 1e-3


def test_a_forecast_is_in_the_units_of_the_data(world: Any) -> None:
    """An outlet of zeros tells the data's mean change, with their deviation at variance 1."""
    algo = world()
    with torch.no_grad():
        algo.model.weights[-1].zero_()
        algo.model.biases[-1].zero_()
    obs, change = torch.randn(5, 2), algo.model.change
    told = algo.predict(obs, torch.rand(5, 1))
    torch.testing.assert_close(told.next_obs, (obs + change.shift[:2]).expand(3, 5, 2))
    torch.testing.assert_close(told.reward, change.shift[2].expand(3, 5))
    assert (told.terminal == 0.5).all()
    low, high = algo.model.log_var_low, algo.model.log_var_high
    soft = high - torch.nn.functional.softplus(high)
    log_var = low + torch.nn.functional.softplus(soft - low)
    torch.testing.assert_close(told.std, ((0.5 * log_var).exp() * change.scale).expand(3, 5, 3))


def recording(path: Path, lengths: list[int], successors: bool = True) -> str:
    """Episodes that count their steps: obs = [episode, step]; the last step ends the task."""
    obs = np.concatenate([[(e, k) for k in range(n)] for e, n in enumerate(lengths)]).astype(float)
    ends = np.cumsum(lengths)
    ended = np.zeros(len(obs), bool)
    ended[ends - 1] = True
    rows: dict[str, Any] = {"observations": obs, "terminals": ended, "timeouts": ended & False}
    if successors:
        rows["next_observations"] = obs + [0, 1]
    action = np.random.default_rng(0).uniform(-1, 1, (len(obs), 1))
    np.savez(path, actions=action, rewards=obs[:, 1], **rows)
    return f"data={path}"


SMALL = ["algo.model.width=8", "algo.model.depth=1", "source.batch_size=21"]


def test_a_run_keeps_recorded_steps_and_first_observations(tmp_path: Path) -> None:
    words = ["algo=world", recording(tmp_path / "d.npz", [30, 40, 25, 50]), *SMALL]
    algo, source, _, _ = assemble(compose([*words, "source.holdout=0.25"]))
    assert algo.states.shape == (KEPT, 2) and algo.firsts.shape == (FIRST, 2)
    train = source.rows(source.train_steps)
    pairs = set(map(tuple, torch.cat([train.obs, train.action[:, 0]], -1).tolist()))
    kept = set(map(tuple, torch.cat([algo.states, algo.actions], -1).tolist()))
    assert kept == pairs  # of so few steps all
    held = int(source.obs[source.held_steps[0], 0])
    assert set(map(tuple, algo.firsts.tolist())) == {(e, 0.0) for e in range(4) if e != held}
    obs, action = algo.paths
    assert (obs[:, :, 0] == held).all() and action.shape[1:] == (AHEAD[-1], 1)
    assert (obs[:, 1:, 1] - obs[:, :-1, 1] == 1).all()
    assert algo.model.change.shift[:2].tolist() == pytest.approx([0.0, 1.0])


def test_statistics_of_changes_leave_out_what_no_file_tells(tmp_path: Path) -> None:
    """A last step without a successor would count as one that moves nothing."""
    words = ["algo=world", recording(tmp_path / "d.npz", [5] * 8, successors=False), *SMALL]
    algo, _, _, _ = assemble(compose(words))
    assert algo.model.change.shift[1].item() == pytest.approx(1.0)
    assert algo.paths is None  # no held-out episode is long enough
    held = algo.validate(turns(20, torch.Generator().manual_seed(0)), torch.Generator())
    assert set(held) == {"val/nll", "val/mse", "val/end_loss"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["horizon=4"], "horizon=4: .*set horizon=1"),
        (["env.obs_steps=2"], "env.obs_steps=2: .*set env.obs_steps=1"),
        (["source.n_step=3"], "source.n_step=3: .*set source.n_step=1"),
        (["source.gamma=0.9"], "source.gamma=0.9: .*set source.gamma=1"),
        (["source.batch_size=6"], "batch_size=6: .*algo.model.members=7.*at least as many"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_what_gives_no_single_steps_is_refused(tmp_path: Path, words: Any, message: str) -> None:
    given = ["algo=world", recording(tmp_path / "d.npz", [20, 20]), *SMALL, *words]
    with pytest.raises(RheoError, match=message):
        assemble(compose(given))
    with pytest.raises(RheoError, match="set source=transitions with data=FILE"):
        refuse_other_steps(object(), 3)


def test_cameras_are_refused() -> None:
    tree = config("world")
    with pytest.raises(RheoError, match="Dynamics has no obs_norm, .*pixels of front_image"):
        make_algo(tree, Sizes(66, 1, {"front_image": [8, 8]}), 10)


def test_nothing_of_a_model_acts(world: Any) -> None:
    algo = world()
    assert algo.policy is None
    with pytest.raises(TypeError, match="no policy"):
        algo.act(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="no policy"):
        algo.deploy(torch.zeros(1, 2), torch.Generator())
