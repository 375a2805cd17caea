"""Where metrics go: a JSONL file that must be right, and TensorBoard events that may fail.

Trackers (tracker.py) are sinks too.
"""

import hashlib
import importlib
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import gethostname
from time import time
from typing import Any, NamedTuple, Protocol

from rheo.errors import RheoError
from rheo.files import FULL, append, atomically

from .stamps import stamped, unstamped
from .waiting import Waiting

logger = logging.getLogger("rheo")
PLAIN = {int, float, type(None)}  # what a row holds


def floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of 0-d tensors (one transfer for all of a device's) and of Python numbers."""
    numbers: dict[str, float] = {}
    waiting: dict[Any, list[str]] = {}
    for name, value in metrics.items():
        device = getattr(value, "device", None)
        if getattr(device, "type", "cpu") == "cpu":
            numbers[name] = float(value)
        else:
            waiting.setdefault(device, []).append(name)
            numbers[name] = math.nan  # keeps the order of the metrics
    for names in waiting.values():
        import torch

        values = torch.stack([metrics[name].detach().float() for name in names]).tolist()
        numbers.update(zip(names, values, strict=True))
    return numbers


class Sink(Protocol):
    """Where rows of metrics go. Only the journal may end a run by what it raises."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes a row."""
        ...

    def rewind(self, step: int) -> None:
        """The run goes on from `step`, -1 from its start: rows after it come once more."""
        ...

    def close(self, end: str) -> None:
        """Nothing comes after this; end: how the run ended, in a word of services.py."""
        ...


class Journal:
    """metrics.jsonl: one JSON object per line. Rows that the disk refuses wait in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting = Waiting(path, "rows", self.write)
        self.written: Written | None = None  # None: as the file stands

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a row. Raises RheoError (code 3) when five writes in a row failed."""
        row = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self.waiting.add(stamped({"step": step, **row}).encode())

    def write(self, rows: list[bytes]) -> None:
        """Appends all rows or none. Raises OSError."""
        data = b"".join(rows)
        before = self.written
        if before is None:
            before = self.written = Written.of(self.lines())
        append(self.path, data)
        self.written = before.and_then(data)

    def told(self) -> dict[str, Any]:
        """What a checkpoint vouches for of the rows on disk: how many, and a digest of them all."""
        if self.written is None:
            self.written = Written.of(self.lines())
        return {"count": self.written.rows, "sha256": self.written.digest.hexdigest()}

    def lines(self) -> list[bytes]:
        """The lines on disk, with their ends."""
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def rows(self) -> list[dict[str, Any]]:
        """The rows on disk; lines that are not whole rows are left out with a warning."""
        found = [parse(line) for line in self.lines()]
        bad = found.count(None)
        if bad:
            logger.warning("%s: %d damaged line(s) left out", self.path, bad)
        return [row for row in found if row is not None]

    def rewind(self, step: int, told: Mapping[str, Any] | None = None) -> None:
        """Keeps the rows that were there when the run was saved at `step`. Raises OSError.

        told: what the checkpoint vouches for of them. Where they are not all as they were, which is
        said, and of older runs, those up to `step` are kept.
        """
        self.waiting.things, self.written = [], None
        lines = self.lines()
        kept = lines[: told["count"]] if told is not None else []
        if told is None or Written.of(kept).digest.hexdigest() != told["sha256"]:
            kept = [line for line in lines if up_to(parse(line), step)]
            if told is not None:
                text = "%s: damaged: of the %d rows up to step %d %d are as they were logged"
                logger.warning(text, self.path, told["count"], step, len(kept))
        if kept != lines:
            atomically(self.path, lambda part: part.write_bytes(b"".join(kept)))

    def close(self, end: str) -> None:
        """Writes what waits."""
        self.waiting.close()


class Written(NamedTuple):
    """What is on disk of a log."""

    rows: int
    digest: Any  # SHA-256 of all that is written, which goes on

    @classmethod
    def of(cls, lines: Sequence[bytes]) -> "Written":
        """Of lines with their ends."""
        return cls(len(lines), hashlib.sha256(b"".join(lines)))

    def and_then(self, data: bytes) -> "Written":
        """With whole lines appended."""
        digest = self.digest.copy()
        digest.update(data)
        return Written(self.rows + data.count(b"\n"), digest)


def parse(line: bytes) -> dict[str, Any] | None:
    """A row of numbers, without its check; None for a line that is not one, or was altered."""
    try:
        row = unstamped(line)
        numbers = {key: None if value is None else float(value) for key, value in row.items()}
    except (ValueError, TypeError, OverflowError):
        return None
    kinds = {type(value) for value in row.values()}
    whole = type(row.get("step")) is int and 0 <= row["step"] < 2**63 and kinds <= PLAIN
    finite = all(value is None or math.isfinite(value) for value in numbers.values())
    return row if whole and finite else None


def up_to(row: Mapping[str, Any] | None, step: int) -> bool:
    """Whether a row is whole, and not of a later step."""
    return row is not None and row["step"] <= step


class Events:
    """TensorBoard events, which never end a run.

    Rows that a full disk refuses wait as those of the journal do; after five refusals, or another
    failure, this sink stops with a count.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Path | None = None
        self.purge: int | None = None
        self.dropped = 0
        self.waiting = Waiting(folder, "rows", self.write)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a row; counts it as dropped when TensorBoard is missing or its disk refuses."""
        if self.dropped:
            self.dropped += 1
            return
        try:
            self.waiting.add((time(), step, dict(numbers)))
        except (ImportError, RheoError) as error:
            logger.warning("TensorBoard events stop here (%s); metrics.jsonl goes on", error)
            self.dropped = len(self.waiting.things)
            self.waiting.things = []

    def write(self, rows: list[tuple[float, int, Mapping[str, float]]]) -> None:
        """Appends rows to this start's file, which begins with the first."""
        events = [event(*row) for row in rows]
        file = self.file
        if file is None:
            file = self.folder / f"events.out.tfevents.{time():.6f}.{gethostname()}.{os.getpid()}"
            events = [*beginning(self.purge), *events]
        try:
            self.folder.mkdir(exist_ok=True)
            append(file, b"".join(map(recorded, events)))
        except OSError as error:
            if error.errno in FULL:
                raise
            raise RheoError(str(error)) from error
        self.file = file

    def rewind(self, step: int) -> None:
        """Lets TensorBoard leave out what is there of later steps."""
        self.purge = step + 1

    def close(self, end: str) -> None:
        """Writes what waits; a disk that refuses now loses only events."""
        self.waiting.close()
        if self.dropped:
            logger.warning("%d rows are missing in %s", self.dropped, self.folder)


def event(when: float, step: int, numbers: Mapping[str, float]) -> Any:
    """A row as TensorBoard's message."""
    kind = messages("summary").Summary
    summary = kind(value=[kind.Value(tag=k, simple_value=v) for k, v in numbers.items()])
    return messages("event").Event(wall_time=when, step=step, summary=summary)


def beginning(purge: int | None) -> list[Any]:
    """What a file of events begins with; with `purge`, what others have from that step is void."""
    kinds = messages("event")
    found = [kinds.Event(wall_time=time(), file_version="brain.Event:2")]
    if purge is not None:
        start = kinds.SessionLog(status=kinds.SessionLog.START)
        found.append(kinds.Event(wall_time=time(), step=purge, session_log=start))
    return found


def messages(name: str) -> Any:
    """A module of TensorBoard's messages. Raises ImportError where it is not installed."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def recorded(message: Any) -> bytes:
    """A message as a record of a file of events."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    RecordWriter(stream).write(message.SerializeToString())
    return stream.getvalue()
