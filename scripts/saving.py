"""`rheo bench save`: how long a checkpoint of a full replay stops a run, and what it writes."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch

from rheo.envs.batch import Batch
from rheo.envs.buffer import Buffer
from rheo.files import ask_for

from .paired import Goal, Plan, Row, against_limit, shorter
from .store import checkpoint

OBS, ACTION = 39, 28  # of Adroit's door
HELD, NEW = 1_000_000, 50_000  # transitions of the replay, and between two saves as shipped
REPEATS = 4  # at most: every one writes the whole replay besides
STALL = (Goal("ours", "<=", 500.0),)
WHOLE = "all rows anew"


def rows(plan: Plan) -> Iterator[Row]:
    """Saves of a replay as a run makes them, beside those that write all of it.

    In the current folder, where runs are; the limit is one file with the new rows, written and
    synced. Raises OSError where it has no room for three replays.
    """
    held, new = (HELD // 20, NEW // 20) if plan.quick else (HELD, NEW)
    buffer = Buffer(held, OBS, 1, ACTION, "cpu")
    add(buffer, held)
    width = 4 * buffer.rows.shape[1]
    ask_for(3 * held * width, Path.cwd())
    with TemporaryDirectory(prefix=".rheo-bench-", dir=".") as name:
        folder = Path(name)
        times, sizes = measured(buffer, new, folder, min(plan.repeats, REPEATS))
    row = Row(f"save, {new:,} new transitions of {held:,}", "ms", 0.0, goals=STALL)
    row = shorter(row, times, WHOLE, 1e3)
    yield against_limit(row, times, "MB/s", sizes["ours"] / 1e6, new * width / 1e6)
    ratio = sizes["ours"] / sizes[WHOLE]
    known: dict[str, Any] = {"versus": WHOLE, "ratio": ratio, "low": ratio, "high": ratio}
    yield Row("what it writes", "MB", sizes["ours"] / 1e6, other=sizes[WHOLE] / 1e6, **known)


def measured(buffer: Buffer, new: int, folder: Path, repeats: int) -> tuple[dict, dict]:
    """Seconds [repeats] of saves with old rows linked, of such with none and of a plain file.

    And the bytes that the last one of both wrote.
    """
    times: dict[str, list[float]] = {"ours": [], WHOLE: [], "limit": []}
    sizes: dict[str, int] = {}
    save(buffer, folder / "ours", 0)
    for step in range(1, repeats + 1):
        add(buffer, new)
        content = memoryview(cast(Any, buffer.rows[:new].numpy())).cast("B")
        times["limit"].append(timed(lambda data=content: plain(folder / "plain", data)))
        times["ours"].append(timed(lambda at=step: save(buffer, folder / "ours", at)))
        sizes["ours"] = own(folder / "ours")
        kept, buffer.saved = buffer.saved, {}
        times[WHOLE].append(timed(lambda at=step: save(buffer, folder / "whole", at)))
        sizes[WHOLE], buffer.saved = own(folder / "whole"), kept
    return {name: np.array(each) for name, each in times.items()}, sizes


def add(buffer: Buffer, count: int) -> None:
    """Adds random transitions."""
    generator = torch.Generator().manual_seed(buffer.added)
    for _ in range(0, count, piece := min(count, 10_000)):
        obs = torch.randn(piece, OBS, generator=generator)
        action = torch.randn(piece, 1, ACTION, generator=generator)
        batch = Batch(obs, action, obs[:, 0], obs[:, 1], obs)
        buffer.add(batch, torch.ones(piece, dtype=torch.bool))


def save(buffer: Buffer, folder: Path, step: int) -> None:
    """A checkpoint, of which two are kept, as runs do."""
    checkpoint.write(folder, step, {"source": {"buffer": buffer.state_dict()}}, keep=2)


def plain(file: Path, content: memoryview) -> None:
    """A file, synced."""
    with file.open("wb", buffering=0) as stream:
        while content.nbytes:
            content = content[stream.write(content) :]
        os.fsync(stream.fileno())


def own(folder: Path) -> int:
    """Bytes of the newest checkpoint that no other one has."""
    found = [file.stat() for file in checkpoint.found(folder)[0].iterdir()]
    return sum(each.st_size for each in found if each.st_nlink == 1)


def timed(work: Any) -> float:
    """Seconds of a call."""
    start = perf_counter()
    work()
    return perf_counter() - start
