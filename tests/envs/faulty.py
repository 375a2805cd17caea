"""An environment that does one of the things no environment should: `faulty:Faulty-v0`.

A module that other processes can import, where its folder is on sys.path.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

EVALUATED = range(100_000, 101_000)  # seeds of evaluations
OBS, REWARD, TERMINATED, INFO = 0, 1, 2, 4
ANSWERS: dict[str, tuple[int, Any]] = {  # what stands in an answer instead of what should
    "nan obs": (OBS, np.full(3, np.nan)),
    "inf obs": (OBS, np.array([0.0, np.inf, 0.0])),
    "1e30 obs": (OBS, np.full(3, 1e30)),
    "1e200 obs": (OBS, np.full(3, 1e200)),
    "obs out of bounds": (OBS, np.array([0.0, 1e6, 0.0])),
    "wrong shape": (OBS, np.zeros(4)),
    "scalar obs": (OBS, np.float64(1.0)),
    "no obs": (OBS, None),
    "dict obs": (OBS, {"x": np.zeros(3)}),
    "text obs": (OBS, np.array(["a", "b", "c"])),
    "nan reward": (REWARD, float("nan")),
    "inf reward": (REWARD, float("inf")),
    "1e300 reward": (REWARD, 1e300),
    "no reward": (REWARD, None),
    "text reward": (REWARD, "1"),
    "array reward": (REWARD, np.array([1.0])),
    "two rewards": (REWARD, np.ones(2)),
    "nan terminated": (TERMINATED, float("nan")),
    "no info": (INFO, None),
}


def spin() -> None:
    while True:
        pass


RAISED: dict[str, Callable[[], object]] = {  # what happens instead of an answer
    "RuntimeError": lambda: raised(RuntimeError("the gripper is stuck")),
    "ValueError": lambda: raised(ValueError("the gripper is stuck")),
    "FloatingPointError": lambda: raised(FloatingPointError("the gripper is stuck")),
    "KeyboardInterrupt": lambda: raised(KeyboardInterrupt()),
    "SystemExit": lambda: sys.exit(0),
    "sleeps": lambda: time.sleep(3600),
    "spins": spin,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}
PICTURES: dict[str, Callable[[], object]] = {
    "render raises": lambda: raised(OSError("no display")),
    "render exits": lambda: sys.exit(0),
    "no picture": lambda: None,
    "grey picture": lambda: np.zeros((32, 48), np.uint8),
    "float picture": lambda: np.zeros((32, 48, 3)),
    "other picture": lambda: np.zeros((16, 48, 3), np.uint8),
}
SPACES: dict[str, tuple[spaces.Space, spaces.Space]] = {
    "unbounded actions": (spaces.Box(-9, 9, (3,)), spaces.Box(-np.inf, np.inf, (1,))),
    "discrete actions": (spaces.Box(-9, 9, (3,)), spaces.Discrete(3)),
    "an image": (spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Box(-1, 1, (1,))),
}


def raised(error: BaseException) -> None:
    raise error


class Faulty(gymnasium.Env):
    """Five steps an episode. `fault` happens at its step `at`, once, or ever after if `always`.

    Not in evaluations, unless `everywhere`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self, fault: str = "", at: int = 30, always: bool = False, everywhere: bool = False,
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        if fault == "constructor raises":
            raise RuntimeError("the gripper is stuck")
        if fault == "constructor exits":
            sys.exit(0)
        pair = spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (1,))
        self.observation_space, self.action_space = SPACES.get(fault, pair)
        self.fault, self.at, self.always, self.everywhere = fault, at, always, everywhere
        self.lived, self.t, self.seed, self.render_mode = 0, 0, 0, render_mode

    def due(self) -> bool:
        """Whether it happens now."""
        there = self.everywhere or self.seed not in EVALUATED
        return there and (self.lived == self.at or self.always and self.lived > self.at)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed = self.seed if seed is None else seed
        self.t = 0
        obs = self.np_random.normal(size=3).astype(np.float32)
        if self.lived >= self.at and (self.everywhere or self.seed not in EVALUATED):
            if self.fault == "reset raises":
                raise RuntimeError("the gripper is stuck")
            if self.fault == "reset without info":
                return obs
            if self.fault == "reset of another shape":
                return np.zeros(4, np.float32), {}
            if self.fault == "reset to nan":
                return np.full(3, np.nan), {}
            if self.fault == "other actions":
                self.action_space = spaces.Box(-2, 2, (1,))
        return obs, {}

    def step(self, action: Any) -> Any:
        self.lived, self.t = self.lived + 1, self.t + 1
        answer = [np.full(3, self.t, np.float32), float(action[0]), self.t >= 5, False, {}]
        if not self.due():
            return tuple(answer)
        if self.fault in RAISED:
            Path("stuck").touch()  # for who waits for it
            RAISED[self.fault]()
        if self.fault == "four values":
            return tuple(answer[:4])
        if self.fault in ANSWERS:
            place, value = ANSWERS[self.fault]
            answer[place] = value
        return tuple(answer)

    def render(self) -> Any:
        if self.due() and self.fault in PICTURES:
            return PICTURES[self.fault]()
        return np.zeros((32, 48, 3), np.uint8)

    def close(self) -> None:
        if self.fault == "close raises":
            sys.exit(0)


if "Faulty-v0" not in gymnasium.registry:
    made: Any = Faulty
    gymnasium.register("Faulty-v0", made)
