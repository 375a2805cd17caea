"""Environments that draw from numpy's global generator, made to follow the seed of `reset`."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np


@contextlib.contextmanager
def drawing_from(bits: np.random.BitGenerator) -> Iterator[None]:
    """Inside, numpy's global generator is `bits`."""
    everyones: Any = np.random  # numpy's stubs do not know these two functions
    outer = everyones.get_bit_generator()
    everyones.set_bit_generator(bits)
    try:
        yield
    finally:
        everyones.set_bit_generator(outer)


class Seeded(gymnasium.Wrapper):
    """A task whose randomness follows the seed given to `reset`.

    OGBench's mazes draw start, goal and teleports, and robosuite its objects' places and its arm's
    start, from numpy's global generator, which `reset(seed)` does not seed. Here that generator is
    exchanged for one of the environment's own while the task runs. (The unseeded random actions
    inside OGBench's `reset` leave no trace in the episode.)
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.action_space = env.action_space  # some tasks build a new one at every look
        self.bits = np.random.MT19937()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.bits = np.random.MT19937(seed)
        with drawing_from(self.bits), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the precision of the bounds it builds
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        with drawing_from(self.bits):
            return self.env.step(action)
