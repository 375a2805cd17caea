"""Branches: rows that go on from a state of another one, and what their returns are."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.branches import Behaviour, branch, meet
from rheo.envs.chunk import ChunkEnv
from rheo.envs.families import home
from rheo.envs.mujoco import physics
from rheo.envs.mujoco.physics import INTEGRATION, mujoco
from rheo.envs.suites import make

native = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
BATCHED = ["Hopper-v5", "Humanoid-v5", "Ant-v4", "InvertedDoublePendulum-v5", "Pusher-v5"]
BATCHED += ["dm_control/cheetah-run-v0", "AdroitHandPen-v1", "FetchPush-v4"]
LOOPED = ["Hopper-v5", "Ant-v4", "dm_control/cheetah-run-v0", "AdroitHandPen-v1"]
LOOPED += ["PointMaze_UMaze-v3"]
CASES = [pytest.param(env_id, "native", marks=native) for env_id in BATCHED]
CASES += [pytest.param(env_id, "gymnasium") for env_id in LOOPED]


def worlds(env_id: str, count: int, backend: str = "auto", **options):
    """Environments, where their package is there."""
    pytest.importorskip(home(env_id)[0])
    return make(env_id, count, seed=5, backend=backend, **options)


def behaved(horizon: int, dims: int, noisy: float = 0.5):
    """A behaviour that leans on what it sees, with noise of its own."""

    def deploy(obs, generator):
        drawn = generator.normal((len(obs), horizon, dims)).to(obs)
        return (0.1 * obs[:, :1, None] + noisy * drawn).tanh()

    return deploy


def same(one, two) -> bool:
    """Whether two steps agree to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one[:6], two[:6], strict=True))


@pytest.mark.parametrize(("env_id", "backend"), CASES)
def test_a_branch_repeats_what_followed_to_the_last_bit_and_changes_nothing(env_id, backend):
    env, twin, other = (worlds(env_id, n, backend) for n in (3, 3, 4))
    assert env.unbranched() is None
    plan = 2 * torch.rand(30, 3, env.action_dim, generator=torch.Generator().manual_seed(1)) - 1
    for each in (env, twin):
        each.reset(7)
    for action in plan[:12]:
        env.step(action)
        twin.step(action)
    other.reset(3)
    for action in plan[:5]:
        other.step(-action[[0, 1, 2, 0]])
    state = env.take(1)
    obs = other.branch([state] * 4)
    for action in plan[12:]:
        mine, there = env.step(action), other.step(action[[1, 1, 1, 1]])
        assert same(mine, twin.step(action))
        for row in range(4):
            for a, b in ((mine.final_obs, there.final_obs), (mine.reward, there.reward)):
                assert torch.equal(a[1], b[row])
            assert bool(mine.terminated[1]) == bool(there.terminated[row])
        if mine.terminated[1] or mine.truncated[1]:
            break
    assert torch.equal(other.branch([state] * 4), obs)  # and again, from what was taken once


def test_a_branch_goes_on_at_the_time_of_its_state():
    """Of 20 steps 15 are gone: the time is up after 5 more."""
    env, other = (worlds("Hopper-v5", n, max_episode_steps=20) for n in (1, 2))
    env.reset(0)
    for _ in range(15):
        env.step(torch.zeros(1, 3))
    other.branch([env.take(0)] * 2)
    cuts = [other.step(torch.zeros(2, 3)).truncated.tolist() for _ in range(5)]
    assert cuts == [[False, False]] * 4 + [[True, True]]


class Remembering(gymnasium.Wrapper):
    """Something of somebody else's around a task."""


@pytest.mark.parametrize(
    ("env_id", "text"),
    [
        ("RheoTally-v0", "it has no MuJoCo simulator of its own"),
        ("RheoWrapped-v0", "its wrapper Remembering may keep a state of its own"),
        ("FetchReach-v4", "what its class MujocoFetchReachEnv keeps beside the simulator is not"),
    ],
)
def test_what_cannot_be_branched_says_why(env_id, text):
    if "RheoWrapped-v0" not in gymnasium.registry:
        made: Any = lambda: Remembering(gymnasium.make("Hopper-v5"))  # noqa: E731
        gymnasium.register("RheoWrapped-v0", made)
    env = worlds(env_id, 2, "gymnasium")
    assert text in (env.unbranched() or "")


# ---- returns -------------------------------------------------------------------------------------


def chunked(env_id: str, count: int, execute: int, gamma: float = 0.9, steps: int = 1, **options):
    """Environments acted on in chunks."""
    world = worlds(env_id, count, **options)
    return ChunkEnv(world, execute=execute, obs_steps=steps, gamma=gamma)


def test_the_same_state_chunk_and_noise_give_the_same_return_to_the_last_bit():
    behaviour = Behaviour(behaved(3, 3), 11)
    met, _ = meet(chunked("Hopper-v5", 4, 2, steps=2), behaviour, 6)
    one = branch(chunked("Hopper-v5", 18, 1, steps=2), behaviour, met, 3, 2, 15)
    # some of them, in environments that stand elsewhere, beside fewer
    env = chunked("Hopper-v5", 6, 1, steps=2)
    env.reset(4)
    two = branch(env, behaviour, met[2:4], 3, 2, 15, first=2)
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a[2:4], b)
    other = branch(env, behaviour._replace(seed=12), met[2:4], 3, 2, 15, first=2)
    assert not np.array_equal(other.chunk, two.chunk)
    assert len(np.unique(one.ret)) == 18


def test_equal_chunks_are_followed_by_equal_noise():
    """A chunk without noise at first, with noise later: what differs is nothing but the state."""

    def late(obs, generator):
        first = generator.key[1] == 1
        return behaved(2, 3, 0.0 if first else 0.9)(obs, generator)

    behaviour = Behaviour(late, 0)
    met, _ = meet(chunked("Hopper-v5", 2, 2), behaviour, 3)
    found = branch(chunked("Hopper-v5", 12, 1), behaviour, met, 4, 2, 20)
    assert np.array_equal(found.ret, found.ret[:, :1].repeat(4, 1))
    assert len(np.unique(found.ret)) == 3


def test_meeting_states_leaves_the_rollout_as_it_is():
    """The observations that the behaviour is asked about are those of a rollout without states."""

    def noting(seen):
        def deploy(obs, generator):
            seen.append(obs[:2].clone())
            return behaved(2, 3)(obs, generator)

        return deploy

    few, many = [], []
    one, count = meet(chunked("Hopper-v5", 2, 2), Behaviour(noting(few), 3), 1)
    more, same_count = meet(chunked("Hopper-v5", 2, 2), Behaviour(noting(many), 3), count // 4)
    assert count == same_count and len(one) == 1 and len(more) == count // 4 > 1
    assert len(few) == len(many) and all(map(torch.equal, few, many))
    assert one[0].step in {each.step for each in more}


def test_states_lie_all_over_the_episodes_and_their_time():
    """Drawn evenly: counts of a grid of episodes and times stay within four deviations."""
    env = chunked("HalfCheetah-v5", 4, 5, max_episode_steps=500)
    met, count = meet(env, Behaviour(behaved(5, 6), 0), 100)
    assert count == 400 and len(met) == 100
    assert len({(each.episode, each.step) for each in met}) == 100
    assert all(each.step % 5 == 0 and each.step < 500 for each in met)
    grid = np.zeros((4, 4))
    for each in met:
        grid[each.episode, each.step // 125] += 1
    # 25 of 400 decisions in each cell, a quarter of them drawn without putting back
    assert np.abs(grid - 6.25).max() < 4 * np.sqrt(6.25 * 0.75)
    more, count = meet(env, Behaviour(behaved(5, 6), 0), 101)
    assert count == 800 and {each.episode for each in more} == set(range(8))


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5"])
def test_a_return_is_that_of_a_plain_rollout_from_the_same_simulator_state(env_id):
    """gymnasium's own task, set to the saved state, follows the same behaviour step by step."""
    execute, steps, gamma = 2, 13, 0.97
    dims = {"Hopper-v5": 3, "HalfCheetah-v5": 6}[env_id]
    behaviour = Behaviour(behaved(3, dims), 2)
    env = chunked(env_id, 3, execute, gamma)
    met, _ = meet(env, behaviour, 3)
    width = 2
    found = branch(chunked(env_id, 6, 1, gamma), behaviour, met, width, execute, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = gymnasium.make(env_id, disable_env_checker=True)
    for s in range(3):
        later = behaviour.noise(np.zeros(1, np.int64), s, 2)
        for k in range(width):
            ret = rolled(plain, behaviour, met[s], found.chunk[s, k], later, execute, steps, gamma)
            assert found.ret[s, k] == pytest.approx(ret, rel=1e-5, abs=1e-5)
            later.begin(np.ones(1, bool))
            later.episode[:] = 0  # the same noise for the next branch


def rolled(plain, behaviour, met, chunk, noise, execute, steps, gamma) -> float:
    """The discounted return in gymnasium's environment, in float64."""
    base = plain.unwrapped
    plain.reset(seed=0)
    mujoco.mj_setState(base.model, base.data, met.state["env"]["physics"], INTEGRATION)
    ret, plan, obs = 0.0, chunk, None
    for k in range(execute + steps):
        if k and k % execute == 0:
            plan = behaviour.decide(torch.as_tensor(obs).float()[None], noise)[0].numpy()
        obs, reward, over, _, _ = plain.step(plan[k % execute])
        ret += gamma**k * reward
        if over:
            break
    return ret


GAMMA = 0.9


def paid(count):
    """The discounted sum of one a step."""
    return (1 - GAMMA**count) / (1 - GAMMA)


@native
def test_a_return_discounts_by_steps_and_adds_no_value_where_steps_or_time_end():
    """A pendulum that stands is paid 1 a step; of 15 steps those that are left can be had."""

    def still(obs, generator):
        return 0.001 * generator.normal((len(obs), 2, 1)).to(obs)

    behaviour, options = Behaviour(still, 0), {"max_episode_steps": 15}
    env = chunked("InvertedPendulum-v5", 5, 2, GAMMA, **options, reset_noise_scale=0.001)
    met, _ = meet(env, behaviour, 40)
    env = chunked("InvertedPendulum-v5", 80, 1, GAMMA, **options)
    found = branch(env, behaviour, met, 2, 2, 4)
    left = np.array([15 - each.step for each in met])
    assert not found.terminated.any() and (left < 6).any() and (left > 6).any()
    assert np.array_equal(found.cut, (left <= 6)[:, None].repeat(2, 1))
    expected = paid(np.minimum(left, 6))[:, None].repeat(2, 1)
    assert found.ret.dtype == np.float32
    assert np.allclose(found.ret, expected, rtol=1e-6)


@native
def test_a_branch_ends_where_the_task_does():
    """Pushed to one side it falls: what falls is paid 1 for every step before, and no more."""

    def pushing(obs, generator):
        return torch.ones(len(obs), 2, 1)

    behaviour = Behaviour(pushing, 0)
    env = chunked("InvertedPendulum-v5", 3, 2, GAMMA)
    met, _ = meet(env, behaviour, 6)
    found = branch(chunked("InvertedPendulum-v5", 12, 1, GAMMA), behaviour, met, 2, 2, 60)
    assert found.terminated.all() and not found.cut.any() and not found.broken.any()
    plain = gymnasium.make("InvertedPendulum-v5")
    for s, each in enumerate(met):
        base: Any = plain.unwrapped
        over, count = False, -1
        plain.reset(seed=0)
        mujoco.mj_setState(base.model, base.data, each.state["env"]["physics"], INTEGRATION)
        while not over:
            over, count = plain.step(np.array([3.0]))[2], count + 1
        assert np.allclose(found.ret[s], paid(count), rtol=1e-6)


@native
def test_a_branch_whose_physics_breaks_is_told():
    env = chunked("Hopper-v5", 2, 1)
    behaviour = Behaviour(behaved(1, 3), 0)
    met, _ = meet(env, behaviour, 1)
    physics = met[0].state["env"]["physics"]
    physics[2] = np.nan
    found = branch(env, behaviour, met, 2, 1, 5)
    assert found.broken.all() and not found.ret.any()
