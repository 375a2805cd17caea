"""Environments for worker processes that break where they are told to: `fragile:Fragile-v0`, and
with something to look at `fragile:Cracked-v0`.

A module that other processes can import, where its folder is on sys.path.
"""

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv


class Fragile(gymnasium.Env):
    """A noisy walk of two numbers; an episode takes 3 to 8 steps and ends by either flag.

    obs = [x, y, steps, a number below the normal range]; actions lie in [-2, 2]. Success is told at
    the last step alone. fault: die, exit, hang or raise, `at` steps after the reset with the seed
    `bad`, with any seed when that is None. nan_at: step of an episode at which x is NaN.
    """

    repeats = True
    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def __init__(
        self, fault: str | None = None, at: int = 2, bad: int | None = None, nan_at: int = 0
    ) -> None:
        self.fault, self.at, self.bad, self.nan_at = fault, at, bad, nan_at
        self.seed, self.lived = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.lived = seed, 0
        self.steps = 0
        self.place = self.np_random.random(2)
        self.length = int(self.np_random.integers(3, 9))
        self.by_time = bool(self.np_random.random() < 0.5)
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return np.array([*self.place, self.steps, float((np.array([2.3e-308]) * 0.1)[0])])

    def step(self, action: Any) -> Any:
        self.steps, self.lived = self.steps + 1, self.lived + 1
        if self.fault and self.lived == self.at and self.bad in (None, self.seed):
            self.fail()
        self.place = self.place + 0.1 * action + 0.01 * self.np_random.normal(size=2)
        obs, over = self.seen(), self.steps >= self.length
        obs[0] = np.nan if self.steps == self.nan_at else obs[0]
        info = {"success": bool(self.place[0] > 0.5)} if over else {}
        return obs, float(self.place.sum()), over and not self.by_time, over and self.by_time, info

    def fail(self) -> None:
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "exit":
            os._exit(7)
        elif self.fault == "hang":
            time.sleep(3600)
        raise ValueError("the gripper is stuck")


class Cracked(HopperEnv):
    """Hopper as a task that repeats. nan_at: step of some episodes at which it is seen nowhere."""

    repeats = True

    def __init__(self, nan_at: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.nan_at = nan_at

    def reset(self, **given: Any) -> Any:
        found = super().reset(**given)
        self.steps, self.sound = 0, self.np_random.random() < 0.6
        return found

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, *rest = super().step(action)
        cracks = self.steps == self.nan_at and not self.sound
        return (np.full_like(obs, np.nan) if cracks else obs, *rest)


if "Fragile-v0" not in gymnasium.registry:
    kinds: dict[str, Any] = {"Fragile-v0": Fragile, "Cracked-v0": Cracked}
    for name, kind in kinds.items():
        gymnasium.register(name, kind)
