"""LeRobot data sets: a folder of parquet files with meta/info.json, or one parquet file.

Layouts v2.0, v2.1 (data/chunk-000/episode_000000.parquet) and v3.0 (data/chunk-000/file-000.parquet
with several episodes) as in huggingface/lerobot, docs/source/lerobot-dataset-v3.mdx; in all of them
a row is a frame and tells its episode_index and frame_index, which is what is read.
"""

import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .columns import beside, chosen, end_to_end, held, left_out, missing
from .flat import Flat
from .record import Fault, Reading, Refused, refuse

log = logging.getLogger("rheo")
INFO = Path("meta", "info.json")
FIRST = ("observation.state", "observation.environment_state")  # then the others, sorted
COUNTERS = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
ACTION, REWARD, DONE, SUCCESS = "action", "next.reward", "next.done", "next.success"


class Group(NamedTuple):
    """A row group of a parquet file."""

    file: Path
    number: int
    rows: int


def lerobot(path: str, reading: Reading) -> Flat:
    """The data set behind a folder, or behind one parquet file. Raises Refused.

    Observations are observation.state, observation.environment_state and every other numeric
    observation.*, sorted, side by side; `obs_keys` chooses. Images and videos are left out.
    Rewards are next.reward. An episode ended by the task where next.success is set at its last
    frame or, without that column, next.done is and the reward there, if any, is positive.
    """
    root = Path(path) if Path(path).is_dir() else folder_of(Path(path))
    info = {} if root is None else information(root)
    files = [] if root is None else sorted(root.rglob("*.parquet"))
    files = [file for file in files if file.relative_to(root or file).parts[0] != "meta"]
    if Path(path).is_file():
        if len(files) > 1:
            text = "data=%s is one of %d files of a LeRobot data set; data=%s reads them all"
            log.warning(text, path, len(files), root)
        files = [Path(path)]
    if not files:
        text = "a LeRobot data set without parquet files below data/; download it again"
        raise refuse(path, text)
    return Frames(path, files, info, reading).flat()


def folder_of(file: Path) -> Path | None:
    """The data set that a parquet file belongs to, None where it lies alone."""
    return next((folder for folder in file.absolute().parents if (folder / INFO).is_file()), None)


def information(root: Path) -> dict[str, Any]:
    """meta/info.json, {} where there is none. Raises Refused for one that is broken."""
    if not (root / INFO).is_file():
        return {}
    try:
        info = json.loads((root / INFO).read_text())
    except (ValueError, OSError) as error:
        raise refuse(root / INFO, f"not readable as JSON ({error}); download it again") from error
    if not isinstance(info, dict):
        raise refuse(root / INFO, "holds no JSON object; download it again")
    return info


class Frames:
    """The rows of parquet files end to end."""

    def __init__(
        self, path: str, files: list[Path], info: dict[str, Any], reading: Reading
    ) -> None:
        self.path, self.files, self.info, self.reading = path, files, info, reading
        try:
            self.parquet = importlib.import_module("pyarrow.parquet")
            self.errors = (importlib.import_module("pyarrow").ArrowException, OSError)
        except ImportError as error:
            raise missing(path, "pyarrow", "a LeRobot data set (parquet)") from error
        self.groups, self.types = [], {}
        for file in files:
            with self.opened(file) as content:
                counts = [content.metadata.row_group(i) for i in range(content.num_row_groups)]
                self.groups += [Group(file, i, c.num_rows) for i, c in enumerate(counts)]
                types = {field.name: field.type for field in content.schema_arrow}
            if self.types and set(types) != set(self.types):
                other = ", ".join(sorted(set(types) ^ set(self.types)))
                raise refuse(file, f"its columns differ from those of {files[0]}: {other}")
            self.types = self.types or types
        self.steps = sum(group.rows for group in self.groups)
        self.refuse_parts()

    def opened(self, file: Path) -> Any:
        """A parquet file. Raises Refused."""
        try:
            return self.parquet.ParquetFile(file)
        except self.errors as error:
            with file.open("rb") as content:
                pointer = content.read(64).startswith(b"version https://git-lfs")
            text = "a Git LFS pointer, not the data; run `git lfs pull`"
            other = f"not a readable parquet file ({' '.join(str(error).split())}); download it"
            raise refuse(file, text if pointer else f"{other} again") from error

    def refuse_parts(self) -> None:
        """Raises Refused where frames that the folder tells of are not there."""
        told = self.info.get("total_frames")
        if not self.steps:
            raise refuse(self.path, "empty: no frames; download it again")
        if Path(self.path).is_dir() and told and told != self.steps:
            text = f"{INFO} tells of {told:,} frames, {len(self.files):,} files hold {self.steps:,}"
            raise refuse(self.path, f"{text}; a part is missing: download it again")

    def read(self, group: Group, *keys: str) -> list[NDArray]:
        """Columns of a row group, each [rows, ...]. Raises Refused."""
        with self.opened(group.file) as content:
            try:
                table = content.read_row_group(group.number, columns=list(keys))
            except self.errors as error:
                text = f"damaged ({' '.join(str(error).split())}); download it again"
                raise refuse(group.file, text) from error
        return [self.array(group, key, table.column(key).combine_chunks()) for key in keys]

    def array(self, group: Group, key: str, values: Any) -> NDArray:
        """A column as numbers [rows, D], [rows] where it is a plain one. Raises Refused."""
        values, widths = getattr(values, "storage", values), []
        while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
            if values.null_count:
                raise refuse(group.file, f"{values.null_count} rows are empty (null)", key)
            counts = np.diff(values.offsets) if hasattr(values, "offsets") else np.empty(0)
            if len(np.unique(counts)) > 1:
                raise refuse(group.file, "its rows have different lengths; mend it", key)
            inner = values.flatten()
            widths.append(len(inner) // max(len(values), 1))
            values = inner
        rows = values.to_numpy(zero_copy_only=False)
        if rows.dtype == object:  # flags with empty places
            raise refuse(group.file, f"{values.null_count} rows are empty (null)", key)
        return rows.reshape(-1, *widths)

    def series(self, key: str) -> NDArray:
        """A column of one number per frame, [S]."""
        parts = [self.read(group, key)[0].reshape(group.rows, -1) for group in self.groups]
        return np.concatenate(parts)[:, 0]

    def usable(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Observations that can be read, and why each other column cannot be."""
        features = self.info.get("features") or {}
        names = [key for key in dict.fromkeys([*self.types, *features]) if key not in COUNTERS]
        names = [key for key in names if key not in (ACTION, REWARD, DONE, SUCCESS)]
        usable, others = {}, {}
        for key in sorted(names, key=lambda key: (key not in FIRST, key != FIRST[0], key)):
            kind = (features.get(key) or {}).get("dtype")
            if kind in ("image", "video"):
                others[key] = f"{'an' if kind == 'image' else 'a'} {kind}"
            elif key not in self.types or not plain(self.types[key]):
                others[key] = f"of type {self.types.get(key, kind)}"
            elif key.partition(".")[0] == "observation":
                usable[key] = self.types[key]
            else:
                others[key] = "no observation"
        return usable, others

    def flat(self) -> Flat:
        """The columns under the names that `Flat` reads."""
        usable, others = self.usable()
        if ACTION not in self.types:
            text = f"a parquet file of other columns ({', '.join(self.types)}); a LeRobot data set"
            raise refuse(self.path, f"{text} has observation.state and action", ACTION)
        keys = chosen(self.path, self.reading.obs_keys, list(usable), usable, others)
        order, ends = self.order()
        first = [one.reshape(len(one), -1) for one in self.read(self.groups[0], *keys, ACTION)]
        dims, action_dim = sum(one.shape[1] for one in first[:-1]), first[-1].shape[1]
        columns = {
            "observations": self.table(keys, dims, order),
            "actions": self.table([ACTION], action_dim, order),
            "terminals": held(self.terminals(order, ends)),
            "episode_ends": held(ends),
        }
        if REWARD in self.types:
            reward = self.series(REWARD)
            columns["rewards"] = held(reward if order is None else reward[order])
        attributes = {"obs_keys": keys, "left_out": left_out(keys, usable, others)} | self.told()
        return Flat(self.path, "lerobot", columns, attributes, self.reading._replace(obs_keys=None))

    def told(self) -> dict[str, Any]:
        """What meta/info.json tells of all frames."""
        fps, robot = self.info.get("fps"), self.info.get("robot_type")
        tasks = self.info.get("total_tasks") or 1
        if tasks > 1:
            log.warning("data=%s: its %d tasks are learned as one", self.path, tasks)
        told = {"dt": 1 / fps} if fps else {}
        return told | ({"robot": robot} if robot else {})

    def table(self, keys: list[str], dims: int, order: NDArray | None) -> Any:
        """Columns side by side [S, D]."""

        def rows(group: Group) -> NDArray:
            table = beside(self.read(group, *keys))
            if table.shape[1] != dims:
                text = f"rows of {table.shape[1]} numbers, {dims} in {self.groups[0].file}"
                raise refuse(group.file, text, " ".join(keys))
            return table

        if order is None:
            return end_to_end((self.steps, dims), self.groups, rows)
        return held(np.concatenate([rows(group) for group in self.groups])[order])

    def order(self) -> tuple[NDArray | None, NDArray]:
        """The order of the frames (None: as they lie) and the ends [E] of episodes.

        Raises Refused where frames are missing inside an episode.
        """
        if not {"episode_index", "frame_index"} <= set(self.types):
            text = f"no columns episode_index and frame_index; it has {', '.join(self.types)}"
            raise refuse(self.path, text, "episode_index")
        episode, frame = self.series("episode_index"), self.series("frame_index")
        order = np.lexsort((frame, episode))
        as_they_lie = bool((order == np.arange(len(order))).all())
        episode, frame = episode[order], frame[order]
        last = np.append(episode[1:] != episode[:-1], True)
        ends = np.flatnonzero(last) + 1
        starts = np.concatenate([[0], ends[:-1]])
        due = np.arange(len(frame)) - np.repeat(starts, np.diff(ends, prepend=0))
        faults = list(gaps(episode, frame, due, starts))
        if faults:
            raise Refused(self.path, faults)
        return None if as_they_lie else order, ends.astype(np.int64)

    def terminals(self, order: NDArray | None, ends: NDArray) -> NDArray:
        """Steps [S] that ended their episode by the task."""
        last = ends - 1 if order is None else order[ends - 1]
        result = np.zeros(self.steps, bool)
        if SUCCESS in self.types:
            result[ends - 1] = self.series(SUCCESS)[last] != 0
        elif DONE in self.types:
            done = self.series(DONE)[last] != 0
            positive = self.series(REWARD)[last] > 0 if REWARD in self.types else True
            result[ends - 1] = done & positive
        return result


def gaps(episode: NDArray, frame: NDArray, due: NDArray, starts: NDArray) -> Iterator[Fault]:
    """A fault for each episode whose frames do not count 0, 1, 2, ..."""
    wrong = np.flatnonzero(frame != due)
    owner = np.searchsorted(starts, wrong, side="right") - 1
    for index in np.unique(owner):
        row = wrong[owner == index][0]
        text = f"frame {due[row]} is not there (episode_index {episode[row]}); download it again"
        yield Fault("error", "frame_index", int(index), int(due[row]), str(frame[row]), text)


def plain(kind: Any) -> bool:
    """Whether a parquet type is of numbers, or of lists of them."""
    kind = getattr(kind, "storage_type", kind)
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    name = str(kind)
    return name in ("float", "double", "halffloat", "bool") or name.startswith(("int", "uint"))
