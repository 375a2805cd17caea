"""Where recorded episodes end and how: the columns that say so, under the names that people use."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .recording import Column, refuse, remark

# Our name -> other names of the same column. Sources: gymnasium, D4RL, OGBench and the JAX learners
# (masks, dones_float), RLDS (is_*), stable-baselines (episode_starts), DPPO (states, traj_lengths),
# DSRL (costs).
SYNONYMS = {
    "observations": ("obs", "observation", "states", "state"),
    "actions": ("action",),
    "rewards": ("reward",),
    "costs": ("cost",),
    "next_observations": ("next_obs", "next_observation", "next_states", "next_state"),
    "terminals": ("terminal", "terminations", "terminated", "is_terminal"),
    "timeouts": ("timeout", "truncations", "truncated"),
    "dones": ("done", "dones_float", "is_last"),
    "masks": (),
    "episode_starts": ("is_first",),
    "episode_ends": (),
    "episode_lengths": ("traj_lengths", "traj_lens", "episode_lens"),
}
PER_STEP = ("terminals", "timeouts", "dones", "masks")
LISTS = ("dones", "masks", "episode_starts", "episode_lengths")  # of another shape: something else
OTHERS = ("successor_known", "action_low", "action_high")  # read, and without other names
RENAME = "store them as `terminals` (the task ended) or `timeouts` (cut off)"


class Named(NamedTuple):
    """Columns under our names."""

    columns: dict[str, Column]
    names: dict[str, str]  # our name -> the file's
    twins: list[tuple[str, str, Column]]  # our name, a second name in the file and its column
    unread: list[str]


def named(columns: Mapping[str, Column]) -> Named:
    """Sorts a file's columns by SYNONYMS. Of flags that come twice both are kept, as twins."""
    found = Named({}, {}, [], [])
    ours = {name: key for key, names in SYNONYMS.items() for name in (key, *names)}
    ours |= {key: key for key in OTHERS}
    for name in sorted(columns, key=lambda name: name != ours.get(name)):
        key = ours.get(name)
        other = key in LISTS and not is_list(columns[name])
        if key is None or other or (key in found.columns and key not in PER_STEP):
            found.unread.append(name)
        elif key in found.columns:
            found.twins.append((key, name, columns[name]))
        else:
            found.columns[key], found.names[key] = columns[name], name
    return found._replace(unread=sorted(found.unread))


def is_list(column: Column) -> bool:
    """Whether a column holds one number per row."""
    flat = len(column.shape) == 1 or (len(column.shape) == 2 and column.shape[1] == 1)
    return flat and column.dtype.kind in "fiub"


class Marks(NamedTuple):
    """What a file marks, each [S] bool or None: not there."""

    terminals: NDArray | None
    timeouts: NDArray | None
    dones: NDArray | None
    masks: NDArray | None
    told: NDArray | None  # last steps of episode_ends, episode_lengths or episode_starts


def settled(
    path: str, marks: Marks, names: Mapping[str, str], limit: int | None, about: dict[str, Any]
) -> tuple[NDArray, NDArray]:
    """Steps [S] that ended by the task, and last steps [S], marked so far.

    terminals are ends by the task, timeouts are cuts, masks are 0 at ends by the task. dones are
    ends of either kind, so they need another column (or the time `limit`) that tells which:

    - beside masks, terminals and dones are ends of any kind (OGBench);
    - beside terminals, dones that hold them all are the ends;
    - beside timeouts, dones that hold all or none of them are the ends, or those by the task;
    - beside other ends, dones that are only some of these are those by the task;
    - alone, those after exactly `limit` steps are cuts. Without a limit all count as cuts, and
      about["undecided"] says that nothing may be learnt from rewards.

    Adds remarks on what was read. Raises Refused, by name, for what has no reading.
    """
    size = next(len(mark) for mark in marks if mark is not None)
    none = np.zeros(size, bool)
    terminals, timeouts, dones, masks, told = (none if m is None else m for m in marks)
    every = timeouts | told
    if marks.masks is not None:
        ended = ~masks
        both = marks.timeouts is not None and marks.terminals is not None
        if both and (ended != terminals).any():
            text = f"0 at other steps than {names['terminals']}, beside {names['timeouts']}"
            raise refuse(path, f"{text}: leave one of the two out", names["masks"])
        text = "0 is read as an end by the task"
        rest = [names[key] for key in ("terminals", "dones") if key in names]
        text += f", {' and '.join(rest)} as ends of any kind" if rest else ""
        remark(about, names["masks"], text)
        return ended, ended | terminals | dones | every
    if marks.dones is None:
        return terminals, terminals | every
    ended, text = among(path, marks, names, limit, dones)
    if ended is None:
        remedy = f"{RENAME}, or give data.time_limit=N"
        about["undecided"] = f"{names['dones']}: {text}; {remedy}"
        text += ". All count as cut off: cloning may use them, learning from rewards may not"
        remark(about, names["dones"], f"{text}; {remedy}")
        return none, dones | every
    remark(about, names["dones"], f"{text}: {int(ended.sum()):,} ends by the task")
    return ended, ended | dones | every


def among(
    path: str, marks: Marks, names: Mapping[str, str], limit: int | None, dones: NDArray
) -> tuple[NDArray | None, str]:
    """Which `dones` [S] are ends by the task, and how that is known; None: it is not."""
    name = names["dones"]
    if marks.terminals is not None:
        if (marks.terminals & ~dones).any():
            row = int(np.flatnonzero(marks.terminals & ~dones)[0])
            text = f"not set at row {row}, where {names['terminals']} is, so one of them is no end"
            raise refuse(path, f"{text}; leave out the wrong one", name)
        return marks.terminals, f"read as ends of any kind beside {names['terminals']}"
    if marks.timeouts is not None:
        both = marks.timeouts & dones
        if both.any() and (both != marks.timeouts).any():
            row = int(np.flatnonzero(marks.timeouts & ~dones)[0])
            text = f"set at some of {names['timeouts']} and not at others (row {row}), so it is "
            text += f"neither all ends nor those by the task; {RENAME}"
            raise refuse(path, text, name)
        return dones & ~both, f"read as ends of which {names['timeouts']} are cut off"
    if marks.told is not None and (marks.told & ~dones).any():
        if (dones & ~marks.told).any():
            row = int(np.flatnonzero(dones & ~marks.told)[0])
            raise refuse(path, f"set at row {row}, which is no episode's end; {RENAME}", name)
        return dones, "read as the episodes that ended by the task"
    if not dones.any():
        return dones, "never set"
    if limit is None:
        return None, "marks ends, but not whether the task ended there or the time was up"
    last = np.flatnonzero(dones if marks.told is None else dones | marks.told)
    cut = last[np.diff(last, prepend=-1) == limit]
    ended = dones.copy()
    ended[cut] = False
    return ended, f"read as ends, cut off after exactly {limit:,} steps (the time limit)"


def exclusive(path: str, key: str, values: NDArray, steps: int, name: str) -> NDArray:
    """Exclusive ends [E] of `episode_ends`, `episode_lengths` or `episode_starts`.

    Starts are flags [S], or first steps [E]. Raises Refused unless they rise from the first step to
    the last.
    """
    flags = key == "episode_starts" and len(values) == steps and np.isin(values, (0, 1)).all()
    if not flags and values.dtype.kind not in "iu":
        raise refuse(path, f"must be a list of whole numbers, got {values.dtype}", name)
    if flags:
        ends = np.append(np.flatnonzero(values)[1:], steps) if values[0] else np.empty(0, int)
    elif key == "episode_starts":
        ends = np.append(values[1:], steps) if len(values) and values[0] == 0 else values[:0]
    else:
        ends = np.cumsum(values) if key == "episode_lengths" else values
    ends = ends.astype(np.int64)
    if not len(ends) or ends[-1] != steps or (np.diff(ends, prepend=0) < 1).any():
        got = " ".join(np.array2string(values, threshold=8).split())
        wanted = {
            "episode_ends": f"must rise strictly from above 0 to {steps}, the number of steps",
            "episode_lengths": f"must be above 0 and add up to {steps}, the number of steps",
            "episode_starts": f"must mark step 0 and rise strictly below {steps}",
        }
        raise refuse(path, f"{wanted[key]}; got {got}", name)
    return ends


def every_nth(ends: NDArray, limit: int) -> NDArray:
    """Exclusive ends [J] at which `limit` cuts the episodes that go on there; ends [E]: theirs."""
    starts = np.append(0, ends[:-1])
    inside = [np.arange(*episode, limit) for episode in zip(starts + limit, ends, strict=True)]
    return np.concatenate(inside).astype(np.int64)
