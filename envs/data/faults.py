"""What is wrong with a recording (errors) and what is odd about it (notes), with the place."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..parts import told
from .recording import Fault, Recording, pieces

TOLERANCE = 1e-6  # of action bounds: rounding of what was clipped in another precision
FAR, MANY = 2.0, 0.1  # a largest action, a share of entries: beyond, their unit is another one
SATURATED, MUCH = 1 - 1e-4, 0.01  # an entry at a bound; the share of them that is worth a note
LEAVE_OUT = "data.on_bad=drop leaves the episodes out"


def faults(recording: Recording) -> list[Fault]:
    """All errors, then all notes."""
    return errors(recording) + notes(recording)


def errors(recording: Recording) -> list[Fault]:
    """What keeps a recording from being used, one fault for each key and kind."""
    found = [
        missing_end(recording),
        *not_finite(recording),
        outside(recording),
        short(recording),
        too_long(recording),
    ]
    return [*recording.about.get("broken", ()), *named(recording, found)]


def named(recording: Recording, found: Sequence[Fault | None]) -> list[Fault]:
    """The faults that are some, with the number and the name that the file gives their episode."""
    names, places = recording.about.get("demos"), recording.about.get("episodes")
    result = []
    for fault in filter(None, found):
        episode = fault.episode
        if episode is not None and names:
            fault = fault._replace(text=f"{fault.text} ({names[episode]})")
        if episode is not None and places:
            fault = fault._replace(episode=places[episode])
        result.append(fault)
    return result


def notes(recording: Recording) -> list[Fault]:
    """What a user should know."""
    found = [
        *(Fault("note", key, None, None, None, text) for key, text in remarks(recording)),
        *(constant(key, rows) for key, rows in tables(recording).items()),
        some_short(recording),
        duplicates(recording),
        saturation(recording),
        never_terminal(recording),
    ]
    return named(recording, found)


def remarks(recording: Recording) -> list[tuple[str, str]]:
    """(key, text) of what its reader has to tell."""
    return [*recording.about.get("remarks", []), *told(recording.about)]


def tables(recording: Recording) -> dict[str, NDArray]:
    """The per-step tables by their key in a file."""
    steps = len(recording.action)
    return {"observations": recording.obs[:steps], "actions": recording.action}


def episode_of(recording: Recording, rows: NDArray) -> NDArray:
    """The episode of each step."""
    return np.searchsorted(recording.ends, rows, side="right")


def starts(recording: Recording) -> NDArray:
    """First step of each episode [E]."""
    return np.concatenate([[0], recording.ends[:-1]]).astype(np.int64)


def place(recording: Recording, row: int) -> tuple[int, int]:
    """Episode, and step within it, of a step of the recording."""
    episode = int(episode_of(recording, np.array(row)))
    return episode, int(row - starts(recording)[episode])


def bad_rows(recording: Recording) -> dict[str, NDArray]:
    """Key -> steps with NaN or Inf. A successor's step is its episode's last one."""
    arrays = tables(recording)
    if recording.reward is not None:
        arrays["rewards"] = recording.reward
    found = {key: rows_not_finite(array) for key, array in arrays.items()}
    known = np.flatnonzero(recording.successor >= 0)
    after = rows_not_finite(recording.obs[len(recording.action) :])
    owner = np.full(len(recording.obs) - len(recording.action), -1)
    owner[recording.successor[known] - len(recording.action)] = known
    found["next_observations"] = recording.ends[owner[after]] - 1
    return {key: rows for key, rows in found.items() if len(rows)}


def rows_not_finite(array: NDArray) -> NDArray:
    """Rows that hold NaN or Inf."""
    found = [np.empty(0, np.int64)]
    for start, rows in pieces(array):
        finite = np.isfinite(rows)
        if not finite.all():
            found.append(start + np.flatnonzero(~finite.reshape(len(rows), -1).all(1)))
    return np.concatenate(found)


def not_finite(recording: Recording) -> list[Fault]:
    """NaN and Inf, at the first place of each key."""
    result = []
    for key, rows in bad_rows(recording).items():
        episode, step = place(recording, rows[0])
        if key == "next_observations":
            line = recording.obs[recording.successor[episode]]
        else:
            arrays = tables(recording) | {"rewards": recording.reward}
            line = np.atleast_1d(np.asarray(arrays[key])[rows[0]])
        dim = int(np.flatnonzero(~np.isfinite(line))[0])
        count = len(np.unique(episode_of(recording, rows)))
        text = f"not a finite number in dimension {dim}; {len(rows)} such steps in {count} episodes"
        value = float(line[dim])
        result.append(Fault("error", key, episode, step, value, f"{text}; {LEAVE_OUT}"))
    return result


def rows_outside(recording: Recording) -> NDArray:
    """Steps whose actions leave [-1, 1]."""
    found = [np.empty(0, np.int64)]
    for start, rows in pieces(recording.action):
        found.append(start + np.flatnonzero((np.abs(rows) > 1 + TOLERANCE).any(1)))
    return np.concatenate(found)


class Excess(NamedTuple):
    """Actions beyond [-1, 1]."""

    entries: int
    row: int  # step and dimension of the largest
    dim: int
    largest: float
    strange: bool  # too many or too far: they are in another unit


def excess(recording: Recording) -> Excess | None:
    """The finite actions beyond [-1, 1], None without any."""
    steps = rows_outside(recording)
    if not len(steps):
        return None
    held = np.abs(recording.action[steps])
    held[np.isinf(held)] = np.nan  # an infinite one is a fault of its own
    count = int((held > 1 + TOLERANCE).sum())
    if not count:
        return None
    row, dim = np.unravel_index(int(np.nanargmax(held)), held.shape)
    largest = float(held[row, dim])
    strange = largest > FAR or count > MANY * recording.action.size
    return Excess(count, int(steps[row]), int(dim), largest, strange)


def outside(recording: Recording) -> Fault | None:
    """Actions beyond [-1, 1], at the largest."""
    found = excess(recording)
    if found is None:
        return None
    episode, step = place(recording, found.row)
    unit = recording.about.get("unit", "read as in [-1, 1]")
    remedy = f"data.on_bad=clip cuts them, {LEAVE_OUT}"
    if found.strange:
        remedy = f"too many or too far to be clipped; {LEAVE_OUT}"
    other = (
        "if they are in an environment's units, data.action_scale=physical with env=NAME maps "
        "them; without one, store their bounds in the file as action_low and action_high, or let "
        "data.action_scale=extremes take the smallest and largest of each dimension for them"
    )
    other = "correct these bounds" if unit.startswith("mapped") else other
    text = (
        f"{found.entries:,} of {recording.action.size:,} entries lie outside [-1, 1], the largest "
        f"{found.largest:.3g}; {unit}: {other}; {remedy}"
    )
    value = float(recording.action[found.row, found.dim])
    return Fault("error", "actions", episode, step, value, text)


def missing_end(recording: Recording) -> Fault | None:
    """Steps whose recorded next observation is not the observation that follows."""
    jumps = recording.about.get("jumps", ())
    if not len(jumps):
        return None
    episode, step = place(recording, int(jumps[0]))
    text = (
        f"not the observation of the following step, so an episode's end is missing here; "
        f"{len(jumps):,} such steps; mark the ends in timeouts, or {LEAVE_OUT}"
    )
    return Fault("error", "next_observations", episode, step, None, text)


def one_step(recording: Recording) -> NDArray:
    """Episodes of a single step."""
    return np.flatnonzero(recording.ends - starts(recording) == 1)


def short(recording: Recording) -> Fault | None:
    """Most steps are episodes of their own: their ends are marked wrongly."""
    single, steps = one_step(recording), len(recording.action)
    if 2 * len(single) <= steps:
        return None
    text = (
        f"{len(single):,} of {len(recording.ends):,} episodes have one step; "
        "terminals and timeouts must be set at ends only"
    )
    return Fault("error", "timeouts", int(single[0]), 0, None, text)


def too_long(recording: Recording) -> Fault | None:
    """Episodes longer than their environment's time limit: ends are not marked."""
    env_id, limit = recording.about.get("limit", (None, None))
    lengths = recording.ends - starts(recording)
    if limit is None or lengths.max() <= limit:
        return None
    longest = int(lengths.argmax())
    text = (
        f"{int((lengths > limit).sum()):,} of {len(lengths):,} episodes are longer than {env_id} "
        f"allows ({limit:,} steps), this one {lengths[longest]:,}, so ends are not marked; "
        f"data.time_limit={limit} cuts there (if they are that long, give their length)"
    )
    return Fault("error", "timeouts", longest, limit, None, text)


def some_short(recording: Recording) -> Fault | None:
    """Some episodes of one step, as in runs of terminal steps."""
    single = one_step(recording)
    if not len(single) or short(recording) is not None:
        return None
    text = f"{len(single):,} of {len(recording.ends):,} episodes have one step"
    return Fault("note", "terminals", int(single[0]), 0, None, text)


def constant(key: str, table: NDArray) -> Fault | None:
    """Dimensions that never change."""
    same = np.ones(table.shape[1], bool)
    for _, rows in pieces(table):
        same &= (rows == table[0]).all(0)
    if not same.any() or len(table) < 2:
        return None
    dims = np.flatnonzero(same)
    listed = ", ".join(map(str, dims[:8])) + (" ..." if len(dims) > 8 else "")
    text = f"{len(dims)} of {len(same)} dimensions never change ({listed}); they get unit scale"
    return Fault("note", key, None, None, float(table[0, dims[0]]), text)


def duplicates(recording: Recording) -> Fault | None:
    """Episodes that hold the same observations and actions as an earlier one."""
    seen: dict[bytes, int] = {}
    again = []
    for episode, (start, end) in enumerate(zip(starts(recording), recording.ends, strict=True)):
        digest = hashlib.blake2b(recording.obs[start:end].tobytes(), digest_size=16)
        digest.update(recording.action[start:end].tobytes())
        first = seen.setdefault(digest.digest(), episode)
        if first != episode:
            again.append((episode, first))
    if not again:
        return None
    text = f"the same as episode {again[0][1]}; {len(again):,} episodes are duplicates"
    return Fault("note", "observations", again[0][0], None, None, text)


def saturated(recording: Recording) -> float:
    """Share of action entries at or beyond a bound."""
    count = sum(int((np.abs(rows) >= SATURATED).sum()) for _, rows in pieces(recording.action))
    return count / recording.action.size


def saturation(recording: Recording) -> Fault | None:
    """Many actions at their bounds."""
    share = saturated(recording)
    if share < MUCH:
        return None
    text = f"{100 * share:.1f} % of entries are at a bound"
    return Fault("note", "actions", None, None, None, text)


def never_terminal(recording: Recording) -> Fault | None:
    """No episode ended by the task."""
    if recording.terminated.any():
        return None
    text = "no episode ended by the task; each counts as cut off, and its value goes on"
    return Fault("note", "terminals", None, None, None, text)
