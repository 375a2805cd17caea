"""Small environments with known episodes, registered with gymnasium for the tests."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Tally(gymnasium.Env):
    """Counts steps; an episode ends after a random number of them, at random by either flag.

    obs = [episode, steps, last action]; reward = steps + action. `broken_at` returns NaN at that
    step of every episode. Actions lie in [0, 4].
    """

    def __init__(self, broken_at: int | None = None, longest: int = 7, size: int = 3) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = spaces.Box(0.0, 4.0, (1,), np.float32)
        self.broken_at, self.longest = broken_at, longest
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        self.length = int(self.np_random.integers(1, self.longest))
        self.by_time = bool(self.np_random.random() < 0.5)
        return np.array([self.episode, 0.0, 0.0]), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        value = float(action[0])
        ended = self.steps >= self.length
        obs = np.array([self.episode, self.steps, value])
        if self.steps == self.broken_at:
            obs[1] = np.nan
        return obs, self.steps + value, ended and not self.by_time, ended and self.by_time, {}


class Wandering(gymnasium.Env):
    """A random walk pushed by the action, whose place nobody can read or set: it repeats.

    obs = [the last move]; the place is paid as reward. `shift` adds to every move.
    """

    repeats = True

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._place = self.np_random.standard_normal()
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        move = self.np_random.standard_normal() + float(action[0]) + self.shift
        self._place += move
        return np.array([move]), float(self._place), False, False, {}

    def bit_generators(self) -> list[Any]:
        return [self.np_random.bit_generator]


class Spaces(gymnasium.Env):
    """An environment that only has spaces."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


def register() -> None:
    """Register the environments above once per process: `RheoTally-v0` and so on."""
    kinds: dict[str, Any] = {f"Rheo{kind.__name__}-v0": kind for kind in (Tally, Spaces, Wandering)}
    for name, kind in kinds.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, kind)
