"""Which layout of recorded data a file has; each has a file of its own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from .containers import hdf5, hdf5_attributes, hdf5_columns, hdf5_groups, kind_of, npz
from .flat import Flat
from .minari_store import Minari
from .record import Reading, Recording, Sizes, refuse
from .robomimic import Robomimic, is_robomimic

OURS = "rheo"


class Layout(Protocol):
    """An opened file, of which only headers were read."""

    def sizes(self) -> Sizes:
        """What its arrays need; successors are an upper bound."""
        ...

    def read(self, storage: str) -> Recording:
        """The recording in the storage "ram" or "mmap", unchecked but for what reading it needs.

        Raises Refused.
        """
        ...

    def about(self) -> dict[str, Any]:
        """Format, path, environment, and what else the file says of itself."""
        ...


@contextlib.contextmanager
def opened(path: str, reading: Reading) -> Iterator[Layout]:
    """The file behind a path, or `minari:DATASET_ID`. Raises Refused."""
    if path.startswith("minari:"):
        yield Minari(path, reading)
        return
    file = Path(path)
    if kind_of(file) == "npz":
        with npz(file) as (columns, attributes):
            yield Flat(path, "npz", columns, attributes, reading)
        return
    with hdf5(file) as content:
        if is_robomimic(content):
            yield Robomimic(path, content, reading)
        elif "episode_0" in content:
            text = "a file of Minari's store; give minari:DATASET_ID instead of the path"
            raise refuse(path, text)
        else:
            attributes = hdf5_attributes(content)
            kind = OURS if attributes.get("format") == OURS else "d4rl"
            columns, groups = hdf5_columns(content), hdf5_groups(content)
            yield Flat(path, kind, columns, attributes, reading, groups)
