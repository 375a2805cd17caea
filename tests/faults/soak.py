"""Long runs: memory, file descriptors, threads and speed over time, and what saves cost.

`rheo bench faults only=soak minutes=240 out=FOLDER` trains a small run again and again past its
end, killing it now and then, and goes on where it was when it is started again.
"""

import csv
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from children import Ended, rheo, zygote
from kinds import words
from trials import Promise, Random, Trial

from rheo.scripts.store.run import Run

EVERY = 10.0  # seconds between two looks
ENDLESS = 10**8  # steps
KILLS = 20.0  # minutes between two kills
GROWTH = 0.03  # share by which memory may grow after the first fifth
SHARE = 0.02  # of a run's time that saves may take
# MuJoCo takes large blocks that it hardly touches and gives some back before training; glibc fills
# their pages with small ones sooner or later: one growth of all of them, and none of the run's. So
# here it touches every block that it hands out.
TOUCHED = {"MALLOC_PERTURB_": "165"}


class Look(NamedTuple):
    """What a process holds at a moment."""

    minutes: float  # of all starts together
    rss: float  # MiB
    files: int  # descriptors
    threads: int
    step: int
    start: int  # how many starts there were


def look(pid: int, minutes: float, step: int, start: int) -> Look:
    """Raises OSError when the process is gone."""
    folder = Path(f"/proc/{pid}")
    lines = dict(x.split(":", 1) for x in (folder / "status").read_text().splitlines() if ":" in x)
    rss = int(lines["VmRSS"].split()[0]) / 1024
    files = len(list((folder / "fd").iterdir()))
    return Look(round(minutes, 2), round(rss, 1), files, int(lines["Threads"]), step, start)


def command(folder: Path) -> list[str]:
    """The run's own words, or how it goes on."""
    if (folder / "runs" / "soak" / "ckpt").exists():
        return ["resume", "soak"]
    own = [w for w in words("off-policy") if not w.startswith(("steps=", "source.capacity="))]
    periods = ["log_every=500", "eval_every=2000", "save_every=1000", f"steps={ENDLESS}"]
    known = [w for w in own if w.partition("=")[0] not in {p.partition("=")[0] for p in periods}]
    return ["train", *known, *periods, "source.capacity=20000", "name=soak"]


def soak(folder: Path, minutes: float, tell: Callable[[str], None]) -> list[Look]:
    """Trains for so long in all, earlier calls in the same folder included; all looks."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= TOUCHED  # before there is a zygote, whose children have its allocator
    file = folder / "soak.csv"
    known = looks(file)
    while (known[-1].minutes if known else 0.0) < minutes:
        until = min(minutes, (known[-1].minutes if known else 0.0) + KILLS)
        known += one_start(folder, file, known, until, tell)
    return known


def one_start(
    folder: Path, file: Path, known: list[Look], until: float, tell: Callable[[str], None]
) -> list[Look]:
    """One process, looked at until its time is up, when it is killed or asked to stop."""
    before, start = (known[-1].minutes, known[-1].start + 1) if known else (0.0, 1)
    pid = zygote().start(command(folder), folder, folder / "log")
    found, begun = [], time.monotonic()
    with file.open("a", newline="") as stream, ended_with_us(pid):
        writer = csv.writer(stream)
        while (passed := before + (time.monotonic() - begun) / 60) < until:
            code = zygote().wait(EVERY)
            if code is not None:
                raise RuntimeError(f"ended with {code}: {(folder / 'log').read_text()[-500:]}")
            found.append(look(pid, passed + EVERY / 60, reached(folder), start))
            writer.writerow(found[-1])
            stream.flush()
            tell(f"soak: {told(found)}")
    os.kill(pid, signal.SIGKILL if start % 2 else signal.SIGTERM)
    if zygote().wait(60) is None:
        raise RuntimeError("it did not stop within a minute")
    return found


@contextmanager
def ended_with_us(pid: int) -> Iterator[None]:
    """A process that is asked to stop where Ctrl-C ends this one, instead of going on alone."""
    try:
        yield
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise


def told(found: list[Look]) -> str:
    """The last look, and how fast it went since the first of its start."""
    first, last = found[0], found[-1]
    seconds = 60 * (last.minutes - first.minutes)
    speed = (last.step - first.step) / seconds if seconds else 0.0
    return (
        f"{last.minutes:.1f} min, start {last.start}, step {last.step:,}, {speed:.0f} steps/s, "
        f"{last.rss:.0f} MiB, {last.files} files, {last.threads} threads"
    )


def reached(folder: Path) -> int:
    """The last step that was logged."""
    file = folder / "runs" / "soak" / "metrics.jsonl"
    if not file.exists():
        return 0
    rows = Run.open(str(file.parent)).rows() if file.stat().st_size else []
    return max((row["step"] for row in rows), default=0)


def looks(file: Path) -> list[Look]:
    """Those of earlier calls."""
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        kinds = Look.__annotations__.values()
        return [
            Look(*(k(x) for k, x in zip(kinds, row, strict=True))) for row in csv.reader(stream)
        ]


def unsteady(found: list[Look]) -> str:
    """What grew; empty: nothing. Memory of every start after its first fifth."""
    wrong = []
    for start in sorted({one.start for one in found}):
        own = [one for one in found if one.start == start]
        own = own[len(own) // 5 :]
        if len(own) < 4:
            continue
        half = len(own) // 2
        early, late = own[:half], own[half:]
        grown = statistics.median(x.rss for x in late) / statistics.median(x.rss for x in early) - 1
        wrong += [f"start {start}: memory grew by {grown:.1%}"] * (grown > GROWTH)
        for name in ("files", "threads"):  # usually: a look may meet a save's open file
            held = [statistics.median(getattr(x, name) for x in half) for half in (early, late)]
            wrong += [f"start {start}: {name} went from {held[0]:g} to {held[1]:g}"] * (
                held[1] > held[0]
            )
        wrong += [f"start {start}: nothing was learnt"] * (own[-1].step <= own[0].step)
    return "; ".join(wrong)


def promise(folder: Path | None, minutes: float, tell: Callable[[str], None]) -> Promise:
    """As it is asked on the command line."""

    def drawn(count: int, draw: Random) -> Iterator[Trial]:
        yield Trial(
            f"{minutes:g} minutes",
            lambda place: folder or place,
            lambda _, place: soak(place, minutes, tell),
            lambda _, found: unsteady(found),
        )

    return Promise("soak", "a long run holds as much at its end as at its beginning", drawn)


# ---- what saves cost -----------------------------------------------------------------------------


def saving(count: int, draw: Random) -> Iterator[Trial]:
    """A run at the shipped intervals for a few thousand frames: its saves' share of its time.

    The share is that of one save among the frames between two, from `time/save_share` of a run that
    saves oftener.
    """
    frames, shipped, often = 3000, 50_000, 500

    def prepare(place: Path) -> list[str]:
        periods = [
            f"save_every={often}",
            f"log_every={often}",
            f"eval_every={frames}",
            "episodes=1",
        ]
        return ["train", "algo=sac", "env=hopper", *periods, f"steps={frames}", "name=r"]

    def harm(place: Path, typed: list[str]) -> Ended:

        return rheo(place, typed, within=1800)

    def judge(place: Path, end: Ended) -> str:
        if end.code:
            return f"ended with {end.code}: {end.text[-300:]}"
        rows = [r for r in Run.open(str(place / "runs" / "r")).rows() if "time/save_share" in r]
        share = statistics.mean(r["time/save_share"] for r in rows[1:]) * often / shipped
        return f"saves take {share:.2%} of the time" if share > SHARE else ""

    yield Trial(f"{frames} frames, a save every {often}", prepare, harm, judge)


PROMISES = [Promise("overhead", f"saves take under {SHARE:.0%} of the time", saving)]
