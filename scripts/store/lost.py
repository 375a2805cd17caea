"""A run whose checkpoints or evaluations are gone: what is said, and how it begins once more."""

import logging
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rheo import ranks
from rheo.errors import MACHINE, RheoError, command

from . import checkpoint
from .evaluations import read_evaluation
from .provenance import read_starts
from .vouch import entries
from .where import found, shown

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger("rheo")
LOGGED = ("metrics.jsonl", "eval", "events")


def refuse(run: "Run", anew: bool = False) -> None:
    """Raises RheoError when a run has lost its checkpoints.

    It did where it has been further than its start, unless it tells that it never saved one. Its
    folder is left as it is: a copy may have lost ckpt/, whose original is elsewhere. anew: it is
    meant to begin once more.
    """
    step, halves = reached(run), checkpoint.halves(run.path / "ckpt")
    starts = read_starts(run.path)
    never = bool(starts) and all(start.get("saved") is False for start in starts)
    if anew or not halves and (never or not step):
        return
    what = f"it has been at step {step}" if step else f"{halves[0]} is not whole"
    raise RheoError(
        f"{run.path}: {what}, and there is no checkpoint in ckpt/ to go on from; bring ckpt/ back; "
        f"nothing was changed. {how_anew(run)}",
        MACHINE,
    )


def reached(run: "Run") -> int:
    """The last step that the log, the starts or the evaluations of a run tell of."""
    steps = [row["step"] for row in run.rows()]
    steps += [start["step"] for start in read_starts(run.path) if start.get("step")]
    names = (path.name[:12] for path in entries(run.path / "eval"))
    return max([0, *steps, *(int(name) for name in names if re.fullmatch(r"[0-9]{12}", name))])


def how_anew(run: "Run") -> str:
    """How a run without a checkpoint is begun once more."""
    again = ranks.launched(command("resume", shown(run.path), "--restart"))
    return f"From its beginning, its old log and checkpoints kept: {again}"


def read(run: "Run", path: Path, sparing: bool) -> dict[str, Any]:
    """The tree of a checkpoint. Raises Broken.

    Where only rows of its replay are damaged, they are left out if that was asked for (sparing), or
    for a verb that only reads, which has no use for a replay. It is said, and told in run.json.
    """
    try:
        return checkpoint.read(path)
    except checkpoint.Rotten as error:
        if not sparing and run.lock is None and ranks.size() == 1:
            logger.warning("%s\nOnly the replay is damaged, which is not needed here", error)
        elif sparing:
            text = "%s\nThese rows are left out, so what follows is not what it would have been"
            logger.warning(text, error)
            run.told = {"left_out": list(error.names)}
        else:
            raise
        return checkpoint.read(path, error.names)


def untrusted(run: "Run", faults: list[checkpoint.Broken]) -> RheoError:
    """The error for a run none of whose checkpoints is whole, with the ways out."""
    lines = [f"{run.path}: no checkpoint can be trusted:", *(f"  {error}" for error in faults)]
    if any(isinstance(error, checkpoint.Rotten) for error in faults):
        again = ranks.launched(command("resume", shown(run.path), "--without-damaged"))
        lines.append(f"Only rows of the replay are damaged; to go on without them: {again}")
    return RheoError("\n".join([*lines, how_anew(run)]), MACHINE)


def restart(run: "Run") -> None:
    """Puts aside what a run has logged and what is left of its checkpoints: it begins anew.

    Of several ranks the first one does. Raises RheoError where there is a checkpoint to go on from.
    """
    if run.lock is None:
        return
    run.hold()
    try:
        tree = run.load()
    except RheoError as error:
        logger.warning("%s", str(error).rpartition("\n")[0])
        tree = None
    if tree is not None:
        raise RheoError(
            f"{run.path} has a checkpoint of step {run.step}, so nothing has to begin anew; go on "
            f"from it: {run.resume_command()}"
        )
    ckpt = run.path / "ckpt"
    checkpoint.set_aside([*found(ckpt), *checkpoint.halves(ckpt)])
    for path in (run.path / name for name in LOGGED):
        if path.exists():
            kept = next(each for each in numbered(path) if not each.exists())
            path.rename(kept)
            logger.warning("%s: kept as %s", path, kept.name)


def numbered(path: Path) -> Iterator[Path]:
    """metrics.jsonl.1, metrics.jsonl.2 and so on."""
    return (path.with_name(f"{path.name}.{number}") for number in count(1))


def say_missing(run: "Run") -> None:
    """Says which evaluations of the log have no file, or none that is whole."""
    steps = {row["step"] for row in run.rows() if row.get("eval/return") is not None}
    for file in (run.path / "eval" / f"{step:012d}.json" for step in sorted(steps)):
        try:
            read_evaluation(file)
        except RheoError as error:
            logger.warning("%s", error)
