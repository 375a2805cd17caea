"""Models that differ from world to world: masses, friction and damping times factors drawn once.

One factor a world and kind, uniform in a range, fixed by the run's seed and the world's number, so
that a resumed run has the same worlds. What MuJoCo derives from them (`mj_setConst`) it derives
here itself, on the host, from a model of each world.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvError, nearest
from ..guard import number
from .physics import mujoco

# what can be varied -> the model's fields that are multiplied. Inertia goes with mass: a body of
# the same shape, of another material.
KINDS = {
    "mass": ("body_mass", "body_inertia"),
    "friction": ("geom_friction",),
    "damping": ("dof_damping",),
}
# fields that each world has of its own then, those that follow from the others included
FIELDS = {
    "mass": ("body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0"),
    "friction": KINDS["friction"],
    "damping": KINDS["damping"],
}
STREAM = 20_259  # of the factors, apart from the beginnings'
Ranges = dict[str, tuple[float, float]]


def read_ranges(given: Mapping[str, Any]) -> Ranges:
    """Kinds with their lowest and highest factor. Raises EnvError for anything else."""
    ranges: Ranges = {}
    for kind, value in given.items():
        if kind not in KINDS:
            raise EnvError(f"env.randomise.{kind}: can be {', '.join(KINDS)}{nearest(kind, KINDS)}")
        ends = [number(end) for end in value] if isinstance(value, list | tuple) else []
        if len(ends) != 2 or not all(end is not None and 0 < end < np.inf for end in ends):
            raise EnvError(
                f"env.randomise.{kind}={value}: must be [lowest, highest] of a factor above 0, for "
                f"example env.randomise.{kind}=[0.8,1.2]"
            )
        low, high = ends
        if low > high:  # type: ignore[operator]
            raise EnvError(f"env.randomise.{kind}={value}: the lowest factor comes first")
        ranges[kind] = (low, high)  # type: ignore[assignment]
    return ranges


def fields_of(ranges: Ranges) -> list[str]:
    """The model's fields that differ from world to world."""
    return [field for kind in ranges for field in FIELDS[kind]]


def factors(ranges: Ranges, seed: int, count: int) -> dict[str, NDArray]:
    """Kind -> factors [N] of worlds 0 ... N - 1.

    Each kind and world has a stream of its own: neither what else is varied nor N matters.
    """
    drawn = {}
    for kind, (low, high) in ranges.items():
        place = list(KINDS).index(kind)
        streams = (np.random.default_rng([seed, STREAM, place, i]) for i in range(count))
        drawn[kind] = np.array([stream.uniform(low, high) for stream in streams])
    return drawn


def vary(own: Any, data: Any, model: Any, chosen: Mapping[str, float]) -> None:
    """Makes `own`, a copy of the model, that of a world: factors of kinds, and what follows."""
    for kind, factor in chosen.items():
        for field in KINDS[kind]:
            getattr(own, field)[...] = getattr(model, field) * factor
    mujoco.mj_setConst(own, data)


def values(model: Any, ranges: Ranges, seed: int, count: int) -> dict[str, NDArray]:
    """The fields that differ, [N, ...] each, of worlds 0 ... N - 1."""
    drawn, names = factors(ranges, seed, count), fields_of(ranges)
    rows: dict[str, list[NDArray]] = {name: [] for name in names}
    own, data = copy.copy(model), mujoco.MjData(model)
    for i in range(count):
        vary(own, data, model, {kind: float(each[i]) for kind, each in drawn.items()})
        for name in names:
            rows[name].append(getattr(own, name).copy())
    return {name: np.stack(row) for name, row in rows.items()}
