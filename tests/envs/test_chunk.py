"""Chunk execution against a plain loop over one gymnasium environment at a time."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.guard import NonFiniteAction
from rheo.envs.mujoco import physics
from rheo.envs.suites import make
from rheo.errors import EnvError

GAMMA = 0.9


def same(one: Any, two: Any) -> bool:
    """Whether two records of tensors are equal to the last bit; None is only equal to None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


class Plain(NamedTuple):
    """What one decision of one environment should report."""

    obs: list[float]
    reward: float
    discount: float
    next_obs: list[float]
    terminated: bool
    truncated: bool
    frames: int


class PlainChunks:
    """The semantics of ChunkEnv, written for one environment without any array."""

    def __init__(self, seed: int, execute: int, obs_steps: int, **options: Any) -> None:
        self.env = gymnasium.make("RheoTally-v0", disable_env_checker=True, **options)
        self.execute, self.obs_steps = execute, obs_steps
        self.start(seed)

    def start(self, seed: int | None) -> None:
        obs, _ = self.env.reset(seed=seed)
        self.seen = [list(obs)] * self.obs_steps
        self.total, self.length = 0.0, 0

    def flat(self) -> list[float]:
        return [value for obs in self.seen[-self.obs_steps :] for value in obs]

    def step(self, chunk: np.ndarray) -> tuple[Plain, float, int]:
        reward, frames = 0.0, 0
        terminated = truncated = False
        while frames < self.execute and not (terminated or truncated):
            action = (chunk[frames] * 2 + 2).astype(np.float32)  # [-1, 1] onto [0, 4]
            obs, value, terminated, truncated, _ = self.env.step(action)
            reward += GAMMA**frames * float(value)
            self.total, self.length = self.total + float(value), self.length + 1
            frames += 1
            self.seen.append(list(obs))
        discount = 0.0 if terminated else GAMMA**frames
        next_obs, total, length = self.flat(), self.total, self.length
        if terminated or truncated:
            self.start(None)
        done = Plain(self.flat(), reward, discount, next_obs, terminated, truncated, frames)
        return done, total, length


@pytest.mark.parametrize(("execute", "obs_steps"), [(1, 1), (1, 3), (4, 1), (4, 2), (9, 4)])
def test_chunks_equal_a_loop_over_single_environments(execute: int, obs_steps: int) -> None:
    env = make("RheoTally-v0", 4, seed=3, dtype=torch.float64)
    chunks = ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=GAMMA)
    plain = [PlainChunks(3 + i, execute, obs_steps) for i in range(4)]
    obs = chunks.reset()
    assert chunks.obs_dim == obs.shape[1] == 3 * obs_steps
    assert obs.tolist() == [one.flat() for one in plain]
    rng = np.random.default_rng(0)
    ends = [0, 0]
    for _ in range(40):
        action = rng.uniform(-1, 1, (4, execute + 2, 1))
        step = chunks.step(torch.from_numpy(action))
        assert step.valid.all()
        for i, one in enumerate(plain):
            expected, total, length = one.step(action[i])
            actual = Plain(
                step.obs[i].tolist(),
                float(step.reward[i]),
                float(step.discount[i]),
                step.next_obs[i].tolist(),
                bool(step.terminated[i]),
                bool(step.truncated[i]),
                int(step.frames[i]),
            )
            for ours, theirs in zip(actual, expected, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-12)
            assert float(step.episode_return[i]) == pytest.approx(total)
            assert int(step.episode_length[i]) == length
            ends[0] += expected.terminated
            ends[1] += expected.truncated
    assert min(ends) >= 3


def test_a_broken_step_makes_the_whole_chunk_invalid_and_starts_anew() -> None:
    env = make("RheoTally-v0", 2, seed=0, broken_at=6, longest=60)
    chunks = ChunkEnv(env, execute=4, obs_steps=2, gamma=GAMMA)
    chunks.reset()
    action = torch.zeros(2, 4, 1)
    assert chunks.step(action).valid.all()
    step = chunks.step(action)
    assert not step.valid.any()
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.frames.tolist() == [2, 2]
    assert step.next_obs[:, 4].tolist() == [5, 5]  # the newest finite observation
    assert step.obs[:, [1, 4]].tolist() == [[0, 0], [0, 0]]
    assert chunks.step(action).valid.all()


def test_only_actions_that_are_executed_must_be_finite() -> None:
    env = make("RheoTally-v0", 2, seed=0, longest=60)
    chunks = ChunkEnv(env, execute=2, obs_steps=1, gamma=GAMMA)
    chunks.reset()
    action = torch.zeros(2, 4, 1)
    action[0, 3] = torch.nan
    assert chunks.step(action).valid.all()
    action[1, 1] = torch.nan
    with pytest.raises(NonFiniteAction, match="environment 1 at step 4"):
        chunks.step(action)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("native", marks=pytest.mark.skipif(not physics.available(), reason="3.17")),
        "gymnasium",
    ],
)
@pytest.mark.parametrize(("execute", "obs_steps"), [(1, 1), (1, 4), (4, 2)])
def test_a_saved_chunk_environment_continues_bit_for_bit(
    backend: str, execute: int, obs_steps: int
) -> None:
    def fresh() -> ChunkEnv:
        env = make("Hopper-v5", 3, seed=8, backend=backend, max_episode_steps=30)
        return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=GAMMA)

    chunks, other = fresh(), fresh()
    plan = torch.rand(60, 3, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chunks.reset()
    for action in plan[:25]:
        chunks.step(action)
    saved = chunks.state_dict()
    straight = [chunks.step(action) for action in plan[25:]]
    other.load_state_dict(saved)
    resumed = [other.step(action) for action in plan[25:]]
    for one, two in zip(straight, resumed, strict=True):
        assert same(one, two)
    assert any(bool((one.terminated | one.truncated).any()) for one in straight)


def test_returned_tensors_are_not_overwritten_by_later_steps() -> None:
    chunks = ChunkEnv(make("Hopper-v5", 2, seed=0), execute=3, obs_steps=2, gamma=GAMMA)
    chunks.reset()
    plan = torch.rand(30, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept, copies = [], []
    for action in plan:
        step = chunks.step(action)
        kept.append([value for value in step if value is not None])
        copies.append([value.clone() for value in kept[-1]])
    for step, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step, copy, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"execute": 0}, "execute is 0"),
        ({"obs_steps": 0}, "obs_steps is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    settings: Any = {"execute": 1, "obs_steps": 1, "gamma": GAMMA, **changes}
    with pytest.raises(EnvError, match=message):
        ChunkEnv(make("RheoTally-v0", 1), **settings)


def test_a_chunk_shorter_than_what_is_executed_is_refused() -> None:
    chunks = ChunkEnv(make("RheoTally-v0", 2, seed=0), execute=3, obs_steps=1, gamma=GAMMA)
    chunks.reset()
    with pytest.raises(ValueError, match=r"expected \[2, >= 3, 1\]"):
        chunks.step(torch.zeros(2, 2, 1))
