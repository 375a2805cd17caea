"""Promises and how they are tried: prepare something, do harm to it, judge what is left.

A promise's trials are drawn from a seed, so that a failure is found again by its number.
"""

import csv
import json
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
    promises: Iterable[Promise], count: int, seed: int, tell: Callable[[str], None]
) -> tuple[list[Row], list[Failure]]:
    """Tries promises one after another; rows of the table and what failed."""
    rows, failures = [], []
    for promise in promises:
        begun, lack = time.monotonic(), promise.lack()
        number = max(1, round(count * promise.share))
        tries, failed = 0, 0
        draw = Random(f"{seed} {promise.text}")
        for trial in () if lack else promise.trials(number, draw):
            tell(f"{promise.text}: {tries + 1}, {trial.name}")
            wrong = tried(trial)
            tries, failed = tries + 1, failed + bool(wrong)
            if wrong:
                failures.append(Failure(promise.text, trial.name, wrong))
                tell(f"FAILED {promise.text}: {trial.name}: {wrong}")
        spent = time.monotonic() - begun
        rows.append(Row(promise.group, promise.text, tries, failed, round(spent, 1), lack))
    return rows, failures


def write_json(file: Path, machine: dict[str, Any], rows: list[Row], bad: list[Failure]) -> None:
    """Everything."""
    content = {
        "machine": machine,
        "rows": [row._asdict() for row in rows],
        "failures": [one._asdict() for one in bad],
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def write_csv(file: Path, rows: list[Row]) -> None:
    """The table of the page of promises: a promise's text, how often it was tried and failed."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["promise", "tried", "failed"])
        writer.writerows([row.promise, row.tried, row.failed] for row in rows if not row.note)


def each(items: Iterable[Any], make: Callable[[Any], Trial]) -> Callable[..., Iterator[Trial]]:
    """Trials of a fixed list: all of them, or as many as asked, drawn evenly."""

    def drawn(count: int, draw: Random) -> Iterator[Trial]:
        every = list(items)
        for item in draw.sample(every, count) if count < len(every) else every:
            yield make(item)

    return drawn
