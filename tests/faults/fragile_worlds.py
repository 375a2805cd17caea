"""An environment for `env.id=fragile_worlds:World-v0` that does what it is told to do wrong.

option `fault`: the name of a fault; `at`: the step of the process's life at which it comes.
"""

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class World(gymnasium.Env):
    """A noisy walk of two numbers in episodes of 12 steps."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault: str = "", at: int = 45) -> None:
        self.fault, self.at, self.lived = fault, at, 0
        if fault == "constructor":
            raise ValueError("no such robot")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.random(2)
        if self.fault == "reset raises" and self.lived >= self.at:
            raise RuntimeError("the arm did not come home")
        if self.fault == "reset without info":
            return self.place.copy()
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        self.steps, self.lived = self.steps + 1, self.lived + 1
        moved = self.place + 0.1 * float(np.asarray(action).ravel()[0])
        self.place = moved + 0.01 * self.np_random.normal(size=2)
        sound = [self.place.copy(), float(self.place.sum()), False, self.steps >= 12, {}]
        name = self.fault
        if name in ALWAYS:
            return ALWAYS[name](sound)
        if name in ONCE and self.lived == self.at:
            return ONCE[name](sound)
        return tuple(sound)


def changed(place: int, value: Any) -> Any:
    """A fault that puts something else into what a step returns."""
    return lambda step: tuple(value if i == place else kept for i, kept in enumerate(step))


def raising(error: BaseException) -> Any:
    """A fault that raises."""

    def fail(step: list[Any]) -> Any:
        raise error

    return fail


def hang(step: list[Any]) -> Any:
    """Sleeps for ever."""
    time.sleep(3600)


def spin(step: list[Any]) -> Any:
    """Computes for ever."""
    while True:
        pass


def killed(number: int) -> Any:
    """A fault that ends the process."""
    return lambda step: (os.kill(os.getpid(), number), time.sleep(60))


NAN = np.full(2, np.nan)
ONCE: dict[str, Any] = {
    "nan observation": changed(0, NAN),
    "inf observation": changed(0, np.full(2, np.inf)),
    "nan reward": changed(1, float("nan")),
    "inf reward": changed(1, float("inf")),
    "reward 1e300": changed(1, 1e300),
    "observation 1e30": changed(0, np.full(2, 1e30)),
    "observation 1e200": changed(0, np.full(2, 1e200)),
    "beyond its bounds": changed(0, np.full(2, 1e6)),
    "wrong shape": changed(0, np.zeros(3)),
    "scalar observation": changed(0, 1.0),
    "no observation": changed(0, None),
    "dict observation": changed(0, {"x": np.zeros(2)}),
    "text observation": changed(0, "here"),
    "no reward": changed(1, None),
    "text reward": changed(1, "much"),
    "reward of two": changed(1, np.ones(2)),
    "no info": changed(4, None),
    "nan terminated": changed(2, float("nan")),
    "tuple of four": lambda step: tuple(step[:4]),
    "raises RuntimeError": raising(RuntimeError("the bus is silent")),
    "raises ValueError": raising(ValueError("the gripper is stuck")),
    "raises FloatingPointError": raising(FloatingPointError("overflow")),
    "raises KeyboardInterrupt": raising(KeyboardInterrupt()),
    "raises SystemExit": raising(SystemExit(0)),
    "sleeps": hang,
    "spins": spin,
    "killed": killed(signal.SIGKILL),
    "segmentation fault": killed(signal.SIGSEGV),
}
ALWAYS: dict[str, Any] = {
    "always nan": changed(0, NAN),
    "reward of one": lambda step: (step[0], np.array([step[1]]), *step[2:]),
}

if "World-v0" not in gymnasium.registry:
    kind: Any = World
    gymnasium.register("World-v0", kind)
