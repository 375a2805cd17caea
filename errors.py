"""Errors that are meant for the user: one message, no traceback, an exit code.

Every layer may raise them; nothing heavy is imported.
"""

import difflib
import os
import re
import shlex
import traceback
from collections.abc import Iterable

# what a terminal obeys: control characters but line breaks and tabs, what turns the direction of
# writing; and halves of characters, which cannot be written
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
USER, MACHINE, NUMERICS, REQUEUE = 2, 3, 4, 75


class RheoError(ValueError):
    """A message for the user: what is wrong, why, and what to do about it.

    code: exit status; 2 the user's input, 3 the machine or its data, 4 numbers that broke.
    A run that was stopped by a signal and saved itself exits with 75 (start it again).
    """

    def __init__(self, message: str, code: int = USER) -> None:
        super().__init__(printable(message))
        self.code = code


class Halted(Exception):
    """Somebody wants to stop, between two decisions: what there is can be saved and goes on."""


class EnvError(RheoError):
    """An environment, or recorded data, that cannot be used as asked."""


class EnvFault(EnvError):
    """What an environment raised, returned or did, with its place; of no use to ask for otherwise.

    Its code is 2 where nothing has begun; whoever is in the middle of something says 3.
    """


def printable(text: str) -> str:
    """A text as a terminal may have it: \\x1b stands for the character that it would obey."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def trace() -> None:
    """Prints where the error that is being told was met, where RHEO_TRACEBACK asks for it."""
    if os.environ.get("RHEO_TRACEBACK") == "1":
        traceback.print_exc()


def nearest(word: str, options: Iterable[str]) -> str:
    """A clause that names the option closest to `word`, or all of a few, or nothing."""
    options = sorted(options)
    lowered = {option.lower(): option for option in reversed(options)}
    close = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.55)
    if close:
        return f"; did you mean {lowered[close[0]]!r}?"
    holding = [option for option in options if word.lower() in option.lower().split("_")]
    if 0 < len(holding) <= 3:
        return f"; did you mean {' or '.join(map(repr, holding))}?"
    return f"; there are: {', '.join(options)}" if 0 < len(options) <= 40 else ""


def command(*words: object) -> str:
    """A command of ours as it can be typed, its paths quoted where a shell would break them."""
    return shlex.join(["rheo", *map(str, words)])
