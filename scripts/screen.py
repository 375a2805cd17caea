"""What is printed: texts of files reach the terminal as text, and never as commands to it."""

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, Any

from rheo.errors import printable


class Screen:
    """A stream that writes what a terminal would obey as it is spelled (`errors.printable`).

    raw: the stream itself, for what draws on a terminal.
    """

    def __init__(self, raw: IO[str]) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Writes a text; returns how long it was."""
        self.raw.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """The stream behind one, for what draws on a terminal."""
    return stream.raw if isinstance(stream, Screen) else stream


@contextlib.contextmanager
def screened() -> Iterator[None]:
    """Inside, all that is printed goes through a `Screen`."""
    before = sys.stdout, sys.stderr
    screens: Any = [one if isinstance(one, Screen) else Screen(one) for one in before]
    sys.stdout, sys.stderr = screens
    try:
        yield
    finally:
        if sys.stdout is screens[0]:
            sys.stdout = before[0]
        if sys.stderr is screens[1]:
            sys.stderr = before[1]
