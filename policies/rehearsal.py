"""The first call of a program, in a process of its own: one that hangs, dies or writes is answered.

    python -c "from rheo.policies.rehearsal import main; main()"

A line of JSON ({"ending", "sizes", "seconds"}) and the file's content go in; a line comes out,
{"wide": bool} or {"error": text}. The process has seconds of computing (so a busy machine changes
nothing), memory by the file's size, and may write no file.
"""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .programs import first_line, opened

SECONDS, PACE = 20, 20 << 20  # of computing, and bytes of the file that give one more
PATIENCE = 20  # times as long on the clock, for a process that waits instead
MEMORY = 8 << 30  # bytes above what the process has, or as many times the file
TIMES = 8
ROWS = (2, 3)  # of the calls that are tried
COMMAND = (
    "import sys; sys.path[:] = filter(None, sys.path); "  # not what lies in the working folder
    "import rheo.policies.rehearsal as it; it.main()"
)
known: dict[tuple[str, str, tuple[int, int, int]], bool] = {}  # what this process has rehearsed
Sizes = tuple[int, int, int]  # obs_dim, action_dim, horizon


def rehearse(data: bytes, ending: str, sizes: Sizes) -> bool:
    """Whether a program takes float64 instead of float32, once it was read and called elsewhere.

    Raises ValueError for one that does not take the inputs, answers with something else, or does
    not answer.
    """
    key = hashlib.sha256(data).hexdigest(), ending, sizes
    if key not in known:
        order = {"ending": ending, "sizes": sizes, "seconds": SECONDS + len(data) // PACE}
        answer = asked(data, order)
        if "error" in answer:
            raise ValueError(answer["error"])
        known[key] = answer["wide"]
    return known[key]


def asked(data: bytes, order: dict[str, Any]) -> dict[str, Any]:
    """The answer of the process. Raises ValueError where there is none."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND],
            input=json.dumps(order).encode() + b"\n" + data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE * order["seconds"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, root])},
            start_new_session=True,  # Ctrl-C is the run's
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        raise ValueError(
            f"its first call has not ended within {order['seconds']} s of computing; a program has "
            "to answer any observation, 0 too"
        )
    if not done.stdout:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        raise ValueError(f"its first call ended the process ({ended})")
    return json.loads(done.stdout)


def main() -> None:
    """Reads the order and the program, and answers."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a program that prints answers nothing
    order, data = json.loads(orders.readline()), orders.read()
    torch.set_num_threads(1)
    tempfile.gettempdir()  # which torch asks for, and which is found by writing there
    limit(order["seconds"], len(data))
    try:
        answer = {"wide": tried(opened(data, order["ending"]), *order["sizes"])}
    except ValueError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "its first call takes more memory than a program of its size may"}
    print(json.dumps(answer), file=answers, flush=True)


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
