"""Writes a recording: HDF5 in D4RL's layout with attributes of ours, npz with the same keys, or
robomimic's layout (`demos.py`).
"""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...files import atomically
from ..paths import expanded, layout_of
from .columns import held
from .demos import write_robomimic
from .formats import OURS
from .recording import Column, Recording, block_rows
from .sheltered import book

VERSION = 1
OWN = {
    *("format", "path", "env_id", "jumps", "dropped", "left_out", "demos", "files"),
    *("remarks", "limit", "undecided", "unit", "broken", "episodes", "filters", "filtered"),
    "unread",
}
BOUNDS = ("action_low", "action_high")  # told in robomimic's layout, which has words for the rest
LEVEL = 4  # of gzip
CHUNK = 4096  # rows of an HDF5 chunk


def write(
    recording: Recording, path: str | os.PathLike, *, layout: str | None = None, **attrs: Any
) -> None:
    """Writes a recording without loss; `read` of the file gives it back.

    layout: one of `paths.LAYOUTS`; none: the first of the suffix. "d4rl" (.hdf5 and .h5) are D4RL's
    keys (observations, actions, rewards, costs, terminals, timeouts, next_observations where known)
    and ours (episode_ends, successor_known, attributes); "npz" holds the same keys; for
    "robomimic" see `demos.write_robomimic`. Where a successor is not known, next_observations
    repeats the last observation. Actions are stored in [-1, 1] (action_scale="unit"); action_low
    and action_high in `attrs` are what they stand for. The file appears whole or not at all.

    Raises EnvError for another suffix.
    """
    file = expanded(path)
    layout = layout_of(file, layout)
    told = {k: v for k, v in recording.about.items() if k not in OWN}
    told |= {"env_id": recording.about.get("env_id"), **attrs, "action_scale": "unit"}
    file.parent.mkdir(parents=True, exist_ok=True)
    if layout == "robomimic":
        told = {key: told[key] for key in BOUNDS if told.get(key) is not None}
        atomically(file, lambda part: write_robomimic(part, recording, told))
        return
    told |= {"format": OURS, "version": VERSION}
    told = {key: value for key, value in told.items() if value is not None}
    writer = write_npz if layout == "npz" else write_hdf5
    atomically(file, lambda part: writer(part, columns(recording), told))


def columns(recording: Recording) -> dict[str, Column]:
    """The keys of a file of ours."""
    steps = len(recording.action)
    timeouts = np.zeros(steps, bool)
    timeouts[recording.ends - 1] = ~recording.terminated[recording.ends - 1]
    arrays = {
        "observations": recording.obs[:steps],
        "actions": recording.action,
        "rewards": recording.reward,
        "costs": recording.cost,
        "terminals": recording.terminated,
        "timeouts": timeouts,
        "episode_ends": recording.ends,
    }
    result = {key: held(array) for key, array in arrays.items() if array is not None}
    known = recording.successor >= 0
    if known.any():
        shape = (steps, recording.obs.shape[1])
        result["successor_known"] = held(known)
        result["next_observations"] = Column(
            shape, recording.obs.dtype, lambda: following(recording)
        )
    return result


def following(recording: Recording) -> Iterator[NDArray]:
    """Next observations [S, Do], piece by piece."""
    steps, last = len(recording.action), recording.ends - 1
    rows = block_rows(recording.obs.shape, recording.obs.dtype)
    for start in range(0, steps, rows):
        after = min(start + rows, steps)
        index = np.arange(start + 1, after + 1)
        mine = (last >= start) & (last < after)
        index[last[mine] - start] = np.where(
            recording.successor[mine] >= 0, recording.successor[mine], last[mine]
        )
        yield recording.obs[index]


def write_hdf5(path: Path, content: dict[str, Column], attributes: dict[str, Any]) -> None:
    """Columns as compressed datasets at the root."""
    options: dict[str, Any] = {"compression": "gzip", "compression_opts": LEVEL, "shuffle": True}
    with book(path) as written:
        for key, (shape, dtype, blocks) in content.items():
            chunk = (min(CHUNK, max(shape[0], 1)), *shape[1:])
            with written.piece() as file:
                data = file.create_dataset(key, shape, dtype, chunks=chunk, **options)
            fill(data, blocks(), written)
        with written.piece() as file:
            for key, value in attributes.items():
                file.attrs[key] = json.dumps(value) if isinstance(value, dict | list) else value


def fill(data: Any, blocks: Iterable[NDArray], written: Any) -> None:
    """Blocks of rows one after the other, a piece each."""
    row = 0
    for block in blocks:
        with written.piece():
            data[row : row + len(block)] = block
        row += len(block)


def write_npz(path: Path, content: dict[str, Column], attributes: dict[str, Any]) -> None:
    """Columns as the arrays of an npz file, attributes as JSON beside them."""
    text = np.array(json.dumps(attributes, default=lambda value: value.tolist()))
    deflate = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", deflate, allowZip64=True, compresslevel=LEVEL) as archive:
        for key, column in content.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as out:
                write_array(out, column)
        with archive.open("attributes.npy", "w") as out:
            np.lib.format.write_array(cast(IO[bytes], out), text, allow_pickle=False)


def write_array(out: IO[bytes], column: Column) -> None:
    """A column as an npy file, piece by piece."""
    header = {"descr": np.lib.format.dtype_to_descr(column.dtype), "shape": column.shape}
    np.lib.format.write_array_header_1_0(cast(Any, out), header | {"fortran_order": False})
    for block in column.blocks():
        out.write(np.ascontiguousarray(block).data.cast("B"))
