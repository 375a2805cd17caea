"""Whether two run folders are the same in all that their numbers are made of."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rheo.scripts.store.run import Run

CLOCKED = ("time/", "crc")  # keys of a row that a clock measures, and what depends on them
LOOSE = ("events", "tracker")  # folders whose files have names by the clock
SEGMENT = re.compile(r"_\d+_\d+\.safetensors")  # of a replay: which rows, by when it was saved


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Places where two trees differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{place}.{key}" for key in a.keys() ^ b.keys()]
        return found + [
            d for k in a.keys() & b.keys() for d in differences(a[k], b[k], f"{place}.{k}")
        ]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{place}.{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if raw(a) == raw(b) else [place]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return [] if a.dtype == b.dtype and a.tobytes() == b.tobytes() else [place]
    same = type(a) is type(b) and (a == b if not isinstance(a, float) else repr(a) == repr(b))
    return [] if same else [place]


def raw(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor's bits, so that NaN is NaN and -0 is not 0."""
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return (
        tensor.dtype,
        tensor.shape,
        values.view(torch.uint8).numpy().tobytes() if len(values) else b"",
    )


def rows(run: Run) -> list[dict[str, Any]]:
    """Metrics without what a clock measures."""
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in run.rows()]


def files(folder: Path) -> set[str]:
    """Names of the files of a run, those apart that are named by a clock or by saves."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    kept = (name for name in found if name.parts[0] not in LOOSE)
    return {str(name) for name in kept if not SEGMENT.search(name.name)}


def apart(straight: Path, other: Path) -> str:
    """What tells a run from the one that never stopped; empty: nothing."""
    one, two = (Run.open(str(folder)) for folder in (straight, other))
    trees = one.load(), two.load()
    if None in trees:
        return "no checkpoint"
    found = [f"checkpoint{place}" for place in differences(*trees)]
    found += ["metrics.jsonl"] * (rows(one) != rows(two))
    found += sorted(files(straight) ^ files(other))
    for file in sorted((straight / "eval").glob("*.json")):
        twin = other / "eval" / file.name
        found += [f"eval/{file.name}"] * (twin.exists() and twin.read_bytes() != file.read_bytes())
    return f"{len(found)} differences: {', '.join(found[:6])}" if found else ""
