"""One run of a sweep, in whatever process or on whatever machine Hydra launched it.

runs/NAME/.sweep/ holds how each job ended (.json), what it printed (.log), and runs that were cut
before their first checkpoint (lost/). All that is known of a job is on the disk, so a second call
finds what the first one left.
"""

import fcntl
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from rheo.errors import REQUEUE, RheoError
from rheo.files import put_text, untaken

from .cli import listen
from .config.compose import train as composed
from .config.launchers import key_of
from .config.sweeps import FREE, Sweep, label, refuse_other
from .config.top import AT_ANY_START
from .config.verbs import Resuming
from .config.words import Words
from .stopping import Stop, stop_signals
from .store.journal import Journal
from .store.lock import Lock
from .store.where import SWEEP, locate, one_line, reached

log = logging.getLogger("rheo")
OWN, STOP, LOST = SWEEP, "stop", "lost"  # the sweep's own folder, and what is in it
DONE, STOPPED, FAILED = "done", "stopped", "failed"
FIGURES = (
    *("eval/return", "eval/score", "eval/success_once", "eval/success_at_end", "eval/cost"),
    "val/loss",
)
LOOK = 0.2  # seconds between two looks at the disk


class Outcome(NamedTuple):
    """How a job ended."""

    name: str
    state: str
    why: str = ""  # it failed, in one line
    steps: int = 0  # that were asked for


class Job:
    """What Hydra launches: one combination, trained or gone on with. It is pickled.

    Called with Hydra's configuration, which holds the number of a combination (`job`) or, in a
    search, the values that were chosen. Returns the return of the last evaluation, None where the
    run did not come to its end: what a search looks at.
    """

    def __init__(self, asked: Sweep) -> None:
        self.name, self.fixed = asked.name, asked.fixed
        self.known = [(one.name, one.words) for one in asked.combinations]
        self.shown = asked.launcher == "basic"  # in this terminal; else in a file
        self.start, self.process = os.getcwd(), os.getpid()

    def __call__(self, config: Any) -> float | None:
        typed = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
        GlobalHydra.instance().clear()  # a run composes anew
        os.chdir(self.start)
        listen()
        if self.known:
            name, words = self.known[config["job"]]
        else:
            name, words = label(typed), [*self.fixed, *typed]
        folder = locate(self.name) / name
        own = folder.parent / OWN
        with one_at_a_time(own / f"{name}.lock"):
            if (own / STOP).exists():
                return None
            outcome = self.attempt(folder, words)
        return figures_of(folder).get("eval/return") if outcome.state == DONE else None

    def attempt(self, folder: Path, words: list[str]) -> Outcome:
        """Runs one combination and writes down how it ended."""
        own = folder.parent / OWN
        scheduler = signal.getsignal(signal.SIGUSR2)  # submitit's: requeues the job, and ends it
        with stop_signals(None) as stop, passed_on(stop, own / STOP), ExitStack() as shown:
            if not self.shown:
                output = shown.enter_context(open(own / f"{folder.name}.log", "a", buffering=1))
                shown.enter_context(redirect_stdout(output))
                shown.enter_context(redirect_stderr(output))
            outcome = ended(folder, words)
        if outcome.state == STOPPED and os.getpid() == self.process:
            (own / STOP).touch()  # the sweep's own process was told to stop
        put_text(own / f"{folder.name}.json", json.dumps(outcome._asdict(), indent=1) + "\n")
        if outcome.state == STOPPED and stop.signal == "SIGUSR2" and callable(scheduler):
            scheduler(signal.SIGUSR2, None)
        return outcome


def ended(folder: Path, words: list[str]) -> Outcome:
    """Runs one combination; whatever it raises is its end, and not that of the others."""
    steps, before = 0, sys.argv
    sys.argv = ["rheo", "train", *words, f"name={folder}"]  # what run.json says of its start
    try:
        config = composed(sys.argv[2:])
        steps = config["steps"]
        code = go(folder, config, words)
    except RheoError as error:
        print(f"rheo: {error}", file=sys.stderr)
        return Outcome(folder.name, FAILED, one_line(error), steps)
    except Exception as error:
        log.exception("%s failed", folder)
        return Outcome(folder.name, FAILED, f"{type(error).__name__}: {one_line(error)}", steps)
    finally:
        sys.argv = before
    return Outcome(folder.name, STOPPED if code == REQUEUE else DONE, "", steps)


def go(folder: Path, config: dict[str, Any], words: list[str]) -> int:
    """Trains a new run, goes on with one that was cut, leaves one that is at its end."""
    step = reached(folder)
    if step is not None:
        refuse_other(config, folder)
        if step >= config["steps"]:
            return 0
    from . import resuming, train  # torch

    if step is None:
        set_aside(folder)
        return train.main((config, False))
    again = [*(word for word in words if free(key_of(word))), f"steps={config['steps']}"]
    resumed = Words([], [str(folder)], again)  # flags hold since composed
    return resuming.resume(Resuming(str(folder), resumed))


def free(key: str) -> bool:
    """Whether a word may differ from what a run was made with, and is passed on to it."""
    return key in FREE and key != "steps" or key.partition(".")[0] in AT_ANY_START


def set_aside(folder: Path) -> None:
    """Moves a run that was cut before its first checkpoint out of the way of a new start.

    Nothing is removed: what it logged stays in .sweep/lost. Raises RheoError while it is in use.
    """
    if not (folder / "config.yaml").is_file():
        return
    Lock(folder).release()
    lost = folder.parent / OWN / LOST
    lost.mkdir(exist_ok=True)
    folder.rename(untaken(lost / folder.name))
    log.warning("%s: was cut before its first checkpoint, so it starts anew", folder)


def figures_of(folder: Path) -> dict[str, float]:
    """What a run's last evaluation gave, by FIGURES; {} where there was none."""
    rows = Journal(folder / "metrics.jsonl").rows()
    found = [{key: row[key] for key in FIGURES if row.get(key) is not None} for row in rows]
    return next((figures for figures in reversed(found) if figures), {})


# ------------------------------------------------------------------ beside the training


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Waits until no other job has this run: a search may choose the same values twice."""
    with open(file, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def passed_on(stop: Stop, file: Path) -> Iterator[None]:
    """Inside, a signal that came before the training listened, and the sweep's stop file, end it.

    SIGUSR2 is a scheduler's, where one listens to it: the run saves before it is answered.
    """
    scheduler = signal.getsignal(signal.SIGUSR2)
    if callable(scheduler):
        signal.signal(signal.SIGUSR2, lambda *_: setattr(stop, "signal", "SIGUSR2"))

    def look() -> None:
        if stop or file.exists():
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with meanwhile(look):
            yield
    finally:
        signal.signal(signal.SIGUSR2, scheduler)


@contextmanager
def meanwhile(look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` every LOOK seconds from a thread, until the block is left."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
