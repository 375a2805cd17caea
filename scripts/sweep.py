"""`rheo sweep key=A,B name=NAME`: a run for every combination, on Hydra's launchers and sweepers.

runs/NAME/KEY=A_KEY=B   the runs, each what `rheo train` makes of its words (jobs.py)
runs/NAME.csv           a row for each: state, step, last evaluation
"""

import csv
import importlib
import io
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from rheo.envs.memory import cores
from rheo.errors import MACHINE, REQUEUE, RheoError
from rheo.files import put_text

from .config.launchers import LAUNCHERS, settings
from .config.sweeps import Sweep, refuse_other
from .jobs import DONE, FAILED, FIGURES, OWN, STOP, STOPPED, Job, Outcome, figures_of, meanwhile
from .stopping import stop_signals
from .store.lock import Lock
from .store.where import locate, one_line, reached

log = logging.getLogger("rheo")
WAITING = "not started"
FAILURE = 1  # exit status where jobs failed
STORE = 75 << 20  # bytes of Ray's shared memory: jobs pass nothing but words (the least it takes)


class Row(NamedTuple):
    """A run of the table."""

    name: str
    state: str
    step: int
    steps: int
    figures: dict[str, float]
    why: str

    @property
    def text(self) -> str:
        """The state in words."""
        where = f" at step {self.step} of {self.steps}" if self.state == STOPPED else ""
        return self.state + where + (f": {self.why}" if self.why else "")


def main(asked: Sweep) -> int:
    """Runs what is not done yet, and prints the table of all; returns the exit status."""
    folder = locate(asked.name)
    own = folder / OWN
    if (folder / "config.yaml").exists():
        raise RheoError(f"{folder}: is a run, so no sweep can be there; choose another name=")
    todo = plan(asked, folder)
    try:
        own.mkdir(parents=True, exist_ok=True)
        lock = Lock(own)
    except OSError as error:
        raise RheoError(f"cannot write to {own}: {error.strerror}", MACHINE) from error
    try:
        for file in [own / STOP, *own.glob("*.json")]:
            file.unlink(missing_ok=True)
        if todo or asked.searched:
            launch(asked, todo, folder)
    except RheoError:
        raise
    except Exception as error:  # of a launcher; the runs that ended have ended
        table(asked, folder)
        why = f"{type(error).__name__}: {one_line(error).partition('. ')[0]}"
        text = f"launcher={asked.launcher} broke off: {why}; the same command goes on"
        raise RheoError(text, MACHINE) from error
    finally:
        lock.release()
    states = [row.state for row in table(asked, folder)]
    if STOPPED in states or (own / STOP).exists():
        return REQUEUE
    return FAILURE if FAILED in states else 0


def plan(asked: Sweep, folder: Path) -> list[int]:
    """The combinations that are not done, after what has to be said of all.

    Raises RheoError where a folder holds a run of other words.
    """
    todo, cut = [], 0
    for number, one in enumerate(asked.combinations):
        step = reached(folder / one.name)
        if step is not None:
            refuse_other(one.config, folder / one.name)
        if step is None or step < one.config["steps"]:
            todo.append(number)
            cut += step is not None
    text = f"{folder}: {asked.runs} runs"
    if asked.searched:
        text += f", to {asked.direction} the return of the last evaluation"
    else:
        new = len(todo) - cut
        text += f", {asked.runs - len(todo)} done before, {cut} to go on with, {new} new"
    if todo or asked.searched:
        text += f"; {asked.jobs} at once by launcher={asked.launcher}"
        text += f", which print into {folder / OWN}" if asked.launcher != "basic" else ""
    print(text, flush=True)
    threads = max((one.config["threads"] or cores() for one in asked.combinations), default=1)
    here = LAUNCHERS[asked.launcher].here and asked.jobs > 1
    if here and (todo or asked.searched) and asked.jobs * threads > cores():
        text = "jobs=%d with threads=%d: %d cores can be used, so they share them"
        log.warning(text, asked.jobs, threads, cores())
    return todo


def launch(asked: Sweep, todo: list[int], folder: Path) -> None:
    """Lets Hydra run the jobs, and tells of each when it ends. Raises what a launcher raises."""
    own, told = folder / OWN, dict[str, str]()

    def look() -> None:
        if stop:
            (own / STOP).touch()
        for outcome in outcomes(folder):
            if told.get(outcome.name) != outcome.state:  # one that was requeued ends twice
                told[outcome.name] = outcome.state
                row = row_of(folder, outcome)
                figures = [f", {short(key)} {figure(value)}" for key, value in row.figures.items()]
                count = f"{len(told)}/{len(todo) or asked.runs}"
                print(f"{count} {row.name}: {row.text}{''.join(figures)}", flush=True)

    path = str(own).replace("\\", "\\\\").replace("'", "\\'")
    words = [*asked.hydra, f"hydra.sweep.dir='{path}'", "hydra.sweep.subdir=."]
    words += ["hydra.output_subdir=null", "hydra.job.chdir=false"]
    words += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    words += [f"++{word}" for word in asked.searched] or [f"++job={','.join(map(str, todo))}"]
    if asked.launcher == "ray":
        begin_ray(asked.hydra)
    begin = initialize(version_base="1.3", config_path=None, job_name=folder.name)
    with stop_signals(None) as stop, meanwhile(look), begin:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            hydra.multirun(None, Job(asked), words, with_log_configuration=False)
        except ValueError:
            if not asked.searched or any(one.state == DONE for one in outcomes(folder)):
                raise
            # Optuna has no best run where none came to its end: the table says why
    look()


def begin_ray(hydras: list[str]) -> None:
    """Starts Ray as its launcher would, but before this process listens to signals.

    Ray takes SIGTERM for itself, and ends the process with it.
    """
    begin: Any = OmegaConf.to_container(settings(hydras, [])["launcher"]["ray"]["init"])
    importlib.import_module("ray").init(**{"object_store_memory": STORE, **begin})


# ------------------------------------------------------------------ the table


def outcomes(folder: Path) -> list[Outcome]:
    """How the jobs of this call ended, in the order in which they did."""
    files = [(file.stat().st_mtime, file) for file in (folder / OWN).glob("[!.]*.json")]
    return [Outcome(**json.loads(file.read_text())) for _, file in sorted(files)]


def row_of(folder: Path, outcome: Outcome) -> Row:
    """A job with what its run holds."""
    name, state, why, steps = outcome
    return Row(name, state, reached(folder / name) or 0, steps, figures_of(folder / name), why)


def rows_of(asked: Sweep, folder: Path) -> list[Row]:
    """All runs: how their jobs ended, else what they left on the disk."""
    known = {one.name: one for one in outcomes(folder)}
    for one in asked.combinations:
        step, steps = reached(folder / one.name), one.config["steps"]
        state = WAITING if step is None else STOPPED if step < steps else DONE
        known.setdefault(one.name, Outcome(one.name, state, "", steps))
    order = [one.name for one in asked.combinations] or list(known)
    return [row_of(folder, known[name]) for name in order]


def short(key: str) -> str:
    """return of eval/return."""
    return key.removeprefix("eval/")


def figure(value: float) -> str:
    """A number of four digits, or more where it has more before its point."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def table(asked: Sweep, folder: Path) -> list[Row]:
    """Prints the table of all runs, and writes it beside their folder; returns its rows."""
    rows = rows_of(asked, folder)
    keys = [key for key in FIGURES if any(key in row.figures for row in rows)]
    lines = ["| run | state | step | " + "".join(f"{short(key)} | " for key in keys)]
    lines.append("|---" * (3 + len(keys)) + "|")
    for row in rows:
        cells = [row.name, row.text.replace("|", "/"), f"{row.step:,}"]
        cells += [figure(row.figures[key]) if key in row.figures else "" for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    print("\n".join(line.rstrip() for line in lines))
    file = folder.with_name(f"{folder.name}.csv")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "state", "step", "steps", *map(short, keys), "why"])
    for row in rows:
        figures = [row.figures.get(key, "") for key in keys]
        writer.writerow([row.name, row.state, row.step, row.steps, *figures, row.why])
    try:
        put_text(file, text.getvalue())
    except OSError as error:
        log.warning("%s: not written: %s", file, error.strerror)
    done = [row for row in rows if row.state == DONE and "eval/return" in row.figures]
    best = [(row.figures["eval/return"], row.name) for row in done]
    if asked.searched and best:
        value, name = (max if asked.direction == "maximize" else min)(best)
        print(f"best: {name}, return {figure(value)}: what it was chosen by, so not to be reported")
    return rows
