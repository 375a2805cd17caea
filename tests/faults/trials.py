"""Promises and how they are tried: prepare something, do harm to it, judge what is left.

A promise's trials are drawn from a seed, so that a failure is found again by its number.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pieces import Pieces

Random = random.Random


class Trial(NamedTuple):
    """One try. Each part gets a folder of its own and what the part before it returned."""

    name: str
    prepare: Callable[[Path], Any]
    harm: Callable[[Path, Any], Any]
    judge: Callable[[Path, Any], str]  # what is wrong; empty: the promise was kept


class Promise(NamedTuple):
    """What is promised. trials: as many as asked, drawn from a generator."""

    group: str  # a word of only=
    text: str
    trials: Callable[[int, Random], Iterable[Trial]]
    share: float = 1.0  # of count: how many trials it is worth
    lack: Callable[[], str] = str  # why it cannot be tried here; empty: it can


class Failure(NamedTuple):
    """A promise that was not kept."""

    promise: str
    trial: str
    wrong: str


class Row(NamedTuple):
    """A line of the table."""

    group: str
    promise: str
    tried: int
    failed: int
    seconds: float
    note: str = ""  # why nothing was tried
    whole: bool = True  # all of its trials were tried


def tried(trial: Trial) -> str:
    """What is wrong after a trial; empty: nothing."""
    folder = Path(tempfile.mkdtemp(prefix="rheo-fault-"))
    try:
        state = trial.harm(folder, trial.prepare(folder))
        return trial.judge(folder, state)
    except Exception:  # noqa: BLE001 - whatever it is, the trial did not show the promise kept
        return f"the trial broke: {traceback.format_exc(limit=-3)}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(
    promises: Iterable[Promise],
    count: int,
    seed: int,
    tell: Callable[[str], None],
    known: Pieces | None = None,
) -> tuple[list[Row], list[Failure]]:
    """Tries promises one after another; rows of the table and what failed.

    known: what earlier calls tried already, and where what is tried now is kept.
    """
    rows, failures = [], []
    for promise in promises:
        found = Row(promise.group, promise.text, 0, 0, 0.0, whole=False)
        if known is not None:
            found = known.begun(promise)
        lack = "" if found.whole else promise.lack()
        rows.append(found._replace(note=lack))
        if known is not None and lack:
            known.lacking.append(rows[-1])
        if lack or found.whole:
            continue
        draw = Random(f"{seed} {promise.text}")
        drawn = promise.trials(max(1, round(count * promise.share)), draw)
        for row, failure in trying(promise, islice(drawn, found.tried, None), found, tell):
            rows[-1] = row
            failures += [failure] if failure else []
            if known is not None:
                known.put(row, failure)
    return rows, failures


def trying(
    promise: Promise, trials: Iterable[Trial], row: Row, tell: Callable[[str], None]
) -> Iterator[tuple[Row, Failure | None]]:
    """The row after each of some trials, with what failed, and at last the whole one."""
    begun = time.monotonic() - row.seconds
    for trial in trials:
        tell(f"{promise.text}: {row.tried + 1}, {trial.name}")
        wrong = tried(trial)
        if wrong:
            tell(f"FAILED {promise.text}: {trial.name}: {wrong}")
        spent = round(time.monotonic() - begun, 1)
        row = row._replace(tried=row.tried + 1, failed=row.failed + bool(wrong), seconds=spent)
        yield row, Failure(promise.text, trial.name, wrong) if wrong else None
    yield row._replace(whole=True, seconds=round(time.monotonic() - begun, 1)), None


def each(items: Iterable[Any], make: Callable[[Any], Trial]) -> Callable[..., Iterator[Trial]]:
    """Trials of a fixed list: all of them, or as many as asked, drawn evenly."""

    def drawn(count: int, draw: Random) -> Iterator[Trial]:
        every = list(items)
        for item in draw.sample(every, count) if count < len(every) else every:
            yield make(item)

    return drawn
