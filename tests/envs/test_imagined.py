"""Imagined environments: the vector contract, and what ends and pays there."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rheo.envs.chunk import ChunkEnv
from rheo.envs.guard import NonFiniteAction
from rheo.envs.imagined import Imagined, World, imagined, limit_of
from rheo.errors import EnvError
from rheo.policies.dynamics import Dynamics


class Told(NamedTuple):
    next_obs: Tensor
    reward: Tensor
    std: Tensor
    terminal: Tensor
    disagreement: Tensor


class Line:
    """Points on a line that an action moves; each member adds a drift of its own.

    obs = [place, steps]. The members disagree by the distance from 0, and the task ends behind
    `end` with probability 1. std: of the place alone.
    """

    def __init__(self, drifts: Any = (0.0,), end: float = 1e9, std: float = 0.0) -> None:
        self.drifts, self.end, self.std = torch.tensor(drifts), end, std
        places = torch.linspace(-1, 1, 1001)
        self.states = torch.stack([places, torch.zeros(1001)], 1)
        self.actions = torch.zeros(1001, 1)
        self.firsts = torch.tensor([[0.5, 0.0], [0.25, 0.0]])

    def predict(self, obs: Tensor, action: Tensor) -> Told:
        place = obs[:, 0] + action[:, 0] + self.drifts[:, None]
        steps = (obs[:, 1] + 1).expand_as(place)
        std = torch.tensor([self.std, 0.0, 0.0]).expand(*place.shape, 3)
        reward = place.abs()
        return Told(
            torch.stack([place, steps], -1), reward, std, (place > self.end).float(),
            obs[:, 0].abs(),
        )  # fmt: skip


def world(model: Any, digest: str = "a", low: float = -1.0) -> World:
    ones = np.ones(model.actions.shape[1])
    return World(model, "world", digest, {"obs": model.states.shape[1]}, low * ones, ones)


def made(num_envs: int = 3, *, model: Any = None, digest: str = "a", **how: Any) -> Imagined:
    given: dict[str, Any] = {"length": 5, "seed": 0, **how}
    return Imagined(world(model or Line(), digest), num_envs, **given)


def learned(members: int = 3) -> Any:
    """A model of random networks, with what a run keeps."""
    torch.manual_seed(0)
    model: Any = Dynamics(4, 2, members=members, width=32, depth=2, activation="silu")
    model.states, model.actions = torch.randn(64, 4), 2 * torch.rand(64, 2) - 1
    model.firsts = model.states[:8]
    model.obs_norm.fit(model.states)
    model.action_norm.fit(model.actions)
    model.change.fit(0.1 * torch.randn(64, 5))
    model.requires_grad_(False)
    model.biases[-1][..., -1] = -4.0  # few ends
    return model


def plan(env: Imagined, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(steps, env.num_envs, env.action_dim, generator=generator) * 2 - 1


def same(one: Any, two: Any) -> bool:
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ---- the contract --------------------------------------------------------------------------------


def test_tensors_have_the_promised_shapes_and_types() -> None:
    env = made()
    assert (env.id, env.backend, env.imagined) == ("imagined", "imagined", True)
    assert (env.num_envs, env.obs_dim, env.action_dim, env.max_steps) == (3, 2, 1, 5)
    obs, step = env.reset(), env.step(plan(env, 1)[0])
    for value in (obs, step.obs, step.final_obs):
        assert value.shape == (3, 2) and value.dtype == torch.float32
    assert step.reward.shape == (3,) and step.reward.dtype == torch.float32
    for flag in (step.terminated, step.truncated, step.valid):
        assert flag.shape == (3,) and flag.dtype == torch.bool
    assert step.success is None and step.cost is None


def test_the_length_truncates_and_final_obs_is_not_the_next_start() -> None:
    env = made()
    env.reset()
    for k, action in enumerate(plan(env, 11), start=1):
        step = env.step(action)
        assert step.truncated.tolist() == [k % 5 == 0] * 3
        assert not step.terminated.any() and step.valid.all()
        assert (step.final_obs[:, 1] == (k - 1) % 5 + 1).all()
        if k % 5 == 0:
            assert (step.obs[:, 1] == 0).all()
            starts = env.model.states[:, 0]
            assert all((starts == place).any() for place in step.obs[:, 0])
        else:
            assert step.obs is step.final_obs


def test_environment_i_is_seeded_with_seed_plus_i_and_goes_on_by_itself() -> None:
    together = made(seed=5)
    first, second = together.reset(), together.reset()
    for i in range(3):
        alone = made(1)
        assert torch.equal(alone.reset(5 + i)[0], first[i])
        assert torch.equal(alone.reset()[0], second[i])
    assert not torch.equal(first, second)
    assert torch.equal(together.reset(5), first)
    assert not torch.equal(made(seed=None).reset(), made(seed=None).reset())


def test_a_row_is_what_it_is_beside_more_rows_or_fewer() -> None:
    """But for rounding of the networks' products, which may depend on how many rows there are."""
    model = learned()
    many, few = made(21, model=model, length=9), made(2, model=model, length=9)
    obs, other = many.reset(3), few.reset(3)
    for action in plan(many, 12):
        torch.testing.assert_close(obs[:2], other, rtol=1e-4, atol=1e-5)
        step, less = many.step(action), few.step(action[:2])
        for one, two in zip(step[:6], less[:6], strict=True):
            torch.testing.assert_close(one[:2], two, rtol=1e-4, atol=1e-5)
        obs, other = step.obs, less.obs


def test_the_same_seed_is_the_same_to_the_last_bit() -> None:
    one, two = (made(5, model=learned(), length=9) for _ in range(2))
    assert torch.equal(one.reset(3), two.reset(3))
    assert all(same(one.step(action), two.step(action)) for action in plan(one, 20))
    one.reset(3)
    two.reset(4)
    assert not torch.equal(one.step(plan(one, 1)[0]).obs, two.step(plan(one, 1)[0]).obs)


def test_inactive_rows_stay_exactly_where_they_are() -> None:
    env, lone = (made(model=learned(), length=20) for _ in range(2))
    start = env.reset(1)
    lone.reset(1)
    moves, seen = plan(env, 12), []
    for k in range(6):
        active = torch.tensor([True, k % 2 == 0, False])
        step = env.step(torch.where(active[:, None], moves[k], torch.nan), active)
        assert step.valid.tolist() == active.tolist()
        assert not step.reward[~active].any()
        assert not (step.terminated | step.truncated)[~active].any()
        seen.append(step.obs)
    expected = [lone.step(moves[k]).obs for k in range(0, 6, 2)]
    assert torch.equal(seen[-1][1], expected[-1][1]) and torch.equal(seen[-1][2], start[2])
    assert not env.step(moves[6], torch.zeros(3, dtype=torch.bool)).valid.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_action_is_refused_before_anything_moves(value: float) -> None:
    env = made(model=learned())
    env.reset()
    moves = plan(env, 3)
    env.step(moves[0])
    saved, broken = env.state_dict(), moves[1].clone()
    broken[2, 1] = value
    with pytest.raises(NonFiniteAction, match="imagined.*environment 2 at step 2"):
        env.step(broken)
    after = env.step(moves[1])
    env.load_state_dict(saved)
    assert same(env.step(moves[1]), after)


def test_a_saved_state_continues_bit_for_bit() -> None:
    how: dict[str, Any] = {"model": learned(), "length": 7, "quantile": 0.9}
    env = made(**how)
    env.reset()
    moves = plan(env, 40)
    for action in moves[:10]:
        env.step(action)
    saved = env.state_dict()
    idle = torch.tensor([True, False, True])
    masks = [idle if k % 5 == 0 else None for k in range(30)]
    straight = [env.step(a, m) for a, m in zip(moves[10:], masks, strict=True)]
    assert env.counters["cut"] > 0
    other = made(**how)
    other.reset(99)
    other.step(moves[3])
    for target in (other, env):
        target.load_state_dict(saved)
        for action, mask, expected in zip(moves[10:], masks, straight, strict=True):
            assert same(target.step(action, mask), expected)


def test_a_row_goes_on_from_the_state_of_another() -> None:
    env = made(model=learned(), length=7)
    env.reset()
    moves = plan(env, 8)
    for action in moves[:3]:
        env.step(action)
    assert env.unbranched() is None
    states = [env.take(2), env.take(2), env.take(0)]
    straight = [env.step(action) for action in moves[3:]]
    other = made(model=learned(), length=7)
    obs = other.branch(states)
    assert torch.equal(obs[0], obs[1])
    for action, step in zip(moves[3:], straight, strict=True):
        found = other.step(action[[2, 2, 0]])
        for name in ("obs", "reward", "truncated", "final_obs"):
            assert torch.equal(getattr(found, name), getattr(step, name)[[2, 2, 0]])


def test_a_state_of_other_settings_or_of_another_world_is_refused() -> None:
    env = made(2)
    env.reset()
    with pytest.raises(EnvError, match="num_envs 2 but this environment has 3"):
        made().load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="env.model=world: is not as it was .*put it back"):
        made(2, digest="b").load_state_dict(env.state_dict())


def test_stepping_before_reset_and_wrong_shapes_are_errors() -> None:
    env = made()
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(torch.zeros(3, 1))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(3, 1\)"):
        env.step(torch.zeros(3, 2))


# ---- what happens in an episode ------------------------------------------------------------------


def test_a_step_is_drawn_from_any_one_of_the_members() -> None:
    """Means, deviations and shares of two members, of 8,000 draws."""
    env = made(2000, model=Line((0.0, 10.0), std=0.5), length=9, start="first")
    place, moves = env.reset()[:, 0], []
    for _ in range(4):
        step = env.step(torch.zeros(2000, 1))
        moves.append(step.final_obs[:, 0] - place)
        place = step.final_obs[:, 0]
    move = torch.stack(moves)
    second = move > 5
    assert second.double().mean().item() == pytest.approx(0.5, abs=0.03)  # 5 deviations
    rest = move - 10 * second
    assert rest.mean().item() == pytest.approx(0.0, abs=0.03)
    assert rest.std().item() == pytest.approx(0.5, abs=0.03)
    assert (second[0] != second[1]).double().mean() > 0.4  # anew in every step


def test_episodes_begin_at_recorded_observations() -> None:
    first = made(200, start="first").reset()
    assert set(first[:, 0].tolist()) == {0.5, 0.25}
    anywhere = made(200).reset()
    assert len(set(anywhere[:, 0].tolist())) > 150
    known = set(Line().states[:, 0].tolist())
    assert set(anywhere[:, 0].tolist()) <= known


def test_a_terminal_keeps_no_bootstrap_and_a_cut_keeps_it() -> None:
    """From .5 and .25 by .3 a step: one ends at .8, the other is cut where members disagree."""
    how: dict[str, Any] = {"length": 50, "start": "first", "quantile": 0.4}
    env = Imagined(world(Line(end=0.7)), 40, seed=0, **how)
    assert env.limit == pytest.approx(0.4, abs=1e-3)
    chunks = ChunkEnv(env, execute=1, obs_steps=1, gamma=0.9)
    start = chunks.reset()[:, 0]
    ends = start == 0.5
    assert 5 < ends.sum() < 35
    step = chunks.step(torch.full((40, 1, 1), 0.3))
    assert step.terminated.tolist() == ends.tolist() and step.valid.all()
    assert (step.discount[ends] == 0).all() and (step.truncated == ends).all()
    kept = step.discount[~ends]
    torch.testing.assert_close(kept, torch.full_like(kept, 0.9))
    step = chunks.step(torch.where(ends[:, None, None], 0.0, torch.full((40, 1, 1), 0.1)))
    cut = ~ends  # they stood at .55, behind the limit of .4, and end at .65
    assert step.truncated[cut].all() and not step.terminated[cut].any() and step.valid[cut].all()
    torch.testing.assert_close(step.discount[cut], torch.full_like(kept, 0.9))
    torch.testing.assert_close(step.next_obs[cut, 0], torch.full_like(kept, 0.65))
    assert env.counters["cut"] >= 40 - int(ends.sum())


def test_the_length_of_an_episode_keeps_its_bootstrap_too() -> None:
    chunks = ChunkEnv(made(length=2), execute=1, obs_steps=1, gamma=0.9)
    chunks.reset()
    chunks.step(torch.zeros(3, 1, 1))
    step = chunks.step(torch.zeros(3, 1, 1))
    assert step.truncated.all() and step.discount.tolist() == pytest.approx([0.9] * 3)


def test_a_penalised_reward_is_the_reward_at_no_disagreement() -> None:
    """And less by the penalty times it elsewhere."""
    plain, fined = made(50), made(50, penalty=2.0)
    start = plain.reset(1)[:, 0]
    fined.reset(1)
    moves = torch.rand(50, 1) - 0.5
    one, two = plain.step(moves), fined.step(moves)
    torch.testing.assert_close(one.reward - two.reward, 2.0 * start.abs())
    for env in (plain, fined):
        env._obs[:] = 0.0
    assert torch.equal(plain.step(moves).reward, fined.step(moves).reward)


def test_the_limit_is_a_quantile_of_the_recorded_steps() -> None:
    """Of the distances from 0 of points that are even on [-1, 1]."""
    for share in (0.25, 0.5, 1.0):
        assert limit_of(Line(), share) == pytest.approx(share, abs=2e-3)
    assert made(quantile=None).limit == np.inf


def test_actions_outside_of_their_box_do_what_its_bounds_do() -> None:
    env, other = made(), made()
    assert torch.equal(env.reset(1), other.reset(1))
    assert same(env.step(torch.full((3, 1), 7.0)), other.step(torch.ones(3, 1)))


def test_numbers_that_cannot_be_learned_from_are_cut_and_counted() -> None:
    env = made(model=Line((1e19,)))
    held = env.reset()
    step = env.step(torch.zeros(3, 1))
    assert not step.valid.any() and step.truncated.all() and not step.terminated.any()
    assert torch.equal(step.final_obs, held) and not step.reward.any()
    assert env.counters == {"physics_resets": 0, "bad_obs": 3, "cut": 0}
    assert (step.obs[:, 1] == 0).all() and not torch.equal(step.obs, held)


def test_chunks_are_executed_in_imagination_as_anywhere() -> None:
    env = imagined(
        id="imagined", model="world", num_envs=2, length=6, start="any", quantile=None,
        penalty=0.0, execute=3, obs_steps=2, gamma=0.9, world=world(Line(), low=-3.0),
    )  # fmt: skip
    place = env.reset(0)[:, [0]]
    assert env.env.action_low.tolist() == [-3.0] and env.obs_dim == 4
    step = env.step(torch.full((2, 3, 1), 0.1))
    assert step.frames.tolist() == [3, 3]
    torch.testing.assert_close(step.obs[:, [0, 2]], place + torch.tensor([0.2, 0.3]))
