"""Two processes that would write to one run: one of them does, and the run is what it should be."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alike import apart
from children import PATIENCE, Ended, zygote
from inside import Said, said
from kinds import straight, words
from trials import Promise, Random, Trial, each

LONG = ("steps=600",)  # so that the second comes in time
REFUSED = (2, 3)


class Meeting(NamedTuple):
    """What the second process does, and whether the lock of the first is removed before."""

    verb: str
    unlocked: bool = False


MEETINGS = (Meeting("train"), Meeting("resume"), Meeting("resume", unlocked=True))


def trial(one: Meeting) -> Trial:
    """The first trains in a process of its own, the second in this one."""
    typed = ["train", *words("off-policy"), *LONG, "name=r"]

    def begin(place: Path) -> None:
        zygote().start(typed, place, place / "log")
        end = time.monotonic() + PATIENCE
        while not list((place / "runs" / "r" / "ckpt").glob("0*")):
            if time.monotonic() > end:
                raise RuntimeError(f"nothing was saved: {(place / 'log').read_text()[-300:]}")
            time.sleep(0.05)

    def meet(place: Path, _: None) -> tuple[Ended, Said]:
        if one.unlocked:
            (place / "runs" / "r" / "lock").unlink(missing_ok=True)
        second = said(place, typed if one.verb == "train" else ["resume", "r"])
        code = zygote().wait(PATIENCE)
        text = (place / "log").read_text()
        return Ended(-1 if code is None else code, text, 0.0, code is None), second

    def judge(place: Path, ends: tuple[Ended, Said]) -> str:
        first, second = ends
        if first.crashed() or second.crash:
            return first.crashed() or second.crash
        alone = first.code == 0 and second.code in REFUSED
        instead = one.unlocked and first.code == 3 and second.code == 0
        if not alone and not instead:
            return f"ended with {first.code} and {second.code}: {second.text[-300:]}"
        return apart(straight("off-policy", LONG), place / "runs" / "r")

    return Trial(f"{one.verb}{', lock gone' * one.unlocked}", begin, meet, judge)


def drawn(count: int, draw: Random) -> Iterator[Trial]:
    """All of them, or as many as asked."""
    yield from each(MEETINGS, trial)(count, draw)


PROMISES = [Promise("kill", "of two writers of a run one is refused, or both know", drawn)]
