"""Files that are there whole or not at all, and digests of them; nothing heavy is imported.

Whatever writes a file goes through `atomically` (or `put_text`, `put_bytes`): a disk that refuses
leaves what was there before, and is one line for the user.
"""

import errno
import hashlib
import itertools
import os
import re
import select
import shutil
from collections.abc import Callable
from pathlib import Path

from .errors import MACHINE, USER, RheoError

PART = re.compile(r"\..+\.(\d+)\.tmp.*")  # what `atomically` writes to, with its process
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NAMED_WRONGLY = (  # by the user; what else a disk refuses is the machine's
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)


class Unwritten(RheoError, OSError):
    """A file that could not be written and is as it was before; with the system's `errno`.

    Exit code 2 where the name is to blame, 3 where the machine is.
    """

    def __init__(self, file: Path, error: OSError) -> None:
        reason = error.strerror or str(error)
        text = f"{file}: not written: {reason}"
        if error.errno in FULL:
            free = "" if error.errno == errno.EFBIG else left(file.parent)
            text += f"{free}; make room and do it again"
        code = USER if error.errno in NAMED_WRONGLY else MACHINE
        super().__init__(text, code)
        self.errno, self.strerror, self.text = error.errno, reason, text

    def __str__(self) -> str:
        return self.text


def left(folder: Path) -> str:
    """How much room a folder's disk has, as a clause; nothing where it does not say."""
    free = room(folder)
    return "" if free is None else f" ({free / 1e6:.1f} MB are free)"


def room(folder: Path) -> int | None:
    """Bytes that are free on a folder's disk; None where it does not say. Quotas are not seen."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None  # some that lie in a network say nothing


def ask_for(size: int, folder: Path) -> None:
    """Raises OSError (ENOSPC) where `size` bytes are more than a folder's disk has."""
    free = room(folder)
    if free is not None and free < size:
        text = f"{os.strerror(errno.ENOSPC)}: {size / 1e6:.1f} MB are needed"
        raise OSError(errno.ENOSPC, text)


def atomically(file: Path, action: Callable[[Path], object], ending: str = "") -> None:
    """Lets `action` write a temporary file beside `file`, then puts it there. Raises Unwritten.

    ending: of the temporary file's name, where what writes it asks for one.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.tmp{ending}")
    try:
        action(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    except OSError as error:
        discard(part)
        raise Unwritten(file, error) from error
    finally:
        discard(part)


def discard(part: Path) -> None:
    """Removes a temporary file, if it is there: where that fails its folder is gone or closed."""
    try:
        part.unlink(missing_ok=True)
    except OSError:
        return


def put_bytes(file: Path, content: bytes) -> None:
    """Writes a small file so that it is there whole or not at all. Raises Unwritten."""
    atomically(file, lambda part: part.write_bytes(content))


def put_text(file: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all. Raises Unwritten."""
    put_bytes(file, text.encode())


def append(file: Path, content: bytes) -> None:
    """Adds all of `content` to the end of a file, or nothing. Raises OSError."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    size = os.fstat(handle).st_size
    try:
        view = memoryview(content)
        while view.nbytes:
            view = view[os.write(handle, view) :]
    except OSError:
        os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)


def untaken(path: Path) -> Path:
    """The first of PATH.0, PATH.1, ... that is not there."""
    names = (path.with_name(f"{path.name}.{count}") for count in itertools.count())
    return next(name for name in names if not name.exists())


def sha256(file: Path) -> str:
    """Digest of a file's content, which is read in pieces. Raises OSError."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def sweep(*folders: Path) -> None:
    """Removes the temporary files of writers that were killed. Raises OSError."""
    for part in (part for folder in folders if folder.is_dir() for part in folder.iterdir()):
        found = PART.fullmatch(part.name)
        if found and not lives(int(found[1])):
            part.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; no number of a process
        return True
    return True


def line_of(pipe: int, seconds: float) -> bytes | None:
    """A line from a pipe, b"" where its writer ended, None where nothing came for so long."""
    held = b""
    while not held.endswith(b"\n"):
        if not select.select([pipe], [], [], seconds)[0]:
            return None
        came = os.read(pipe, 1 << 16)
        if not came:
            return b""
        held += came
    return held
