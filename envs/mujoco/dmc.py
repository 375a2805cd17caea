"""DeepMind Control's tasks as gymnasium environments, on the model files of the package dm_control.

The files are read where the package lies; the package itself is not imported, because its physics
does not know MuJoCo 4. The ids are those that Shimmy gives to the suite, dm_control/DOMAIN-TASK-v0.
`register` makes them known to gymnasium.
"""

import importlib.util
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...errors import EnvError
from .control import Control
from .control_tasks import TASKS
from .physics import mujoco

STEPS = 1000  # of an episode


def model_file(domain: str) -> Path:
    """The MJCF file of a domain. Raises EnvError where the package has no such file."""
    found = importlib.util.find_spec("dm_control")
    for folder in (found.submodule_search_locations or ()) if found else ():
        file = Path(folder) / "suite" / f"{domain}.xml"
        if file.is_file():
            return file
    raise EnvError(
        f"dm_control's suite/{domain}.xml is missing: pip install --force-reinstall --no-deps "
        "dm_control"
    )


def load(kind: type[Control]) -> Any:
    """A task's MjModel."""
    spec = mujoco.MjSpec.from_file(str(model_file(kind.domain)))
    spec.nuserdata = kind.drawn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of attributes that MuJoCo will drop
        model = spec.compile()
    kind.change(model)
    return model


class ControlEnv(gymnasium.Env):
    """One simulation of a task. obs_parts: the observation's parts with their widths, in order."""

    def __init__(self, kind: type[Control]) -> None:
        self.model = load(kind)
        self.data = mujoco.MjData(self.model)
        self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()
        self.dt = kind.seconds
        self.frame_skip = round(kind.seconds / self.model.opt.timestep)
        names = ("qpos", "qvel", "ctrl", *kind.fields)
        self.task = kind(self, {}, {name: getattr(self.data, name)[None] for name in names})
        self.obs_parts = self.task.parts()
        size = sum(self.obs_parts.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        low, high = self.model.actuator_ctrlrange.T
        self.action_space = spaces.Box(low, high, dtype=np.float64)

    def _obs(self) -> NDArray:
        obs = np.empty((1, *(self.observation_space.shape or ())))
        self.task.observe(obs)
        return obs[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        super().reset(seed=seed)
        self.task.draw(self.data, self.np_random)
        mujoco.mj_forward(self.model, self.data)
        return self._obs(), {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict[str, Any]]:
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        mujoco.mj_step1(self.model, self.data)
        return self._obs(), float(self.task.reward(self.data.ctrl[None])[0]), False, False, {}


def register() -> None:
    """Make the tasks known to gymnasium, once."""
    for env_id, kind in TASKS.items():
        if env_id not in gymnasium.registry:
            creator: Any = partial(ControlEnv, kind)  # nothing of it is an option
            gymnasium.register(env_id, creator, max_episode_steps=STEPS)
