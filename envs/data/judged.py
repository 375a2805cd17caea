"""People's comparisons of recorded windows: which of two has more of what.

An npz file holds `first` and `second` [P], the steps of a recording at which two windows begin, and
`more` [P, C] (or [P] of one label): 1 where the first has more of it, -1 the second, 0 neither.
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..paths import expanded
from .bulk import on_disk, refuse_bomb
from .containers import kind_of, npz
from .recording import Column, fill, refuse
from .told import some

KEYS = ("first", "second", "more")


def read_judged(path: str | os.PathLike, steps: int, labels: int) -> tuple[NDArray, NDArray]:
    """Pairs of steps [P, 2] int64 and signs [P, C] float32 of comparisons in a recording of so many
    steps. Raises Refused that names file, key, row and value.
    """
    name = str(path)
    kind = kind_of(expanded(path))
    if kind != "npz":
        raise refuse(name, f"is {kind}; comparisons are read from a .npz with {', '.join(KEYS)}")
    with npz(expanded(path)) as (columns, _):
        lacking = next((key for key in KEYS if key not in columns), None)
        if lacking is not None:
            there = some(sorted(columns)) or "nothing"
            raise refuse(name, f"no key {lacking!r}; it holds {there}", lacking)
        found = {key: columns[key] for key in KEYS}
        refuse_shapes(name, found, labels)
        needed = sum(8 * int(np.prod(column.shape)) for column in found.values())
        refuse_bomb(name, needed, on_disk(expanded(path)), big=False)
        first, second, more = (loaded(found[key]) for key in KEYS)
    for key, rows in (("first", first), ("second", second)):
        whole = (rows >= 0) & (rows < steps) & (rows == np.floor(rows))
        refuse_row(name, key, rows, whole, f"no step of the recording, 0 to {steps - 1}")
    more = more.reshape(len(more), -1)
    for column in more.T:
        refuse_row(name, "more", column, np.isin(column, (-1, 0, 1)), "not 1, 0 or -1")
    return np.stack([first, second], 1).astype(np.int64), more.astype(np.float32)


def loaded(column: Column) -> NDArray:
    """A column in memory, float64."""
    array = np.empty(column.shape)
    fill(array, column)
    return array


def refuse_shapes(name: str, found: dict[str, Column], labels: int) -> None:
    """Raises Refused for arrays that do not fit each other, or the labels."""
    rows = found["first"].shape[:1]
    wanted: dict[str, Any] = {"first": rows, "second": rows, "more": (*rows, labels)}
    for key, (shape, dtype, _) in found.items():
        plain = key == "more" and labels == 1 and shape == rows
        if dtype.kind not in "fiub" or 0 in shape or not (plain or shape == wanted[key]):
            text = f"has shape {shape} and type {dtype}, expected numbers {wanted[key]}"
            raise refuse(name, f"{text}: pairs, and labels of source.labels", key)


def refuse_row(name: str, key: str, rows: NDArray, right: NDArray, what: str) -> None:
    """Raises Refused for the first row that is not right."""
    if not right.all():
        row = int(np.flatnonzero(~right)[0])
        raise refuse(name, f"row {row}: {what}", key, float(rows[row]))
