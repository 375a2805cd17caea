"""Where runs lie, and what a folder says that it is: names, paths, the stored configuration."""

import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rheo.envs.paths import expanded
from rheo.errors import RheoError, nearest
from rheo.files import sha256

from ..config.words import stem_of
from ..config.yamls import read
from ..grace import GRACE
from . import versions, zoo
from .stamps import is_whole
from .vouch import CONFIG, agreed, newest, refuse_links

logger = logging.getLogger("rheo")

CHECKPOINT = re.compile(r"(\d{12})(?:\.(\d+))?")  # a checkpoint's folder, named after its step
SWEEP = ".sweep"  # the own folder of a sweep, beside its runs
LONGEST = 1000  # characters of an error that is passed on
MANIFEST = "manifest.json"  # its last file: a folder without one is not whole


def locate(name: str) -> Path:
    """The folder of a run's name: relative ones live under ./runs."""
    path = expanded(name)
    if not path.parts or ".." in path.parts:
        raise RheoError(f"name={name!r}: a run's name cannot be empty or contain '..'")
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise RheoError(f"name={name}: longer than a file's name can be (255 bytes)")
    return path if path.is_absolute() or path.parts[0] == "runs" else Path("runs") / path


def default_name(config: dict[str, Any]) -> str:
    """<algo>-<env or data>-s<seed>."""
    algo = config["algo"]["_target_"].rsplit(".", 1)[-1]
    world = (config["env"] or {}).get("id") or stem_of(config["data"])
    return re.sub(r"[^a-z0-9_.-]+", "-", f"{algo}-{world}-s{config['seed']}".lower())


def existing(name: str) -> Path:
    """The folder of an existing run, by its name or its path, or of zoo/NAME. Raises RheoError."""
    path = expanded(name)
    if not path.parts:
        path = Path.cwd()  # `.`
    for folder in (Path("runs") / path, path):
        if is_run(folder):
            return folder
    if name.startswith(zoo.PREFIX):
        return zoo.built(name)
    runs = Path("runs")
    known = [p.name for p in runs.iterdir() if is_run(p)] if runs.is_dir() else []
    raise RheoError(f"no run at {place_of(path)} (it has no config.yaml){nearest(name, known)}")


def is_run(folder: Path) -> bool:
    """Whether a run lies in a folder: its configuration, or a checkpoint that brings it back."""
    return (folder / CONFIG).is_file() or bool(found(folder / "ckpt"))


def run_path(name: str) -> str:
    """A run's absolute path; the name itself where there is none (the checks say so)."""
    try:
        return str(existing(name).absolute())
    except RheoError:
        return name


def place_of(path: Path) -> Path:
    """Where a run of this name would be."""
    under = path.is_absolute() or path.parts[0] in ("runs", "..")
    return path if under else Path("runs") / path


def shown(path: Path) -> str:
    """A path as short as it can be typed."""
    full = path.resolve()
    here = Path.cwd()
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)


def named(path: str | Path) -> str:
    """A run as it is usually typed: by its name below ./runs, else by its path."""
    here = shown(Path(path))
    return here.removeprefix(f"runs{os.sep}")


def found(folder: Path) -> list[Path]:
    """Published checkpoints of a run's ckpt/, newest first."""
    if not folder.is_dir():
        return []
    known = [(CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir()]
    whole = [(int(m[1]), int(m[2] or 0), p) for m, p in known if m and (p / MANIFEST).exists()]
    return [path for _, _, path in sorted(whole, reverse=True)]


def step_of(path: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(path.name[:12])


def digest(run: Path, step: int) -> str:
    """Of the manifest of a run's checkpoint at a step, which holds those of all its files."""
    folder = next(path for path in found(run / "ckpt") if step_of(path) == step)
    return sha256(folder / MANIFEST)


def reached(run: Path) -> int | None:
    """The step of a run's newest checkpoint; None without one."""
    return next(map(step_of, found(run / "ckpt")), None)


def stored(folder: str | Path, typed: Collection[str] = ()) -> dict[str, Any]:
    """A run folder's configuration, read as today's settings (`versions`). Raises RheoError.

    It is config.yaml's where the newest checkpoint has the same, the checkpoint's where that file
    is lost or damaged (`vouch.agreed`). typed: keys whose values are given anew.
    """
    folder = Path(folder)
    refuse_links(folder)
    file, told = folder / CONFIG, newest(found(folder / "ckpt"), MANIFEST)
    saved = None if told is None else today(told["config"])
    try:
        config = today(from_file(file))
    except RheoError as error:
        if saved is None:
            raise
        logger.warning("%s; the configuration of the last checkpoint is taken", error)
        return saved
    if saved is not None:
        return agreed(folder, config, saved, typed)
    if is_whole(file.read_bytes()) is False:
        raise RheoError(
            f"{file}: was changed after it was written (its last line, a digest, says so), and "
            "there is no checkpoint to compare it with; remove that line to take it as it is"
        )
    return config


def from_file(file: Path) -> dict[str, Any]:
    """What a config.yaml holds. Raises RheoError."""
    try:
        config = read(file)
    except RheoError:
        raise
    except Exception as error:  # yaml has no common base with the system's errors
        raise RheoError(f"{file}: not readable as a configuration: {one_line(error)}") from error
    if not isinstance(config, dict) or not config:
        raise RheoError(f"{file}: holds no configuration")
    if not isinstance(config.get("algo"), dict) or type(config.get("steps")) is not int:
        raise RheoError(f"{file}: not a whole configuration, it has no algo or no steps")
    return {str(key): value for key, value in config.items()}


def today(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with today's names and the keys that older runs were made without."""
    versions.complete(config)
    config.setdefault("init_part", "auto")
    config.setdefault("signal", {"grace": GRACE})
    config.setdefault("programs", {})
    config.setdefault("save_minutes", None)
    config.setdefault("precision", "float32")
    return config


def one_line(error: Exception) -> str:
    """An error's text without its line breaks, and not more of it than a person reads."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
