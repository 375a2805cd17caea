"""Dictionary observation spaces of gymnasium as named parts of a vector, as it flattens them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .pixels import is_image, pack


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


def size(space: spaces.Space) -> int:
    """Columns that a part takes in a vector: an image one for each pixel."""
    shown = image(space)
    return spaces.flatdim(space) if shown is None else math.prod(shown)


def numbers(space: spaces.Space) -> int | None:
    """Numbers that a part has at a step; None for images, tables, text and sequences."""
    if isinstance(space, spaces.Discrete):
        return 1
    plain = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
    return math.prod(space.shape) if plain and len(space.shape) < 2 else None


def image(space: spaces.Space) -> tuple[int, int] | None:
    """Height and width of an image, a Box of uint8 [H, W, 3]; None for all others."""
    shape = space.shape if isinstance(space, spaces.Box) else None
    return (shape[0], shape[1]) if shape is not None and is_image(shape, space.dtype) else None


def table(space: spaces.Space, values: NDArray) -> NDArray:
    """Values [L, ...] of a part as columns [L, D]: numbers that count kinds one-hot, images packed.

    Raises ValueError for one that is no kind of the space.
    """
    if image(space) is not None:
        return pack(values)
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
