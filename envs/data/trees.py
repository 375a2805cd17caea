"""Groups of many small HDF5 arrays, by h5py's low-level calls: half the time of its high level.

A path is names joined by "/"; groups and arrays are h5py's GroupID and DatasetID, the `id` of its
high-level ones.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from h5py import h5d, h5g, h5o, h5s  # pyright: ignore[reportAttributeAccessIssue]
from numpy.typing import NDArray

NUMBERS = "fiub"  # kinds of types that are read as numbers


def coded(path: str) -> bytes:
    """A path as HDF5 stores it."""
    return path.encode(errors="surrogateescape")


def names(group: Any) -> list[str]:
    """Names of a group's members."""
    return [name.decode(errors="surrogateescape") for name in group]


def member(group: Any, path: str) -> Any:
    """A group or an array; None where there is none (a broken link included)."""
    try:
        return h5o.open(group, coded(path))
    except KeyError:
        return None


def is_group(item: Any) -> bool:
    """Whether it is a group."""
    return isinstance(item, h5g.GroupID)


def leaves(group: Any, under: str = "") -> Iterator[tuple[str, Any]]:
    """(path, array) of all arrays of a group and of the groups in it."""
    for name in names(group):
        item = member(group, name)
        if is_group(item):
            yield from leaves(item, f"{under}{name}/")
        elif isinstance(item, h5d.DatasetID):
            yield under + name, item


class Header(NamedTuple):
    """An array of which only shape and type were read."""

    data: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def values(self) -> NDArray:
        """All numbers. It is to be checked first: they can be far more than the file holds."""
        values = np.zeros(self.shape, self.dtype)
        if values.size:
            self.data.read(h5s.ALL, h5s.ALL, values)
        return values


def header(group: Any, path: str) -> Header | None:
    """An array's shape and type; None where there is none."""
    data = member(group, path)
    return Header(data, data.shape or (), data.dtype) if isinstance(data, h5d.DatasetID) else None


def tail(group: Any, path: str) -> NDArray | None:
    """An array's last row alone, [1, ...]; None where there is none."""
    data, rows = member(group, path), count(group, path)
    if not rows:
        return None
    values = np.zeros((1, *data.shape[1:]), data.dtype)
    picked = data.get_space()
    picked.select_hyperslab((rows - 1, *[0] * (data.rank - 1)), values.shape)
    data.read(h5s.create_simple(values.shape), picked, values)
    return values


def count(group: Any, path: str) -> int:
    """Rows of an array, from its header; 0 where there is none."""
    data = member(group, path)
    shape = data.shape if isinstance(data, h5d.DatasetID) else None
    return shape[0] if shape else 0
