"""Reads recorded data of any format into one record, and refuses what is wrong by name."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..memory import available, size_text
from ..parts import read_parts
from ..paths import exists
from . import faults
from .bulk import on_disk, refuse_bomb
from .catalogue import env_by_name, file_of, find, fits, single_task
from .columns import refuse_clash, refuse_filter
from .formats import head, opened
from .recording import SHOWN, Reading, Recording, Refused, behind, pieces, refuse, spelled
from .units import in_unit

ON_BAD, STORAGE = ("refuse", "drop", "clip"), ("ram", "mmap")
AUTO = "auto"  # storage of programs that look at files: memory where there is enough
OVERHEAD = 1.2  # peak memory of reading, against the arrays' own
log = logging.getLogger("rheo")


def read(path: str | Sequence[str], **how: Any) -> Recording:
    """The recording behind a path, a known data set's or single task's name, or `minari:ID`.

    Several of them are joined end to end, as are the episodes of a folder. how: fields of
    `Reading`. No file is ever changed; what was guessed or left out is logged. Raises Refused that
    names file, key, episode, step, value and remedy.
    """
    reading = Reading(**how)
    recording = load(path, reading)
    for fault in faults.told(recording, "note", [faults.remarks]):
        log.info("data=%s: %s", spelled(path), fault.line())
    return mended(recording, reading.on_bad)


class Played(NamedTuple):
    """The environment of a recording, None where it is not known.

    alike: observations and actions have its sizes. options: what it is made with. cost: what its
    steps cost, as `env.cost` says.
    """

    env_id: str | None
    alike: bool = True
    options: Mapping[str, Any] = {}
    cost: Mapping[str, Any] = {}


def played_in(path_or_name: str | Sequence[str], obs_keys: list[str] | None = None) -> Played:
    """The environment of a recording: as the file tells, else as its name does.

    Sizes of observations by keys are not asked: which of them are read is still open, unless
    obs_keys are. Raises Refused.
    """
    file = where(path_or_name)
    if not is_there(file):
        return Played(env_by_name(file) if isinstance(file, str) else None)
    sizes, about = head(file, Reading(obs_keys=obs_keys))
    alike = "obs_keys" in about or fits(about["env_id"], sizes.obs_dim, sizes.action_dim)
    options, cost = (about.get(key) or {} for key in ("env_options", "env_cost"))
    return Played(about["env_id"], alike, options, cost)


def is_there(path: str | Sequence[str]) -> bool:
    """Whether there is something to open, in each place."""
    if not isinstance(path, str):
        return all(map(is_there, path))
    return path.startswith("minari:") or exists(file_of(path))


def where(path: str | Sequence[str]) -> str | list[str]:
    """The file of a path or name, of each. Raises Refused.

    Names of Minari and of single tasks stay: what these tell besides is needed by their readers.
    """
    if not isinstance(path, str):
        return [str(where(one)) for one in path]
    named = path.startswith("minari:") or single_task(path) is not None and find(path)
    return path if named else str(find(path))


def load(path: str | Sequence[str], reading: Reading) -> Recording:
    """`read` without the check of what was read. Raises Refused."""
    name = spelled(path)
    if reading.storage not in (*STORAGE, AUTO):
        raise refuse(name, f"data.storage={reading.storage!r}; there are ram and mmap")
    if reading.time_limit is not None and reading.time_limit < 1:
        text = f"data.time_limit={reading.time_limit}; a positive number is needed"
        raise refuse(name, text)
    file = where(path)
    with opened(file, reading) as layout:
        refuse_filter(name, reading, layout.about)
        refuse_clash(name, read_parts(layout.about), reading.env_parts)
        needed = layout.sizes.nbytes
        if not spelled(file).startswith("minari:"):  # looked at as a whole when it was opened
            stored = on_disk([file_of(one) for one in ([file] if isinstance(file, str) else file)])
            refuse_bomb(name, needed, stored, reading.big)
        recording = layout.read(check_memory(spelled(file), needed, reading.storage))
    return in_unit(recording, reading)


def check_memory(path: str, needed: int, storage: str) -> str:
    """The storage to use. Raises Refused before anything is allocated that would not fit."""
    free = available()
    fits = free is None or OVERHEAD * needed <= free
    if storage == AUTO:
        return "ram" if fits else "mmap"
    log.info("data=%s: takes %s (storage=%s)", path, size_text(needed), storage)
    if storage == "ram" and not fits:
        text = f"needs {size_text(OVERHEAD * needed)} of memory, {size_text(free or 0)} are free"
        raise refuse(path, f"{text}; set data.storage=mmap")
    return storage


def mended(recording: Recording, on_bad: str) -> Recording:
    """The recording without its errors, as far as on_bad allows. Raises Refused."""
    path = recording.about["path"]
    if on_bad not in ON_BAD:
        raise refuse(path, f"data.on_bad={on_bad!r}; there are {', '.join(ON_BAD)}")
    if on_bad == "drop":
        recording = dropped(recording)
    elif on_bad == "clip":
        clip(recording)
    found = faults.errors(recording)
    if found:
        raise Refused(path, found)
    return recording


def clip(recording: Recording) -> None:
    """Cuts actions to [-1, 1], in place.

    Raises Refused for NaN and Inf, which it would hide, and for actions in another unit, of which
    little would be left.
    """
    path, beyond = recording.about["path"], faults.excess(recording)
    strange = beyond is not None and beyond.strange
    rules = [faults.not_finite, faults.outside] if strange else [faults.not_finite]
    found = faults.told(recording, "error", rules)
    if found:
        raise Refused(path, found)
    if beyond is None:
        return
    count = len(faults.rows_outside(recording))
    for _, piece in pieces(recording.action):
        np.clip(piece, -1, 1, out=piece)
    text = "data=%s: actions of %d steps were cut to [-1, 1] (largest %.3g)"
    log.warning(text, path, count, beyond.largest)


def dropped(recording: Recording) -> Recording:
    """The recording without the episodes that hold errors; it reuses the arrays."""
    recording = without_broken(recording)
    jumps = np.asarray(recording.about.get("jumps", ()), np.int64)
    rows = [jumps, faults.rows_outside(recording)]
    rows += [rows for rows, _ in faults.bad_rows(recording).values()]
    bad = np.unique(recording.episode_of(np.concatenate(rows)))
    if not len(bad):
        return recording
    path, count = recording.about["path"], len(recording.ends)
    if len(bad) == count:
        none = refuse(path, "no episode is without").faults
        raise Refused(path, [*faults.errors(recording), *none])
    log.warning("data=%s: %d of %d episodes are dropped for errors", path, len(bad), count)
    keep = np.ones(count, bool)
    keep[bad] = False
    return kept(recording, keep)


def without_broken(recording: Recording) -> Recording:
    """The recording after the episodes that could not be read were told."""
    broken = recording.about.get("broken", [])
    path, count = recording.about["path"], len({fault.episode for fault in broken})
    if broken:
        lines = [fault.line() for fault in broken[:SHOWN]]
        lines += [f"and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        text = "data=%s: %d of %d episodes are left out for what keeps them from being read:\n  %s"
        log.warning(text, path, count, count + len(recording.ends), "\n  ".join(lines))
    about = {key: value for key, value in recording.about.items() if key != "broken"}
    about |= {"dropped": sorted({fault.episode for fault in broken})} if broken else {}
    return recording._replace(about=about)


def kept(recording: Recording, keep: NDArray) -> Recording:
    """The episodes with keep [E] set, moved together inside the arrays."""
    known = recording.successor[keep] >= 0
    after = recording.obs[recording.successor[keep][known]]
    lengths = recording.lengths[keep]
    steps = int(lengths.sum())
    told = recording.obs, recording.action, recording.terminated, recording.reward, recording.cost
    obs, action, terminated, reward, cost = (
        array if array is None else moved(array, recording, keep) for array in told
    )
    assert obs is not None and action is not None and terminated is not None
    obs[steps : steps + len(after)] = after
    about: dict[str, Any] = {k: v for k, v in recording.about.items() if k != "jumps"}
    places = about.get("episodes", range(len(keep)))
    lost = [places[episode] for episode in np.flatnonzero(~keep)]
    about["dropped"] = sorted([*about.get("dropped", ()), *lost])
    for key in ("demos", "episodes"):
        if key in about:
            about[key] = [about[key][episode] for episode in np.flatnonzero(keep)]
    reward, cost = (None if array is None else array[:steps] for array in (reward, cost))
    ends = np.cumsum(lengths)
    obs, action, terminated = obs[: steps + len(after)], action[:steps], terminated[:steps]
    return Recording(obs, action, reward, terminated, ends, behind(known, steps), about, cost)


def moved(array: NDArray, recording: Recording, keep: NDArray) -> NDArray:
    """The array with the rows of kept episodes at its front, in place."""
    row = 0
    for start, end in zip(recording.starts[keep], recording.ends[keep], strict=True):
        if row != start:
            array[row : row + end - start] = array[start:end]
        row += end - start
    return array
