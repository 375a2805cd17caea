"""Paths as a user types them."""

import os
from pathlib import Path


def expanded(name: str | os.PathLike) -> Path:
    """The path with a leading ~ replaced; that of a user who is not there stays as it is typed."""
    return Path(os.path.expanduser(name))


def exists(name: str | os.PathLike) -> bool:
    """Whether there is a file or folder; no name is too long or too strange to be asked about."""
    return os.path.exists(os.path.expanduser(name))


def is_file(name: str | os.PathLike) -> bool:
    """Whether there is a file."""
    return os.path.isfile(os.path.expanduser(name))


def absolute(name: str) -> str:
    """What is there by its absolute path, so that it is found from another working folder too;
    any other name, of a known data set for example, as it is.
    """
    return str(expanded(name).absolute()) if exists(name) else name
