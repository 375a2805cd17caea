"""Chunks and sources whose environments stay on a device: the host's numbers, without asking."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rheo.envs.batch import Choice
from rheo.envs.chunk import ChunkEnv, ChunkStep
from rheo.envs.guard import NonFiniteAction
from rheo.envs.mujoco import physics
from rheo.envs.residual_env import Residual
from rheo.envs.sources import Replay, Rollouts
from rheo.envs.suites import make
from rheo.scripts.watching import Watcher

pytestmark = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
LIMIT = 11  # steps of an episode, so that some end by falling and others by time


def chunked(on_device: bool, execute: int, obs_steps: int, env: Any = None) -> ChunkEnv:
    """Hoppers of the host's backend, that are treated as if they were on a device, or not."""
    env = env or make("Hopper-v5", 5, seed=2, backend="native", threads=1, max_episode_steps=LIMIT)
    if on_device:
        env.device = torch.device("cpu")
    return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=0.97)


def plan(steps: int, execute: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(steps, 5, execute, 3, generator=generator) - 1


def same(one: ChunkStep, two: ChunkStep) -> bool:
    pairs: Any = zip(one, two, strict=True)
    return all(a is b or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


def shoot(env: ChunkEnv, row: int) -> None:
    world: Any = env.env
    world._task.qvel[row] = 1e12


@pytest.mark.parametrize(("execute", "obs_steps"), [(1, 1), (1, 3), (4, 1), (4, 2)])
def test_chunks_of_tensors_are_those_of_arrays(execute: int, obs_steps: int) -> None:
    host, device = (chunked(flag, execute, obs_steps) for flag in (False, True))
    assert torch.equal(host.reset(4), device.reset(4))
    other, ends = chunked(True, execute, obs_steps), 0
    other.reset(99)
    for k, action in enumerate(plan(24, execute)):
        mask = torch.tensor([True, False, True, True, False]) if k % 5 == 3 else None
        if k == 6:
            shoot(host, 1)
            shoot(device, 1)
        one, two = host.step(action, mask), device.step(action, mask)
        assert same(one, two), k
        ends += int((one.terminated | one.truncated).sum())
        if k == 12:
            saved = device.state_dict()
            assert all((saved[name] == value).all() for name, value in _own(host).items())
            other.load_state_dict(saved)
        if k > 12:
            assert same(two, other.step(action, mask)), k
    assert ends > 5


def _own(env: ChunkEnv) -> dict[str, Any]:
    state = env.state_dict()
    return {name: state[name] for name in ("history", "return", "length", "solved")}


def choosing(seed: int) -> Callable[[Tensor], Choice]:
    generator = torch.Generator().manual_seed(seed)

    def act(obs: Tensor) -> Choice:
        action = 2 * torch.rand(len(obs), 4, 3, generator=generator) - 1
        return Choice(action, {"noise": action[:, 0] * obs[:, :3]})

    return act


def planning(seed: int) -> Callable[[Tensor], Tensor]:
    act = choosing(seed)
    return lambda obs: act(obs).action


def test_rollouts_on_a_device_are_the_host_s() -> None:
    sides = []
    for on_device in (False, True):
        env = chunked(on_device, 4, 1)
        env.reset(3)
        source = Rollouts(env, torch.Generator().manual_seed(0), 4, decisions=6)
        act = choosing(5)
        source.next(act)
        shoot(env, 2)
        rollout, metrics = source.next(act), source.metrics()
        sides.append((source.frames, rollout, metrics))
        assert source.metrics().get("env/episodes") is None  # drained
    (frames, rollout, metrics), (counted, other, told) = sides
    assert frames == counted
    assert not rollout.valid.all()
    for one, two in zip(rollout[:-1], other[:-1], strict=True):
        assert torch.equal(one, two)
    assert torch.equal(rollout.kept["noise"], other.kept["noise"])
    assert metrics.keys() == told.keys()
    assert all(abs(metrics[name] - told[name]) < 1e-9 for name in metrics)
    assert metrics["env/episodes"] > 3


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_replay_on_a_device_keeps_what_the_host_s_keeps(n_step: int) -> None:
    sides = []
    for on_device in (False, True):
        env = chunked(on_device, 4, 1)
        env.reset(3)
        given = {"capacity": 70, "batch_size": 8, "warmup": 40, "update_ratio": 0.1}
        source = Replay(env, torch.Generator().manual_seed(0), 4, **given, n_step=n_step)
        act = planning(5)
        batch = source.next(act)
        for k in range(29):
            if k in (2, 13):
                shoot(env, k % 5)
            batch = source.next(act)
        sides.append((source.frames, source.buffer, batch, source.state_dict()["finished"]))
    (frames, buffer, batch, _), (counted, other, again, finished) = sides
    assert frames == counted
    assert (buffer.size, buffer.cursor) == (other.size, other.cursor)
    assert torch.equal(buffer.rows[: buffer.size], other.rows[: buffer.size])
    assert all(torch.equal(a, b) for a, b in zip(batch[:5], again[:5], strict=True))
    assert list(finished) == ["sums"]


def test_what_was_summed_survives_a_checkpoint() -> None:
    env = chunked(True, 4, 1)
    env.reset(3)
    source = Rollouts(env, torch.Generator().manual_seed(0), 4, decisions=6)
    source.next(choosing(5))
    saved = source.finished.state_dict()
    expected = source.finished.drain()
    assert expected["env/episodes"] > 0
    source.finished.load_state_dict(saved)
    assert source.finished.drain() == expected


def test_a_base_within_the_world_plans_the_same_on_a_device() -> None:
    def plan(obs: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn((len(obs), 4, 3), generator=generator)
        return (obs[:, None, :3] + obs[:, None, 3:6] + 0.2 * noise).tanh()

    sides = []
    for on_device in (False, True):
        world = chunked(on_device, 3, 1)
        sides.append(Residual(world, plan, 0.3, torch.Generator().manual_seed(0)))
    host, device = sides
    assert torch.equal(host.reset(4), device.reset(4))
    resumed = Residual(chunked(True, 3, 1), plan, 0.3, torch.Generator().manual_seed(9))
    resumed.reset(1)
    generator = torch.Generator().manual_seed(7)
    for k in range(40):
        delta = 2 * torch.rand(5, 1, 3, generator=generator) - 1
        one, two = host.step(delta), device.step(delta)
        assert same(one, two), k
        if k == 20:
            resumed.load_state_dict(device.state_dict())
        if k > 20:
            assert same(two, resumed.step(delta)), k


# ---- on MuJoCo Warp ----------------------------------------------------------------------------


def warped(execute: int) -> ChunkEnv:
    pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")
    env = make("Hopper-v5", 5, seed=2, backend="warp", max_episode_steps=LIMIT)
    chunk = ChunkEnv(env, execute=execute, obs_steps=1, gamma=0.97)
    chunk.reset(2)
    return chunk


@pytest.mark.parametrize("execute", [1, 4])
def test_a_rollout_asks_the_device_once_and_a_replay_once_a_decision(execute: int) -> None:
    env, act = warped(execute), choosing(5)
    source = Rollouts(env, torch.Generator().manual_seed(0), 4, decisions=7)
    source.next(act)
    with Watcher() as watcher:
        rollout = source.next(act)
    assert watcher.reads == ["tolist"]
    assert source.frames > int(rollout.frames.sum()) > 0
    replay = Replay(
        env, torch.Generator().manual_seed(0), 4, capacity=300, batch_size=4,
        warmup=1, update_ratio=0.01,
    )  # fmt: skip
    replay.next(planning(5))
    with Watcher() as watcher:
        for _ in range(5):
            replay.collect(planning(6))
    assert watcher.reads == ["tolist"] * 5
    with Watcher() as watcher:
        replay.buffer.sample(8, replay.generator)
    assert watcher.reads == []


def test_an_action_that_is_not_finite_ends_the_rollout_in_which_it_was_given() -> None:
    env, act = warped(1), choosing(5)
    source = Rollouts(env, torch.Generator().manual_seed(0), 4, decisions=3)

    def sick(obs: Tensor) -> Choice:
        choice = act(obs)
        choice.action[3, 0, 1] = torch.nan
        return choice

    source.next(act)
    with pytest.raises(NonFiniteAction, match="Hopper-v5.*environment 3 at step 4 of its episode"):
        source.next(sick)
