"""Summaries of runs: a CSV with a line a run, from which the pages of docs/bench are made.

A row of a page is the runs that differ in nothing but their seed: a line for each, and one without
a seed for all of them, where what only their episodes tell was computed. Lines whose source is
`recorded` were taken over from pages written before there were summaries: some of them are of a
whole row alone.
"""

import csv
import io
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rheo.errors import RheoError
from rheo.stats import of_means, wilson

RATES = ("success_once", "success_at_end")  # in per cent
OWN = ("seed", "name")  # words of a command that tell the runs of a row apart


class Line(NamedTuple):
    """A run, or all runs of a row; empty text and NaN stand for what is not known."""

    row: str  # suite/method/task
    environment: str  # its id and options; the data set where that is what is looked at
    metric: str
    method: str  # as it is called in tables
    run: str = ""  # the folder's name
    seed: str = ""  # empty: of all seeds
    seeds: int = 1
    frames: float = math.nan
    updates: float = math.nan
    deployment: str = ""  # what an evaluation changed; empty: nothing
    episodes: float = math.nan  # a seed
    mean: float = math.nan
    low: float = math.nan  # of a 95 % interval of the mean: over episodes, and seeds where several
    high: float = math.nan
    iqm: float = math.nan
    iqm_low: float = math.nan
    iqm_high: float = math.nan
    base: float = math.nan  # the mean before the first update
    minutes: float = math.nan
    ms_per_decision: float = math.nan
    command: str = ""
    evaluation: str = ""  # words of `rheo eval`; empty: the run's own last evaluation
    versions: str = ""
    date: str = ""
    source: str = "runs"
    note: str = ""


class Made(NamedTuple):
    """A base or a data set that rows begin with, and how it is made."""

    name: str  # as commands call it: init=NAME, data=NAME
    command: str  # empty: it cannot be made again
    lacks: str = ""  # then what is missing
    minutes: float = math.nan
    versions: str = ""
    date: str = ""
    source: str = "runs"


class Row(NamedTuple):
    """Runs that differ in their seed alone."""

    name: str
    runs: list[Line]
    whole: Line | None

    @property
    def lines(self) -> list[Line]:
        """All that is told of it."""
        return [*([] if self.whole is None else [self.whole]), *self.runs]

    @property
    def first(self) -> Line:
        """The line that tells what all of them share."""
        return (self.runs or self.lines)[0]


class Figures(NamedTuple):
    """What a page tells of a row."""

    statistic: str  # mean; IQM where no mean was recorded
    value: float
    low: float  # of a 95 % interval
    high: float
    kind: str  # of the interval: a key of INTERVALS
    iqm: float
    seeds: int
    frames: float
    updates: float
    episodes: float
    base: float
    minutes: float  # of one run
    ms: float  # of a decision


AVERAGED = ("frames", "updates", "episodes", "base", "minutes", "ms_per_decision")
INTERVALS = {
    "t": "Student's t of the seeds' means",
    "wilson": "Wilson's, over the episodes of all seeds",
    "episodes": "of one seed, over its episodes",
    "recorded": "as recorded, a bootstrap over seeds and episodes",
    "": "none",
}


# ---- files ---------------------------------------------------------------------------------------


def text_of(lines: Sequence[NamedTuple]) -> str:
    """Lines as CSV, numbers as short as they read back."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(lines[0]._fields)
    for line in lines:
        writer.writerow([cell(value) for value in line])
    return out.getvalue()


def cell(value: object) -> str:
    """A value of a CSV: NaN is empty, whole numbers have no point, others ten digits."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return str(value)


def lines_of(file: Path, kind: type) -> list:
    """The lines of a summary file. Raises RheoError naming file, line and column."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows, names = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeError, csv.Error) as error:
        raise RheoError(f"{file}: not readable: {error}") from error
    found = []
    lacks = [key for key in kind._fields if key not in {*kind._field_defaults, *names}]
    if lacks:
        raise RheoError(f"{file}: lacks the column {lacks[0]!r}")
    for number, row in enumerate(rows, 2):
        strange = [key for key in row if key not in kind._fields]
        if strange or None in row.values():
            what = f"unknown column {strange[0]!r}" if strange else "cells are missing"
            raise RheoError(f"{file}:{number}: {what}; columns are {', '.join(kind._fields)}")
        found.append(kind(**{key: read(file, number, key, row[key], kind) for key in row}))
    return found


def read(file: Path, number: int, key: str, text: str, kind: type) -> object:
    """A cell as its column's type. Raises RheoError."""
    wanted = kind.__annotations__[key]
    try:
        return text if wanted is str else math.nan if not text else wanted(text)
    except ValueError as error:
        raise RheoError(f"{file}:{number}: {key}={text!r}: a number is needed") from error


def rows_of(lines: Iterable[Line]) -> dict[str, Row]:
    """Rows by name, in the order of their first lines. Raises RheoError for one said twice."""
    found: dict[str, Row] = {}
    for line in lines:
        row = found.setdefault(line.row, Row(line.row, [], None))
        if line.seed:
            if line.seed in [one.seed for one in row.runs]:
                raise RheoError(f"{line.row}: two lines of seed {line.seed}")
            row.runs.append(line)
        elif row.whole is not None:
            raise RheoError(f"{line.row}: two lines without a seed")
        else:
            found[line.row] = row._replace(whole=line)
    return found


# ---- figures -------------------------------------------------------------------------------------


def figures(row: Row) -> Figures:
    """A row's mean with its interval: one statistic for pages and for what is run again."""
    first, runs = row.first, row.runs
    whole = row.whole or (runs[0] if len(runs) == 1 else Line(first.row, "", "", ""))
    means = np.array([line.mean for line in runs])
    seeds = len(runs) or first.seeds
    value, name = float(np.mean(means)) if len(means) else first.mean, "mean"
    low, high, kind = interval(row, means)
    if math.isnan(value):
        value, low, high, name = whole.iqm, whole.iqm_low, whole.iqm_high, "IQM"
        kind = "" if math.isnan(low) else "recorded"
    told = [average(row, key) for key in AVERAGED]
    return Figures(name, value, low, high, kind, whole.iqm, seeds, *told)


def interval(row: Row, means: np.ndarray) -> tuple[float, float, str]:
    """A 95 % interval of the mean and its kind."""
    first = row.first
    episodes = sum(line.episodes for line in row.runs) if row.runs else first.episodes * first.seeds
    mean = float(np.mean(means)) if len(means) else first.mean
    if first.metric in RATES and not math.isnan(episodes + mean):
        low, high = wilson(round(episodes * mean / 100), round(episodes))
        return 100 * low, 100 * high, "wilson"
    if len(means) > 1:
        return *of_means(means), "t"
    one = row.whole if row.whole is not None and math.isnan(first.low) else first
    kind = "" if math.isnan(one.low) else "episodes" if one.seeds == 1 else "recorded"
    return one.low, one.high, kind


def average(row: Row, key: str) -> float:
    """The mean of a column over a row's runs where they know it, else what the whole says."""
    known = [getattr(line, key) for line in row.runs]
    known = [value for value in known if not math.isnan(value)]
    if known:
        return float(np.mean(known))
    return math.nan if row.whole is None else getattr(row.whole, key)


# ---- commands ------------------------------------------------------------------------------------


def words_of(command: str) -> tuple[str, ...]:
    """The words of `rheo VERB ...` from the verb on, without those of a seed's own."""
    words = shlex.split(command)
    return tuple(word for word in words[1:] if word.partition("=")[0] not in OWN)


def commands(row: Row) -> dict[tuple[str, ...], list[str]]:
    """Every command of a row's runs with its seeds; {} where none is recorded."""
    found: dict[tuple[str, ...], list[str]] = {}
    for line in row.runs or [row.first]:
        if line.command:
            found.setdefault(words_of(line.command), []).append(line.seed)
    return found


def command_of(row: Row, seed: str) -> list[str]:
    """The words by which a seed was trained; of one that was not, those of the first that was."""
    known = commands(row)
    own = next((words for words, seeds in known.items() if seed in seeds), None)
    return list(own or next(iter(known), ()))
