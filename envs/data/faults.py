"""What is wrong with a recording (errors) and what is odd about it (notes), with the place.

A rule yields what it finds; `ERRORS` and `NOTES` are the tables of them.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..parts import listed_parts, read_parts
from .recording import Fault, Recording, pieces
from .told import some

TOLERANCE = 1e-6  # of action bounds: rounding of what was clipped in another precision
FAR, MANY = 2.0, 0.1  # a largest action, a share of entries: beyond, their unit is another one
SATURATED, MUCH = 1 - 1e-4, 0.01  # an entry at a bound; the share of them that is worth a note
LEAVE_OUT = "data.on_bad=drop leaves the episodes out"


class Found(NamedTuple):
    """What a rule found, at a step of the recording or in a whole episode, if anywhere."""

    key: str
    text: str
    row: int | None = None
    value: float | None = None
    episode: int | None = None


Rule = Callable[[Recording], Iterator[Found]]


def faults(recording: Recording) -> list[Fault]:
    """All errors, then all notes."""
    return errors(recording) + told(recording, "note", NOTES)


def errors(recording: Recording) -> list[Fault]:
    """What keeps a recording from being used, one fault for each key and kind."""
    return [*recording.about.get("broken", ()), *told(recording, "error", ERRORS)]


def told(recording: Recording, level: str, rules: Sequence[Rule]) -> list[Fault]:
    """What rules find, with the number and the name that the file gives an episode."""
    names, numbers = recording.about.get("demos"), recording.about.get("episodes")
    result, starts = [], recording.starts
    for key, text, row, value, episode in (found for rule in rules for found in rule(recording)):
        step = None
        if row is not None:
            episode = int(recording.episode_of(row))
            step = int(row - starts[episode])
        if episode is not None and names:
            text = f"{text} ({names[episode]})"
        if episode is not None and numbers:
            episode = numbers[episode]
        result.append(Fault(level, key, episode, step, value, text))
    return result


# ---- errors ------------------------------------------------------------------------------------


def missing_end(recording: Recording) -> Iterator[Found]:
    """Steps whose recorded next observation is not the observation that follows."""
    jumps = recording.about.get("jumps", ())
    if len(jumps):
        text = (
            f"not the observation of the following step, so an episode's end is missing here; "
            f"{len(jumps):,} such steps; mark the ends in timeouts, or {LEAVE_OUT}"
        )
        yield Found("next_observations", text, int(jumps[0]))


def not_finite(recording: Recording) -> Iterator[Found]:
    """NaN and Inf, at the first place of each key."""
    for key, (rows, line) in bad_rows(recording).items():
        dim = int(np.flatnonzero(~np.isfinite(line))[0])
        count = len(np.unique(recording.episode_of(rows)))
        text = f"not a finite number in dimension {dim}; {len(rows)} such steps in {count} episodes"
        yield Found(key, f"{text}; {LEAVE_OUT}", int(rows[0]), float(line[dim]))


def bad_rows(recording: Recording) -> dict[str, tuple[NDArray, NDArray]]:
    """Key -> steps with NaN or Inf, and the numbers of the first. A successor's is its episode's
    last step.
    """
    arrays = recording.tables
    numbers = {"rewards": recording.reward, "costs": recording.cost}
    arrays |= {key: array[:, None] for key, array in numbers.items() if array is not None}
    found = {key: (rows_not_finite(array), array) for key, array in arrays.items()}
    after = recording.state[recording.successor[recording.successor >= 0]]
    last = recording.ends[recording.successor >= 0] - 1
    broken = rows_not_finite(after)
    result = {key: (rows, array[rows[0]]) for key, (rows, array) in found.items() if len(rows)}
    return result | ({"next_observations": (last[broken], after[broken[0]])} if len(broken) else {})


def rows_not_finite(array: NDArray) -> NDArray:
    """Rows that hold NaN or Inf."""
    return rows_where(array, lambda rows: ~np.isfinite(rows))


def rows_where(array: NDArray, wrong: Callable[[NDArray], NDArray]) -> NDArray:
    """Rows with an entry that is `wrong`, found piece by piece."""
    found = [np.empty(0, np.int64)]
    for start, rows in pieces(array):
        marked = wrong(rows)
        if marked.any():
            found.append(start + np.flatnonzero(marked.any(1)))
    return np.concatenate(found)


def rows_outside(recording: Recording) -> NDArray:
    """Steps whose actions leave [-1, 1]."""
    return rows_where(recording.action, lambda rows: np.abs(rows) > 1 + TOLERANCE)


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
    held = np.abs(recording.action[steps])
    held[np.isinf(held)] = np.nan  # an infinite one is a fault of its own
    count = int((held > 1 + TOLERANCE).sum())
    if not count:
        return None
    row, dim = np.unravel_index(int(np.nanargmax(held)), held.shape)
    largest = float(held[row, dim])
    strange = largest > FAR or count > MANY * recording.action.size
    return Excess(count, int(steps[row]), int(dim), largest, strange)


def outside(recording: Recording) -> Iterator[Found]:
    """Actions beyond [-1, 1], at the largest."""
    found = excess(recording)
    if found is None:
        return
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
    yield Found("actions", text, found.row, float(recording.action[found.row, found.dim]))


def short(recording: Recording) -> Iterator[Found]:
    """Most steps are episodes of their own: their ends are marked wrongly."""
    single = recording.starts[recording.lengths == 1]
    if 2 * len(single) > len(recording.action):
        text = f"{len(single):,} of {len(recording.ends):,} episodes have one step; "
        yield Found("timeouts", f"{text}terminals and timeouts must be set at ends only", single[0])


def too_long(recording: Recording) -> Iterator[Found]:
    """Episodes longer than their environment's time limit: ends are not marked."""
    env_id, limit = recording.about.get("limit", (None, None))
    lengths = recording.lengths
    if limit is not None and lengths.max() > limit:
        longest = int(lengths.argmax())
        text = (
            f"{int((lengths > limit).sum()):,} of {len(lengths):,} episodes are longer than "
            f"{env_id} allows ({limit:,} steps), this one {lengths[longest]:,}, so ends are not "
            f"marked; data.time_limit={limit} cuts there (if they are that long, give their length)"
        )
        yield Found("timeouts", text, recording.starts[longest] + limit)


ERRORS: tuple[Rule, ...] = (missing_end, not_finite, outside, short, too_long)

# ---- notes -------------------------------------------------------------------------------------


def remarks(recording: Recording) -> Iterator[Found]:
    """What its reader has to tell, and what of the file is read."""
    about = recording.about
    yield from (Found(key, text) for key, text in about.get("remarks", ()))
    if about.get("obs_keys"):
        parts = listed_parts(read_parts(about)) or ", ".join(about["obs_keys"])
        yield Found("observations", f"read are {parts}, in this order")
    if about.get("left_out"):
        text = f"left out: {some(about['left_out'])}; data.obs_keys=[...] chooses"
        yield Found("observations", text)
    if about.get("unread"):
        yield Found("", f"not read: {some(about['unread'])}")
    if about.get("filters"):
        held = ", ".join(f"{name} ({len(demos)})" for name, demos in about["filters"].items())
        text = f"filter keys with their demonstrations: {held}; {about['filtered']}; "
        text += "data.filter=NAME reads one, data.holdout=NAME validates on one"
        yield Found("mask", text)


def constant(recording: Recording) -> Iterator[Found]:
    """Dimensions that never change."""
    for key, table in recording.tables.items():
        same = np.ones(table.shape[1], bool)
        for _, rows in pieces(table):
            same &= (rows == table[0]).all(0)
        dims = np.flatnonzero(same)
        if len(dims) and len(table) > 1:
            listed = ", ".join(map(str, dims[:8])) + (" ..." if len(dims) > 8 else "")
            text = f"{len(dims)} of {len(same)} dimensions never change ({listed})"
            yield Found(key, f"{text}; they get unit scale", None, float(table[0, dims[0]]))


def some_short(recording: Recording) -> Iterator[Found]:
    """Some episodes of one step, as in runs of terminal steps."""
    single = recording.starts[recording.lengths == 1]
    if 0 < 2 * len(single) <= len(recording.action):
        text = f"{len(single):,} of {len(recording.ends):,} episodes have one step"
        yield Found("terminals", text, single[0])


def duplicates(recording: Recording) -> Iterator[Found]:
    """Episodes that hold the same observations and actions as an earlier one."""
    seen: dict[bytes, int] = {}
    again = []
    for episode, (start, end) in enumerate(zip(recording.starts, recording.ends, strict=True)):
        digest = hashlib.blake2b(recording.obs[start:end].tobytes(), digest_size=16)
        digest.update(recording.action[start:end].tobytes())
        first = seen.setdefault(digest.digest(), episode)
        if first != episode:
            again.append((episode, first))
    if again:
        text = f"the same as episode {again[0][1]}; {len(again):,} episodes are duplicates"
        yield Found("observations", text, episode=again[0][0])


def saturated(recording: Recording) -> float:
    """Share of action entries at or beyond a bound."""
    count = sum(int((np.abs(rows) >= SATURATED).sum()) for _, rows in pieces(recording.action))
    return count / recording.action.size


def saturation(recording: Recording) -> Iterator[Found]:
    """Many actions at their bounds."""
    share = saturated(recording)
    if share >= MUCH:
        yield Found("actions", f"{100 * share:.1f} % of entries are at a bound")


def never_terminal(recording: Recording) -> Iterator[Found]:
    """No episode ended by the task."""
    if not recording.terminated.any():
        text = "no episode ended by the task; each counts as cut off, and its value goes on"
        yield Found("terminals", text)


NOTES: tuple[Rule, ...] = (
    *(remarks, constant, some_short, duplicates, saturation, never_terminal),
)
