"""HDF5 files written so that neither a full disk nor a signal meets the library inside a call.

An error that HDF5 gets from its file leaves its caches and handles broken: what it does when the
interpreter ends is a crash. So its file here is an object of ours that never fails it. What the
disk refuses is held in memory, and raised as OSError once the library has returned.
"""

import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import h5py

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Sheltered(io.RawIOBase):
    """A file that takes whatever is written: what its disk refuses stays in memory, as `refused`.

    From then on it writes nothing more; who writes asks `refused` between two pieces, so that
    little is held.
    """

    def __init__(self, path: Path) -> None:
        self.disk = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self.refused: OSError | None = None
        self.held: list[tuple[int, bytes]] = []  # what came after: place and content, in order
        self.place = self.length = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves; see io."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.length}[whence]
        self.place = start + offset
        return self.place

    def tell(self) -> int:
        """The place; see io."""
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with what was written, zeros where nothing was."""
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        first, last = self.place, min(self.place + len(view), self.length)
        self.disk.seek(first)
        place = 0
        while count := self.disk.readinto(view[place:]):
            place += count
        for at, piece in self.held:
            low, high = max(at, first), min(at + len(piece), last)
            if low < high:
                view[low - first : high - first] = piece[low - at : high - at]
        self.place = max(last, first)
        return self.place - first

    def write(self, data: Any) -> int:
        """Writes all of it, to the disk or to memory."""
        view = memoryview(data).cast("B")
        done = 0
        if self.refused is None:
            try:
                self.disk.seek(self.place)
                while done < len(view):
                    done += self.disk.write(view[done:])
            except OSError as error:
                self.refused = error
        if self.refused is not None:
            self.held.append((self.place, bytes(view)))
        self.place += len(view)
        self.length = max(self.length, self.place)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Sets the length."""
        self.length = self.place if size is None else size
        try:
            if self.refused is None:
                self.disk.truncate(self.length)
        except OSError as error:
            self.refused = error
        return self.length

    def close(self) -> None:
        """Closes the file; a disk that refuses only now is remembered too."""
        try:
            self.disk.close()
        except OSError as error:
            self.refused = self.refused or error


class Book:
    """An HDF5 file that is being written, piece by piece.

    file: of h5py; it may be touched inside `piece` alone.
    """

    def __init__(self, path: Path) -> None:
        self.shelter = Sheltered(path)
        with undisturbed():
            self.file = h5py.File(self.shelter, "w")

    @contextmanager
    def piece(self) -> Iterator[h5py.File]:
        """Inside, HDF5 is called. Raises OSError for what the disk refused.

        Then come the signals that arrived meanwhile.
        """
        with undisturbed():
            yield self.file
        self.told()

    def told(self) -> None:
        """Raises OSError where the disk has refused something."""
        if self.shelter.refused is not None:
            raise self.shelter.refused

    def close(self) -> None:
        """Lets the library write what it still holds. Raises nothing that the disk says."""
        with undisturbed():
            self.file.close()
            self.shelter.close()


@contextmanager
def book(path: Path) -> Iterator[Book]:
    """An HDF5 file to be written. Raises OSError where the disk refuses a part of it."""
    made = Book(path)
    try:
        yield made
    finally:
        made.close()
    made.told()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that Python code answers are answered when this is left, in their order.

    Their handlers run between any two of its instructions, those of a callback of HDF5 included.
    """
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        yield
        return
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    before = {one: signal.getsignal(one) for one in HEARD}
    mine = {one: handler for one, handler in before.items() if callable(handler)}
    for one in mine:
        signal.signal(one, note)
    try:
        yield
    finally:
        for one, handler in mine.items():
            signal.signal(one, handler)
        for one in came:
            signal.raise_signal(one)
