"""What `rheo reproduce` was asked."""

from collections.abc import Sequence
from typing import NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError

from ..store.where import locate
from .top import HOME
from .words import Option, divide, natural, one_run, switch, values

SUMMARIES = HOME.parent / "docs" / "bench" / "data"
USAGE = {
    "reproduce": """\
usage: rheo reproduce                                  the rows of the benchmark pages
       rheo reproduce ROW [seeds=0,1] [out=reproduce] [dry=true] [summaries=FOLDER]
       runs a row's commands again, what they begin with first, and compares with the page; the
       same command again goes on
options: seeds=0,1       without, those of the page
         out=NAME        the folder below runs/; what several rows begin with is in NAME/made
         dry=true        prints the commands
         summaries=NAME  a folder of summaries of your own (rheo report FOLDER writes them)
exit status: 0 ours lies in the page's interval (or the page has none), 5 it does not, 1 a run
       failed, 75 stopped on the way, 2 the command is wrong or something is missing"""
}


def listed(text: str) -> list[str]:
    """Reads seeds with commas between them."""
    seeds = [str(natural(one)) for one in text.split(",")]
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is named twice")
    return seeds


REPRODUCING = {
    **{"seeds": Option(None, listed), "out": Option("reproduce"), "dry": Option(False, switch)},
    "summaries": Option(str(SUMMARIES)),
}


class Reproducing(NamedTuple):
    """A row, and how much of it."""

    row: str | None  # None: the list is asked for
    seeds: list[str] | None  # None: the page's
    out: str
    dry: bool
    summaries: str


def reproduce(argv: Sequence[str]) -> Reproducing:
    """`rheo reproduce`: the row. Raises RheoError."""
    words = divide(argv, REPRODUCING)
    usage = USAGE["reproduce"]
    found = values(words.options, REPRODUCING, f"\n{usage}")
    if words.flagged:
        raise RheoError(f"--config-dir: rows are run by what ships\n{usage}")
    found["summaries"] = str(expanded(found["summaries"]))
    if not expanded(found["summaries"]).is_dir():
        raise RheoError(f"summaries={found['summaries']}: no such folder")
    locate(found["out"])
    if not words.runs and (found["seeds"] or found["dry"]):
        raise RheoError(f"ROW is missing; `rheo reproduce` lists them\n{usage}")
    return Reproducing(one_run(words, usage) if words.runs else None, **found)
