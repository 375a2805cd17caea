"""Files in pieces as the columns that `flat.Flat` reads, and which of their keys are observed."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..packages import READERS, lacking
from ..parts import displaced, listed, listed_parts, names, usual
from .recording import Column, Reading, refuse

Piece = TypeVar("Piece")


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
    if asked is not None:
        return can_be_read(path, asked, usable, others)
    if not usual:
        there = ", ".join(f"{key} ({why})" for key, why in others.items()) or "no such key"
        raise refuse(path, f"no observations of plain numbers are in it: {there}", "obs_keys")
    return usual


def can_be_read(
    path: str,
    keys: list[str],
    usable: Mapping[str, Any],
    others: Mapping[str, str],
    under: str = "",
) -> list[str]:
    """The keys that a user names, in the group `under`. Raises Refused for one that is not."""
    if not keys:
        raise refuse(path, "names no key; leave it out for the usual ones", "obs_keys")
    for key in keys:
        if key not in usable:
            can = f"data.obs_keys can name {', '.join(usable) or 'nothing here'}"
            raise refuse(path, f"{others.get(key, 'not there')}; {can}", f"{under}{key}")
    return keys


def choose(
    path: str, widths: Mapping[str, int], other: Mapping[str, str], reading: Reading, env_id: Any
) -> list[str]:
    """The parts of a dictionary that are read, in order: the user's, the environment's, the usual.

    widths: the parts that can be read, with their columns. other: those that cannot, and what they
    are. Raises Refused for a part that is not there.
    """
    keys, env = reading.obs_keys, reading.env_parts
    if keys is not None:
        others = {key: f"{what}, not columns of numbers" for key, what in other.items()}
        can_be_read(path, keys, widths, others, "obs/")
    elif not widths:
        text = f"no low-dimensional observations; it holds {', '.join(listed(other)) or 'none'}"
        raise refuse(path, text, "obs")
    else:
        keys = list(env) if env else usual(widths, env_id)
        lacking = [key for key in keys if key not in widths]
        if lacking:
            text = (
                f"{', '.join(lacking)} of the environment's {listed_parts(env or {})}: not in the "
                f"data, which hold {listed_parts(widths)}; data.obs_keys=[...] names what stands "
                "for them, in that order"
            )
            raise refuse(path, text, "obs_keys")
    return keys


def refuse_clash(path: str, parts: Mapping[str, int], env: Mapping[str, int] | None) -> None:
    """Raises Refused where a part of the data lies elsewhere in the environment's observation.

    Parts of other names are the user's word for it; their sizes are compared later, in all.
    """
    if env and (clash := displaced(parts, env)):
        text = f"the data are read as {clash}; data.obs_keys={names(env)} is its order"
        raise refuse(path, text, "obs_keys")


def refuse_filter(path: str, reading: Reading, about: Mapping[str, Any]) -> None:
    """Raises Refused where a filter key is asked of a file that has none."""
    for word, key in (("filter", reading.filter), ("holdout", reading.held)):
        if key is not None and "filters" not in about:
            text = f"source.{word}={key} names a filter key (mask/{key} of a robomimic file)"
            raise refuse(path, f"{text}; this file has none")


def left_out(keys: Sequence[str], usable: Mapping[str, Any], others: Mapping[str, str]) -> list:
    """What is in a file and is not read, for people."""
    return [*(key for key in usable if key not in keys), *(f"{k} ({w})" for k, w in others.items())]


def package(path: str, module: str, what: str) -> Any:
    """A module that reads `what`. Raises Refused with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise refuse(path, lacking(what, READERS[module.partition(".")[0]])) from error
