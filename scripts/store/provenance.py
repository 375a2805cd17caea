"""What a result depends on besides its configuration: versions, commit, command, machine."""

import logging
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rheo import ranks

from .stamps import unstamped

logger = logging.getLogger("rheo")
KINDS = {  # what an entry may hold
    **{"started": str, "command": list, "host": str, "pid": int, "cpus": int, "ranks": int},
    **{"machine": str, "commit": str, "versions": dict, "step": int, "saved": bool},
}
PACKAGES = ("rheo", "torch", "mujoco", "gymnasium", "numpy", "hydra-core", "safetensors")


def start_entry() -> dict[str, Any]:
    """One start of a run, without importing any of the packages it names."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["rheo", *sys.argv[1:]],
        "host": platform.node(),
        "pid": os.getpid(),
        "cpus": os.cpu_count(),
        "ranks": ranks.size(),
        "machine": platform.platform(),
        "commit": commit(),
        "versions": versions(),
    }


def starts_of(file: Path) -> list[dict[str, Any]]:
    """The starts that a run.json tells, each with what in it has the right type; [] without one.

    Raises ValueError for a file that is damaged or tells none.
    """
    if not file.exists():
        return []
    try:
        starts = unstamped(file.read_bytes()).get("starts")
    except OSError as error:
        raise ValueError(str(error)) from error
    if not isinstance(starts, list) or not all(isinstance(each, dict) for each in starts):
        raise ValueError("it lists no starts")
    return [{key: value for key, value in each.items() if fits(key, value)} for each in starts]


def fits(key: str, value: Any) -> bool:
    """Whether an entry's value is of its key's kind; keys of other versions are as they are."""
    if key == "command" and isinstance(value, list):
        return all(isinstance(word, str) for word in value)
    return value is None or key not in KINDS or isinstance(value, KINDS[key])


def earlier_starts(file: Path) -> list[Any]:
    """The starts of a run.json; one that cannot be read is set aside, with a warning."""
    try:
        return starts_of(file)
    except ValueError as error:
        aside = file.with_name(f"{file.name}.broken")
        logger.warning("%s: not readable (%s); set aside as %s", file, error, aside.name)
    os.replace(file, aside)
    return []


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of a run, for whoever only reads: [] where they cannot be told."""
    try:
        return starts_of(folder / "run.json")
    except ValueError:
        return []


@cache
def versions() -> dict[str, str | None]:
    """Installed versions; None for what is missing. Once in a process, which has them loaded."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def version(package: str) -> str | None:
    """A package's installed version; ours also where it runs from its sources."""
    if package == "rheo":
        from rheo import __version__

        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def commit() -> str | None:
    """The commit of the source tree, with `+changes` when files differ; None outside a clone.

    As it is when a process first asks: what is committed later it does not run.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head = git(root, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("+changes" if git(root, "status", "--porcelain", "--untracked-files=no") else "")


def git(root: Path, *arguments: str) -> str | None:
    """The output of a git command, or None when git is missing, slow or unhappy."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
