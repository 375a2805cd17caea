"""Columns whose rows lie end to end as a layout, and which keys of a file are observed."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..packages import READERS, lacking
from ..parts import displaced, listed, listed_parts, names, resized, usual
from ..pixels import Images, last, listed_images
from .catalogue import limit_of
from .ends import every_nth, is_list
from .recording import (
    Column,
    Reading,
    Recording,
    Sizes,
    allocate,
    behind,
    differing,
    fill,
    pieces,
    refuse,
)
from .successors import believed


@dataclass(eq=False)
class EndToEnd:
    """A layout of columns whose S rows are the steps of E episodes, one after the other.

    columns: observations [S, Do], actions [S, Da]; rewards and costs [S] and next_observations
    [S, Do] where the file holds them. These are believed where successor_known [E] says of which
    episodes they hold the end. A time limit cuts episodes at rows whose successors are the rows
    behind them.
    """

    path: str
    columns: Mapping[str, Column]
    told: dict[str, Any]  # of what the file says of itself
    reading: Reading
    ends: NDArray  # [E] exclusive, rising to S
    terminated: NDArray | None = None  # [S], see Recording; None: not told
    names: Mapping[str, str] = field(default_factory=dict)  # of columns in the file, if others

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        (steps, dims), (_, count) = (self.columns[key].shape for key in ("observations", "actions"))
        told = "rewards" in self.columns, "costs" in self.columns
        return Sizes(steps, len(self.ends), 0, dims, count, *told)

    @cached_property
    def about(self) -> dict[str, Any]:
        """See Layout."""
        env_id, limit = limit_in(self.told, self.reading)
        return self.told | ({"limit": (env_id, limit)} if limit else {})

    def read(self, storage: str) -> Recording:
        """See Layout."""
        steps, dims = self.columns["observations"].shape
        ends, known, cuts = self.ends, self.known(), np.empty(0, np.int64)
        if self.reading.time_limit is not None:
            cuts = every_nth(ends, self.reading.time_limit)
            places = np.searchsorted(ends, cuts)
            ends, known = np.insert(ends, places, cuts), np.insert(known, places, True)
        obs = allocate(self.path, (steps + int(known.sum()), dims), storage)
        fill(obs[:steps], self.columns["observations"])
        jumps = self.successors(obs, ends, known)
        action = allocate(self.path, self.columns["actions"].shape, storage)
        fill(action, self.columns["actions"])
        reward, cost = self.told_of("rewards"), self.told_of("costs")
        about = self.about | ({"jumps": jumps} if len(jumps) else {})
        ended = np.zeros(steps, bool) if self.terminated is None else self.terminated
        recording = Recording(obs, action, reward, ended, ends, behind(known, steps), about, cost)
        doubted = known.any() and "successor_known" not in self.columns
        key = self.names.get("next_observations", "")
        return believed(recording, cuts, key) if doubted or len(cuts) else recording

    def told_of(self, key: str) -> NDArray | None:
        """The number of every step [S] float32, None where the file has no such key."""
        if key not in self.columns:
            return None
        column = values(self.path, self.columns[key], self.names.get(key, key))
        fill(out := np.empty(len(column), np.float32), held(column))
        return out

    def known(self) -> NDArray:
        """Episodes [E] whose last step's successor the file holds."""
        count = len(self.ends)
        if not {"next_observations", "successor_known"} <= set(self.columns):
            return np.full(count, "next_observations" in self.columns)
        marked = values(self.path, self.columns["successor_known"], "successor_known")
        if len(marked) != count:
            text = f"has {len(marked)} numbers, expected {count}"
            raise refuse(self.path, text, "successor_known")
        return marked != 0

    def successors(self, obs: NDArray, ends: NDArray, known: NDArray) -> NDArray:
        """Fills obs[S:] and returns the steps [J] after which an episode end is missing."""
        steps, jumps, row = ends[-1], [np.empty(0, np.int64)], 0
        if "next_observations" not in self.columns:
            obs[steps:] = obs[ends[known]]  # behind the cuts of a time limit
        elif known.any():
            wanted = ends[known] - 1
            for block in self.columns["next_observations"].blocks():
                after = row + len(block)
                with np.errstate(over="ignore", invalid="ignore"):
                    block = block.astype(np.float32, copy=False)
                here = (wanted >= row) & (wanted < after)
                obs[steps:][here] = block[wanted[here] - row]
                # obs[S] stands behind the last step, which is an end: whatever it holds is left out
                jumps.append(row + differing(block, obs[row + 1 : after + 1]))
                row = after
        return np.setdiff1d(np.concatenate(jumps), ends - 1)


def limit_in(about: Mapping[str, Any], reading: Reading) -> tuple[str | None, int | None]:
    """The environment of a recording and its time limit, or the limit that a user names."""
    env_id = about["env_id"] or (reading.stage and reading.stage.env_id)
    return env_id, reading.time_limit or limit_of(env_id)


def held(array: NDArray) -> Column:
    """An array in memory as a column."""
    return Column(array.shape, array.dtype, lambda: (rows for _, rows in pieces(array)))


def taken(column: Column, rows: NDArray) -> Column:
    """The rows [R] bool of a column, as a column."""

    def blocks() -> Iterator[NDArray]:
        row = 0
        for block in column.blocks():
            yield block[rows[row : row + len(block)]]
            row += len(block)

    return Column((int(rows.sum()), *column.shape[1:]), column.dtype, blocks)


def together(columns: Mapping[str, Column]) -> Iterator[dict[str, NDArray]]:
    """The same rows of all columns, piece by piece."""
    blocks = {key: iter(column.blocks()) for key, column in columns.items()}
    rest = {key: after(None, more) for key, more in blocks.items()}
    while all(rows is not None for rows in rest.values()):
        here = {key: rows for key, rows in rest.items() if rows is not None}
        count = min(map(len, here.values()))
        yield {key: rows[:count] for key, rows in here.items()}
        rest = {key: after(rows[count:], blocks[key]) for key, rows in here.items()}


def after(rows: NDArray | None, more: Iterator[NDArray]) -> NDArray | None:
    """What is left of a block, or the next one that has rows; None behind the last."""
    while rows is None or not len(rows):
        rows = next(more, None)
        if rows is None:
            return None
    return rows


def table(path: str, column: Column, name: str) -> Column:
    """A column of numbers [steps, dims]. Raises Refused for another one."""
    if len(column.shape) != 2 or column.dtype.kind not in "fiu" or not column.shape[1]:
        text = f"has shape {column.shape} and type {column.dtype}, expected numbers [steps, dims]"
        raise refuse(path, text, name)
    return column


def values(path: str, column: Column, name: str) -> NDArray:
    """A small column of one number per row, in memory. Raises Refused for another one."""
    if not is_list(column):
        text = f"has shape {column.shape} and type {column.dtype}, expected a list of numbers"
        raise refuse(path, text, name)
    blocks = [block.reshape(-1) for block in column.blocks()]
    return np.concatenate(blocks) if blocks else np.empty(0, column.dtype)


def refuse_rows(path: str, column: Column, steps: int, name: str) -> None:
    """Raises Refused for a column that has not one row a step, and where there are no steps."""
    rows = column.shape[0] if column.shape else 0
    if rows != steps:
        text = f"{rows} rows but {steps} actions; every step needs one of each"
        raise refuse(path, text, name)
    if not steps:
        raise refuse(path, "empty: no steps; fetch or write it again", name)


def beside(tables: Sequence[NDArray]) -> NDArray:
    """Tables [L, ...] of one length side by side, [L, D]; flags become 0 and 1."""
    whole = np.concatenate([one.reshape(len(one), -1) for one in tables], axis=1)
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
    path: str,
    widths: Mapping[str, int],
    images: Images,
    other: Mapping[str, str],
    reading: Reading,
    env_id: Any,
    told: Sequence[str] = (),
) -> list[str]:
    """The parts of a dictionary that are read, in order: the user's, the environment's, the usual.

    widths: the parts that can be read, with their columns. images: those that are images; the user
    or the environment has to name them, and they are the last ones. other: those that cannot be
    read, and what they are. told: the usual ones as the file names them. Raises Refused for a part
    that is not there.
    """
    keys, env = reading.obs_keys, reading.env_parts
    readable = {**widths, **{key: math.prod(size) for key, size in images.items()}}
    if keys is not None:
        others = {key: f"{what}, not columns of numbers" for key, what in other.items()}
        can_be_read(path, keys, readable, others, "obs/")
    elif env and not set(env) - set(readable):
        keys = list(env)
    elif env and widths:
        lacking = [key for key in env if key not in readable]
        text = (
            f"{', '.join(lacking)} of the environment's {listed_parts(env)}: not in the "
            f"data, which hold {listed_parts(readable)}; data.obs_keys=[...] names what stands "
            "for them, in that order"
        )
        raise refuse(path, text, "obs_keys")
    elif not widths:
        text = f"no low-dimensional observations; it holds {', '.join(listed(other)) or 'none'}"
        if images:
            text = f"images alone: {listed_images(images)}; data.obs_keys=[...] reads them"
        raise refuse(path, text, "obs")
    else:
        keys = list(told) or usual(widths, env_id)
        lacking = [key for key in keys if key not in readable]
        if lacking:
            text = f"{', '.join(lacking)} of the file's obs_keys: not in the data"
            text += f", which hold {listed_parts(readable)}; data.obs_keys=[...] names others"
            raise refuse(path, text, "obs_keys")
    return last(keys, images)


def refuse_clash(path: str, parts: Mapping[str, int], env: Mapping[str, int] | None) -> None:
    """Raises Refused where a part of the data lies elsewhere in the environment's observation.

    Parts of other names are the user's word for it; their sizes are compared later, in all.
    """
    if env and (clash := resized(parts, env)):
        text = f"{clash}, in the environment; make it observe what was recorded (env.options)"
        raise refuse(path, text, "obs_keys")
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
