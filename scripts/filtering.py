"""Which episodes of a recording are wanted: `rheo data filter`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.envs.data.read import kept
from rheo.envs.data.recording import Recording, refuse

SHOWN = 10  # episodes that a line names


class Sieve(NamedTuple):
    """One rule: which episodes it keeps, and what is said of the others."""

    keeps: Callable[[Recording, Any], NDArray]  # -> [E] bool
    told: str  # with {value} and, in {of}, the word for those that fell out


def ended(recording: Recording, wanted: bool) -> NDArray:
    """Episodes that the task ended, or that it did not, [E] bool."""
    return recording.terminated[recording.ends - 1] == wanted


def returns(recording: Recording) -> NDArray:
    """Sum of rewards of each episode, [E]. Raises Refused without rewards."""
    if recording.reward is None:
        text = "no rewards, so that no return is known; --ended and --smooth ask for none"
        raise refuse(recording.about["path"], text, "rewards")
    return np.add.reduceat(recording.reward, recording.starts, dtype=np.float64)


def least(recording: Recording, wanted: float) -> NDArray:
    """Episodes with a return of at least so much, [E] bool."""
    return returns(recording) >= wanted


def first(score: NDArray, share: float) -> NDArray:
    """The `share` of episodes, rounded up, with the largest score; of equal ones the earlier."""
    keep = np.zeros(len(score), bool)
    keep[np.argsort(-score, kind="stable")[: int(np.ceil(share * len(score) - 1e-9))]] = True
    return keep


def jerks(recording: Recording) -> NDArray:
    """Mean square of the third differences of the actions of each episode, [E].

    In units of half the box a step^3; 0 of episodes shorter than four steps.
    """
    found = np.zeros(len(recording.ends))
    for index, (start, end) in enumerate(zip(recording.starts, recording.ends, strict=True)):
        third = np.diff(recording.action[start:end].astype(np.float64), n=3, axis=0)
        found[index] = np.square(third).mean() if len(third) else 0.0
    return found


SIEVES = {  # in this order
    "ended": Sieve(ended, "--ended={value}"),
    "least": Sieve(least, "--least {value:g}"),
    "top": Sieve(lambda recording, share: first(returns(recording), share), "--top {value:g}"),
    "smooth": Sieve(lambda recording, share: first(-jerks(recording), share), "--smooth {value:g}"),
}


def sifted(recording: Recording, asked: Mapping[str, Any]) -> tuple[Recording, list[str]]:
    """The episodes that every rule that was asked for keeps, and a line for each rule.

    A rule chooses among those that the ones before it left. It reuses the arrays. Raises Refused
    where none is left.
    """
    path, lines = recording.about["path"], []
    names = np.arange(len(recording.ends))
    for key, sieve in SIEVES.items():
        if key not in asked:
            continue
        keep, flag = sieve.keeps(recording, asked[key]), sieve.told.format(value=asked[key])
        if not keep.any():
            raise refuse(path, f"{flag.lower()}: none of {len(keep):,} episodes is left")
        lines.append(f"{flag.lower()} leaves out {listed(names[~keep])} of {len(keep):,} episodes")
        names = names[keep]
        recording = recording if keep.all() else kept(recording, keep)
    return recording, lines


def listed(episodes: NDArray) -> str:
    """How many episodes, and the first of them."""
    if not len(episodes):
        return "none"
    shown = ", ".join(map(str, episodes[:SHOWN]))
    more = ", ..." if len(episodes) > SHOWN else ""
    return f"{len(episodes):,} ({shown}{more})"
