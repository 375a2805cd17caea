"""Dictionary observation spaces of gymnasium as named parts of a vector, as it flattens them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


def leaves(space: spaces.Dict, under: str = "") -> Iterator[tuple[str, spaces.Space]]:
    """(name, space) of every part in the space's order; those of inner dictionaries are a/b."""
    for name, part in space.spaces.items():
        if isinstance(part, spaces.Dict):
            yield from leaves(part, f"{under}{name}/")
        else:
            yield f"{under}{name}", part


def value(observation: Any, name: str) -> Any:
    """The part of an observation, which is the whole for ""; None where it has none."""
    for key in name.split("/") if name else ():
        observation = observation.get(key) if isinstance(observation, dict) else None
    return observation


def numbers(space: spaces.Space) -> int | None:
    """Numbers that a part has at a step; None for images, tables, text and sequences."""
    if isinstance(space, spaces.Discrete):
        return 1
    plain = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
    return math.prod(space.shape) if plain and len(space.shape) < 2 else None


def table(space: spaces.Space, values: NDArray) -> NDArray:
    """Values [L, ...] of a part as columns [L, D]; numbers that count kinds are one-hot.

    Raises ValueError for one that is no kind of the space.
    """
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return values.reshape(len(values), -1)
    counts, first = (space.n, space.start) if isinstance(space, spaces.Discrete) else (None, 0)
    if isinstance(space, spaces.MultiDiscrete):
        counts, first = space.nvec, space.start
    kinds = values.reshape(len(values), -1) - first
    if (kinds < 0).any() or (kinds >= counts).any():
        raise ValueError(f"a value lies outside {space}")
    columns = [
        np.eye(count)[kinds[:, i]] for i, count in enumerate(np.atleast_1d(np.asarray(counts)))
    ]
    return np.concatenate(columns, axis=1)
