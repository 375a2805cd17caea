"""Files that are there whole or not at all, and digests of them; nothing heavy is imported."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def atomically(file: Path, action: Callable[[Path], object]) -> None:
    """Lets `action` write a temporary file beside `file`, then puts it there. Raises OSError."""
    part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        action(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def put_text(file: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all. Raises OSError."""
    atomically(file, lambda part: part.write_text(text, encoding="utf-8"))


def sha256(file: Path) -> str:
    """Digest of a file's content, which is read in pieces. Raises OSError."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
