"""The tasks' formulas on torch tensors: the numbers that they give on numpy arrays."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.families import home, register
from rheo.envs.mujoco import control_tasks, fetch, hands, native, warp
from rheo.envs.mujoco.physics import mujoco

TASKS = [env_id for env_id in native.TASKS if home(env_id)[0] == "gymnasium"]
ROBOTS = [*hands.TASKS, *fetch.TASKS] if find_spec("gymnasium_robotics") else []
CONTROL = [name for name in control_tasks.TASKS if warp.has(name) and find_spec("dm_control")]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((env_id, {}) for env_id in (*TASKS, *ROBOTS, *CONTROL)),
    ("Ant-v4", {"use_contact_forces": True}),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False}),
    ("Humanoid-v5", {"include_cfrc_ext_in_observation": False}),
]
ROWS = 7
SPARSE = [env_id for env_id in fetch.TASKS if "Dense" not in env_id]


def states(env_id: str, options: dict[str, Any]) -> tuple[native.Opened, dict[str, Any]]:
    """An environment of gymnasium's and what ROWS random states of it hold, row by row."""
    register(env_id)
    one = native.opened(env_id, options)
    template = one.template
    names = ("qpos", "qvel", "ctrl", *one.kind.derived(one.settings))
    rng, data = np.random.default_rng(1), template.data
    rows = []
    for _ in range(ROWS):
        mujoco.mj_resetData(template.model, data)
        data.qpos[:] = one.kind.beginning(template)[0] + rng.normal(size=template.model.nq) * 0.2
        data.qvel[:] = 8 * rng.normal(size=template.model.nv)
        data.ctrl[:] = rng.uniform(-1, 1, template.model.nu)
        mujoco.mj_step(template.model, data, nstep=3)
        mujoco.mj_rnePostConstraint(template.model, data)
        rows.append([getattr(data, name).copy() for name in names])
    columns = (np.stack(column) for column in zip(*rows, strict=True))
    models = {name: np.stack([getattr(template.model, name)] * ROWS) for name in one.kind.own}
    return one, {**dict(zip(names, columns, strict=True)), **models}


def outcome(one: native.Opened, views: dict[str, Any]) -> list:
    """Observation, position, reward, termination and success of the states."""
    task = one.kind(one.template, one.settings, views)
    task.settle(np.arange(ROWS))
    obs = task.xp.zeros((ROWS, one.obs_dim), dtype=views["qpos"].dtype)
    task.observe(obs)
    position = task.position()
    speed = position if position is not None else obs[:, 0]
    reward, terminated = task.score(views["ctrl"], speed, obs)
    return [obs, position, reward, terminated, task.success() if task.reports else None]


@pytest.mark.parametrize(("env_id", "options"), CASES)
def test_formulas_on_torch_are_those_on_numpy(env_id: str, options: dict[str, Any]) -> None:
    opened, views = states(env_id, options)
    ours = outcome(opened, views)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in views.items()}
    theirs = outcome(opened, tensors)
    for one, other in zip(ours, theirs, strict=True):
        if one is None:
            assert other is None
            continue
        assert isinstance(other, torch.Tensor)
        scale = max(1.0, float(np.abs(one).max()))
        assert np.abs(1.0 * one - 1.0 * other.numpy()).max() <= 1e-12 * scale
    assert np.abs(ours[0]).max() > 0
    alike = env_id == "InvertedPendulum-v5" or "Sparse" in env_id or env_id in SPARSE
    assert ours[2].std() > 0 or alike


def test_a_position_is_a_copy_that_the_next_step_does_not_change() -> None:
    one, views = states("HalfCheetah-v5", {})
    tensors = {name: torch.from_numpy(value.copy()) for name, value in views.items()}
    for kept in (views, tensors):
        task = one.kind(one.template, one.settings, kept)
        before = task.position()
        assert before is not None
        first = float(before[0])
        task.qpos[0, 0] += 1
        assert float(before[0]) == first
