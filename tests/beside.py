"""Worlds on MuJoCo Warp beside those of MuJoCo itself, for its tests."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from steps import same

from rheo.envs.batch import Step
from rheo.envs.mujoco import physics
from rheo.envs.suites import make

pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")

from rheo.envs.mujoco import warp

NEEDS_BATCH = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
EPISODE, RESTORED = 6, 9  # steps of an episode, and those before a state is given to others
Trio = tuple[warp.WarpVector, warp.WarpVector, Any]


def made(env_id: str = "Hopper-v5", count: int = 4, **options: Any) -> warp.WarpVector:
    env = make(env_id, count, backend="warp", **{"seed": 0, **options})
    assert isinstance(env, warp.WarpVector)
    return env


def actions(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.num_envs, env.action_dim, generator=generator) * 2 - 1


def trio(env_id: str) -> Trio:
    """Four worlds, others of another seed, and MuJoCo's own that begin as the first do."""
    options: dict[str, Any] = {"seed": 3, "max_episode_steps": EPISODE}
    ours, other = made(env_id, **options), made(env_id, **(options | {"seed": 9}))
    theirs: Any = make(env_id, 4, backend="native", threads=1, **options)
    assert torch.equal(ours.reset(), theirs.reset())
    other.reset()
    return ours, other, theirs


def follow(ours: warp.WarpVector, theirs: Any) -> None:
    """Puts MuJoCo's simulations where the worlds are, which have begun from their bank."""
    task = theirs._task
    task.qpos[:], task.qvel[:] = ours._qpos.numpy(), ours._qvel.numpy()
    for name in task.own:
        task.views[name][:] = ours._worlds.field(name).numpy()
    theirs._physics.forward(None)
    task.settle(np.arange(4))


def two_episodes(
    worlds: Trio,
    plan: torch.Tensor,
    begin: Callable[[], None],
    idle: torch.Tensor | None = None,
    alike: int = RESTORED,
) -> Iterator[tuple[int, Step, Step]]:
    """Steps of the worlds and of MuJoCo's; what is cut and reached is the same in both.

    begin: puts MuJoCo's at the second episode's beginning. idle: rows [4] that take part in step 8,
    which others do not. alike: from this step on the other worlds, given the state before RESTORED,
    do the same to the last bit.
    """
    ours, other, theirs = worlds
    for k, action in enumerate(plan):
        if k == EPISODE:
            begin()
        if k == RESTORED:
            other.load_state_dict(ours.state_dict())
        active = idle if k == 8 else None
        one, two = ours.step(action, active), theirs.step(action, active)
        if k >= alike:
            assert same(other.step(action, active), one)
        assert torch.equal(one.valid, two.valid)
        assert torch.equal(one.truncated, two.truncated)
        assert (one.success is None) == (two.success is None)
        assert one.success is None or torch.equal(one.success, two.success)
        yield k, one, two
