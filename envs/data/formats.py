"""Which layout of recorded data a file or folder has; each has a file of its own."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py

from .aloha import aloha, is_aloha
from .containers import hdf5, hdf5_attributes, hdf5_columns, hdf5_groups, kind_of, npz, tree
from .ends import named
from .flat import Flat
from .foreign import WRITE, ZARR
from .lerobot import INFO, lerobot
from .maniskill import ManiSkill, is_maniskill
from .recording import Reading, Recording, Refused, Sizes, refuse
from .replay_zarr import replay_buffer
from .robomimic import Robomimic, is_robomimic, natural
from .several import Several, spelled

OURS = "rheo"
SUFFIXES = (".hdf5", ".h5", ".npz")


class Layout(Protocol):
    """An opened file, of which only headers were read."""

    def sizes(self) -> Sizes:
        """What its arrays need; successors are an upper bound."""
        ...

    def read(self, storage: str) -> Recording:
        """The recording in the storage "ram" or "mmap", unchecked but for what reading it needs.

        Raises Refused.
        """
        ...

    def about(self) -> dict[str, Any]:
        """Format, path, environment, and what else the file says of itself."""
        ...


@contextlib.contextmanager
def opened(path: str | Sequence[str], reading: Reading) -> Iterator[Layout]:
    """What is behind a path, several paths, or `minari:DATASET_ID`. Raises Refused."""
    if not isinstance(path, str):
        yield Several(spelled(path), path, reading, opened)
        return
    if path.startswith("minari:"):
        from .minari_store import Minari  # gymnasium, which files do without

        yield Minari(path, reading)
        return
    file = Path(path)
    kind = kind_of_folder(file) if file.is_dir() else kind_of(file)
    if isinstance(kind, list):
        yield Several(path, kind, reading, opened)
    elif kind in ("lerobot", "parquet"):
        yield lerobot(path, reading)
    elif kind == "zarr":
        yield replay_buffer(path, reading)
    elif kind == "npz":
        with npz(file) as (columns, attributes):
            yield Flat(path, "npz", columns, attributes, reading)
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
        return ManiSkill(path, file, reading).flat()
    if is_aloha(file):
        return aloha(path, file, reading)
    columns, attributes, groups = hdf5_columns(file), hdf5_attributes(file), hdf5_groups(file)
    if groups and "observations" not in named(columns).columns:
        text = f"HDF5 of a layout that is not read: it holds {tree(file)}"
        raise refuse(path, f"{text}; {WRITE}")
    kind = OURS if attributes.get("format") == OURS else "d4rl"
    return Flat(path, kind, columns, attributes, reading, groups)


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
    raise unknown(folder, inside)


def unknown(folder: Path, inside: list[Path]) -> Refused:
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
