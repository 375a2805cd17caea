"""The table of promises on disk, with which a second call of the same count and seed goes on."""

import csv
import io
import json
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from trials import Failure, Promise, Row

from rheo.errors import RheoError
from rheo.files import put_text

COLUMNS = ("promise", "tried", "failed", "group", "whole", "seconds", "count", "seed")
Drawn = tuple[int, int]  # count and seed
OFTEN = 1.0  # seconds between two writes, of which a kill loses the trials


class Pieces:
    """Rows and failures of this call, and of earlier ones where `csv` has them.

    csv, json: files that are kept up to date, or None. count, seed: what trials are drawn by.
    Raises RheoError for a file that cannot be gone on with.
    """

    def __init__(
        self, csv: Path | None, json: Path | None, count: int, seed: int, machine: dict[str, Any]
    ) -> None:
        self.csv, self.json, self.machine = csv, json, machine
        self.drawn = (count, seed)
        self.rows: dict[str, tuple[Row, Drawn]] = {} if csv is None else read(csv)
        self.lacking: list[Row] = []  # what cannot be tried here
        self.failures = told(json, self.rows) if json is not None and self.rows else []
        self.written = time.monotonic()

    def begun(self, promise: Promise) -> Row:
        """What is known of a promise: the row to go on with.

        Raises RheoError where it is of trials that were drawn otherwise.
        """
        new = Row(promise.group, promise.text, 0, 0, 0.0, whole=False)
        row, drawn = self.rows.get(promise.text, (new, self.drawn))
        if drawn != self.drawn:
            raise RheoError(
                f'{self.csv}: "{promise.text}" was tried with count={drawn[0]} seed={drawn[1]}; '
                "give these, or name another file"
            )
        return row

    def taken(self, promises: Iterable[Promise]) -> str:
        """What this call need not try, as a line; empty: nothing. Raises RheoError as `begun`."""
        rows = [self.begun(promise) for promise in promises]
        whole = sum(row.whole for row in rows)
        parts = [row for row in rows if row.tried and not row.whole]
        if not whole and not parts:
            return ""
        begun = "".join(f', {row.tried:,} trials of "{row.promise}"' for row in parts)
        done = f"{whole} of {len(rows)} promises whole{begun}"
        return f"{self.csv}: taken from it are {done}; to try them again, remove it"

    def put(self, row: Row, failure: Failure | None = None) -> None:
        """A promise as it stands after one more trial."""
        self.rows[row.promise] = row, self.drawn
        self.failures += [failure] if failure else []
        if row.whole or time.monotonic() - self.written > OFTEN:
            self.write()

    def write(self) -> None:
        """The files. Raises Unwritten."""
        self.written = time.monotonic()
        if self.csv is not None:
            put_text(self.csv, table(self.rows.values()))
        if self.json is not None:
            rows = [*(row for row, _ in self.rows.values()), *self.lacking]
            put_text(self.json, content(self.machine, rows, self.failures))


def table(rows: Iterable[tuple[Row, Drawn]]) -> str:
    """A line a promise that was tried, which the page of promises is made of."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, drawn in rows:
        found = [row.promise, row.tried, row.failed, row.group, "yes" if row.whole else "no"]
        writer.writerow([*found, row.seconds, *drawn])
    return stream.getvalue()


def content(machine: dict[str, Any], rows: list[Row], failures: list[Failure]) -> str:
    """Everything."""
    found = {"rows": [row._asdict() for row in rows], "failures": [f._asdict() for f in failures]}
    return json.dumps({"machine": machine, **found}, indent=1) + "\n"


def read(file: Path) -> dict[str, tuple[Row, Drawn]]:
    """The rows of a file by their promises; none of an empty or missing one. Raises RheoError."""
    if not file.exists() or not file.stat().st_size:
        return {}
    with file.open(newline="", errors="replace") as stream:
        head, *lines = csv.reader(stream)
    if tuple(head) != COLUMNS:
        raise RheoError(f"{file}: no table to go on with; remove it, or name another file")
    return {line[0]: known(file, line) for line in lines if line}


def known(file: Path, line: list[str]) -> tuple[Row, Drawn]:
    """One line of the file. Raises RheoError where it is broken."""
    try:
        text, tried, failed, group, word, seconds, count, seed = line
        whole = {"yes": True, "no": False}[word]
        row = Row(group, text, int(tried), int(failed), float(seconds), "", whole)
        return row, (int(count), int(seed))
    except (KeyError, ValueError) as error:
        raise RheoError(
            f"{file}: the line of {line[0]!r} is broken; remove it, or name another file"
        ) from error


def told(file: Path, rows: Container[str]) -> list[Failure]:
    """The failures that an earlier call wrote of these promises. Raises RheoError."""
    if not file.exists() or not file.stat().st_size:
        return []
    try:
        found = [Failure(**one) for one in json.loads(file.read_bytes())["failures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RheoError(f"{file}: cannot be gone on with; remove it, or name another") from error
    return [one for one in found if one.promise in rows]
