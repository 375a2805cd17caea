"""The folder of a run: configuration, versions, metrics, checkpoints, and the lock that guards it.

runs/<name>/config.yaml    the composed configuration
            run.json       versions, commit, command, machine; one entry per start
            metrics.jsonl  one row per log; null stands for a number that is not finite
            events/        the same for TensorBoard
            tracker/       of trackers: the id of the run there, what they say
            eval/          per-episode rows of every evaluation
            ckpt/          checkpoints, the newest two
            lock           the process that writes here
"""

import errno
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from omegaconf import OmegaConf

from rheo import ranks
from rheo.errors import MACHINE, USER, RheoError, command
from rheo.files import FULL, put_text, sweep

from ..config.compose import load
from ..config.programs import typed_again
from ..config.rules import foreign
from ..config.words import as_flags
from . import checkpoint, lost, vouch
from .fields import sound
from .journal import Events, Journal, Sink, floats
from .lock import Lock
from .provenance import earlier_starts, read_starts, start_entry
from .services import FAILED
from .stamps import lined, stamped, unstamped
from .tracker import FOLDER, Tracker
from .vouch import CONFIG, newest, programs_of, vouching
from .waiting import Patience, Waiting
from .where import MANIFEST, existing, found, locate, shown, step_of

logger = logging.getLogger("rheo")
KEEP = 2  # checkpoints
DATA, STARTS = "data.json", "run.json"
MEANING = (  # of what the data tell: all that a policy's inputs and outputs stand for
    *("format", "path", "env_id", "dt", "obs_keys", "obs_widths", "obs_images"),
    *("left_out", "unit", "action_low", "action_high", "control_mode"),
)


class Run:
    """A run on disk. Make one with `create` (new), `open` (reading) or `open(write=True)`.

    path: its folder. config: its configuration. step: of the checkpoint that was loaded, else 0.
    """

    def __init__(self, path: Path, config: dict[str, Any], lock: Lock | None) -> None:
        self.path, self.config, self.lock = path, config, lock
        self.step = 0
        self.patience = Patience()  # with a disk that refuses checkpoints
        self.journal = Journal(path / "metrics.jsonl")
        self.evaluations = Waiting(path / "eval", "files", put_files)
        self.events = Events(path / "events")
        told = ((name, node) for name, node in (config.get("tracker") or {}).items() if lock)
        trackers = [Tracker(name, node, path, self.about) for name, node in told]
        self.sinks: list[Sink] = [self.journal, self.events, *trackers]
        self.loaded: Path | None = None  # the checkpoint that was
        self.programs: dict[str, str] | None = None
        self.starts: list[dict[str, Any]] = []  # as they are written
        self.told: dict[str, Any] = {}  # of the next entry of run.json
        self.end = FAILED  # until the training says otherwise
        self.clock, self.before = perf_counter(), 0.0

    @classmethod
    def create(cls, name: str, config: dict[str, Any]) -> "Run":
        """A new run folder. Raises RheoError when it is in use, holds a run or cannot be written.

        Relative names live under ./runs.
        """
        path = locate(name)
        fresh = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = Lock(path)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            sweep(path)
            refuse_used(path)
            run = cls(path, config, lock)
            run.describe()
            return run
        except BaseException as error:
            lock.release()
            if fresh:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise unwritable(path, error) from error
            raise

    @classmethod
    def open(cls, name: str, argv: Sequence[str] = (), *, write: bool = False) -> "Run":
        """An existing run by its name or path; `write` takes its lock (to go on training).

        argv: values to change, and the --config-dir of a run that needs one. Raises RheoError.
        """
        path = existing(name)
        config = load(path, argv, to_train=write)
        if not write:
            return cls(path, config, None)
        try:
            return cls(path, config, Lock(path))
        except OSError as error:
            raise unwritable(path, error) from error

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is pending and gives the lock back."""
        ours = self.lock is None or self.lock.is_current()
        for sink in self.sinks:
            if ours or sink is not self.journal:
                sink.close(self.end)
        if ours:
            self.evaluations.close()
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def describe(self) -> None:
        """Writes config.yaml and this start's entry of run.json."""
        earlier = earlier_starts(self.path / STARTS)
        self.starts = [*earlier, {"step": self.step, "saved": False, **start_entry(), **self.told}]
        text = OmegaConf.to_yaml(OmegaConf.create(self.config))
        put_text(self.path / CONFIG, lined(text))
        put_text(self.path / STARTS, stamped({"starts": self.starts}, indent=1))

    def note_saved(self) -> None:
        """Writes into run.json that there has been a checkpoint: one that is not there is lost."""
        if self.starts and not self.starts[-1]["saved"]:
            now = [*self.starts[:-1], {**self.starts[-1], "saved": True}]
            with suppress(OSError):  # the next save tries again
                put_text(self.path / STARTS, stamped({"starts": now}, indent=1))
                self.starts = now

    def tidy(self) -> None:
        """`clear`, and leaves as many checkpoints as are kept. Raises RheoError."""
        try:
            self.clear()
            checkpoint.prune(self.path / "ckpt", KEEP)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def clear(self) -> None:
        """Removes what a killed process left half-written. Only with the lock. Raises OSError."""
        sweep(self.path, self.path / "eval")
        checkpoint.clean(self.path / "ckpt")

    def hold(self) -> None:
        """Raises RheoError (code 3) once the lock is lost; asked before anything is written."""
        if self.lock is not None:
            self.lock.refuse_lost()

    def about(self) -> dict[str, Any]:
        """What a tracker is told of this run: name, folder for its files, configuration, facts."""
        start = (read_starts(self.path) or [{}])[-1]
        facts = {key: start.get(key) for key in ("versions", "commit", "command", "started")}
        folder = str((self.path / FOLDER).absolute())
        return {"name": self.path.name, "folder": folder, "config": self.config, "facts": facts}

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Appends a row, and returns it as floats: the only place where tensors become numbers.

        A full disk keeps rows in memory and warns; RheoError (code 3) after five tries in a row.
        """
        self.hold()
        numbers = floats(metrics)
        numbers["time/wall"] = self.before + perf_counter() - self.clock
        for sink in self.sinks:
            sink.add(step, numbers)
        self.evaluations.flush()
        return numbers

    def record_eval(self, step: int, episodes: list[dict[str, Any]], **summary: Any) -> Path:
        """Writes the per-episode rows of an evaluation to eval/<step>[-<label>].json.

        While training, what a full disk refuses waits as rows do; else raises RheoError.
        """
        self.hold()
        label = summary.get("label", "")
        folder = self.path / "eval"
        file = folder / (f"{step:012d}-{label}.json" if label else f"{step:012d}.json")
        text = stamped({"step": step, **summary, "episodes": episodes})
        if self.lock is not None:
            self.evaluations.add((file, text))
            return file
        try:
            put_files([(file, text)])
        except OSError as error:
            raise unwritable(folder, error) from error
        return file

    def note_data(self, about: dict[str, Any], digest: str) -> None:
        """Writes what the run's numbers mean to data.json, for whoever deploys its policy."""
        told = {key: about[key] for key in MEANING if about.get(key) is not None}
        self.note_meaning(told | {"digest": digest})

    def note_meaning(self, told: dict[str, Any]) -> None:
        """Writes data.json; nothing where nothing is told."""
        told = json.loads(json.dumps(told, default=str))
        try:
            if told:
                put_text(self.path / DATA, stamped(told, indent=1))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def meaning(self) -> dict[str, Any]:
        """What data.json tells of the policy's numbers; {} where there is none (older runs).

        Of a file that is lost or damaged, what the last checkpoint keeps of it, with a warning.
        """
        file, kept = self.path / DATA, (self.vouched() or {}).get("meaning", {})
        try:
            return unstamped(file.read_bytes())
        except FileNotFoundError:
            why = "is gone" if kept else None
        except (OSError, ValueError) as error:
            why = str(error)
        if why:
            logger.warning("%s: %s; what the last checkpoint keeps of it is taken", file, why)
        return kept

    def vouched(self) -> dict[str, Any] | None:
        """What the newest checkpoint vouches for (`vouch.told`); None without one."""
        return newest(found(self.path / "ckpt"), MANIFEST)

    def vouching(self) -> dict[str, Any]:
        """What a checkpoint that is made now vouches for."""
        if self.programs is None:
            self.programs = programs_of(self.config)
        return vouching(self.config, self.meaning(), self.journal.told(), self.programs)

    def save(self, step: int, tree: dict[str, Any]) -> Path | None:
        """A checkpoint of `tree` (tree.py says what may be in it).

        Returns None, with a warning, when the disk refuses: the last good one stays. RheoError
        (code 3) after five refusals in a row.
        """
        self.hold()
        start = perf_counter()
        clock = {"wall": self.before + start - self.clock}
        try:
            self.settle()
            told = self.vouching()
            path = checkpoint.write(self.path / "ckpt", step, {"run": clock, **tree}, KEEP, told)
        except OSError as error:
            kept = "the last good checkpoint is kept"
            self.patience.refused(f"checkpoint of step {step}", kept, error)
            return None
        self.patience.served()
        self.note_saved()
        return path

    def settle(self) -> None:
        """Writes what waits: a checkpoint whose rows are not on the disk would lose them.

        Raises OSError where the disk refuses, RheoError as `Waiting` does.
        """
        for waiting in (self.journal.waiting, self.evaluations):
            waiting.flush(now=True)
            if waiting.things:
                text = f"{len(waiting.things)} of its rows and evaluations have no room"
                raise OSError(errno.ENOSPC, text)

    def load(self, *, strict: bool = False, sparing: bool = False) -> dict[str, Any] | None:
        """The newest checkpoint that verifies, or None when the run never saved one.

        Falls back to an older one with a warning, unless `strict`. Sets `step`. sparing: rows of a
        replay that are damaged are left out (`lost.read`). Raises RheoError when there are
        checkpoints and none can be trusted.
        """
        faults = []
        for path in found(self.path / "ckpt"):
            try:
                tree = sound(lost.read(self, path, sparing), path)
            except checkpoint.Broken as error:
                if strict:
                    raise
                faults.append((path, error))
                logger.warning("REFUSED a checkpoint: %s", error)
                continue
            if faults:
                logger.warning("FALLING BACK to the checkpoint of step %s", path.name)
                if self.lock is not None:
                    checkpoint.set_aside([broken for broken, _ in faults])
            self.step, self.loaded = step_of(path), path
            self.before = tree.pop("run", {}).get("wall", 0.0)
            self.clock = perf_counter()
            return tree
        if faults:
            raise lost.untrusted(self, [error for _, error in faults])
        return None

    def resume(self, *, strict: bool = False) -> dict[str, Any] | None:
        """`load`, then `go_on`. None: nothing was saved or logged, the run starts over.

        Raises RheoError when something was logged, and no checkpoint is there to go on from.
        """
        tree = self.load(strict=strict)
        if tree is None:
            lost.refuse(self)
        self.go_on(tree is not None)
        return tree

    def go_on(self, saved: bool) -> None:
        """Removes what was logged after the loaded step, so that curves have no doubles, and what a
        killed process left half-written. Only with the lock (`open(write=True)`).

        saved: whether there was a checkpoint.
        """
        if self.lock is None:
            raise RuntimeError("resume needs the run's lock: open it with write=True")
        self.hold()
        step, told = self.step if saved else -1, None
        if saved and self.loaded is not None:
            told = vouch.told(self.loaded, MANIFEST)
        try:
            self.clear()
            self.journal.rewind(step, told and told["rows"])
            for sink in self.sinks:
                if sink is not self.journal:
                    sink.rewind(step)
            self.note_meaning(self.meaning())
            if saved and not (self.path / STARTS).exists():
                logger.warning("%s: gone; begun anew", self.path / STARTS)
            self.describe()
        except OSError as error:
            raise unwritable(self.path, error) from error
        lost.say_missing(self)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a half-written last line is left out."""
        return self.journal.rows()

    def resume_command(self) -> str:
        """What to type to go on with this run."""
        folders = self.config.get("config_dir") or []
        name = (self.config.get("env") or {}).get("id")
        typed = [f"env.id={name}"] if name is not None and foreign(name) else []
        named = [*as_flags(folders), *typed_again(self.config)]
        typed = ["resume", shown(self.path), *named, *typed]
        return ranks.launched(command(*typed))


def discard(path: Path, made: list[Path]) -> None:
    """Removes a run that never began, and the folders that were made for it."""
    if not ranks.leads():
        return
    if path in made:
        shutil.rmtree(path, ignore_errors=True)
    for name in ("config.yaml", "run.json", "data.json"):
        (path / name).unlink(missing_ok=True)
    for folder in made[1:]:
        try:
            folder.rmdir()
        except OSError:  # another run lives there by now
            return


def refuse_used(path: Path) -> None:
    """Raises RheoError when a folder holds anything but its lock."""
    held = sorted(entry.name for entry in path.iterdir() if entry.name != Lock.NAME)
    if "config.yaml" in held:
        again = ranks.launched(command("resume", path))
        raise RheoError(
            f"{path} already holds a run; `{again}` continues it, another name= starts anew"
        )
    if held:
        raise RheoError(f"{path} is not empty (it holds {held[0]}); choose another name=")


def put_files(files: list[tuple[Path, str]]) -> None:
    """Writes files into folders that may not be there yet. Raises OSError."""
    for file, text in files:
        file.parent.mkdir(exist_ok=True)
        put_text(file, text)


def unwritable(path: Path, error: OSError) -> RheoError:
    """The message for a folder that the system does not let us write."""
    reason = error.strerror or str(error)
    text = f"cannot write to {path}: {reason}; free or open it, or choose another name="
    return RheoError(text, MACHINE if error.errno in FULL else USER)
