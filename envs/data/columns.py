"""Files in pieces as the columns that `flat.Flat` reads, and which of their keys are observed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .recording import Column, Refused, refuse

Piece = TypeVar("Piece")
EXTRA = "formats"  # the extra of pyproject.toml with the packages that foreign formats need


def end_to_end(
    shape: tuple[int, ...], pieces: Sequence[Piece], read: Callable[[Piece], NDArray]
) -> Column:
    """The rows of all pieces in order, each read when it is due."""

    def blocks() -> Iterator[NDArray]:
        for piece in pieces:
            yield read(piece).reshape(-1, *shape[1:])

    return Column(shape, np.dtype(np.float64 if len(shape) > 1 else np.float32), blocks)


def one_piece(shape: tuple[int, ...], read: Callable[[], NDArray]) -> Column:
    """Rows that are read at once, when they are due."""
    return end_to_end(shape, [None], lambda _: read())


def held(values: NDArray) -> Column:
    """A column of numbers in memory."""
    return Column(values.shape, values.dtype, lambda: [values])


def beside(tables: Sequence[NDArray]) -> NDArray:
    """Tables [L, ...] of one length side by side, [L, D]; flags become 0 and 1."""
    whole = np.concatenate([table.reshape(len(table), -1) for table in tables], axis=1)
    return whole.astype(np.float32) if whole.dtype.kind == "b" else whole


def numbers(dtype: Any) -> bool:
    """Whether a type is one of plain numbers or flags."""
    return np.dtype(dtype).kind in "fiub"


def chosen(
    path: str,
    asked: list[str] | None,
    usual: list[str],
    usable: Mapping[str, Any],
    others: Mapping[str, str],
) -> list[str]:
    """The observation keys that are read, in order: those asked for, else the usual ones.

    usable: every key that can be read. others: why each other key cannot be. Raises Refused for a
    key that cannot be read, and where there is none to read.
    """
    can = f"data.obs_keys can name {', '.join(usable) or 'nothing here'}"
    if asked is None:
        if not usual:
            there = ", ".join(f"{key} ({why})" for key, why in others.items()) or "no such key"
            raise refuse(path, f"no observations of plain numbers are in it: {there}", "obs_keys")
        return usual
    if not asked:
        raise refuse(path, "names no key; leave it out for the usual ones", "obs_keys")
    for key in asked:
        if key not in usable:
            raise refuse(path, f"{others.get(key, 'not there')}; {can}", key)
    return asked


def left_out(keys: Sequence[str], usable: Mapping[str, Any], others: Mapping[str, str]) -> list:
    """What is in a file and is not read, for people."""
    return [*(key for key in usable if key not in keys), *(f"{k} ({w})" for k, w in others.items())]


def missing(path: str, package: str, what: str) -> Refused:
    """The refusal of a format whose package is not installed."""
    return refuse(path, f"{what} needs the package {package}: pip install 'rheo-rl[{EXTRA}]'")
