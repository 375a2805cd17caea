"""kill -9 at seeded moments: what is resumed equals the run that never stopped, in every bit.

A moment is a file event of the undisturbed run and a part of the time until the next one. A third
of the kills fall between the first and the last event of a save, and one at least comes before the
first save; three in ten runs are killed again while they resume.
"""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alike import apart
from children import Ended, of_marker, rheo
from kinds import KINDS, lacks, straight, words
from trials import Promise, Random, Trial

INSIDE = "/.staging-"
AGAIN, MOVED = 0.3, 0.25  # of the runs are killed once more; go on in another place


class Moment(NamedTuple):
    """When a process dies: after so many events of its run's folder, and seconds after that."""

    event: int
    delay: float
    text: str

    def fault(self) -> dict[str, Any]:
        """As the process is told."""
        where = {"place": "runs/r", "count": self.event, "delay": self.delay}
        return {"act": "signal", "number": signal.SIGKILL, **where}


def moments(kind: str, count: int, draw: Random) -> Iterator[Moment]:
    """Moments of a kind's undisturbed run."""
    lines = (straight(kind).parents[1] / "events").read_text().splitlines()
    times = [float(line.split()[0]) for line in lines]
    gaps = [b - a for a, b in zip(times, [*times[1:], times[-1] + 0.01], strict=True)]
    inside = [i for i, line in enumerate(lines) if INSIDE in line]
    early = range(inside[0])
    for number in range(count):
        pool = inside if number % 3 == 0 else early if number % 6 == 1 else range(len(lines))
        at = draw.choice(pool)
        delay = draw.choice([0.0, draw.random() * gaps[at]])
        yield Moment(at, round(delay, 4), lines[at].partition("runs/r")[2] or "/")


def trials(kind: str, count: int, draw: Random) -> Iterator[Trial]:
    """Kills of runs of a kind."""
    for moment in moments(kind, count, draw):
        again = draw.randrange(3, 40) if draw.random() < AGAIN else None
        yield one(kind, moment, again, draw.random() < MOVED)


def one(kind: str, moment: Moment, again: int | None, moved: bool) -> Trial:
    """A run that is killed; again: events of its resumption after which it is killed once more.

    moved: its folder lies elsewhere when it goes on.
    """
    where = "elsewhere/runs/r" if moved else "runs/r"
    marker = f"rheo-fault-{uuid.uuid4().hex}"
    known: dict[str, Any] = {"environ": {"RHEO_FAULT": marker}}

    def train(place: Path) -> Ended:
        return rheo(place, ["train", *words(kind), "name=r"], moment.fault(), **known)

    def resume(place: Path, killed: Ended) -> tuple[Ended, Ended]:
        if not (place / "runs/r/config.yaml").exists():  # it had not begun: it begins now
            made = place / where.removesuffix("runs/r")
            made.mkdir(exist_ok=True)
            return killed, rheo(made, ["train", *words(kind), "name=r"], **known)
        if moved:
            (place / where).parent.mkdir(parents=True)
            (place / "runs" / "r").rename(place / where)
        if again is not None and killed.code == -signal.SIGKILL:
            rheo(place, ["resume", where], Moment(again, 0.0, "").fault(), **known)
        return killed, rheo(place, ["resume", where], **known)

    def judge(place: Path, ends: tuple[Ended, Ended]) -> str:
        killed, resumed = ends
        if killed.code not in (0, -signal.SIGKILL):  # it was at its end before its moment came
            return f"ended with {killed.code} before it was killed: {killed.text[-300:]}"
        if resumed.code or resumed.crashed():
            return f"resume ended with {resumed.code}: {resumed.text[-500:]}"
        wrong = apart(straight(kind), place / where)
        return wrong or orphans(marker)

    title = f"{moment.text} + {moment.delay} s" + (f", again at {again}" if again else "")
    title += ", moved" * moved
    return Trial(title, train, resume, judge)


def orphans(marker: str) -> str:
    """Whether a process of a killed run is left."""
    end = time.monotonic() + 30
    while left := [pid for pid in of_marker(marker) if pid != os.getpid()]:
        if time.monotonic() > end:
            return f"processes left: {left}"
        time.sleep(0.2)
    return ""


def promise(kind: str) -> Promise:
    """The promise of a kind."""
    algo = KINDS[kind].algo

    def drawn(count: int, draw: Random) -> Iterator[Trial]:
        return trials(kind, count, draw)

    text = f"killed at any moment, resumed to the last bit: {kind} ({algo})"
    return Promise("kill", text, drawn, lack=lambda: lacks(kind))


PROMISES = [promise(kind) for kind in KINDS]
