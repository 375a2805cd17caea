"""The first call of a program, in a process of its own: one that hangs, dies or writes is answered.

A process of no program's (`python -c COMMAND`) is started once, and makes a child for each: a line
of JSON ({"ending", "sizes", "seconds", "folder", "bytes"}) and so many bytes of the file's content
go in; a line comes out, {"wide": bool}, {"error": text} or {"ended": exit status}. A child has
seconds of computing (so a busy machine changes nothing), memory by the file's size, and may write
no file.
"""

import atexit
import contextlib
import hashlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import line_of
from .programs import first_line, opened

SECONDS, PACE = 20, 20 << 20  # of computing, and bytes of the file that give one more
PATIENCE = 20  # times as long on the clock, for a process that waits instead
IDLE = 20.0  # seconds without a program after which the process ends
MEMORY = 8 << 30  # bytes above what the process has, or as many times the file
TIMES = 8
ROWS = (2, 3)  # of the calls that are tried
COMMAND = (
    "import sys; sys.path[:] = filter(None, sys.path); "  # not what lies in the working folder
    "import rheo.policies.rehearsal as it; it.main()"
)
SLOW = {  # what is imported to read a file takes ten times as long as to call it
    ".pt2": ("torch._export.serde.serialize", "torch._functorch.aot_autograd", "networkx")
}
known: dict[tuple[str, str, tuple[int, int, int]], bool] = {}  # what this process has rehearsed
Sizes = tuple[int, int, int]  # obs_dim, action_dim, horizon


class Stage:
    """The process whose children make first calls, started when it is needed; idle, it ends."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()

    def start(self) -> subprocess.Popen[bytes]:
        """The process; a new one where there is none, or where it is another process's."""
        if self.owner != os.getpid():
            self.process, self.owner = None, os.getpid()
        if self.process is None or self.process.poll() is not None:
            root = str(Path(__file__).resolve().parents[2])
            paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, root])},
                start_new_session=True,  # Ctrl-C is the run's
            )
        return self.process

    def ask(self, order: dict[str, Any], data: bytes) -> dict[str, Any]:
        """The answer; {"gone": exit status} of a dead process, {"ended": None} of a still one."""
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n" + data)
            process.stdin.flush()
            said = line_of(process.stdout.fileno(), PATIENCE * order["seconds"])
        except BrokenPipeError:
            said = b""
        if said is None:
            self.end()
            return {"ended": None}
        return json.loads(said) if said else {"gone": process.wait()}

    def end(self) -> None:
        """Ends the process and what it started, whatever they do."""
        if self.process is None or self.owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process = None


stage = Stage()
atexit.register(stage.end)


def rehearse(data: bytes, ending: str, sizes: Sizes) -> bool:
    """Whether a program takes float64 instead of float32, once it was read and called elsewhere.

    Raises ValueError for one that does not take the inputs, answers with something else, or does
    not answer.
    """
    key = hashlib.sha256(data).hexdigest(), ending, sizes
    if key not in known:
        order = {"ending": ending, "sizes": sizes, "seconds": SECONDS + len(data) // PACE}
        answer = asked(data, order | {"bytes": len(data), "folder": os.getcwd()})
        if "error" in answer:
            raise ValueError(answer["error"])
        known[key] = answer["wide"]
    return known[key]


def asked(data: bytes, order: dict[str, Any]) -> dict[str, Any]:
    """The answer of the process. Raises ValueError where there is none."""
    answer = stage.ask(order, data)
    if answer.get("gone") == 0:  # it was idle, and ended just when it was asked
        answer = stage.ask(order, data)
    ended = answer.get("ended", answer.get("gone", 0))
    if ended is None or -ended in (signal.SIGXCPU, signal.SIGKILL):
        raise ValueError(
            f"its first call has not ended within {order['seconds']} s of computing; a program has "
            "to answer any observation, 0 too"
        )
    if "ended" in answer or "gone" in answer:
        how = f"signal {-ended}" if ended < 0 else f"exit {ended}"
        raise ValueError(f"its first call ended the process ({how})")
    return answer


def main() -> None:
    """Answers until nobody asks."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a program that prints answers nothing
    torch.set_num_threads(1)
    tempfile.gettempdir()  # which torch asks for, and which is found by writing there
    while select.select([orders], [], [], IDLE)[0] and (line := orders.readline()):
        order = json.loads(line)
        data = orders.read(order["bytes"])
        for name in SLOW.get(order["ending"], ()):
            with contextlib.suppress(ImportError):  # another release of torch
                importlib.import_module(name)
        os.write(answers, played(order, data) + b"\n")


def played(order: dict[str, Any], data: bytes) -> bytes:
    """The answer of a child of this process that reads and calls a program."""
    ours, its = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(its, "wb") as answer:
                answer.write(json.dumps(play(order, data)).encode())
            os._exit(0)
        finally:  # whatever the program raises, it is not this process's loop that goes on
            os._exit(1)
    os.close(its)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or json.dumps({"ended": ended}).encode()


def play(order: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Reads and calls a program, within its limits."""
    os.chdir(order["folder"])
    limit(order["seconds"], len(data))
    try:
        return {"wide": tried(opened(data, order["ending"]), *order["sizes"])}
    except ValueError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "its first call takes more memory than a program of its size may"}


def limit(seconds: int, size: int) -> None:
    """Bounds what this process may still use; `size`: of the program in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    wanted = {
        resource.RLIMIT_CPU: spent + seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if pages:
        wanted[resource.RLIMIT_AS] = pages * resource.getpagesize() + max(MEMORY, TIMES * size)
    for what, value in wanted.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, hard))


def tried(module: nn.Module, obs_dim: int, action_dim: int, horizon: int) -> bool:
    """Whether a program takes float64 instead of float32, after two calls of it.

    Raises ValueError for one that does not take the inputs, or whose answer is no chunk of actions.
    """
    wide = False
    for rows in ROWS:
        obs, noise = torch.zeros(rows, obs_dim), torch.zeros(rows, horizon, action_dim)
        try:
            action, wide = answered(module, obs, noise, wide)
        except Exception as error:  # whatever the program raises
            raise ValueError(
                f"does not take obs [{rows}, {obs_dim}] and noise {list(noise.shape)} (export it "
                f"with any number of rows, and for this horizon): {first_line(error)}"
            ) from error
        refuse_other(action, noise)
    return wide


def answered(module: nn.Module, obs: Tensor, noise: Tensor, wide: bool) -> tuple[object, bool]:
    """The program's answer, and whether that took float64: where it does not take float32."""
    if wide:
        return module(obs.double(), noise.double()), True
    try:
        return module(obs, noise), False
    except Exception:
        try:
            answer = module(obs.double(), noise.double())
        except Exception:  # noqa: BLE001 - float32 is what is asked for: its error is told
            answer = None
        if answer is None:
            raise
        return answer, True


def refuse_other(action: object, noise: Tensor) -> None:
    """Raises ValueError for an answer that is no chunk of finite real actions."""
    if not isinstance(action, Tensor) or action.shape != noise.shape:
        found = list(action.shape) if isinstance(action, Tensor) else type(action).__name__
        problem = f"returned {found}"
    elif not action.is_floating_point():
        problem = f"returned numbers of type {action.dtype}"
    elif not bool(action.isfinite().all()):
        problem = "returned numbers that are not finite for observations and noises of 0"
    else:
        return
    raise ValueError(
        f"{problem}; for noise {list(noise.shape)} it has to return finite real actions of that "
        f"shape, in [-1, 1]"
    )
