"""Where metrics go: a JSONL file that must be right, and TensorBoard events that may fail.

Trackers (tracker.py) are sinks too.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rheo.errors import MACHINE, RheoError
from rheo.files import put_text

logger = logging.getLogger("rheo")
FAILURES = 5  # in a row


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
        self.waiting: list[bytes] = []
        self.failures = 0

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a row. Raises RheoError (code 3) when five writes in a row failed."""
        row = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self.waiting.append(json.dumps({"step": step, **row}).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Writes what waits; a failed write leaves no half row."""
        if not self.waiting:
            return
        try:
            self.write(b"".join(self.waiting))
        except OSError as error:
            self.failures += 1
            message = f"{self.path}: {len(self.waiting)} rows not written: {error.strerror}"
            if self.failures >= FAILURES:
                raise RheoError(f"{message}; {FAILURES} failures in a row", MACHINE) from error
            logger.warning("%s; going on, they are kept in memory", message)
            return
        self.waiting, self.failures = [], 0

    def write(self, data: bytes) -> None:
        """Appends all of `data` or nothing."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(handle).st_size
        try:
            view = memoryview(data)
            while view.nbytes:
                view = view[os.write(handle, view) :]
        except OSError:
            os.ftruncate(handle, size)
            raise
        finally:
            os.close(handle)

    def rows(self) -> list[dict[str, Any]]:
        """The rows on disk; lines that are not whole rows are left out with a warning."""
        if not self.path.exists():
            return []
        rows, bad = [], 0
        for line in self.path.read_bytes().splitlines():
            row = parse(line)
            if row is None:
                bad += 1
            else:
                rows.append(row)
        if bad:
            logger.warning("%s: %d unreadable line(s) left out", self.path, bad)
        return rows

    def rewind(self, step: int) -> None:
        """Keeps the rows up to `step`. Raises OSError."""
        self.waiting = []
        if not self.path.exists():
            return
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        put_text(self.path, "".join(kept))

    def close(self, end: str) -> None:
        """Writes what waits."""
        self.flush()


def parse(line: bytes) -> dict[str, Any] | None:
    """A row, or None when the line is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole else None


class Events:
    """TensorBoard events. A failure stops this sink with a count, never the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.purge: int | None = None
        self.dropped = 0

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a row; counts it as dropped when TensorBoard is missing or its disk refuses."""
        try:
            if self.dropped == 0:
                self.put(step, numbers)
                return
        except (ImportError, OSError, RuntimeError) as error:
            logger.warning("TensorBoard events stop here (%s); metrics.jsonl goes on", error)
        self.dropped += 1

    def put(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes a row, and starts the writer at the first."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def rewind(self, step: int) -> None:
        """Lets TensorBoard leave out what is there of later steps."""
        self.purge = step + 1

    def close(self, end: str) -> None:
        """Ends the writer; a disk that refuses now loses only events."""
        if self.writer is None:
            return
        try:
            self.writer.close()
        except OSError as error:
            logger.warning("TensorBoard events were cut short (%s)", error)
        if self.dropped:
            logger.warning("%d rows are missing in %s", self.dropped, self.folder)
        self.writer = None
