"""A tracker as the run sees it: a sink that takes rows and never makes the run wait.

Rows go into a queue; a thread hands them to the tracker's own process (tracker_process.py) one by
one. What fails or does not answer is told in one line, and the run goes on without it.
"""

import contextlib
import json
import logging
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rheo

from .services import FINISHED
from .where import SWEEP, shown

logger = logging.getLogger("rheo")
ROWS = 1000  # that wait at most
TIMEOUT = 60.0  # seconds without an answer, of a class of the user's that has no such key
PATIENCE = 10.0  # seconds at the end of a run that was stopped or failed; who stops it waits
KILLED = 5.0  # seconds that a killed process may take
FOLDER = "tracker"  # of a run: what its trackers leave
JUDGED = ("eval/", "imagined/", "val/")  # beginnings of what an evaluation measures


class Silent(RuntimeError):
    """A tracker that did not answer, or is gone."""


class Tracker:
    """One tracker of a run; see `journal.Sink`. Begins with the first row.

    name: as the user chose it. node: its settings, with `_target_`. folder: of the run.
    """

    def __init__(self, name: str, node: Mapping[str, Any], folder: Path, about: Any) -> None:
        self.name, self.node, self.folder, self.about = name, dict(node), folder, about
        self.timeout: float = self.node.get("timeout", TIMEOUT)
        self.rows: queue.Queue[dict[str, Any]] = queue.Queue(ROWS)
        self.process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None
        self.dead = self.full = False
        self.lost = 0  # rows that were not handed over
        self.final: dict[str, float] = {}  # the last evaluation

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes a row, or leaves it out where there is no room; never waits."""
        row = dict(numbers)
        self.final |= {key: x for key, x in row.items() if key.startswith(JUDGED)}
        if self.thread is None and not self.dead:
            self.thread = threading.Thread(target=self.work, name=self.name, daemon=True)
            self.thread.start()
        try:
            if self.dead:
                raise queue.Full
            self.rows.put_nowait({"step": step, "row": row})
        except queue.Full:
            self.lost += 1
            if not self.full and not self.dead:
                self.full = True
                self.tell(f"is slower than the run: beyond {ROWS} waiting rows some are left out")

    def rewind(self, step: int) -> None:
        """Nothing: what a tracker has it keeps, and its process sends no row twice."""

    def close(self, end: str) -> None:
        """Waits for what is on its way, but no longer than `timeout`, and ends the process."""
        if self.thread is None:
            return
        thread, self.thread = self.thread, None
        patience = self.timeout if end == FINISHED else min(self.timeout, PATIENCE)
        try:
            self.rows.put({"end": end, "final": self.final}, timeout=0 if self.dead else patience)
        except queue.Full:
            self.give_up(f"had no room for the end within {patience:g} s")
        thread.join(patience)
        if thread.is_alive():
            self.give_up(f"was not ready within {patience:g} s of the end")
            thread.join(KILLED)
        if self.lost:
            self.tell(f"{self.lost} rows are missing there")

    # ---- in the thread ---------------------------------------------------------------------------

    def work(self) -> None:
        """Hands over row after row, until the run ends or the tracker fails."""
        try:
            place = self.ask(self.start())["begun"]
            logger.info("tracker %s: %s", self.name, place)
            while True:
                order = self.rows.get()
                answer = self.ask(order)
                if "ended" in answer:
                    return
        except (OSError, ValueError, KeyError, Silent) as error:
            self.give_up(str(error))
        finally:
            if self.process is not None:
                self.end(self.process)

    def start(self) -> dict[str, Any]:
        """Starts the process; returns its first order. Raises OSError."""
        home = self.folder / FOLDER
        home.mkdir(exist_ok=True)
        words = [sys.executable, "-m", f"{__package__}.tracker_process"]
        root = str(Path(rheo.__file__).resolve().parents[1])
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        with (home / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*words, str((home / f"{self.name}.json").absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, root])},
                start_new_session=True,  # Ctrl-C is the run's
            )
        values = {key: value for key, value in self.node.items() if key != "_target_"}
        about = {**self.about(), "group": values.get("group") or sweep_of(self.folder)}
        target, folders = self.node["_target_"], about["config"].get("config_dir") or []
        return {"target": target, "values": values, "about": about, "paths": folders}

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an order. Raises Silent where there is none in time, or a bad one."""
        assert self.process is not None
        pipe_in, pipe_out = self.process.stdin, self.process.stdout
        assert pipe_in is not None and pipe_out is not None
        try:
            pipe_in.write(json.dumps(order, default=str).encode() + b"\n")
            pipe_in.flush()
        except BrokenPipeError:
            pass  # its last words are there to be read
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipe_out, selectors.EVENT_READ)
            if not waiting.select(self.timeout):
                raise Silent(f"no answer for {self.timeout:g} s")
        line = pipe_out.readline()
        answer = json.loads(line) if line else {"died": "its process is gone"}
        if "died" in answer:
            raise Silent(answer["died"])
        return answer

    def give_up(self, why: str) -> None:
        """Ends a tracker that failed, and says so once."""
        first, self.dead = not self.dead, True
        if self.process is not None:
            kill(self.process)
        if first:
            log = shown(self.folder / FOLDER / f"{self.name}.log")
            self.tell(f"{why}; the run goes on without it, metrics.jsonl is whole (log: {log})")

    def tell(self, text: str) -> None:
        """Says something of this tracker, in one line."""
        logger.warning("tracker %s: %s", self.name, text)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for a process that has nothing more to do, and kills one that does not go."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.wait(KILLED if self.dead else self.timeout)
        except subprocess.TimeoutExpired:
            kill(process)
            process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what it still held has no reader
                pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)


def sweep_of(folder: Path) -> str | None:
    """The sweep that a run is of."""
    return folder.parent.name if (folder.parent / SWEEP).is_dir() else None
