"""An environment for worker processes: `fragile:Fragile-v0`, which breaks where it is told to.

A module that other processes can import, where its folder is on sys.path.
"""

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


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


if "Fragile-v0" not in gymnasium.registry:
    kind: Any = Fragile
    gymnasium.register("Fragile-v0", kind)
