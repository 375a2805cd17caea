"""What a result depends on besides its configuration: versions, commit, command, machine."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from rheo import ranks

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


def versions() -> dict[str, str | None]:
    """Installed versions; None for what is missing."""
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


def commit() -> str | None:
    """The commit of the source tree, with `+changes` when files differ; None outside a clone."""
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
