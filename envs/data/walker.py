"""Walks HDF5 and Parquet files in a process of its own, which may hang or crash for its reader.

A program of `vetting`: it is started by its path, imports h5py alone (pyarrow where it is asked to)
and answers each line of JSON on its input, {path, kind, look, seconds}, with one on its output:
{what, key}, what a reader must not touch and where, {closed} where the library cannot open the
file, which the reader's will say, else {bytes}, how much all arrays of an HDF5 file would be in
memory.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # without site and what the shell says: exactly where its starter looks
    sys.path[:] = json.loads(sys.argv[1])

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5t, h5z  # pyright: ignore[reportAttributeAccessIssue]

IDLE = 10.0  # seconds without a question after which it ends
ROOM = 1 << 30  # bytes of memory beside what it has when it starts
DEEP = 32  # groups inside of each other
AGAIN, FREELY = 10, 10_000  # links to each object on average; but so many links are free
CHUNK = 1 << 30  # bytes of a chunk, which is in memory as a whole
PIECE = 256  # rows of text that are read at a time
EXPANDED = 1032  # zlib's largest expansion
SUM = 4  # bytes that a checksum (fletcher32) adds
LZF = 32000  # h5py's own
OWN = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, LZF}  # what unpacks numbers
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
MENDED = "write it again with plain copies inside (h5repack, or h5py's copy)"


step_seconds = 0.0  # that one look may take; 0: as long as it likes


def step() -> None:
    """Begins one look at a file: from here on it may take so long and no longer."""
    signal.setitimer(signal.ITIMER_PROF, step_seconds)


class Unfit(Exception):
    """What a reader must not touch: what it is, and where."""

    def __init__(self, what: str, key: str) -> None:
        super().__init__(what)
        self.what, self.key = what, key


class Below(NamedTuple):
    """What a walk found below an object, counted anew for every path that leads there."""

    paths: int
    nbytes: int  # of arrays in memory


class Walk:
    """One file's groups, each walked once, whichever links lead to it. Raises Unfit."""

    def __init__(self, file: h5py.File) -> None:
        self.found: dict[Any, Below | None] = {}  # None: being walked
        self.objects = 0
        root = file["/"].id
        self.found[h5g.get_objinfo(root).objno] = None
        self.whole = self.below(root, "", 0)
        paths = self.whole.paths
        if paths > FREELY + AGAIN * self.objects:
            raise Unfit(f"{paths:,} links lead to {self.objects:,} objects; {MENDED}", "")

    def below(self, group: Any, path: str, depth: int) -> Below:
        """A group's attributes, if readers look at these, and everything in it."""
        if depth > DEEP:
            raise Unfit(f"groups are nested deeper than {DEEP}; {MENDED}", path)
        if depth < 2:
            attributes(h5py.Group(group), path)
        paths, nbytes = 0, 0
        for name, kind in links(group, path):
            here = f"{path}/{name}".lstrip("/")
            if kind not in (h5l.TYPE_HARD, h5l.TYPE_SOFT):
                text = "a link to another file" if kind == h5l.TYPE_EXTERNAL else "a foreign link"
                raise Unfit(f"{text}, which is never followed; {MENDED}", here)
            one = self.member(group, name, kind, here, depth)
            paths, nbytes = paths + one.paths, nbytes + one.nbytes
        return Below(paths, nbytes)

    def member(self, group: Any, name: str, kind: int, path: str, depth: int) -> Below:
        """What is behind a link."""
        step()
        try:
            item = h5o.open(group, name.encode(errors="surrogateescape"))
            place = h5g.get_objinfo(item).objno if isinstance(item, h5g.GroupID) else None
        except UNREADABLE as error:
            if kind == h5l.TYPE_SOFT and "too many" in str(error):
                raise Unfit(f"links that go round in circles; {MENDED}", path) from error
            if kind == h5l.TYPE_SOFT and isinstance(error, KeyError):
                return Below(1, 0)  # it leads nowhere
            raise Unfit(f"cannot be opened ({error}): damaged", path) from error
        if isinstance(item, h5d.DatasetID):
            self.objects += 1
            return Below(1, dataset(item, path))
        if not isinstance(item, h5g.GroupID):
            return Below(1, 0)
        if place in self.found:
            below = self.found[place]
            if below is None:
                raise Unfit(f"a group that holds itself; {MENDED}", path)
        else:
            self.found[place] = None
            self.objects += 1
            below = self.below(item, path, depth + 1)
            self.found[place] = below
        return Below(below.paths + 1, below.nbytes)


def links(group: Any, path: str) -> list[tuple[str, int]]:
    """Names and kinds of a group's links."""
    found: list[tuple[str, int]] = []

    def take(name: bytes, info: Any) -> None:
        step()
        found.append((name.decode(errors="surrogateescape"), info.type))

    try:
        group.links.iterate(take, info=True)
    except UNREADABLE as error:
        raise Unfit(f"members that cannot be listed ({error}): damaged", path) from error
    return found


def attributes(group: h5py.Group, path: str) -> None:
    """Reads every attribute, as readers do: text of them can lead the library round in circles."""
    try:
        for name in group.attrs:
            step()
            with contextlib.suppress(TypeError, ValueError):  # a type that numpy does not have
                weigh(group.attrs[name], f"{path}@{name}")
    except UNREADABLE as error:
        raise Unfit(f"attributes that cannot be read ({error}): damaged", path) from error


def weigh(values: Any, path: str, before: int = 0) -> int:
    """Bytes of text and lists of any length; many places of a file can hold the same one."""
    held = values.ravel() if isinstance(values, np.ndarray) and values.dtype == object else [values]
    total = before + sum(len(one) for one in held if hasattr(one, "__len__"))
    if total > CHUNK:
        raise Unfit(f"text and lists of more than {CHUNK / 1e9:.3g} GB: damaged, or a bomb", path)
    return total


def dataset(item: Any, path: str) -> int:
    """Where an array's numbers lie and what unpacks them; its bytes. Raises Unfit."""
    try:
        how = item.get_create_plist()
        pipeline(how, path)
        kind = item.get_type()
        size = kind.get_size()
        if how.get_layout() == h5d.CHUNKED:
            chunks(item, how, size * math.prod(how.get_chunk()), path)
        extra = texts(h5py.Dataset(item), path) if any_length(kind) else 0
        return extra + size * math.prod(item.shape or ())
    except UNREADABLE as error:
        raise Unfit(f"cannot be read ({error}): damaged", path) from error


def pipeline(how: Any, path: str) -> None:
    """Raises Unfit for an array in other files, and for one that a plugin would unpack."""
    if how.get_external_count():
        name = how.get_external(0)[0].decode(errors="replace")
        text = f"its numbers lie in another file ({name!r}), which is never read; {MENDED}"
        raise Unfit(text, path)
    if how.get_layout() == h5d.VIRTUAL:
        raise Unfit(f"a view of other files (virtual), which is never followed; {MENDED}", path)
    codes = []
    for number in range(how.get_nfilters()):
        code, _, _, name = how.get_filter(number)
        codes.append(code)
        if code not in OWN:
            text = f"packed by {name.decode(errors='replace') or f'plugin {code}'}, never called"
            raise Unfit(f"{text}; pack it anew: `h5repack -f GZIP=4 FILE NEW`", path)
    if codes.count(h5z.FILTER_DEFLATE) + codes.count(LZF) > 1:
        raise Unfit("packed twice over: made to unpack to more than there is", path)


def chunks(item: Any, how: Any, size: int, path: str) -> None:
    """The pieces of `size` bytes that an array is stored in, none of which may become larger."""
    if size > CHUNK:
        text = f"stored in pieces of {size / 1e9:.2f} GB; write it in smaller ones"
        raise Unfit(f"{text}: `h5repack -l CHUNK=... FILE NEW`", path)
    packed = h5z.FILTER_DEFLATE in [how.get_filter(i)[0] for i in range(how.get_nfilters())]
    if not hasattr(item, "chunk_iter"):  # HDF5 before 1.12.3: only whether it has an end
        item.get_num_chunks()
        return

    def check(piece: Any) -> None:
        step()
        large = packed and piece.size * EXPANDED > CHUNK
        if large and unpacked(item, piece.chunk_offset, size) > size:
            raise Unfit(f"a piece of {size:,} bytes unpacks to more: damaged", path)

    item.chunk_iter(check)


def unpacked(item: Any, place: tuple[int, ...], size: int) -> int:
    """Bytes that a piece unpacks to, as far as one more than its `size`; 0: not packed by zlib."""
    _, packed = item.read_direct_chunk(place)
    with contextlib.suppress(zlib.error):
        return len(zlib.decompressobj().decompress(packed, size + SUM + 1)) - SUM
    return 0


def any_length(kind: Any) -> bool:
    """Whether a type holds text or lists of any length, which lie elsewhere in the file."""
    if kind.get_class() == h5t.STRING:
        return bool(kind.is_variable_str())
    return kind.get_class() in (h5t.COMPOUND, h5t.ARRAY, h5t.VLEN)


def texts(data: h5py.Dataset, path: str) -> int:
    """Reads text and lists of any length, as readers do; their bytes."""
    if not data.shape:
        return weigh(data[()], path)
    total = 0
    for start in range(0, data.shape[0], PIECE):
        step()
        total = weigh(data[start : start + PIECE], path, total)
    return total


def described(path: str) -> dict[str, Any]:
    """The answer for a Parquet file, whose description pyarrow reads unguarded: it may abort."""
    arrow, parquet = map(importlib.import_module, LIBRARY["Parquet"])
    try:
        metadata = parquet.read_metadata(path)
    except (arrow.ArrowException, OSError):
        return {"closed": True}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        step()
        for part in map(group.column, range(group.num_columns)):
            _ = part.path_in_schema, part.num_values
    return {}


def walked(path: str) -> dict[str, Any]:
    """The answer for an HDF5 file."""
    try:
        file = h5py.File(path, "r", locking=False)
    except UNREADABLE:
        return {"closed": True}
    try:
        with file:
            walk = Walk(file)
            return {"bytes": walk.whole.nbytes}
    except Unfit as unfit:
        return {"what": unfit.what, "key": unfit.key}
    except (*UNREADABLE, MemoryError, RecursionError) as error:
        return {"what": f"cannot be looked at ({type(error).__name__}): damaged", "key": ""}


KINDS = {"HDF5": walked, "Parquet": described}
LIBRARY = {"Parquet": ("pyarrow", "pyarrow.parquet")}  # beside h5py


def questions() -> Iterator[dict[str, Any]]:
    """Lines of the input until it ends or nothing comes for a while."""
    held = b""
    while select.select([0], [], [], IDLE)[0]:
        came = os.read(0, 1 << 16)
        if not came:
            return
        *lines, held = (held + came).split(b"\n")
        yield from map(json.loads, lines)


def limit(look: float, whole: float) -> None:
    """Ends this process when it computes for so long at one look, or in all; 0: never."""
    global step_seconds
    step_seconds = look
    step()
    if whole:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        most = int(time.process_time() + whole) + 2
        within = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (within, hard))


def main() -> None:
    """Answers until nobody asks."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)  # its starter decides; without it the input ends
    with contextlib.suppress(OSError, ValueError):  # where the system counts memory so
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for asked in questions():
        for name in LIBRARY.get(asked["kind"], ()):
            importlib.import_module(name)  # it takes long, and is no look at a file
        limit(asked["look"], asked["seconds"])
        try:
            answer = KINDS[asked["kind"]](asked["path"])
        except MemoryError:
            answer = {"what": f"takes more than {ROOM / 1e9:.3g} GB to be opened", "key": ""}
        limit(0, 0)
        os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
