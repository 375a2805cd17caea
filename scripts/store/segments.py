"""Growing tables in checkpoints: segments, files that are written once and then linked.

A save costs the rows since the last one: they become a segment, and those that the checkpoint
before has are hard links in the new one. Small ones are written together, as a binary counter
carries, so that a table of many saves is few files and a row is written a few times at most. Where
a file system has no links, or a file is not as it was left, its rows are written from memory.
"""

import os
from collections.abc import Collection
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rheo.envs.rows import Rows

LARGEST = 32 << 20  # bytes of a segment
COLUMN = "rows"  # the tensor of a segment's file
NONE_LEFT = "no row of its replay is left"
ENDING = ".safetensors"


class Segment(NamedTuple):
    """Rows begin..end of a table in a file, whose entry of the manifest is its size and digest."""

    name: str
    begin: int
    end: int
    entry: dict[str, Any]
    changed: int  # when, in ns


class Plan(NamedTuple):
    """What of a table a save links and what it writes."""

    rows: Rows
    linked: list[Segment]
    written: list[tuple[int, int]]

    @property
    def size(self) -> int:
        """Bytes to be written, but for headers."""
        return sum(end - begin for begin, end in self.written) * self.rows.width


def plan(rows: Rows) -> Plan:
    """What a save of a table does, after the one that `rows.saved` tells of."""
    linked = [one for one in rows.saved.get("segments", ()) if rows.begin < one.end <= rows.end]
    linked = [one for one in linked if as_left(rows.saved["folder"] / one.name, one)]
    largest, end = max(1, LARGEST // max(rows.width, 1)), rows.end
    start = linked[-1].end if linked else rows.begin
    while linked and linked[-1].end == start < end:
        last = linked[-1]
        if last.end - last.begin > end - start or end - last.begin > largest:
            break
        start = linked.pop().begin
    gaps, place = [], rows.begin
    for one in linked:
        gaps.append((place, one.begin))
        place = one.end
    gaps.append((place, end))
    cuts = [
        (at, min(at + largest, after))
        for first, after in gaps
        for at in range(first, after, largest)
    ]
    return Plan(rows, linked, cuts or ([] if linked else [(end, end)]))


def as_left(file: Path, segment: Segment) -> bool:
    """Whether a segment's file looks as it was left."""
    try:
        found = file.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (segment.entry["size"], segment.changed)


def link(planned: Plan, staging: Path) -> Plan:
    """Links what is to be linked; what the file system does not link is to be written."""
    linked, refused = [], []
    for one in planned.linked:
        try:
            os.link(planned.rows.saved["folder"] / one.name, staging / one.name)
            linked.append(one)
        except OSError:
            refused.append((max(one.begin, planned.rows.begin), one.end))
    return planned._replace(linked=linked, written=[*refused, *planned.written])


def name_of(key: str, begin: int, end: int) -> str:
    """The file of a segment."""
    return f"{key}_{begin}_{end}{ENDING}"


def segment(folder: Path, key: str, span: tuple[int, int], entry: dict[str, Any]) -> Segment:
    """A segment whose file is whole. Raises OSError."""
    name = name_of(key, *span)
    return Segment(name, *span, entry, (folder / name).stat().st_mtime_ns)


def listed(segments: list[Segment], rows: Rows) -> dict[str, Any]:
    """A table as the manifest lists it."""
    spans = [[one.begin, one.end] for one in segments]
    return {"begin": rows.begin, "end": rows.end, "segments": spans}


def files(tables: Any) -> set[str]:
    """The files of the tables that a manifest lists; of a forged list none, which is told later."""
    try:
        spans = [(key, span) for key, table in tables.items() for span in table["segments"]]
        return {name_of(key, *span) for key, span in spans}
    except (AttributeError, KeyError, TypeError):
        return set()


def gathered(
    folder: Path,
    key: str,
    table: Any,
    files: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    without: Collection[str] = (),
) -> Rows:
    """A table of a checkpoint that was read. Raises ValueError, KeyError, TypeError, OSError.

    without: files whose rows are left out; the others are then counted anew, from 0.
    """
    parts, segments, place = [], [], table["begin"]
    for begin, end in table["segments"]:
        name = name_of(key, begin, end)
        if not begin <= place <= end:
            raise ValueError(f"{name} does not go on at row {place}")
        if name not in without:
            part = tensors.pop(name.removesuffix(ENDING))[COLUMN]
            if part.dim() != 2 or len(part) != end - begin:
                raise ValueError(f"{name} is no table of {end - begin} rows")
            parts.append((place, part[place - begin :]))
            segments.append(segment(folder, key, (begin, end), files[name]))
        place = end
    if place != table["end"] or not parts:
        raise ValueError(f"{key} ends at row {place} of {table['end']}" if parts else NONE_LEFT)
    lost = place - table["begin"] - sum(len(part) for _, part in parts)
    if not lost:
        return Rows(parts, {"folder": folder, "segments": segments})
    firsts = accumulate((len(part) for _, part in parts), initial=0)
    return Rows([(first, part) for first, (_, part) in zip(firsts, parts, strict=False)], lost=lost)
