"""Which layout of recorded data a file or folder has; each has a file of its own.

Several files, and a folder of episodes, are one recording too (`Several`).
"""

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from ...errors import Halted, RheoError
from ..paths import SUFFIXES
from . import ogbench_sets
from .aloha import aloha, is_aloha
from .catalogue import file_of, single_task
from .columns import refuse_filter
from .containers import (
    hdf5,
    hdf5_attributes,
    hdf5_columns,
    hdf5_groups,
    kind_of,
    npz,
    tree,
    unknown,
)
from .ends import named
from .flat import Flat
from .foreign import WRITE, ZARR
from .lerobot import INFO, lerobot
from .maniskill import ManiSkill, is_maniskill
from .recording import (
    Column,
    Layout,
    Reading,
    Recording,
    Refused,
    Sizes,
    one_line,
    refuse,
    spelled,
    stack,
    total,
)
from .replay_zarr import Store
from .robomimic import Robomimic, is_robomimic, natural

OURS = "rheo"
SAME = (
    "obs_keys",
    "obs_images",
    "env_id",
    "control_mode",
    "env_cost",
)  # in all files that tell them
UNIT = ("action_scale", "action_low", "action_high")  # in all files or in none, if they are read
WORDS = 200  # letters of a library's message
log = logging.getLogger("rheo")


class Head(NamedTuple):
    """What the headers of a file tell."""

    sizes: Sizes
    about: dict[str, Any]


known_heads: dict[str, Head] = {}


def head(path: str | Sequence[str], reading: Reading) -> Head:
    """What headers tell. Raises Refused.

    Remembered: a command looks at a folder of episodes before and after torch is imported, and then
    reads it.
    """
    file = file_of(path) if isinstance(path, str) else ""
    stamp = os.stat(file).st_mtime_ns if os.path.exists(file) else 0
    told = (reading.obs_keys, reading.filter, reading.held, reading.env_parts, reading.big)
    key = f"{path} {file} {stamp} {told}"
    if key not in known_heads:
        with opened(path, reading) as layout:
            known_heads[key] = Head(layout.sizes, layout.about)
    return known_heads[key]


@contextlib.contextmanager
def opened(path: str | Sequence[str], reading: Reading) -> Iterator[Layout]:
    """What is behind a path, several, `minari:DATASET_ID` or a single task's name. Raises Refused.

    Whatever else a reader raises is told as damage of the file.
    """
    try:
        with layout(path, reading) as found:
            yield found
    except (RheoError, Halted):
        raise
    except MemoryError as error:
        text = "needs more memory than can be had; set data.storage=mmap"
        raise refuse(spelled(path), text) from error
    except Exception as error:  # noqa: BLE001 - files of others and their libraries raise anything
        what = one_line(error)
        text = f"damaged: {type(error).__name__}" + (f" ({what[:WORDS]})" if what else "")
        text += "; fetch or write it again (RHEO_TRACEBACK=1 shows where it was met)"
        raise refuse(spelled(path), text) from error


@contextlib.contextmanager
def layout(path: str | Sequence[str], reading: Reading) -> Iterator[Layout]:
    """`opened`, which may raise whatever a library does."""
    if not isinstance(path, str):
        yield Several(spelled(path), path, reading)
        return
    if path.startswith("minari:"):
        from .minari_store import Minari  # gymnasium, which files do without

        yield Minari(path, reading)
        return
    file = Path(file_of(path))
    kind = kind_of_folder(file) if file.is_dir() else kind_of(file)
    if isinstance(kind, list):
        yield Several(path, kind, reading)
    elif kind in ("lerobot", "parquet"):
        yield lerobot(path, reading)
    elif kind == "zarr":
        yield Store(path, reading).layout()
    elif kind == "npz":
        with npz(file) as (columns, attributes):
            refuse_keys(path, reading)
            yield flat(path, "npz", columns, attributes, reading)
    else:
        with hdf5(file) as content:
            yield from_hdf5(path, content, reading)


def from_hdf5(path: str, file: h5py.File, reading: Reading) -> Layout:
    """The layout of an HDF5 file. Raises Refused naming what is in one of another layout."""
    if is_robomimic(file):
        return Robomimic(path, file, reading)
    if "episode_0" in file:
        text = "a file of Minari's store; give minari:DATASET_ID instead of the path"
        raise refuse(path, text)
    if is_maniskill(file):
        return ManiSkill(path, file, reading)
    if is_aloha(file):
        return aloha(path, file, reading)
    columns, groups = hdf5_columns(file), hdf5_groups(file)
    if groups and "observations" not in named(columns).columns:
        text = f"HDF5 of a layout that is not read: it holds {tree(file)}"
        raise refuse(path, f"{text}; {WRITE}")
    refuse_keys(path, reading)
    attributes, others = hdf5_attributes(path, file), [f"{group}/" for group in groups]
    kind = OURS if attributes.get("format") == OURS else "d4rl"
    return flat(path, kind, columns, attributes, reading, [*others, *unknown(file)])


def flat(
    path: str,
    kind: str,
    columns: dict[str, Column],
    attributes: dict[str, Any],
    reading: Reading,
    others: Sequence[str] = (),
) -> Layout:
    """The layout of columns at the root: OGBench's or, for all others, `Flat`. Raises Refused."""
    if ogbench_sets.recognised(columns):
        return ogbench_sets.OGBench(path, columns, reading)
    if single_task(path) is not None:
        text = f"{file_of(path)} is none of OGBench's sets: observations, actions, terminals, qpos"
        raise refuse(path, f"{text}; give its path, or fetch the set again")
    return Flat(path, kind, columns, attributes, reading, others)


def refuse_keys(path: str, reading: Reading) -> None:
    """Raises Refused where keys are asked of a file that keeps observations in one table."""
    if reading.obs_keys is not None:
        text = f"obs_keys={reading.obs_keys} is for robomimic and Minari"
        raise refuse(path, f"{text}; here it is `observations`")


def kind_of_folder(folder: Path) -> str | list[str]:
    """ "lerobot", "zarr", or the files of a folder of episodes. Raises Refused for another one."""
    if (folder / INFO).is_file():
        return "lerobot"
    if any((folder / name).is_file() for name in ZARR):
        return "zarr"
    nested = [one for mark in (INFO, *ZARR) for one in folder.glob(f"*/{mark}")]
    if nested:
        sets = sorted({str(folder / one.relative_to(folder).parts[0]) for one in nested})
        listed = ", ".join(sets[:3]) + (" ..." if len(sets) > 3 else "")
        raise refuse(folder, f"a folder of {len(sets):,} data sets; give one of them: {listed}")
    inside = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    if any(one.suffix == ".parquet" for one in inside):
        return "lerobot"
    if any(".tfrecord" in one.name for one in inside):
        text = "an RLDS data set (TFRecord): read its steps with tensorflow_datasets and"
        raise refuse(folder, f"{text} {WRITE}")
    if (folder / "run.json").is_file() and (folder / "config.yaml").is_file():
        raise refuse(folder, f"a run's folder, not data; init={folder} starts from it")
    for files in (folder.iterdir(), folder.glob("*/*")):
        found = [one for one in files if one.is_file() and one.suffix in SUFFIXES]
        if found:
            return [str(one) for one in sorted(found, key=lambda one: natural(str(one)))]
    raise strange(folder, inside)


def strange(folder: Path, inside: list[Path]) -> Refused:
    """The refusal of a folder without a file that is read: what most of its files are."""
    if not inside:
        return refuse(folder, "an empty folder; give a file or a folder of files")
    most = Counter(one.suffix for one in inside).most_common(1)[0][0]
    example = next(one for one in inside if one.suffix == most)
    try:
        kind_of(example)
    except Refused as refused:
        text = re.sub(r"; the file has [\d,]+ bytes", "", refused.faults[0].text)
        return refuse(folder, f"a folder of {len(inside):,} files; {example.name} is {text}")
    text = f"a folder of {len(inside):,} files; give one of them, such as {example}"
    return refuse(folder, text)


class Several:
    """Files that are read one after the other, so that few are open and few are in memory.

    Raises Refused naming the first file that differs from the first one in the sizes of
    observations or actions, in their keys, or in what it tells of environment and actions.
    """

    def __init__(self, path: str, files: Sequence[str], reading: Reading) -> None:
        self.path, self.files, self.reading = path, list(files), reading
        self.heads: list[Head] = []
        for file in self.files:
            self.heads.append(head(file, reading))
            self.compare(file)
        self.note()

    def compare(self, file: str) -> None:
        """Raises Refused where a file, whose head is the last one, differs from the first."""
        sizes, about = self.heads[-1]
        refuse_filter(file, self.reading, about)
        for key, what in (("obs_dim", "observations"), ("action_dim", "actions")):
            mine, theirs = getattr(sizes, key), getattr(self.heads[0].sizes, key)
            if mine != theirs:
                text = f"has {mine} dimensions, {theirs} in {self.files[0]}"
                raise refuse(file, f"{text}; recordings of one kind are joined", what)
        unit = UNIT if self.reading.action_scale in ("auto", "recorded") else ()
        for key in (*SAME, *unit):
            told = [one.about.get(key) for one in self.heads]
            first = next((i for i, one in enumerate(told) if one is not None or key in UNIT), -1)
            mine, theirs = told[-1], told[first]
            if mine != theirs and (mine is not None or key in UNIT):
                mine, theirs = ("not told" if one is None else one for one in (mine, theirs))
                text = f"is {mine}, and {theirs} in {self.files[first]}"
                raise refuse(file, f"{text}; recordings of one kind are joined", key)

    def note(self) -> None:
        """Says what differs and does not keep the files from being joined."""
        pairs = list(zip(self.files, self.heads, strict=True))
        for what in ("reward", "cost"):
            lacking = [file for file, one in pairs if not getattr(one.sizes, what)]
            if lacking and len(lacking) < len(self.files):
                text = "data=%s: no %ss in %s, so those of the other files are not used"
                log.warning(text, self.path, what, lacking[0])
        rates = {one.about["dt"]: file for file, one in pairs if "dt" in one.about}
        if len(rates) > 1:
            parts = ", ".join(f"{dt:g} s in {file}" for dt, file in rates.items())
            log.warning("data=%s: time steps differ: %s", self.path, parts)

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        return total([one.sizes for one in self.heads])

    def read(self, storage: str) -> Recording:
        """See Layout."""
        told: list[dict[str, Any]] = []
        parts = (part for one in self.recordings(storage, told) for part in one.parts())
        recording = stack(self.path, parts, self.sizes, storage, {})
        return recording._replace(about=self.whole(told) | recording.about)

    def recordings(self, storage: str, told: list[dict[str, Any]]) -> Iterator[Recording]:
        """The recordings, one in memory at a time; what they tell goes to `told`."""
        for file in self.files:
            with opened(file, self.reading) as layout:
                recording = layout.read(storage)
            short, inner = Path(file).name, recording.about.get("demos")
            names = [f"{short} {name}" for name in inner or ()] or [short] * len(recording.ends)
            broken = [
                fault._replace(text=f"{fault.text} (in {short})")
                for fault in recording.about.get("broken", ())
            ]
            told.append(recording.about | {"demos": names, "broken": broken})
            yield recording

    @cached_property
    def about(self) -> dict[str, Any]:
        """See Layout."""
        return self.whole([one.about for one in self.heads])

    def whole(self, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What all files tell: of each thing the first that is told, of lists all members."""
        whole: dict[str, Any] = {}
        for one in told:
            whole = one | {key: value for key, value in whole.items() if value is not None}
        for key in ("jumps", "episodes"):  # counted in one file
            whole.pop(key, None)
        kinds = list(dict.fromkeys(one["format"] for one in told))
        whole |= {"format": f"{len(self.files)} files of {', '.join(kinds)}", "path": self.path}
        for key in ("left_out", "unread", "remarks", "broken", "demos"):
            members = [member for one in told for member in one.get(key, ())]
            members = members if key == "demos" else list(dict.fromkeys(members))
            whole |= {key: members} if members else {}
        return whole
