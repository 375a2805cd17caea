"""How much memory and how many cores there are, and sizes for people."""

import os
from pathlib import Path

from .. import ranks


def size_text(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def available() -> int | None:
    """Memory that can be had without swapping, in bytes; None where the system does not say.

    Of several ranks on this machine each has its share.
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024 // ranks.beside()


def cores() -> int:
    """Cores that this process may use; those of the machine are shared out among its ranks."""
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(count // ranks.beside(), 1)
