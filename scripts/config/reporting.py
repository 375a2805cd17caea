"""What `rheo report` was asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError

from .verbs import SUCCESS
from .words import Option, divide, one_of, one_run, values

USAGE = {
    "report": """\
usage: rheo report FOLDER [out=FOLDER] [metric=score|return|success_once|success_at_end]
                   [with=KEY=VALUE]
       report.md, report.csv and report.png of all runs in a folder: a table per environment with
       intervals over seeds and episodes, the command and versions of every row, and curves;
       with: of evaluations with a changed value (with=deploy_scale=0), as rheo eval made them"""
}
REPORTING = {
    **{"out": Option(None), "with": Option("")},
    "metric": Option(None, one_of("score", "return", *SUCCESS)),
}


class Reporting(NamedTuple):
    """A folder of runs, and where its pages are put."""

    folder: str
    out: str | None  # None: into that folder
    metric: str | None  # None: what each environment is judged by
    changed: str  # a value in which the evaluations differ from the runs; empty: none


def report(argv: Sequence[str]) -> Reporting:
    """`rheo report`: the folder. Raises RheoError."""
    words = divide(argv, REPORTING)
    found = values(words.options, REPORTING, f"\n{USAGE['report']}")
    folder = expanded(one_run(words, USAGE["report"]))
    if not folder.is_dir() and (Path("runs") / folder).is_dir():
        folder = Path("runs") / folder
    if not folder.is_dir():
        raise RheoError(f"{folder}: no such folder")
    out = None if found["out"] is None else str(expanded(found["out"]))
    return Reporting(str(folder), out, found["metric"], found["with"])
