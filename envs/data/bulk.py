"""Files that become far more in memory than they are on disk: refused until a user says so."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..memory import size_text
from .recording import refuse

TIMES, FREE = 100, 10**9  # a file may grow so many times; to so many bytes it always may
TEXT = 1 << 26  # bytes of one text (attributes, names) that is ever read


def on_disk(path: str | os.PathLike | Sequence[str]) -> int:
    """Bytes of a file, of all files of a folder, of all of several."""
    if not isinstance(path, str | os.PathLike):
        return sum(map(on_disk, path))
    place = Path(path)
    if place.is_dir():
        return sum(one.stat().st_size for one in place.rglob("*") if one.is_file())
    return place.stat().st_size if place.exists() else 0


def refuse_bomb(path: str, needed: int, stored: int, big: bool, key: str = "") -> None:
    """Raises Refused for `stored` bytes that would become `needed` ones, before any is read.

    big: a user says that they should.
    """
    if needed > FREE and needed > TIMES * stored and not big:
        text = f"{size_text(stored)} on disk would become {size_text(needed)} in memory"
        raise refuse(path, f"{text}; if that is what it should be, data.big=true reads it", key)
