"""What a reader of recorded data hands over: the record, its faults, and room for its arrays."""

import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvError
from ..paths import expanded
from ..pixels import Images, pixels

BLOCK_BYTES = 1 << 22  # a file is read, checked and written in pieces of about this size
SHOWN = 5  # faults that a message lists


class Stage(NamedTuple):
    """The environment of a run, as far as it says what recorded actions mean."""

    env_id: str
    low: NDArray  # [Da] physical bounds of actions
    high: NDArray  # [Da]


class Reading(NamedTuple):
    """How a file is read: what a user may say of it, and where the run plays.

    on_bad: what to do with faults. "refuse" raises; "drop" leaves out the episodes with NaN or
    Inf, actions outside [-1, 1] or a missing end; "clip" cuts actions to [-1, 1], if few and near
    ones leave it, and refuses the rest. action_scale: the unit of actions, see `units.in_unit`.
    storage: "ram", or "mmap" for temporary files in RHEO_CACHE or ~/.cache/rheo; "auto" chooses.
    obs_keys: observations of robomimic and Minari dictionaries. filter: the filter key (robomimic's
    mask/NAME) whose demonstrations are read; held: another one that is read besides, to validate
    on. time_limit: steps after which an episode is cut. stage: the run's environment, if any.
    env_parts: the parts of its observation, in order, with their widths. big: whether a file may
    become far more in memory than it is on disk (`bulk`).
    """

    on_bad: str = "refuse"
    action_scale: str = "auto"
    storage: str = "ram"
    obs_keys: list[str] | None = None
    filter: str | None = None
    held: str | None = None
    time_limit: int | None = None
    stage: Stage | None = None
    env_parts: Mapping[str, int] | None = None
    big: bool = False


class Recording(NamedTuple):
    """Episodes end to end: S steps, E episodes, F known successors of last steps."""

    obs: NDArray  # [S + F, Do] float32: the S observations, then successors of last steps
    action: NDArray  # [S, Da] float32 in [-1, 1]
    reward: NDArray | None  # [S] float32; None when the file has none
    terminated: NDArray  # [S] bool: True only at last steps of episodes that ended by the task
    ends: NDArray  # [E] int64 exclusive ends, rising to S
    successor: NDArray  # [E] int64: row of `obs` after the episode's last step, -1: not in the file
    about: dict[str, Any]  # format, path, env_id (or None), dt, dropped episodes, remarks ...
    cost: NDArray | None = None  # [S] float32: what a step cost beside its reward; likewise

    @property
    def starts(self) -> NDArray:
        """First step of each episode [E]."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    @property
    def lengths(self) -> NDArray:
        """Steps of each episode [E]."""
        return np.diff(self.ends, prepend=0)

    @property
    def images(self) -> Images:
        """Heights and widths of the images at the end of every observation."""
        return self.about.get("obs_images", {})

    @property
    def state(self) -> NDArray:
        """The observations without their images, [S + F, Ds]."""
        return self.obs[:, : self.obs.shape[1] - pixels(self.images)]

    @property
    def tables(self) -> dict[str, NDArray]:
        """The per-step tables by their key in a file; of observations all but their images."""
        return {"observations": self.state[: len(self.action)], "actions": self.action}

    def episode_of(self, rows: Any) -> NDArray:
        """The episode of each step."""
        return np.searchsorted(self.ends, rows, side="right")

    @property
    def sizes(self) -> "Sizes":
        """How large it is."""
        known, reward = int((self.successor >= 0).sum()), self.reward is not None
        dims = self.obs.shape[1], self.action.shape[1]
        return Sizes(len(self.action), len(self.ends), known, *dims, reward, self.cost is not None)

    def parts(self) -> "Iterator[Part]":
        """Its episodes, one by one."""
        jumps = np.asarray(self.about.get("jumps", ()), np.int64)
        for start, end, after in zip(self.starts, self.ends, self.successor, strict=True):
            yield Part(
                self.obs[start:end],
                self.action[start:end],
                None if self.reward is None else self.reward[start:end],
                bool(self.terminated[end - 1]),
                self.obs[after] if after >= 0 else None,
                jumps[(jumps >= start) & (jumps < end)] - start,
                None if self.cost is None else self.cost[start:end],
            )


class Fault(NamedTuple):
    """One thing that is wrong (error) or odd (note). step counts from its episode's start."""

    level: str
    key: str
    episode: int | None
    step: int | None
    value: float | str | None
    text: str

    def line(self) -> str:
        """The place, the value, what it is and the remedy."""
        value = f"{self.value:.6g}" if isinstance(self.value, float) else self.value
        places = [
            self.key,
            "" if self.episode is None else f"episode {self.episode}",
            "" if self.step is None else f"step {self.step}",
            "" if value is None else f"value {value}",
        ]
        place = ", ".join(filter(None, places))
        return f"{place}: {self.text}" if place else self.text


class Refused(EnvError):
    """A file that cannot be used, fault by fault."""

    def __init__(self, path: str | os.PathLike, faults: list[Fault]) -> None:
        self.path, self.faults = str(path), faults
        lines = [fault.line() for fault in faults[:SHOWN]]
        if len(faults) > SHOWN:
            told = f"`rheo data check {shlex.quote(str(path))}` lists them"
            lines.append(f"and {len(faults) - SHOWN} more; {told}")
        if len(lines) == 1:
            super().__init__(f"data={path}: {lines[0]}")
        else:
            super().__init__(f"data={path}: {len(faults)} errors\n  " + "\n  ".join(lines))


def remark(about: dict[str, Any], key: str, text: str) -> None:
    """Adds what a user should be told of how a file was read; it becomes a note."""
    about["remarks"] = [*about.get("remarks", ()), (key, text)]


def refuse(path: str | os.PathLike, text: str, key: str = "", value: Any = None) -> Refused:
    """One error about a file, or about one of its keys."""
    return Refused(path, [Fault("error", key, None, None, value, text)])


def one_line(error: Exception) -> str:
    """A library's message without line breaks."""
    return " ".join(str(error).split())


def json_of(path: Path, again: str) -> Any:
    """What a JSON file holds, {} where there is none. Raises Refused."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise refuse(path, f"not readable as JSON ({error}); {again} it again") from error


class Column(NamedTuple):
    """An array that is still in a file: blocks() yields its rows in order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[NDArray]]


def block_rows(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Rows of a piece of about BLOCK_BYTES."""
    width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    return max(1, BLOCK_BYTES // max(width, 1))


def pieces(array: NDArray) -> Iterator[tuple[int, NDArray]]:
    """(first row, rows) over an array, so that what is made of them stays small."""
    rows = block_rows(array.shape, array.dtype)
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]


def fill(out: NDArray, column: Column) -> None:
    """Reads a column into an array, converting its type on the way."""
    row = 0
    for block in column.blocks():
        with np.errstate(over="ignore", invalid="ignore"):  # a check reports what became infinite
            out[row : row + len(block)] = block.reshape(len(block), *out.shape[1:])
        row += len(block)


def allocate(path: str, shape: tuple[int, ...], storage: str) -> NDArray:
    """A float32 array in memory, or (storage "mmap") in a temporary file without a name.

    Raises Refused when the disk has no room for that file.
    """
    if storage == "ram":
        return np.empty(shape, np.float32)
    folder = expanded(os.environ.get("RHEO_CACHE") or "~/.cache/rheo")
    size = max(1, int(np.prod(shape, dtype=np.int64)) * 4)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, later a crash
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.float32, "w+", shape=shape)
    except OSError as error:
        text = f"no room for {size:,} bytes in {folder} ({error.strerror}); set RHEO_CACHE"
        raise refuse(path, f"{text} to a folder with room") from error


class Part(NamedTuple):
    """One episode of a file that keeps episodes apart: L steps."""

    obs: NDArray  # [L, Do]
    action: NDArray  # [L, Da]
    reward: NDArray | None  # [L]
    terminated: bool
    successor: NDArray | None  # [Do]
    jumps: NDArray  # steps whose next observation is not the following step's
    cost: NDArray | None = None  # [L]


class Sizes(NamedTuple):
    """Steps, episodes, known successors, dimensions, and whether there are rewards and costs."""

    steps: int
    episodes: int
    successors: int
    obs_dim: int
    action_dim: int
    reward: bool
    cost: bool = False

    @property
    def nbytes(self) -> int:
        """Memory of the arrays of a Recording."""
        rows = (self.steps + self.successors) * self.obs_dim
        floats = rows + self.steps * (self.action_dim + self.reward + self.cost)
        return 4 * floats + self.steps + 16 * self.episodes


class Layout(Protocol):
    """An opened file, of which only headers were read."""

    @cached_property
    def sizes(self) -> Sizes:
        """What its arrays need, as far as headers tell it; steps are never more."""
        ...

    def read(self, storage: str) -> Recording:
        """The recording in the storage "ram" or "mmap", unchecked but for what reading it needs.

        Raises Refused.
        """
        ...

    @cached_property
    def about(self) -> dict[str, Any]:
        """Format, path, environment, and what else the file says of itself."""
        ...


def stack(
    path: str,
    parts: Iterable[Part | list[Fault]],
    sizes: Sizes,
    storage: str,
    about: dict[str, Any],
) -> Recording:
    """One Recording of episodes that a file keeps apart.

    An episode that cannot be read is the list of its faults: they are kept in about["broken"], and
    about["episodes"] then says which of the file's episodes the others are. Raises Refused where
    none can be read.
    """
    steps = sizes.steps
    obs = allocate(path, (steps + sizes.successors, sizes.obs_dim), storage)
    action = allocate(path, (steps, sizes.action_dim), storage)
    reward, cost = (np.empty(steps, np.float32) if has else None for has in sizes[5:])
    terminated = np.zeros(steps, bool)
    ends, known, tail, jumps, read, row = [], [], [], [], [], 0
    broken: list[Fault] = []
    for index, part in enumerate(parts):
        if isinstance(part, list):
            broken += part
            continue
        after = row + len(part.action)
        if after > steps:
            raise refuse(path, f"more steps than the {steps:,} that it tells; write it again")
        with np.errstate(over="ignore", invalid="ignore"):
            obs[row:after], action[row:after] = part.obs, part.action
            if reward is not None and part.reward is not None:
                reward[row:after] = part.reward
            if cost is not None and part.cost is not None:
                cost[row:after] = part.cost
            if part.successor is not None:
                tail.append(part.successor.astype(np.float32))
        known.append(part.successor is not None)
        terminated[after - 1] = part.terminated
        jumps.append(part.jumps + row)
        ends.append(after)
        read.append(index)
        row = after
    if not read:
        raise Refused(path, broken)
    about = about | (without(about, broken, read) if broken else {})
    if len(rows := np.concatenate(jumps).astype(np.int64)):
        about = about | {"jumps": rows}
    reward, cost = (None if told is None else told[:row] for told in (reward, cost))
    kept = followed(path, obs, row, tail), action[:row], reward, terminated[:row]
    return Recording(*kept, np.array(ends, np.int64), behind(np.array(known), row), about, cost)


def behind(known: NDArray, steps: int) -> NDArray:
    """Rows [E] of the successors that are `known` [E], in order behind the steps; -1: not known."""
    return np.where(known, steps + np.cumsum(known) - 1, -1)


def followed(path: str, obs: NDArray, steps: int, tail: Sequence[NDArray]) -> NDArray:
    """The first `steps` observations with the successors behind them, in place if there is room.

    Headers do not always tell how many successors there are.
    """
    whole = steps + len(tail)
    if whole > len(obs):
        storage = "mmap" if isinstance(obs, np.memmap) else "ram"
        roomy = allocate(path, (whole, obs.shape[1]), storage)
        roomy[:steps] = obs[:steps]
        obs = roomy
    obs[steps:whole] = tail or obs[:0]
    return obs[:whole]


def without(about: dict[str, Any], broken: list[Fault], read: list[int]) -> dict[str, Any]:
    """What is known of a recording whose episodes, but for those `read`, are broken."""
    demos = {"demos": [about["demos"][i] for i in read]} if "demos" in about else {}
    return {"broken": broken, "episodes": read, **demos}


def joined(recordings: Sequence[Recording]) -> Recording:
    """Recordings of one kind, all in memory, end to end."""
    parts = (part for recording in recordings for part in recording.parts())
    return stack("memory", parts, total([one.sizes for one in recordings]), "ram", {})


def total(sizes: Sequence[Sizes]) -> Sizes:
    """The sizes of all recordings together."""
    first = sizes[0]
    steps, count, known = (sum(column) for column in list(zip(*sizes, strict=True))[:3])
    rewards, costs = all(one.reward for one in sizes), all(one.cost for one in sizes)
    return first._replace(steps=steps, episodes=count, successors=known, reward=rewards, cost=costs)


def differing(following: NDArray, obs: NDArray) -> NDArray:
    """Rows [N] where next observations [N, Do] are not the following observations.

    Rounding of the recording (1e-4 of the value's size) is allowed; NaN equals NaN, which another
    check reports.
    """
    rows = np.flatnonzero((following != obs).any(1))
    if len(rows):
        close = np.isclose(following[rows], obs[rows], rtol=1e-4, atol=1e-4, equal_nan=True)
        rows = rows[~close.all(1)]
    return rows


def spelled(path: str | Sequence[str]) -> str:
    """One file as it is, several as the command line lists them."""
    return path if isinstance(path, str) else f"[{','.join(path)}]"
