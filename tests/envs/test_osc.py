"""The lean loop of robosuite's tasks: every number is that of robosuite's own loop."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from shipped import skip_where_it_cannot_run

from rheo.envs.manipulation.robosuite_tasks import OSC_POSE, Robosuite
from rheo.envs.manipulation.scripted import script_of
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.seeded import drawing_from
from rheo.errors import EnvError

FILES = {"Lift": "lift", "PickPlaceCan": "can", "NutAssemblySquare": "square",
         "ToolHang": "tool_hang", "TwoArmTransport": "transport"}  # fmt: skip
Actions = NDArray | list[NDArray]
# input_type, frame and whether quantities are computed once a substep: every pair of them
WAYS = [("delta", "world", True), ("delta", "base", False),
        ("absolute", "world", False), ("absolute", "base", True)]  # fmt: skip


def made(
    task: str, lite: bool = True, hard_reset: bool = False, control_freq: int = 20, **changes: Any
) -> Robosuite:
    """A task, its controller with some keys of its own."""
    skip_where_it_cannot_run(FILES[task])
    kwargs = {"lite_physics": lite, "control_freq": control_freq}
    kwargs |= {"controller_configs": OSC_POSE | changes}
    env_args = {"env_name": task, "env_kwargs": kwargs}
    with drawing_from(np.random.MT19937(0)):
        return Robosuite(task, env_args, stop=False, hard_reset=hard_reset)


@contextlib.contextmanager
def controls() -> Iterator[list[NDArray]]:
    """What the actuators are told, whenever MuJoCo looks: in every substep at least once."""
    told: list[NDArray] = []

    mujoco.set_mjcb_control(lambda _, data: told.append(data.ctrl.copy()))
    try:
        yield told
    finally:
        mujoco.set_mjcb_control(None)


def episode(
    env: Robosuite, actions: Actions, own: bool
) -> tuple[list[dict[str, NDArray]], NDArray]:
    """All that is known after a reset and every step, and `controls`; own: by its own loop."""
    inner = env.env
    with drawing_from(np.random.MT19937(5)):
        steps = [{**inner.reset(), "state": env.sim_state()}]
        with controls() as told:
            for action in actions:
                seen, reward = inner.step(action)[:2] if own else env.loop.step(action)
                steps.append({**seen, "state": env.sim_state(), "reward": np.array(reward)})
                clocks = [each._time_since_last_sample for each in inner._observables.values()]
                times = [inner._check_success(), inner.cur_time, inner.timestep, *clocks]
                steps[-1]["times"] = np.array(times)
                grips = [robot.gripper["right"].current_action for robot in inner.robots]
                steps[-1]["grips"] = np.concatenate(grips)
    return steps, np.array(told)


def agree(env: Robosuite, actions: Actions) -> list[dict[str, NDArray]]:
    """Runs an episode in both loops, compares all to the last bit and gives it."""
    ours, told = episode(env, actions, own=False)
    assert env.loop.arms, "this is to be stepped without robosuite's loop"
    theirs, wanted = episode(env, actions, own=True)
    assert len(np.unique(wanted, axis=0)) > 15 * len(actions)
    np.testing.assert_array_equal(told, wanted)
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], f"{key} of step {step}")
    return ours


def drawn(env: Robosuite, steps: int, absolute: bool) -> NDArray:
    """Random actions, [steps, Da]; absolute ones around a pose that both frames can reach."""
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (steps, env.env.action_dim))
    if absolute:
        for arm in range(len(env.env.robots)):
            pose = actions[:, 7 * arm : 7 * arm + 6]
            pose *= 0.15
            pose += [0.4, 0.0, 0.9, 3.0, 0.0, 0.0]
    return actions


@pytest.mark.parametrize(("task", "way"), list(itertools.product(FILES, WAYS)))
def test_torques_and_observations_are_robosuites_to_the_last_bit(
    task: str, way: tuple[str, str, bool]
) -> None:
    kind, frame, lite = way
    env = made(task, lite=lite, input_type=kind, input_ref_frame=frame)
    agree(env, drawn(env, 12, kind == "absolute"))


def test_observables_are_sampled_when_robosuite_does_where_periods_end_between_substeps() -> None:
    env = made("Lift", control_freq=30)
    agree(env, drawn(env, 40, absolute=False))


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
def test_a_task_is_solved_in_the_same_step(task: str) -> None:
    env, actions = made(task), []
    with drawing_from(np.random.MT19937(5)):
        env.reset()
        plan = script_of(f"robosuite/{task}-v0").plan(env.seen)
        action, solved = next(plan), False
        while not solved and len(actions) < 200:
            actions.append(action)
            solved = env.step(action)[4]["success"]
            action = plan.send(env.seen)
    rewards = [step["reward"] for step in agree(env, actions)[1:]]
    assert rewards[-1] == 1 and not any(rewards[:-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"uncouple_pos_ori": False},
        {"kp": [150, 100, 80, 60, 50, 40], "damping_ratio": 0.7},
        {"impedance_mode": "variable_kp"},
        {"type": "OSC_POSITION", "output_max": 0.05, "output_min": -0.05},
    ],
)
def test_gains_couplings_and_positions_alone_are_robosuites(changes: dict[str, Any]) -> None:
    env = made("Lift", **changes)
    agree(env, drawn(env, 5, absolute=False))


def test_it_follows_a_model_that_a_reset_builds_anew() -> None:
    env = made("Lift", hard_reset=True)
    agree(env, drawn(env, 3, absolute=False))
    agree(env, drawn(env, 3, absolute=False))


OTHERS = [
    {"interpolation": "linear"},
    {"type": "JOINT_POSITION", "output_max": 0.05, "output_min": -0.05},
    {"type": "JOINT_TORQUE", "output_max": 1, "output_min": -1},
]


@pytest.mark.parametrize("changes", OTHERS)
def test_other_controllers_run_in_robosuites_loop(changes: dict[str, Any]) -> None:
    env = made("Lift", **changes)
    actions = drawn(env, 3, absolute=False)
    ours, theirs = (episode(env, actions, own)[0] for own in (False, True))
    assert not env.loop.arms
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one["state"], other["state"])


def test_an_observable_of_another_rate_or_delay_is_left_to_robosuite() -> None:
    env = made("Lift")
    actions = drawn(env, 2, absolute=False)
    for attribute, value in (("sampling_rate", 10), ("delayer", lambda: 0.01)):
        env.env.modify_observable("cube_pos", attribute, value)
        episode(env, actions, own=False)
        assert not env.loop.arms
        env.env.modify_observable("cube_pos", attribute, {"sampling_rate": 20}.get(attribute))
        agree(env, actions)


def test_an_action_of_another_size_is_refused() -> None:
    env = made("Lift")
    env.reset()
    with pytest.raises(EnvError, match="an action of 8 numbers, and it takes 7"):
        env.step(np.zeros(8))
