"""The whole state of MuJoCo tasks that are stepped one by one, to go on to the last bit."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..seeded import Seeded
from .dmc import ControlEnv
from .physics import INTEGRATION, mujoco

# Wrappers without a state of their own beside the step count.
PLAIN_WRAPPERS = {"TimeLimit", "OrderEnforcing", "PassiveEnvChecker"} | {
    *("FlattenObservation", "PartsVector", "Seeded", "WithCameras", "ChosenParts"),
}
# Tasks whose whole state is the simulator's, the generators, the step count, the places in the
# model that a reset draws (MOVED), and these attributes.
TASKS: dict[str, tuple[str, ...]] = {
    "gymnasium.envs.mujoco.": (),
    "gymnasium_robotics.envs.adroit_hand.": ("pen_length", "tar_length"),
    "gymnasium_robotics.envs.maze.": ("goal", "reset_pos"),
    "ogbench.locomaze.": ("cur_goal_xy",),
    f"{ControlEnv.__module__}": (),
}
MOVED = ("body_pos", "body_quat", "site_pos", "geom_pos")
INNER = ("point_env", "ant_env")  # environments inside gymnasium-robotics' mazes
# Derived MjData fields that gymnasium's tasks read before the next step refreshes them.
DERIVED = [
    "xpos",
    "xipos",
    "site_xpos",
    "cinert",
    "cvel",
    "qfrc_actuator",
    "qfrc_constraint",
    "cfrc_ext",
]


def simulator(env: gymnasium.Env) -> Any | None:
    """The environment's MjData, if it has one."""
    data = getattr(env.unwrapped, "data", None)
    return data if isinstance(data, mujoco.MjData) else None


def lacking(env: gymnasium.Env) -> str | None:
    """What `take` and `generators` may not hold of what the next steps depend on; None: nothing."""
    while env is not env.unwrapped:
        if type(env).__name__ not in PLAIN_WRAPPERS:
            return f"its wrapper {type(env).__name__} may keep a state of its own"
        env = env.env  # type: ignore[attr-defined]
    if simulator(env) is None:
        return "it has no MuJoCo simulator of its own"
    if not type(env).__module__.startswith(tuple(TASKS)):
        return f"what its class {type(env).__name__} keeps beside the simulator is not known"
    return None


def whole(env: gymnasium.Env) -> bool:
    """Whether `take` and `generators` hold everything the next steps depend on."""
    return lacking(env) is None


def generators(env: gymnasium.Env) -> list[Any]:
    """Every bit generator that the environment draws from; each has a `state`."""
    found = []
    while env is not env.unwrapped:
        if isinstance(env, Seeded):
            found.append(env.bits)
        env = env.env  # type: ignore[attr-defined]
    own: Any = getattr(env, "bit_generators", None)
    if own is not None:
        return found + own()
    inner = [getattr(env, name) for name in INNER if hasattr(env, name)]
    return found + [task.np_random.bit_generator for task in (env, *inner)]


def attributes(base: Any) -> tuple[str, ...]:
    """Which attributes of a task belong to its state."""
    module = type(base).__module__
    names = next(names for prefix, names in TASKS.items() if module.startswith(prefix))
    return tuple(name for name in names if hasattr(base, name))


def take(env: gymnasium.Env) -> dict[str, NDArray]:
    """The state of the simulator and of the task, without the generators."""
    base: Any = env.unwrapped
    state = np.zeros(mujoco.mj_stateSize(base.model, INTEGRATION))
    mujoco.mj_getState(base.model, base.data, state, INTEGRATION)
    return {
        "state": state,
        **{name: getattr(base.data, name).copy() for name in DERIVED},
        **{f"model_{name}": getattr(base.model, name).copy() for name in MOVED},
        **{f"task_{name}": np.array(getattr(base, name)) for name in attributes(base)},
    }


def put_back(env: gymnasium.Env, saved: dict[str, NDArray], elapsed: int) -> None:
    """Continue from what `take` returned, `elapsed` steps into the episode."""
    base: Any = env.unwrapped
    for name in MOVED:
        getattr(base.model, name)[...] = saved[f"model_{name}"]
    for name in attributes(base):
        setattr(base, name, np.array(saved[f"task_{name}"]))
    mujoco.mj_setState(base.model, base.data, np.asarray(saved["state"]), INTEGRATION)
    for name in DERIVED:
        getattr(base.data, name)[...] = saved[name]
    while env is not base:
        if hasattr(env, "_elapsed_steps"):
            env._elapsed_steps = elapsed  # type: ignore[attr-defined]
        env = env.env  # type: ignore[attr-defined]
