"""HDF5 and Parquet files behind a guard: a process of its own walks them first (`walker`).

What others made can send a library round in circles, to other files of this machine, or end its
process. A walk costs milliseconds; it is remembered until the file changes.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from ...files import line_of
from .recording import Refused, refuse

WALKER = Path(__file__).with_name("walker.py")
LOOK = 0.5  # seconds of computing at one object, which takes some 50 microseconds
LEAST, RATE = 5.0, 1e6  # seconds of computing in all, and bytes a second beside
PATIENCE, SLOWLY = 60.0, 20.0  # seconds of waiting at least, and per second of computing
ENOUGH = 1 << 16  # walks that are remembered
BUSY = (signal.SIGPROF, signal.SIGXCPU)
Kind = Literal["HDF5", "Parquet"]
vetted: dict[tuple[str | int, ...], dict[str, Any]] = {}


class Guard:
    """The process that walks files, started when it is needed; it ends by itself when idle."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """The process; a new one where there is none. Raises OSError."""
        if self.process is None or self.process.poll() is not None:
            self.end()
            places = json.dumps(list(map(os.path.abspath, filter(None, sys.path))))
            command = [sys.executable, "-I", "-S", str(WALKER), places]
            quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            quiet["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others take more room than is given
            pipe, none = subprocess.PIPE, subprocess.DEVNULL
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=none, env=quiet, start_new_session=True
            )
        return self.process

    def ask(self, path: str, kind: Kind, seconds: float) -> dict[str, Any] | int | None:
        """What the walk found; the exit status of a process that died; None where it stands still.

        Raises OSError where no process can be started.
        """
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        asked = {"path": path, "kind": kind, "look": LOOK, "seconds": seconds}
        line = json.dumps(asked).encode() + b"\n"
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = line_of(process.stdout.fileno(), PATIENCE + SLOWLY * seconds)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self.end()
            return None
        return json.loads(answer) if answer else process.wait()

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in filter(None, (self.process.stdin, self.process.stdout)):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.process = None


guard = Guard()
atexit.register(guard.end)


def vet(path: Path, kind: Kind = "HDF5") -> int | None:
    """How many bytes an HDF5 file's arrays would be in memory; None: the library cannot open it.

    Raises Refused for one that a reader must not touch.
    """
    state = path.stat()
    key = (kind, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in vetted:
        if len(vetted) >= ENOUGH:
            vetted.clear()
        vetted[key] = walk(path, kind, LEAST + state.st_size / RATE)
    found = vetted[key]
    if "what" in found:
        raise refuse(path, found["what"], found["key"])
    return found.get("bytes")


def walk(path: Path, kind: Kind, seconds: float) -> dict[str, Any]:
    """What is found in a file: {bytes}, {closed}, {what, key} or nothing. Raises Refused."""
    try:
        found = guard.ask(str(path.absolute()), kind, seconds)
        if found == 0:  # it was idle, and ended just when it was asked
            found = guard.ask(str(path.absolute()), kind, seconds)
    except OSError as error:
        text = f"no process can be started to look at it ({error.strerror})"
        raise unwalked(path, kind, text) from error
    if isinstance(found, dict):
        return found
    damaged = "damaged, or made to do so; fetch or write it again"
    if found is None or -found in BUSY:
        text = f"keeps the {kind} library busy for ever (it was stopped)"
        return {"what": f"{text}: {damaged}", "key": ""}
    if found < 0:
        what = signal.Signals(-found).name
        return {"what": f"makes the {kind} library crash ({what}): {damaged}", "key": ""}
    raise unwalked(path, kind, f"the process that looks at it first ended with status {found}")


def unwalked(path: Path, kind: Kind, text: str) -> Refused:
    """The refusal of a file that could not be looked at, for no fault of its own."""
    library = {"HDF5": "h5py", "Parquet": "pyarrow"}[kind]
    return refuse(path, f"{text}; try again, or see that {library} works (`rheo doctor`)")
