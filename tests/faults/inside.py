"""Commands inside of this process: where a promise is about what is read, not about processes."""

import contextlib
import io
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rheo.scripts.cli import main

LIMIT = 1.0  # seconds of the processor that reading something may take
MEMORY = 300  # MiB that reading something may take


class Said(NamedTuple):
    """How a command ended in this process."""

    code: int
    text: str
    crash: str = ""  # of an exception that came out of it, the last lines of its traceback


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """The working folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def said(folder: Path, words: Sequence[str]) -> Said:
    """Runs `rheo WORDS` in a folder."""
    out = io.StringIO()
    with at(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(list(words))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:  # noqa: BLE001 - what a user would see as a traceback
            return Said(1, out.getvalue(), traceback.format_exc(limit=-3))
    return Said(code, out.getvalue())


class Slow(BaseException):
    """What was called has used up its time; no `except Exception` keeps it in."""


@contextlib.contextmanager
def limited(seconds: float = LIMIT) -> Iterator[None]:
    """Raises Slow inside after so many seconds of the processor."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def peak() -> int:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def wrong_with(call: Callable[[], Any], allowed: tuple[type[BaseException], ...]) -> str:
    """What a reader does wrong with an input: another exception, too long, too much; else empty."""
    before, out = peak(), io.StringIO()
    try:
        with limited(), contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
            call()
    except allowed:
        pass
    except Slow:
        return f"took over {LIMIT:g} s"
    except Exception:  # noqa: BLE001 - the finding itself
        return traceback.format_exc(limit=-2)
    grown = peak() - before
    return f"took {grown} MiB" if grown > MEMORY else ""
