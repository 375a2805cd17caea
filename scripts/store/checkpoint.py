"""Checkpoints: a tree of states <-> safetensors + JSON, written so that a kill loses nothing.

A checkpoint is a folder named after its step. It is written into a staging folder, every file is
fsynced, the manifest (size and SHA-256 of every file) comes last, and one rename publishes it.
A replay is in segments, of which those of the checkpoint before are linked (`segments`).
Nothing is ever unpickled. Digests are our own because neither safetensors nor torch notices a
flipped bit.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rheo.files import ask_for, sha256

from . import segments
from .stamps import dump, sealed
from .tree import DTYPES, Broken, Packed, pack, unpack
from .where import CHECKPOINT, MANIFEST, found

logger = logging.getLogger("rheo")
FORMAT = 2  # 1: a replay is one tensor
STATE = "state.json"
FILE = re.compile(r"[A-Za-z0-9_]+\.(safetensors|json)")
STAGING = ".staging-"
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Rotten(Broken):
    """A checkpoint of which only rows of a replay are damaged: the files of some of its segments.

    names: these files.
    """

    def __init__(self, message: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.names = names


def write(
    folder: Path, step: int, tree: dict[str, Any], keep: int, run: dict[str, Any] | None = None
) -> Path:
    """Publishes a checkpoint of `tree` in `folder` and prunes all but the newest `keep`.

    run: what the manifest vouches for beside the checkpoint's own files (`vouch`). Raises OSError
    when the disk refuses; then the folder is as it was.
    """
    packed = pack(tree)
    plans = {key: segments.plan(rows) for key, rows in packed.rows.items()}
    folder.mkdir(exist_ok=True)
    staging = folder / f"{STAGING}{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        ask_for(size_of(packed, plans), folder)
        staging.mkdir()
        files = {}
        for name, tensors in packed.tensors.items():
            files[f"{name}.safetensors"] = write_tensors(staging / f"{name}.safetensors", tensors)
        lying = {key: laid(staging, key, planned) for key, planned in plans.items()}
        files |= {one.name: one.entry for table in lying.values() for one in table}
        files[STATE] = write_bytes(staging / STATE, [dump(packed.state)])
        tables = {key: segments.listed(table, packed.rows[key]) for key, table in lying.items()}
        manifest = {"format": FORMAT, "step": step, "files": files, "tables": tables}
        manifest |= {} if run is None else {"run": run}
        write_bytes(staging / MANIFEST, [sealed(manifest)])
        sync(staging)
        target = free_name(folder, step)
        os.rename(staging, target)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for key, table in lying.items():
        packed.rows[key].saved.update(folder=target, segments=table)
    sync(folder)
    prune(folder, keep)
    return target


def size_of(packed: Packed, plans: dict[str, segments.Plan]) -> int:
    """Bytes that a checkpoint adds to the disk, but for JSON."""
    parts = [tensor.nbytes for part in packed.tensors.values() for tensor in part.values()]
    return sum(parts) + sum(planned.size for planned in plans.values())


def laid(staging: Path, key: str, planned: segments.Plan) -> list[segments.Segment]:
    """A table's segments, linked or written, in their order."""
    planned = segments.link(planned, staging)
    lying = list(planned.linked)
    for span in planned.written:
        rows = {segments.COLUMN: planned.rows.take(*span)}
        entry = write_tensors(staging / segments.name_of(key, *span), rows)
        lying.append(segments.segment(staging, key, span, entry))
    return sorted(lying, key=lambda one: one.begin)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Writes the safetensors format straight from the tensors' memory; returns size and digest."""
    order = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    header, offset, chunks = {}, 0, []
    for key in order:
        tensor = tensors[key].cpu().contiguous()
        row = tensor.reshape(-1) if tensor.numel() else tensor.new_empty(0)  # numpy's stride is 0
        chunk = row.view(torch.uint8).numpy()
        end = offset + chunk.nbytes
        shape = list(tensor.shape)
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        chunks.append(chunk)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return write_bytes(path, [len(text).to_bytes(8, "little") + text, *chunks])


def write_bytes(path: Path, chunks: list[Any]) -> dict[str, Any]:
    """Writes and fsyncs a file; returns its size and SHA-256, both taken from memory."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk)
            digest.update(view)
            size += view.nbytes
            while view.nbytes:
                view = view[file.write(view) :]
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def sync(folder: Path) -> None:
    """Makes a folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_name(folder: Path, step: int) -> Path:
    """A new name for a step; a step that is saved again gets a suffix, so nothing is replaced."""
    target, count = folder / f"{step:012d}", 0
    while target.exists():
        count += 1
        target = folder / f"{step:012d}.{count}"
    return target


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest checkpoints; renamed before, so that no half one is found."""
    for path in found(folder)[keep:]:
        old = folder / f"{STAGING}{path.name}"
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def halves(folder: Path) -> list[Path]:
    """Checkpoints without a manifest: half copied, or damaged."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name)]
    return sorted(path for path in named if not (path / MANIFEST).exists())


def clean(folder: Path) -> None:
    """Removes what a killed process left half-written. Only for the holder of the run's lock.

    Nothing else is: a checkpoint that lost its manifest may still hold weights and is set aside.
    """
    for path in folder.glob(f"{STAGING}*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)
    set_aside(halves(folder))


def set_aside(paths: Iterable[Path]) -> None:
    """Renames broken checkpoints, so that no later look meets them."""
    for path in paths:
        aside, count = path.with_name(f"{path.name}.broken"), 0
        while aside.exists():
            count += 1
            aside = path.with_name(f"{path.name}.broken{count}")
        path.rename(aside)
        logger.warning("%s: cannot be trusted; set aside as %s", path, aside.name)


def read(path: Path, without: Collection[str] = ()) -> dict[str, Any]:
    """The verified tree of a checkpoint. Raises Broken, which names the file and its fault.

    It is Rotten where all but rows of a replay is whole; then it can be read without these files.
    """
    manifest, tensors = read_manifest(path), {}
    refuse_damaged(path, manifest, without)
    try:
        kept = [name for name in manifest["files"] if name != STATE and name not in without]
        for file in (path / name for name in kept):
            tensors[file.stem] = safetensors.torch.load_file(file)
        rows = {
            key: segments.gathered(path, key, table, manifest["files"], tensors, without)
            for key, table in manifest.get("tables", {}).items()
        }
        return unpack(Packed(json.loads((path / STATE).read_bytes()), tensors, rows))
    except (safetensors.SafetensorError, *MALFORMED) as error:
        raise Broken(f"{path}: not a checkpoint of this program ({error})") from error


def refuse_damaged(path: Path, manifest: dict[str, Any], without: Collection[str]) -> None:
    """Raises Broken for the first file that is not as its manifest says; those of tables last."""
    tables, rotten = segments.files(manifest.get("tables")), []
    for name, entry in manifest["files"].items():
        if not FILE.fullmatch(name):
            raise Broken(f"{path / MANIFEST}: {name!r} is not a name of a checkpoint file")
        if name in without:
            continue
        try:
            verify(path / name, entry)
        except Broken as error:
            if name not in tables:
                raise
            rotten.append((name, error))
    if rotten:
        names, faults = zip(*rotten, strict=True)
        raise Rotten("\n  ".join(map(str, faults)), names)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, checked against its own digest and this program's format."""
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
        manifest = json.loads(raw)
        del manifest["sha256"]
        version, entries = manifest["format"], manifest["files"]
        if not isinstance(version, int) or not isinstance(entries, dict):
            raise TypeError("fields have the wrong type")
    except (OSError, *MALFORMED) as error:
        raise Broken(f"{file}: unreadable ({error})") from error
    if sealed(manifest) != raw:
        raise Broken(f"{file}: corrupted, its digest does not match")
    if version > FORMAT:
        raise Broken(f"{file}: format {version} is newer than {FORMAT}; update rheo to read it")
    if STATE not in entries:
        raise Broken(f"{file}: lists no {STATE}")
    return manifest


def verify(file: Path, entry: dict[str, Any]) -> None:
    """Compares a file with its manifest entry. Raises Broken."""
    try:
        size = file.stat().st_size
        if size != entry["size"]:
            fault = "truncated" if size < entry["size"] else "too long"
            raise Broken(f"{file}: {fault}, have {size} of {entry['size']} bytes")
        whole = sha256(file) == entry["sha256"]
    except OSError as error:
        raise Broken(f"{file}: unreadable ({error.strerror})") from error
    except (KeyError, TypeError) as error:
        raise Broken(f"{file}: its manifest entry lacks {error}") from error
    if not whole:
        raise Broken(f"{file}: corrupted, its SHA-256 does not match the manifest")
