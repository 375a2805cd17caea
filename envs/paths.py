"""Paths as a user types them."""

import os
from pathlib import Path

from ..errors import EnvError

LAYOUTS = {  # of files that are written, with their suffixes
    "npz": (".npz",),
    "d4rl": (".hdf5", ".h5"),
    "robomimic": (".hdf5", ".h5"),
}
SUFFIXES = (".hdf5", ".h5", ".npz")


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


def layout_of(file: Path, asked: str | None) -> str:
    """The layout that a file is written in: the one asked for, else its suffix's first one.

    Raises EnvError for a suffix that nothing is written in, or not this layout.
    """
    fitting = [name for name, endings in LAYOUTS.items() if file.suffix in endings]
    if not fitting:
        raise EnvError(f"{file}: unknown suffix {file.suffix!r}; there are {', '.join(SUFFIXES)}")
    if asked is not None and asked not in fitting:
        raise EnvError(f"{file}: layout={asked} is written to {' or '.join(LAYOUTS[asked])}")
    return fitting[0] if asked is None else asked
