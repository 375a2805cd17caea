"""What `rheo replay` was asked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError

from ..store.where import MANIFEST
from .words import divide, one_run

USAGE = {
    "replay": """\
usage: rheo replay DUMP [device=cpu] [threads=1]
       does an update again whose numbers broke, from what the run kept of it
       (runs/NAME/broken/STEP), and says what breaks first and the largest gradient norms;
       ends with 4 where it breaks again, with 0 where it does not"""
}
FREE = ("device", "threads")


class Replaying(NamedTuple):
    """A dump of a broken update, and the words with which its run is loaded."""

    path: Path
    words: list[str]


def replay(argv: Sequence[str]) -> Replaying:
    """`rheo replay`: the dump. Raises RheoError."""
    words = divide(argv, FREE)
    path = expanded(one_run(words, USAGE["replay"]))
    for word in words.options:
        if word.partition("=")[0] not in FREE:
            raise RheoError(f"{word}: is the run's own; only device= and threads= may differ")
    if not (path / MANIFEST).is_file():
        raise RheoError(f"{path}: no dump of a broken update; they lie in runs/NAME/broken")
    return Replaying(path, words.again)
