"""What is kept of an update that broke, so that `rheo replay` can do it again.

A dump is a checkpoint (digests, no pickle) in RUN/broken/<step> with the algorithm before the
update, the batch, and the run's configuration, so that it can be sent to somebody else.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from rheo.algos.optim import shown as looked
from rheo.envs.memory import size_text
from rheo.errors import MACHINE, RheoError, command
from rheo.files import put_text

from . import batches
from .breaks import Finding, Inspector, as_tree, finite, size_of
from .stopping import diagnosis
from .store import checkpoint
from .store.fields import sizes
from .store.state import capture, copied
from .store.where import shown

log = logging.getLogger("rheo")
FOLDER, KEEP = "broken", 2
LARGEST = 1e9  # bytes of a dump
KINDS = {kind.__name__: kind for kind in batches.KINDS}
OBS = "obs"  # of an action that broke, in place of a batch


class Dump(NamedTuple):
    """What a dump says of itself."""

    what: str  # broke
    step: int
    rate: float  # factor of the learning rates
    updates: int  # of the whole run, which schedules count to
    sizes: dict[str, Any]
    config: str  # config.yaml


def write(run: Path, finding: Finding, about: Dump) -> Path | None:
    """Writes a dump into a run's folder; None, with a warning, where it cannot be."""
    size = size_of(finding.state) + size_of(finding.batch)
    kind = OBS if isinstance(finding.batch, Tensor) else type(finding.batch).__name__
    if size > LARGEST:
        log.warning("no dump of what broke: it takes more than %s", size_text(LARGEST))
        return None
    if kind not in {OBS, *KINDS}:
        log.warning("no dump of what broke: batches of a %s cannot be kept", kind)
        return None
    columns = {OBS: finding.batch} if kind == OBS else as_tree(finding.batch)
    tree = {
        "about": about._asdict(),
        "algo": finding.state,
        "batch": {"kind": kind, "columns": columns},
    }
    try:
        path = checkpoint.write(run / FOLDER, about.step, tree, KEEP)
        (path / "run").mkdir()
        put_text(path / "run" / "config.yaml", about.config)
    except (OSError, TypeError) as error:
        log.warning("no dump of what broke: %s", error)
        return None
    return path


def read(path: Path) -> tuple[Dump, dict[str, Any], Any]:
    """What a dump says, the algorithm's state and the batch. Raises RheoError."""
    tree = checkpoint.read(path)
    try:
        about, batch = Dump(**tree["about"]), tree["batch"]
        kind, columns = batch["kind"], batch["columns"]
        found = columns[OBS] if kind == OBS else KINDS[kind](**columns)
        held = (path / "run" / "config.yaml").read_text()
    except (KeyError, TypeError) as error:
        raise RheoError(f"{path}: no dump of a broken update (it lacks {error})", MACHINE) from None
    except (OSError, ValueError) as error:
        raise RheoError(f"{path}: cannot be read: {error}", MACHINE) from error
    wrong = sizes({"sizes": about.sizes, "algo": tree["algo"]})
    if wrong:
        raise RheoError(f"{path}: no dump of a broken update ({wrong})", MACHINE)
    if held != about.config:
        raise RheoError(f"{path / 'run' / 'config.yaml'}: was changed since it broke", MACHINE)
    return about, tree["algo"], found


def text_of(config: Mapping[str, Any]) -> str:
    """A configuration as it is stored."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def told(finding: Finding, path: Path | None) -> str:
    """The lines that say what broke first."""
    lines = [f"first to break: {finding.what}"]
    if finding.norms:
        largest = ", ".join(f"{name} {norm:.3g}" for name, norm in finding.norms)
        lines.append(f"largest gradient norms: {largest}")
    if path is not None:
        lines.append(f"to do that update again: {command('replay', shown(path))}")
    return "\n".join(lines)


def past_limit(config: Mapping[str, Any]) -> Any:
    """What is wrong with the metrics of an update that broke nothing, None where nothing is."""

    def wrong(metrics: Mapping[str, Any]) -> str | None:
        for name, value in metrics.items():
            if not finite(value):
                return f"{name} is {float(value):g}"
        return diagnosis(metrics, config.get("limits") or {}, config["policy"])

    return wrong


def acted(algo: Any, obs: Tensor) -> Finding | None:
    """What breaks first where an algorithm acts on observations [N, O]; None: nothing does."""
    state, look = copied(capture(algo)), Inspector(algo)
    with looked(look), look.hooked(), torch.no_grad():
        choice = algo.act(obs)
    action = choice if isinstance(choice, Tensor) else choice.action
    if bool(action.isfinite().all()):
        return None
    begins = f", from {look.first} on" if look.first else ""
    return Finding(f"the action is not finite{begins}", [], state, obs, {})
