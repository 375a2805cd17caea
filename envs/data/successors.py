"""Which recorded next observations at episodes' ends can be true."""

import numpy as np
from numpy.typing import NDArray

from .recording import Recording, behind, remark

NEARLY = 0.9  # share of the ends that speak for a column made by shifting
USUAL = 0.95  # quantile of the steps inside episodes that a usual step across an end keeps to
SAMPLE = 100_000  # steps that the quantile is taken from


def believed(recording: Recording, cuts: NDArray, key: str = "next_observations") -> Recording:
    """The recording without the successors that are none.

    A cut episode's successor is not believed if at nearly all of them it is the next episode's
    first row (the column was made by shifting) or the episode's own last row (it was repeated). It
    may be true all the same: a recording that was cut up goes on there, and so does a policy that
    returns to where all episodes start, with a step of the usual size; and what did not move in the
    step before the end may rest. Those are believed. cuts: exclusive ends [J] of episodes
    that `time_limit` cut; the row behind them is the successor, unless a step of another size says
    that it is the first one after a reset. `key` is the file's name of the column, for the remark.
    """
    ends, known = recording.ends, recording.successor >= 0
    by_limit = np.isin(ends, cuts)
    forgotten = np.zeros(len(ends), bool)
    text = doubt(recording, known & ~by_limit & ~recording.terminated[ends - 1])
    if text:
        remark(recording.about, key, f"{text}; the observations after ends count as not known")
        forgotten |= ~by_limit
    at = np.flatnonzero(by_limit & known)
    if len(at):
        same = at[equal(recording, at, recording.obs[ends[at]])]
        broken = len(same) > 0 and not goes_on(recording, ends[same] - 1)
        if broken:
            forgotten[same] = True
        text = f"time_limit cuts {len(cuts):,} episodes where no end is marked; the rows "
        text += "jump there, so what followed is not known" if broken else "go on there"
        remark(recording.about, "time_limit", text)
    return without(recording, forgotten & known) if (forgotten & known).any() else recording


def equal(recording: Recording, episodes: NDArray, rows: NDArray) -> NDArray:
    """Which of the episodes [J] have exactly these rows [J, Do] for successors."""
    return (recording.obs[recording.successor[episodes]] == rows).all(1)


def doubt(recording: Recording, cut: NDArray) -> str:
    """Why the successors of the cut episodes [E] bool cannot be true; "" when they can."""
    obs, ends = recording.obs, recording.ends
    first = np.concatenate([[0], ends[:-1]])
    every = np.flatnonzero(cut)
    followed = every[every < len(ends) - 1]
    if len(followed):
        same = equal(recording, followed, obs[ends[followed]])
        count = f"after {int(same.sum()):,} of {len(followed):,} cut episodes"
        if same.mean() >= NEARLY and not goes_on(recording, ends[followed[same]] - 1):
            return f"{count} it is the next episode's first observation"
    if not len(every):
        return ""
    own = equal(recording, every, obs[ends[every] - 1])
    hit = every[own & (ends[every] - first[every] > 1)]
    rests = (obs[ends[hit] - 1] == obs[ends[hit] - 2]).all(1)
    if own.mean() < NEARLY or 2 * rests.sum() >= max(len(hit), 1):
        return ""
    return (
        f"after {int(own.sum()):,} of {len(every):,} cut episodes it repeats the last observation"
    )


def goes_on(recording: Recording, rows: NDArray) -> bool:
    """Whether the steps from `rows` [J] to the rows behind them are of the usual size.

    Sizes are sum_d (change_d / its root mean square inside episodes)^2. They are usual if their
    median keeps to the USUAL quantile of those inside episodes.
    """
    inside = np.ones(len(recording.action), bool)
    inside[recording.ends - 1] = False
    steps = np.flatnonzero(inside)
    if not len(steps):
        return False
    steps, obs = steps[:: -(-len(steps) // SAMPLE)], recording.state
    with np.errstate(invalid="ignore", over="ignore"):  # of NaN and Inf, which a check refuses
        inner, across = (
            np.square(np.asarray(obs[at + 1] - obs[at], np.float64)) for at in (steps, rows)
        )
        scale = inner.mean(0)
        scale[scale == 0] = np.finfo(np.float32).tiny  # a jump of what never moves inside
        usual = np.quantile((inner / scale).sum(1), USUAL)
        return bool(np.median((across / scale).sum(1)) <= usual)


def without(recording: Recording, forgotten: NDArray) -> Recording:
    """The recording without the successors of some episodes [E] bool; it reuses the arrays."""
    keep = (recording.successor >= 0) & ~forgotten
    after = recording.obs[recording.successor[keep]]
    steps, count = len(recording.action), int(keep.sum())
    recording.obs[steps : steps + count] = after
    obs = recording.obs[: steps + count]
    return recording._replace(obs=obs, successor=behind(keep, steps))
