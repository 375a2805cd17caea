"""What `rheo report` was asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
       with: of evaluations with a changed value (with=deploy_scale=0), as rheo eval made them
       rheo report summaries=FOLDER out=FOLDER
       the pages of a folder of summaries: files like report.csv, each beside a .yaml that says
       what its page is called and which rows are in its tables (docs/bench/data has examples)"""
}
REPORTING = {
    **{"out": Option(None), "with": Option(""), "summaries": Option(None)},
    "metric": Option(None, one_of("score", "return", *SUCCESS)),
}


class Reporting(NamedTuple):
    """A folder of runs, and where its pages are put."""

    folder: str
    out: str | None  # None: into that folder
    metric: str | None  # None: what each environment is judged by
    changed: str  # a value in which the evaluations differ from the runs; empty: none


class Paging(NamedTuple):
    """A folder of summaries, and where their pages are put."""

    summaries: str
    out: str


def report(argv: Sequence[str]) -> Reporting | Paging:
    """`rheo report`: the folder. Raises RheoError."""
    words = divide(argv, REPORTING)
    found = values(words.options, REPORTING, f"\n{USAGE['report']}")
    if found["summaries"] is not None:
        return paging(words.runs, found)
    folder = expanded(one_run(words, USAGE["report"]))
    if not folder.is_dir() and (Path("runs") / folder).is_dir():
        folder = Path("runs") / folder
    if not folder.is_dir():
        raise RheoError(f"{folder}: no such folder")
    out = None if found["out"] is None else str(expanded(found["out"]))
    return Reporting(str(folder), out, found["metric"], found["with"])


def paging(runs: Sequence[str], found: Mapping[str, Any]) -> Paging:
    """`rheo report summaries=`: two folders. Raises RheoError."""
    folder = expanded(found["summaries"])
    if runs or found["metric"] or found["with"]:
        raise RheoError(f"summaries={folder}: takes out= alone\n{USAGE['report']}")
    if not folder.is_dir():
        raise RheoError(f"summaries={folder}: no such folder")
    if found["out"] is None:
        raise RheoError(f"summaries={folder}: out=FOLDER says where its pages are put")
    return Paging(str(folder), str(expanded(found["out"])))
