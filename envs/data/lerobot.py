"""LeRobot data sets: a folder of parquet files with meta/info.json, or one parquet file.

Layouts v2.0, v2.1 (data/chunk-000/episode_000000.parquet) and v3.0 (data/chunk-000/file-000.parquet
with several episodes) as in huggingface/lerobot, docs/source/lerobot-dataset-v3.mdx; in all of them
a row is a frame and tells its episode_index and frame_index, which is what is read.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bulk import on_disk, refuse_bomb
from .columns import EndToEnd, beside, chosen, held, left_out, package
from .recording import Column, Fault, Reading, Recording, Refused, Sizes, json_of, one_line, refuse
from .told import COUNT, NUMBER, TABLE, TEXTS, within
from .vetting import vet

log = logging.getLogger("rheo")
INFO = Path("meta", "info.json")
FIRST = ("observation.state", "observation.environment_state")  # then the others, sorted
EPISODE, FRAME = "episode_index", "frame_index"
COUNTERS = {"timestamp", FRAME, EPISODE, "index", "task_index"}
ACTION, REWARD, DONE, SUCCESS = "action", "next.reward", "next.done", "next.success"


TOLD = {"fps": NUMBER, "robot_type": TEXTS}  # of what INFO tells, what is read
TOLD |= dict.fromkeys(("total_frames", "total_episodes", "total_tasks"), COUNT)


class Group(NamedTuple):
    """A row group of a parquet file."""

    file: Path
    number: int
    rows: int


def lerobot(path: str, reading: Reading) -> "Frames":
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
    return Frames(path, files, info, reading)


def folder_of(file: Path) -> Path | None:
    """The data set that a parquet file belongs to, None where it lies alone."""
    return next((folder for folder in file.absolute().parents if (folder / INFO).is_file()), None)


def information(root: Path) -> dict[str, Any]:
    """meta/info.json, {} where there is none. Raises Refused for one that is broken."""
    file, info = root / INFO, json_of(root / INFO, "download")
    told = {key: within(file, info, key, kind) for key, kind in TOLD.items()}
    features = within(file, info, "features", TABLE) or {}
    return told | {"features": {key: within(file, features, key, TABLE) or {} for key in features}}


class Frames:
    """The rows of parquet files end to end."""

    def __init__(
        self, path: str, files: list[Path], info: dict[str, Any], reading: Reading
    ) -> None:
        self.path, self.files, self.info, self.reading = path, files, info, reading
        what = "a LeRobot data set (parquet)"
        self.parquet = package(path, "pyarrow.parquet", what)
        self.errors = (package(path, "pyarrow", what).ArrowException, OSError)
        self.groups, self.types = [], {}
        for file in files:
            with self.opened(file) as content:
                metadata = content.metadata
                rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
                self.groups += [Group(file, i, count) for i, count in enumerate(rows) if count]
                types = {field.name: field.type for field in content.schema_arrow}
            if self.types and set(types) != set(self.types):
                other = ", ".join(sorted(set(types) ^ set(self.types)))
                raise refuse(file, f"its columns differ from those of {files[0]}: {other}")
            self.types = self.types or types
        self.steps = sum(group.rows for group in self.groups)
        self.refuse_parts()
        self.observed, self.others = self.usable()
        if ACTION not in self.types:
            text = f"a parquet file of other columns ({', '.join(self.types)}); a LeRobot data set"
            raise refuse(self.path, f"{text} has observation.state and action", ACTION)
        usual = list(self.observed)
        self.keys = chosen(path, reading.obs_keys, usual, self.observed, self.others)
        self.refuse_large()
        first = self.columns(self.groups[0], *self.keys, ACTION)
        widths = [one.reshape(len(one), -1).shape[1] for one in first]
        self.dims, self.action_dim = sum(widths[:-1]), widths[-1]

    def opened(self, file: Path) -> Any:
        """A parquet file. Raises Refused."""
        vet(file, "Parquet")
        try:
            return self.parquet.ParquetFile(file)
        except self.errors as error:
            with file.open("rb") as content:
                pointer = content.read(64).startswith(b"version https://git-lfs")
            text = "a Git LFS pointer, not the data; run `git lfs pull`"
            other = f"not a readable parquet file ({one_line(error)}); download it"
            raise refuse(file, text if pointer else f"{other} again") from error

    def refuse_large(self) -> None:
        """Raises Refused where what is read would be far more in memory than the files hold."""
        wanted, count = {*self.keys, ACTION, EPISODE, FRAME, REWARD, DONE, SUCCESS}, 0
        for file in self.files:
            with self.opened(file) as content:
                groups = map(content.metadata.row_group, range(content.metadata.num_row_groups))
                parts = [group.column(i) for group in groups for i in range(group.num_columns)]
            for part in parts:
                names = {part.path_in_schema, part.path_in_schema.rpartition(".list.")[0]}
                count += part.num_values if names & wanted else 0
        refuse_bomb(self.path, 8 * count, sum(map(on_disk, self.files)), self.reading.big)

    def refuse_parts(self) -> None:
        """Raises Refused where frames that the folder tells of are not there."""
        told = self.info.get("total_frames")
        if not self.steps:
            raise refuse(self.path, "empty: no frames; download it again")
        if Path(self.path).is_dir() and told and told != self.steps:
            text = f"{INFO} tells of {told:,} frames, {len(self.files):,} files hold {self.steps:,}"
            raise refuse(self.path, f"{text}; a part is missing: download it again")

    def columns(self, group: Group, *keys: str) -> list[NDArray]:
        """Columns of a row group, each [rows, ...]. Raises Refused."""
        with self.opened(group.file) as content:
            try:
                table = content.read_row_group(group.number, columns=list(keys), use_threads=False)
            except self.errors as error:
                text = f"damaged ({one_line(error)}); download it again"
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
        if 0 in widths:
            raise refuse(group.file, "its rows hold no numbers; mend it", key)
        rows = values.to_numpy(zero_copy_only=False)
        if rows.dtype == object:  # flags with empty places
            raise refuse(group.file, f"{values.null_count} rows are empty (null)", key)
        return rows.reshape(-1, *widths)

    def usable(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Observations that can be read, and why each other column cannot be."""
        features = self.info.get("features") or {}
        names = [key for key in dict.fromkeys([*self.types, *features]) if key not in COUNTERS]
        names = [key for key in names if key not in (ACTION, REWARD, DONE, SUCCESS)]
        usable, others = {}, {}
        for key in sorted(names, key=lambda key: (key not in FIRST, key != FIRST[0], key)):
            kind = features.get(key, {}).get("dtype")
            if kind in ("image", "video"):
                others[key] = f"{'an' if kind == 'image' else 'a'} {kind}"
            elif key not in self.types or not plain(self.types[key]):
                others[key] = f"of type {self.types.get(key, kind)}"
            elif key.partition(".")[0] == "observation":
                usable[key] = self.types[key]
            else:
                others[key] = "no observation"
        return usable, others

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout. How many episodes there are, only the frames tell; the folder says it too."""
        count = self.info.get("total_episodes") or len(self.files)
        return Sizes(self.steps, int(count), 0, self.dims, self.action_dim, REWARD in self.types)

    @cached_property
    def about(self) -> dict[str, Any]:
        """See Layout."""
        fps, robot = self.info.get("fps"), self.info.get("robot_type")
        told = {"format": "LeRobot", "path": self.path, "env_id": None, "obs_keys": self.keys}
        told |= {"left_out": left_out(self.keys, self.observed, self.others)}
        return told | ({"dt": 1 / fps} if fps else {}) | ({"robot": robot} if robot else {})

    def read(self, storage: str) -> Recording:
        """See Layout."""
        tasks = self.info.get("total_tasks") or 1
        if tasks > 1:
            log.warning("data=%s: its %d tasks are learned as one", self.path, tasks)
        series = self.series()
        order, ends = self.order(series)
        columns = {
            "observations": self.table(self.keys, self.dims, order),
            "actions": self.table([ACTION], self.action_dim, order),
        }
        if REWARD in series:
            columns["rewards"] = held(series[REWARD])
        ended = terminals(series, ends)
        layout = EndToEnd(self.path, columns, self.about, self.reading, ends, ended)
        return layout.read(storage)

    def series(self) -> dict[str, NDArray]:
        """The columns of one number per frame, [S], as they lie."""
        keys = [key for key in (EPISODE, FRAME, REWARD, DONE, SUCCESS) if key in self.types]
        if not {EPISODE, FRAME} <= set(keys):
            text = f"no columns {EPISODE} and {FRAME}; it has {', '.join(self.types)}"
            raise refuse(self.path, text, EPISODE)
        parts = [self.columns(group, *keys) for group in self.groups]
        rows = {key: [part[i].reshape(len(part[i]), -1)[:, 0] for part in parts]
                for i, key in enumerate(keys)}  # fmt: skip
        return {key: np.concatenate(values) for key, values in rows.items()}

    def table(self, keys: list[str], dims: int, order: NDArray | None) -> Column:
        """Columns side by side [S, D]."""

        def rows(group: Group) -> NDArray:
            table = beside(self.columns(group, *keys))
            if table.shape[1] != dims:
                text = f"rows of {table.shape[1]} numbers, {dims} in {self.groups[0].file}"
                raise refuse(group.file, text, " ".join(keys))
            return table

        def blocks() -> Iterable[NDArray]:
            lie = map(rows, self.groups)
            return lie if order is None else [np.concatenate([*lie])[order]]

        return Column((self.steps, dims), np.dtype(np.float64), blocks)

    def order(self, series: dict[str, NDArray]) -> tuple[NDArray | None, NDArray]:
        """The order of the frames (None: as they lie) and the ends [E] of episodes.

        Puts the series into that order. Raises Refused where frames are missing in an episode.
        """
        order = np.lexsort((series[FRAME], series[EPISODE]))
        as_they_lie = bool((order == np.arange(len(order))).all())
        for key, values in series.items():
            series[key] = values[order]
        episode, frame = series[EPISODE], series[FRAME]
        ends = np.flatnonzero(np.append(episode[1:] != episode[:-1], True)) + 1
        starts = np.concatenate([[0], ends[:-1]])
        due = np.arange(len(frame)) - np.repeat(starts, np.diff(ends, prepend=0))
        faults = list(gaps(episode, frame, due, starts))
        if faults:
            raise Refused(self.path, faults)
        return None if as_they_lie else order, ends.astype(np.int64)


def terminals(series: dict[str, NDArray], ends: NDArray) -> NDArray:
    """Steps [S] that ended their episode by the task; the series are in order."""
    last, result = ends - 1, np.zeros(len(series[EPISODE]), bool)
    if SUCCESS in series:
        result[last] = series[SUCCESS][last] != 0
    elif DONE in series:
        positive = series[REWARD][last] > 0 if REWARD in series else True
        result[last] = (series[DONE][last] != 0) & positive
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
