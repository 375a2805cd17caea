"""What a checkpoint vouches for beside its own files: the configuration, the log, the data's words.

The manifest holds them, so that a config.yaml that was lost comes back, and one that was changed,
by a hand or by a disk, is named instead of being trained or judged with. Read without torch.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from rheo.errors import RheoError, command
from rheo.files import sha256

from ..config.annotations import coerce
from ..config.top import ON_RESUME, TOP, inside, walk
from ..config.yamls import LARGEST, RESOLVER
from .stamps import is_whole, sealed

logger = logging.getLogger("rheo")
CONFIG = "config.yaml"
OURS = (  # what a run folder holds that is read, or written to
    *("lock", CONFIG, "run.json", "data.json", "metrics.jsonl", "curve.png"),
    *("ckpt", "eval", "events", "tracker"),
)
OF_CODE = ("config_dir", "programs", "policy.sha256")  # compared where code is named and trusted
YOUNGER = ("eye", "tracker", "recipe", "config_dir")  # than some runs, which do without
NAMED = 3  # changed values in a message


def refuse_links(folder: Path) -> None:
    """Raises RheoError for a run folder in which a part of the run is a link.

    Whoever sends a folder would choose by it which file of this machine is read or written.
    """
    inner = (each for name in ("ckpt", "eval") for each in entries(folder / name))
    for path in (*(folder / name for name in OURS), *inner):
        if path.is_symlink():
            raise RheoError(
                f"{path}: is a link, and a run's own files are not followed elsewhere; put what it "
                f"points to in its place (links to the whole of {folder} are no matter)"
            )


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none, or it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def told(checkpoint: Path, manifest: str) -> dict[str, Any] | None:
    """What a checkpoint's manifest vouches for; None where it is damaged or of an older version."""
    try:
        raw = (checkpoint / manifest).read_bytes()
        node = json.loads(raw)
        digest = node.pop("sha256")
        if json.loads(sealed(node))["sha256"] != digest:
            return None
        run = node["run"]
        if len(run["config"]) > LARGEST or RESOLVER.search(run["config"]):
            return None
        found = {**run, "config": json.loads(run["config"])}
        rows = found["rows"]["count"], found["rows"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    kinds = {name: type(found.get(name)) for name in ("config", "meaning", "programs")}
    sound = all(kind is dict for kind in kinds.values()) and [*map(type, rows)] == [int, str]
    return found if sound and rows[0] >= 0 else None


def newest(checkpoints: Iterable[Path], manifest: str) -> dict[str, Any] | None:
    """What the newest checkpoint vouches for whose manifest is whole."""
    found = (told(path, manifest) for path in checkpoints)
    return next((each for each in found if each is not None), None)


def vouching(
    config: Mapping[str, Any],
    meaning: Mapping[str, Any],
    rows: Mapping[str, Any],
    programs: Mapping[str, str],
) -> dict[str, Any]:
    """What a manifest says of its run; the configuration as text, which may hold infinities."""
    words = {"meaning": dict(meaning), "rows": dict(rows), "programs": dict(programs)}
    return {"config": text_of(config), **words}


def programs_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the programs that a run calls, by their paths."""
    path = str((config.get("policy") or {}).get("path") or "")
    return {path: sha256(Path(path))} if path and Path(path).is_file() else {}


def text_of(node: Any) -> str:
    """JSON, by which values are compared: 1 and 1.0 are two."""
    return json.dumps(node, separators=(",", ":"))


# ---- the configuration ---------------------------------------------------------------------------


def refuse_misshapen(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Raises RheoError for a node of a run that is none: they are read before all is checked.

    A node that is not there, or is nothing, is one of an older run.
    """
    for key in [key for key, kind in TOP.items() if "dict" in kind or key == "config_dir"]:
        problem = coerce(TOP[key], config[key])[1] if config.get(key) else None
        if problem:
            raise RheoError(f"{Path(folder) / CONFIG}: {key}{problem}")


def refuse_partial(folder: str | Path, config: Mapping[str, Any]) -> None:
    """Raises RheoError for a run's configuration in which something is missing."""
    gone = [key for key in TOP if key not in config and key not in YOUNGER]
    gone += [
        f"{key}._target_"
        for key in ("algo", "policy", "source")
        if key not in gone
        and not isinstance(inside(config, f"{key}._target_"), str)
        and not (key == "policy" and config[key] == NOTHING)
    ]
    if gone:
        raise RheoError(
            f"{Path(folder) / CONFIG}: not a whole configuration, it lacks "
            f"{', '.join(gone[:5])}; bring a copy of it back"
        )


NOTHING = {"_target_": None}  # the policy of a run that has none


def agreed(
    folder: Path, config: dict[str, Any], saved: dict[str, Any], typed: Collection[str]
) -> dict[str, Any]:
    """The configuration of a run's file, compared with that of its checkpoint.

    What `rheo resume` takes anew may differ, where the file is as Rheo wrote it or the key is
    typed. Keys that are gone or strange are damage: the checkpoint's configuration is taken, which
    is said. Raises RheoError naming the values that were changed.
    """
    file, whole = folder / CONFIG, is_whole((folder / CONFIG).read_bytes())
    mine, theirs = dict(walk(config)), dict(walk(saved))
    both = [place for place in mine if place in theirs]
    differ = [place for place in both if text_of(mine[place]) != text_of(theirs[place])]
    odd = mine.keys() ^ theirs.keys()
    if whole:
        differ, odd = ([place for place in some if not is_free(place)] for some in (differ, odd))
    differ = [place for place in differ if not is_one_of(place, typed)]
    if differ:
        raise RheoError(changed(folder, [(place, mine[place], theirs[place]) for place in differ]))
    if odd:
        logger.warning("%s: damaged (%s); the checkpoint's is taken", file, strange(mine, theirs))
        return saved
    if not whole:
        logger.warning("%s: not as it was written, and its values are the checkpoint's", file)
    return config


def is_free(place: str) -> bool:
    """Whether a resumed run may have another value here than its checkpoint."""
    moved = place.startswith("source.") and place.rpartition(".")[2].partition("[")[0] == "path"
    return moved or is_one_of(place, (*ON_RESUME, *OF_CODE))


def is_one_of(place: str, keys: Collection[str]) -> bool:
    """Whether a place is a key, or inside one."""
    return any(place == key or place.startswith((f"{key}.", f"{key}[")) for key in keys)


def changed(folder: Path, values: list[tuple[str, Any, Any]]) -> str:
    """The message for values that are not those of the checkpoint."""
    facts = [f"{key} is {is_!r} there and {was!r} in the checkpoint" for key, is_, was in values]
    more = f" and {len(facts) - NAMED} more" if len(facts) > NAMED else ""
    anew = command("train", "...", f"init={folder}")
    retype = [f"{place}={is_}" for place, is_, _ in values if is_free(place)]
    keep = f", or say that it is meant: {' '.join(retype[:NAMED])}" if retype else ""
    return (
        f"{folder / CONFIG} was changed: {'; '.join(facts[:NAMED])}{more}. Remove that file and it "
        f"is restored from the checkpoint{keep}; other values are for a new run ({anew})"
    )


def strange(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Which keys a damaged file lacks, or has too many, in a few words."""
    gone = [place for place in theirs if place not in mine]
    new = [place for place in mine if place not in theirs]
    words = [("lacks", gone), ("has no place for", new)]
    return "; ".join(f"it {word} {', '.join(some[:NAMED])}" for word, some in words if some)
