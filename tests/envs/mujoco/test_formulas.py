"""The tasks' formulas on torch tensors: the numbers that they give on numpy arrays."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.families import home, register
from rheo.envs.mujoco import hands, native
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.vector import gymnasium_make

TASKS = [env_id for env_id in native.TASKS if home(env_id)[0] == "gymnasium"]
HANDS = list(hands.TASKS) if find_spec("gymnasium_robotics") else []
CASES: list[tuple[str, dict[str, Any]]] = [
    *((env_id, {}) for env_id in (*TASKS, *HANDS)),
    ("Ant-v4", {"use_contact_forces": True}),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False}),
    ("Humanoid-v5", {"include_cfrc_ext_in_observation": False}),
]
ROWS = 7


def states(env_id: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An environment of gymnasium's and what ROWS random states of it hold, row by row."""
    register(env_id)
    template: Any = gymnasium_make(env_id, options).unwrapped
    settings = native.task_options(env_id, options)
    names = ("qpos", "qvel", "ctrl", *native.TASKS[env_id].derived(settings))
    rng, data = np.random.default_rng(1), template.data
    rows = []
    for _ in range(ROWS):
        mujoco.mj_resetData(template.model, data)
        data.qpos[:] = template.init_qpos + rng.normal(size=template.model.nq) * 0.2
        data.qvel[:] = 8 * rng.normal(size=template.model.nv)
        data.ctrl[:] = rng.uniform(-1, 1, template.model.nu)
        mujoco.mj_step(template.model, data, nstep=3)
        mujoco.mj_rnePostConstraint(template.model, data)
        rows.append([getattr(data, name).copy() for name in names])
    columns = (np.stack(column) for column in zip(*rows, strict=True))
    own = native.TASKS[env_id].own
    models = {name: np.stack([getattr(template.model, name)] * ROWS) for name in own}
    return template, {**dict(zip(names, columns, strict=True)), **models}


def outcome(env_id: str, template: Any, options: dict[str, Any], views: dict[str, Any]) -> list:
    """Observation, position, reward, termination and success of the states."""
    task = native.TASKS[env_id](template, native.task_options(env_id, options), views)
    task.settle(np.arange(ROWS))
    obs = task.xp.zeros((ROWS, template.observation_space.shape[0]), dtype=views["qpos"].dtype)
    task.observe(obs)
    position = task.position()
    speed = position if position is not None else obs[:, 0]
    reward, terminated = task.score(views["ctrl"], speed, obs)
    return [obs, position, reward, terminated, task.success() if task.reports else None]


@pytest.mark.parametrize(("env_id", "options"), CASES)
def test_formulas_on_torch_are_those_on_numpy(env_id: str, options: dict[str, Any]) -> None:
    template, views = states(env_id, options)
    ours = outcome(env_id, template, options, views)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in views.items()}
    theirs = outcome(env_id, template, options, tensors)
    for one, other in zip(ours, theirs, strict=True):
        if one is None:
            assert other is None
            continue
        assert isinstance(other, torch.Tensor)
        scale = max(1.0, float(np.abs(one).max()))
        assert np.abs(1.0 * one - 1.0 * other.numpy()).max() <= 1e-12 * scale
    assert np.abs(ours[0]).max() > 0
    assert ours[2].std() > 0 or env_id == "InvertedPendulum-v5" or "Sparse" in env_id


def test_a_position_is_a_copy_that_the_next_step_does_not_change() -> None:
    template, views = states("HalfCheetah-v5", {})
    tensors = {name: torch.from_numpy(value.copy()) for name, value in views.items()}
    for kept in (views, tensors):
        task = native.TASKS["HalfCheetah-v5"](
            template, native.task_options(template.spec.id, {}), kept
        )
        before = task.position()
        assert before is not None
        first = float(before[0])
        task.qpos[0, 0] += 1
        assert float(before[0]) == first
