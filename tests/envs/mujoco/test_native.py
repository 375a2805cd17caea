"""The batched tasks against gymnasium's own classes, step for step."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.families import home
from rheo.envs.mujoco import native, physics
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv

pytestmark = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")

TASKS = [env_id for env_id in native.TASKS if home(env_id)[0] == "gymnasium"]
# Values that change what random actions see within a few steps.
CHANGED: dict[str, Any] = {
    "contact_force_range": (-5.0, 50.0),
    "contact_cost_range": (-1.0, 0.5),
    "impact_cost_range": (-1.0, 2.0),
    "healthy_state_range": (-2.0, 2.0),
    "healthy_angle_range": (-0.05, 0.03),
    "frame_skip": 3,
    "main_body": "aux_1",
    "reset_noise_scale": 0.03,
}
Z_RANGES = {
    "Hopper": (1.2, 1.26),
    "Walker2d": (1.1, 1.25),
    "Ant": (0.5, 0.9),
    "Humanoid": (1.2, 1.4),
}
LEFT_OUT = ("xml_file", "default_camera_config")


def changed_options() -> list[tuple[str, str, Any]]:
    """(task, option, value other than the default) for every option of every task."""
    cases = []
    for env_id in TASKS:
        for name, value in native.task_options(env_id, {}).items():
            if name in LEFT_OUT:
                continue
            if name == "healthy_z_range":
                other: Any = Z_RANGES[env_id.split("-")[0]]
            elif isinstance(value, bool):
                other = not value
            else:
                other = CHANGED[name] if name in CHANGED else 1.7 * value
            cases.append((env_id, name, other))
    return cases


def gymnasium_make(env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return gymnasium.make(env_id, disable_env_checker=True, **options)


def largest_difference(
    env: VectorEnv, options: dict[str, Any], steps: int, seed: int, partial: bool
) -> tuple[float, int]:
    """Largest difference of observation and reward, and the number of episodes that ended.

    With `partial`, a third of the rows is left out of every step, at random.
    """
    ours = env.reset(seed).numpy()
    theirs = [gymnasium_make(env.id, options) for _ in range(env.num_envs)]
    worst, ends = 0.0, 0
    for i, other in enumerate(theirs):
        worst = max(worst, float(np.abs(ours[i] - other.reset(seed=seed + i)[0]).max()))
    rng = np.random.default_rng(seed)
    centre, half = (env.action_high + env.action_low) / 2, (env.action_high - env.action_low) / 2
    for _ in range(steps):
        action = rng.uniform(-1, 1, (env.num_envs, env.action_dim))
        active = rng.random(env.num_envs) < 2 / 3 if partial else np.ones(env.num_envs, bool)
        step = env.step(torch.from_numpy(action), torch.from_numpy(active) if partial else None)
        assert np.array_equal(step.valid.numpy(), active)
        for i in np.flatnonzero(active):
            obs, reward, terminated, truncated, _ = theirs[i].step(action[i] * half + centre)
            assert bool(step.terminated[i]) == terminated
            assert bool(step.truncated[i]) == truncated
            final = float(np.abs(step.final_obs[i].numpy() - obs).max())
            worst = max(worst, final, abs(float(step.reward[i]) - float(reward)))
            if terminated or truncated:
                ends += 1
                obs, _ = theirs[i].reset()
            worst = max(worst, float(np.abs(step.obs[i].numpy() - obs).max()))
    return worst, ends


@pytest.mark.parametrize("env_id", TASKS)
def test_a_thousand_random_steps_equal_gymnasium(env_id: str) -> None:
    env = make(env_id, 2, backend="native", dtype=torch.float64)
    worst, ends = largest_difference(env, {}, 1000, seed=3, partial=False)
    assert worst <= 1e-9
    assert ends >= 2


@pytest.mark.parametrize(("env_id", "name", "value"), changed_options())
def test_every_option_equals_gymnasium_also_in_partial_steps(
    env_id: str, name: str, value: Any
) -> None:
    given = {name: value, "max_episode_steps": 25}
    if name in ("contact_force_range", "contact_cost_weight") and env_id == "Ant-v4":
        given["use_contact_forces"] = True
    env = make(env_id, 3, backend="native", dtype=torch.float64, **given)
    worst, ends = largest_difference(env, given, 80, seed=11, partial=True)
    assert worst <= 1e-9
    assert ends >= 3


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    action = torch.rand(20, 5, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    runs = []
    for threads in (1, 2):
        env = make("Hopper-v5", 5, seed=2, threads=threads)
        first = env.reset()
        runs.append(torch.stack([first, *(env.step(a).obs for a in action)]))
    assert torch.equal(runs[0], runs[1])


@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_pooled_and_looped_contact_forces_are_the_same_numbers(env_id: str) -> None:
    base: Any = gymnasium_make(env_id, {}).unwrapped
    made = [kind(base.model, 3, 2) for kind in (physics.PooledForces, physics.LoopedForces)]
    start = np.zeros(made[0].state.shape[1])
    physics.mujoco.mj_getState(base.model, base.data, start, physics.INTEGRATION)
    forces = [simulation.bind("cfrc_ext") for simulation in made]
    controls = [simulation.bind("ctrl") for simulation in made]
    rng, largest = np.random.default_rng(0), 0.0
    for simulation in made:
        simulation.state[:] = start
        simulation.forward(None)
    for k in range(60):
        ids = np.flatnonzero(rng.random(3) < 0.7).astype(np.int32) if k % 2 else None
        action = rng.uniform(-1, 1, controls[0].shape)
        for simulation, control in zip(made, controls, strict=True):
            control[...] = action
            simulation.step(ids, 5)
        assert np.array_equal(forces[0], forces[1])
        assert np.array_equal(made[0].state, made[1].state)
        largest = max(largest, float(np.abs(forces[0]).max()))
    assert largest > 1
    assert physics._forces_kind() is physics.PooledForces


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'healthy_reward'"):
        make("Hopper-v5", 1, healthy_rewards=2.0)
