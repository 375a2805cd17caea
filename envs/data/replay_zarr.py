"""Replay buffers in zarr: data/* [S, ...] end to end, meta/episode_ends [E].

Layout as in real-stanford/diffusion_policy, diffusion_policy/common/replay_buffer.py (PushT, UMI):
a folder or a zip archive of zarr format 2; format 3 is read as well.
"""

import json
import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bulk import TEXT, on_disk, refuse_bomb
from .columns import EndToEnd, beside, chosen, left_out, numbers, package
from .ends import exclusive
from .foreign import ZARR, zarr_root, zip_names
from .recording import Column, Reading, Refused, block_rows, one_line, refuse
from .told import SHAPE, TABLE, typed

log = logging.getLogger("rheo")
ENDS, DESCRIBED = "meta/episode_ends", (".zarray", "zarr.json")
ACTIONS, REWARDS = ("action", "actions"), ("reward", "rewards")
STATES = ("state", "obs")  # the whole observation where one of them is there
NO_OBS = {"n_contacts", "timestamp", "timestamps", "episode", "mask", "masks", "terminal", "done"}


# what packs numbers, by its names in formats 2 and 3; others (pickle) can run code, or nobody knows
CODECS = {
    *(
        "blosc",
        "zlib",
        "gzip",
        "bz2",
        "lzma",
        "zstd",
        "lz4",
        "bytes",
        "transpose",
        "crc32c",
        "crc32",
    ),
    *("adler32", "fletcher32", "shuffle", "delta", "fixedscaleoffset", "quantize", "bitround"),
    *("packbits", "astype", "sharding_indexed"),
}


class Array(NamedTuple):
    """What a store tells of an array."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...] = ()
    codecs: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory of its numbers as they are read."""
        return 8 * math.prod(self.shape)


class Store:
    """A folder or a zip archive, of which only the description of its arrays was read."""

    def __init__(self, path: str, reading: Reading) -> None:
        self.path, self.reading, self.file = path, reading, Path(path)
        self.zipped = self.file.is_file()
        self.root = (zarr_root(zip_names(self.file) or []) or "") if self.zipped else ""
        self.arrays = self.described(self.file)
        if ENDS not in self.arrays:
            there = ", ".join(sorted(self.arrays)) or "no array"
            text = f"a zarr store that is no replay buffer (data/*, {ENDS}): it holds {there}"
            raise refuse(path, f"{text}; give one that is, or write it as an .npz file", ENDS)
        self.zarr = package(path, "zarr", "a zarr store")

    def described(self, file: Path) -> dict[str, Array]:
        """Every array of the store, by its place below the root."""
        try:
            if self.zipped:
                with zipfile.ZipFile(file) as archive:
                    infos = [n for n in archive.infolist() if n.filename.rpartition("/")[2] in ZARR]
                    texts = {n.filename: archive.read(n) for n in infos if n.file_size <= TEXT}
            else:
                found = [one for name in ZARR for one in file.rglob(name)]
                small = [one for one in found if one.stat().st_size <= TEXT]
                texts = {one.relative_to(file).as_posix(): one.read_bytes() for one in small}
            found = list(filter(None, (self.array(*item) for item in sorted(texts.items()))))
        except Refused:
            raise
        except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile) as error:
            text = f"a damaged zarr store ({one_line(error)}); fetch it again"
            raise refuse(self.path, text) from error
        places = [place for place, _ in found]
        twice = {place for place in places if places.count(place) > 1}
        if twice:
            text = "described in both formats, which may differ; leave one out"
            raise refuse(self.path, text, min(twice))
        return dict(found)

    def array(self, name: str, text: bytes) -> tuple[str, Array] | None:
        """An array's place and description from its .zarray or zarr.json; None for a group's."""
        place, _, kind = name.rpartition("/")
        told = typed(self.path, name, json.loads(text) if kind in DESCRIBED else {}, TABLE)
        if kind != ".zarray" and told.get("node_type") != "array":
            return None
        shape = typed(self.path, f"{name} (shape)", told["shape"], SHAPE)
        grid = (told.get("chunk_grid") or {}).get("configuration") or {}
        chunk = told.get("chunks") or grid.get("chunk_shape") or []
        chunk = typed(self.path, f"{name} (chunks)", chunk, SHAPE)
        dtype = str(told.get("dtype", told.get("data_type")))
        array = Array(tuple(shape), dtype, tuple(chunk), tuple(codecs(told)))
        return place.removeprefix(self.root).strip("/"), array

    def open(self, key: str) -> Any:
        """An array that can be sliced. Raises Refused where its codec is not known."""
        store, strange = self.path, set(self.arrays[key].codecs) - CODECS
        if strange:
            text = f"packed by {', '.join(sorted(strange))}, which is never called; pack it by "
            raise refuse(self.path, f"{text}blosc, zstd or another of numbers' own", key)
        if not self.zipped:
            refuse_links(self.path, self.file, key)
        try:
            if self.zipped:
                store = self.zarr.storage.ZipStore(self.path, mode="r")
            return self.zarr.open_array(store, path=f"{self.root}/{key}".strip("/"), mode="r")
        except Exception as error:  # noqa: BLE001 - the package's errors have no common base
            raise self.broken(key, error) from error

    def broken(self, key: str, error: Exception) -> Exception:
        """The refusal of an array that the package cannot read."""
        text = f"zarr cannot read it ({one_line(error) or type(error).__name__})"
        return refuse(self.path, f"{text}; fetch it again", key)

    def rows(self, key: str, array: Any, start: int, stop: int) -> NDArray:
        """Rows of an array. Raises Refused."""
        try:
            return np.asarray(array[start:stop])
        except Exception as error:  # noqa: BLE001 - the package's errors have no common base
            raise self.broken(key, error) from error

    def usable(self) -> tuple[dict[str, Array], dict[str, str]]:
        """Arrays that can be observed, and why each other one cannot be."""
        usable, others = {}, {}
        for place, array in self.arrays.items():
            key = place.removeprefix("data/")
            if key == place or key in (*ACTIONS, *REWARDS):
                continue
            if len(array.shape) >= 4 or (len(array.shape) == 3 and array.dtype.endswith("u1")):
                others[key] = "an image"
            elif key in NO_OBS:
                others[key] = "no observation"
            elif not array.shape or not is_number(array.dtype):
                others[key] = f"of type {array.dtype}"
            else:
                usable[key] = array
        return usable, others

    def layout(self) -> EndToEnd:
        """The arrays that are read. Raises Refused.

        Observations are data/state (or data/obs) where it is there, else every table of numbers but
        the action, sorted, side by side; `obs_keys` chooses, also among tables [S, K, D] such as
        keypoint. Images are left out.
        """
        usable, others = self.usable()
        action = next((key for key in ACTIONS if f"data/{key}" in self.arrays), None)
        if action is None:
            text = f"no data/action; data holds {', '.join([*usable, *others]) or 'nothing'}"
            raise refuse(self.path, text, "data/action")
        states = [key for key in STATES if key in usable][:1]
        tables = [key for key, array in usable.items() if len(array.shape) < 3]
        keys = chosen(self.path, self.reading.obs_keys, states or tables, usable, others)
        rewards = [key for key in REWARDS if f"data/{key}" in self.arrays]
        self.refuse_large([ENDS, *(f"data/{key}" for key in (action, *keys, *rewards))])
        if len(self.arrays[ENDS].shape) != 1:
            raise refuse(self.path, f"has shape {self.arrays[ENDS].shape}, expected a list", ENDS)
        ends = self.rows(ENDS, self.open(ENDS), 0, self.arrays[ENDS].shape[0]).astype(np.int64)
        if not len(ends):
            raise refuse(self.path, "empty: no episodes; fetch or write it again", ENDS)
        steps = int(ends[-1])
        for key in (action, *keys, *rewards):
            rows = self.arrays[f"data/{key}"].shape[0]
            if rows < steps:
                text = f"has {rows:,} rows, and the last episode ends at {steps:,}"
                raise refuse(self.path, f"{text}; fetch it again", f"data/{key}")
        ends = exclusive(self.path, "episode_ends", ends, steps, "episode_ends")
        columns = {"observations": self.table(keys, steps), "actions": self.table([action], steps)}
        for key in rewards:
            columns["rewards"] = self.table([key], steps)
        about = {"format": "zarr", "path": self.path, "env_id": None, "obs_keys": keys}
        about |= {"left_out": left_out(keys, usable, others)}
        return EndToEnd(self.path, columns, about, self.reading, ends)

    def refuse_large(self, keys: list[str]) -> None:
        """Raises Refused for arrays, or pieces of them, that are far more than the store holds."""
        arrays, stored = [self.arrays[key] for key in keys], on_disk(self.file)
        pieces = max(8 * math.prod(one.chunk) for one in arrays)
        refuse_bomb(self.path, sum(one.nbytes for one in arrays), stored, self.reading.big)
        refuse_bomb(self.path, pieces, stored, self.reading.big, "chunks")

    def table(self, keys: list[str], steps: int) -> Column:
        """Arrays side by side, [S, D]."""
        told = [self.arrays[f"data/{key}"].shape for key in keys]
        width = sum(int(np.prod(shape[1:], dtype=np.int64)) for shape in told)
        arrays = {f"data/{key}": self.open(f"data/{key}") for key in keys}
        rows = block_rows((steps, width), np.dtype(np.float64))
        starts = range(0, steps, rows)

        def read(start: int) -> NDArray:
            stop = min(start + rows, steps)
            return beside([self.rows(key, one, start, stop) for key, one in arrays.items()])

        return Column((steps, width), np.dtype(np.float64), lambda: map(read, starts))


def codecs(told: Mapping[str, Any]) -> Iterator[str]:
    """Names of everything that packs an array's numbers, one inside of the other too."""
    inner = told.get("configuration")
    for node in (told, inner if isinstance(inner, dict) else {}):
        for key in ("compressor", "filters", "codecs", "index_codecs"):
            held = node.get(key) or []
            for one in held if isinstance(held, list) else [held]:
                yield str(one.get("id", one.get("name"))) if isinstance(one, dict) else str(one)
                yield from codecs(one) if isinstance(one, dict) else ()


def refuse_links(path: str, root: Path, key: str) -> None:
    """Raises Refused where a part of an array is a link out of the store, to any file."""
    place, inside = root / key, root.resolve()
    above = [root.joinpath(*Path(key).parts[:n]) for n in range(1, len(Path(key).parts) + 1)]
    for one in (*above, *place.rglob("*")):
        if one.is_symlink() and not one.resolve().is_relative_to(inside):
            text = f"{one.relative_to(root)} is a link out of the store, which is never followed; "
            raise refuse(path, f"{text}copy it with what it links to (cp -rL)", key)


def is_number(name: str) -> bool:
    """Whether a zarr type, as format 2 ("<f4") or 3 ("float32") writes it, is of numbers."""
    try:
        return numbers(name)
    except TypeError:
        return False
