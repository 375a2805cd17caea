"""A task that only an image tells, and demonstrations of it, for the tests of pixels."""

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Dict

NAME, STEPS, NEAR = "RheoDots-v0", 4, 0.35
KEYS, NAMES = ["tip", "front_image"], ["front_image", "side_image"]


def picture(place: float, size: int = 12) -> np.ndarray:
    """A light column three pixels wide, at a place in [-1, 1], on a dark ground."""
    image = np.full((size, size, 3), 30, np.uint8)
    middle = 1 + round((place + 1) / 2 * (size - 3))
    image[:, middle - 1 : middle + 2] = (250, 180, 90)
    return image


class Dots(gymnasium.Env):
    """Reward 1 for an action near where the light stands; it stands elsewhere in every step."""

    repeats = True  # a seed and actions give the same episode

    def __init__(self, size: int = 12, cameras: int = 1) -> None:
        shown = Box(0, 255, (size, size, 3), np.uint8)
        names = NAMES[:cameras]
        self.size, self.names = size, names
        parts: dict[str, Any] = dict.fromkeys(names, shown)
        self.observation_space = Dict({**parts, "tip": Box(-1, 1, (1,))})
        self.action_space = Box(-1, 1, (1,), np.float32)

    def look(self) -> dict[str, Any]:
        self.place = float(self.np_random.uniform(-1, 1))
        tip = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return {"tip": tip} | {name: picture(self.place, self.size) for name in self.names}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        good = abs(float(action[0]) - self.place) < NEAR
        self.count += 1
        return self.look(), float(good), False, self.count == STEPS, {"success": good}


def register() -> None:
    if NAME not in gymnasium.registry:
        gymnasium.register(NAME, f"{__name__}:Dots")


def demos(path: Path, count: int = 40) -> str:
    """A robomimic file of the best actions."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(count):
            places = rng.uniform(-1, 1, STEPS)
            file[f"data/demo_{i}/obs/front_image"] = np.stack([picture(x) for x in places])
            file[f"data/demo_{i}/obs/tip"] = rng.uniform(-1, 1, (STEPS, 1))
            file[f"data/demo_{i}/actions"] = places[:, None]
            file[f"data/demo_{i}/rewards"] = np.ones(STEPS)
            file[f"data/demo_{i}/dones"] = np.zeros(STEPS)
    return str(path)
