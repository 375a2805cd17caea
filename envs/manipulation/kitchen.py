"""Franka Kitchen as its scores are told (arXiv:1910.11956, D4RL): `kitchen/mixed-v0`."""

import contextlib
import importlib
import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

HORIZON = 280
SUBTASKS = {  # D4RL's sets: what is scored
    "complete": ("microwave", "kettle", "light switch", "slide cabinet"),
    "partial": ("microwave", "kettle", "light switch", "slide cabinet"),
    "mixed": ("microwave", "kettle", "bottom burner", "light switch"),
}


class Kitchen(gymnasium.Env):
    """FrankaKitchen-v1 with four subtasks; the return counts those that were solved, 0 to 4.

    Observed are its 59 numbers of arm and objects. The goals, which the package's own environment
    has beside them, are the same in every episode.
    tasks: a key of SUBTASKS.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    repeats = True

    def __init__(self, tasks: str) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # notes on tasks that nobody asked for
            gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
        made = gymnasium.make(
            "FrankaKitchen-v1", tasks_to_complete=list(SUBTASKS[tasks]), disable_env_checker=True
        )
        self.env: Any = made.unwrapped
        self.observation_space = spaces.Box(
            -np.inf, np.inf, self.env.observation_space["observation"].shape
        )
        self.action_space = self.env.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.env.reset(seed=seed)[0]["observation"], {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict[str, Any]]:
        obs, reward, ends, cut, info = self.env.step(action)
        success = len(info["episode_task_completions"]) == len(self.env.goal)
        return obs["observation"], float(reward), ends, cut, {"success": success}

    def bit_generators(self) -> list[Any]:
        """What the task draws from: places of objects, and the noise of what is seen."""
        drawing = (self.env, self.env.robot_env)
        return [each.np_random.bit_generator for each in drawing]

    @property
    def data(self) -> Any:
        """MuJoCo's data, whose warnings the guards read."""
        return self.env.data

    @property
    def model(self) -> Any:
        """MuJoCo's model, for cameras."""
        return self.env.model

    def close(self) -> None:
        self.env.close()


def register() -> None:
    """Makes `kitchen/SET-v0` known to gymnasium."""
    for name in SUBTASKS:
        if f"kitchen/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"kitchen/{name}-v0",
                f"{__name__}:Kitchen",
                max_episode_steps=HORIZON,
                kwargs={"tasks": name},
            )
