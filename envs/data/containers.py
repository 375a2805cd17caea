"""Files as columns: what a file is by its first bytes, and the arrays inside npz and HDF5.

`foreign` names what is none of ours.

Nothing is unpickled and no file is written to.
"""

import contextlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from ..memory import size_text
from .bulk import TEXT
from .catalogue import file_remedy, known
from .foreign import Kind, signed, texted, zip_names, zipped
from .recording import Column, Refused, block_rows, one_line, refuse
from .told import KNOWN, allowed, decoded
from .vetting import vet

HDF5, ZIP, NUMPY = b"\x89HDF\r\n\x1a\n", (b"PK\x03\x04", b"PK\x05\x06"), b"\x93NUMPY"
PARQUET = b"PAR1"
CACHE = 1 << 20  # bytes for each dataset: pieces end where chunks end, so none is needed twice
LISTED = 6  # entries of a group that a message shows
ZIP_FAULTS = (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, MemoryError)
ZIP_ERRORS = (*ZIP_FAULTS, zipfile.BadZipFile, zlib.error)


def kind_of(path: Path) -> str:
    """ "npz", "hdf5", "zarr" (zipped) or "parquet", by the file's first bytes and zip entries.

    Raises Refused naming what it is instead, and the way out.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise refuse(path, f"{what}; {file_remedy(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            if head.startswith(HDF5) or has_user_block(file, path.stat().st_size):
                return "hdf5"
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror})") from error
    if head.startswith(PARQUET):
        return "parquet"
    if head.startswith(ZIP):
        names = zip_names(path)
        kind = "npz" if names is None else zipped(names)  # its reader says what is broken
    else:
        kind = other(path, head)
    if isinstance(kind, Kind):
        raise broken(path, *kind)
    return kind


def other(path: Path, head: bytes) -> Kind:
    """What a file is that is neither of ours nor an archive."""
    again = file_remedy(path)
    text = head.lstrip().lower()
    if not head:
        return Kind("empty", again)
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return Kind("an HTML page (a server's answer), not data", again)
    if text.startswith(b"version https://git-lfs"):
        return Kind("a Git LFS pointer, not the data", "run `git lfs pull`")
    if head.startswith(NUMPY):
        return Kind("one array; a .npz file holds observations, actions and more", again)
    if ".tfrecord" in path.name:
        return Kind("a TFRecord file (RLDS)")
    found = signed(head) or texted(path, head)
    if found is None:
        return Kind(f"neither npz nor HDF5 (it begins with {head[:8]!r})", again)
    return found._replace(remedy=again) if known(str(path)) else found


def has_user_block(file: IO[bytes], size: int) -> bool:
    """Whether an HDF5 signature stands at 512, 1024, 2048 ..., where the format allows it too."""
    place = 512
    while place < size:
        file.seek(place)
        if file.read(8) == HDF5:
            return True
        place *= 2
    return False


def broken(path: Path, what: str, remedy: str = "") -> Refused:
    """The refusal of a file that is not what it should be."""
    size = f"the file has {path.stat().st_size:,} bytes"
    return refuse(path, f"{what}; {size}; {remedy or file_remedy(path)}")


@contextlib.contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, read only and without a lock. Raises Refused for what the library cannot read.

    A process of its own looks at it first (`vetting`). The library's own message of a truncated
    file names neither the file nor its size.
    """
    known = vet(path)
    try:
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE)
    except OSError as error:
        stored = re.search(r"stored_eof = (\d+)", str(error))
        if stored:
            raise broken(path, f"truncated: it should have {int(stored[1]):,} bytes") from error
        raise broken(path, f"not a readable HDF5 file ({one_line(error)})") from error
    with file:
        if known is None:
            raise broken(path, "could not be opened by the process that looks at it first")
        try:
            yield file
        except Exception as error:  # noqa: BLE001 - h5py has many types for a damaged piece
            if not from_h5py(error):
                raise
            raise broken(path, f"damaged HDF5 ({one_line(error)})") from error


def from_h5py(error: Exception) -> bool:
    """Whether h5py raised it, not code of ours."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and "h5py" in frame.tb_frame.f_code.co_filename


def hdf5_column(data: h5py.Dataset) -> Column:
    """A dataset of an HDF5 file; pieces end where its stored chunks end."""

    def blocks() -> Iterator[NDArray]:
        if not data.shape:
            return
        chunk = data.chunks[0] if data.chunks else 1
        rows = -(-block_rows(data.shape, data.dtype) // chunk) * chunk
        for start in range(0, data.shape[0], rows):
            yield cast(NDArray, data[start : start + rows])

    return Column(data.shape or (), data.dtype, blocks)  # of one without a space: None


def hdf5_columns(file: h5py.File) -> dict[str, Column]:
    """The datasets at the root."""
    items = {key: file.get(key) for key in map(str, file)}
    return {k: hdf5_column(item) for k, item in items.items() if isinstance(item, h5py.Dataset)}


def hdf5_groups(file: h5py.File) -> list[str]:
    """The groups at the root (infos, metadata), which are not needed."""
    return [key for key in map(str, file) if isinstance(file.get(key), h5py.Group)]


def tree(group: h5py.Group | h5py.File, depth: int = 2) -> str:
    """What a group holds, for people: datasets with their shapes, groups with what they hold."""
    parts = []
    for name in map(str, group):
        item = group.get(name)
        if isinstance(item, h5py.Dataset):
            parts.append(f"{name} {list(item.shape or ())}")
        elif isinstance(item, h5py.Group):
            parts.append(
                f"{name}/" + (f" ({tree(item, depth - 1)})" if depth and len(item) else "")
            )
        if len(parts) == LISTED:
            more = len(group) - LISTED
            return ", ".join(parts) + (f" and {more:,} more" if more else "")
    return ", ".join(parts) or "nothing"


def hdf5_attributes(path: str | os.PathLike, group: h5py.Group | h5py.File) -> dict[str, Any]:
    """Attributes as Python values, those that hold JSON parsed. Raises Refused, see `allowed`."""
    return allowed(path, {key: decoded(group.attrs[key]) for key in KNOWN if key in group.attrs})


def unknown(group: h5py.Group | h5py.File) -> list[str]:
    """Names of attributes that are never read."""
    return [f"attribute {key}" for key in group.attrs if key not in KNOWN]


@contextlib.contextmanager
def npz(path: Path) -> Iterator[tuple[dict[str, Column], dict[str, Any]]]:
    """Columns and attributes of an npz file; attributes are JSON in its entry `attributes`."""
    with reading_npz(path):
        archive = zipfile.ZipFile(path)
    with archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        columns = {name[:-4]: npz_column(path, archive, name) for name in names}
        held = columns.pop("attributes", None)
        attributes = {} if held is None else decoded(scalar(path, held, "attributes"))
        yield columns, attributes if isinstance(attributes, dict) else {}


def scalar(path: str | os.PathLike, column: Column, key: str) -> Any:
    """The one entry of a column, None where it has another number. Raises Refused for a book."""
    if column.dtype.itemsize > TEXT:
        raise refuse(path, f"a text of {size_text(column.dtype.itemsize)}, never read", key)
    return next(iter(column.blocks())).item() if column.shape in ((), (1,)) else None


@contextlib.contextmanager
def reading_npz(path: Path) -> Iterator[None]:
    """Turns what zipfile, zlib and numpy raise for a damaged file into Refused."""
    try:
        yield
    except ZIP_ERRORS as error:
        what = f"not a readable .npz file ({one_line(error) or type(error).__name__})"
        raise broken(path, what) from error


def npz_column(path: Path, archive: zipfile.ZipFile, name: str) -> Column:
    """An array of an npz file, which is read in pieces, without a copy of the whole."""
    form: Any = np.lib.format
    with reading_npz(path), archive.open(name) as stream:
        version = form.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"array format {version}")
        shape, fortran, dtype = getattr(form, f"read_array_header_{version[0]}_0")(stream)
        start = stream.tell()
    key, size = name[:-4], archive.getinfo(name).file_size - start
    width = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject:
        raise refuse(path, "holds Python objects, which are never read; store plain numbers", key)
    if size != (shape[0] if shape else 1) * width:
        raise broken(path, f"not a readable .npz file ({key} {shape} has {size:,} bytes)")

    def blocks() -> Iterator[NDArray]:
        with reading_npz(path), archive.open(name) as stream:
            if fortran or not shape:
                yield form.read_array(stream)
                return
            stream.read(start)
            while piece := stream.read(block_rows(shape, dtype) * width):
                yield np.frombuffer(piece, dtype).reshape(-1, *shape[1:])

    return Column(shape, dtype, blocks)
