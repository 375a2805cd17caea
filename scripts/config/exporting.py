"""What `rheo export` was asked."""

from collections.abc import Sequence
from typing import NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError

from ..store.where import existing
from .words import Option, divide, one_of, one_run, values

ENDINGS = (".pt2", ".onnx")
USAGE = {
    "export": """\
usage: rheo export RUN [out=FILE.pt2|FILE.onnx] [units=environment|unit]
       the deployed policy as a program that runs without Rheo, checked against the run, and
       FILE.json, which says what goes in and comes out
options: units=environment  actions as the environment takes them; unit: in [-1, 1], as
                            policy=exported policy.path=FILE reads them"""
}


class Exporting(NamedTuple):
    """A run, and the file that it becomes."""

    run: str
    flagged: list[str]  # --config-dir
    out: str | None  # None: named after the run
    units: str


EXPORTING = {
    "out": Option(None),
    "units": Option("environment", one_of("environment", "unit")),
}


def export(argv: Sequence[str]) -> Exporting:
    """`rheo export`: the run and the file. Raises RheoError."""
    words = divide(argv, EXPORTING)
    found = values(words.options, EXPORTING, f"\n{USAGE['export']}")
    name = one_run(words, USAGE["export"])
    existing(name)
    out = found["out"]
    if out is not None and expanded(out).suffix not in ENDINGS:
        raise RheoError(f"out={out}: a program is a {' or '.join(ENDINGS)}")
    if out is not None and expanded(out).exists():
        raise RheoError(f"out={out}: exists; choose another name")
    return Exporting(name, words.flagged, **found)
