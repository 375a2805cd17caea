"""Start-up of whole processes: help, imports, and the first update of a training run."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from rheo.scripts.paired import Goal, Plan, Row, alternate, shorter

HELP_GOAL = (Goal("ours", "<=", 0.3),)
WARMUP = 100
TRAIN = ["algo=sac", "env=hopper", f"source.warmup={WARMUP}", "steps=140", "log_every=1"]
STEP = re.compile(r"step ([\d,]+) /")
LIMIT = 600.0  # seconds that a short run may take


def measure(plan: Plan) -> Iterator[Row]:
    """Wall times of fresh processes in seconds; memory of a short run in MiB."""
    once = plan._replace(seconds=0.0)
    help_, bare = python("-m", "rheo.scripts.cli", "--help"), python("-c", "pass")
    times = alternate(once, {"ours": help_, "bare python": bare})
    yield shorter(Row("rheo --help", "s", 0.0, goals=HELP_GOAL), times, "bare python", 1.0)
    if not plan.quick:
        ours, torch = python("-c", "import rheo.scripts.train"), python("-c", "import torch")
        times = alternate(once, {"ours": ours, "import torch": torch})
        yield shorter(Row("import rheo and torch", "s", 0.0), times, "import torch", 1.0)
    runs = sorted(short_run() for _ in range(1 if plan.quick else 3))
    first, memory = runs[len(runs) // 2]
    yield Row("train: start to first update", "s", first)
    yield Row("train: peak memory", "MiB", memory)


def python(*words: str) -> Callable[[], object]:
    """A fresh interpreter run to its end; raises CalledProcessError when it fails."""
    command = [sys.executable, *words]
    return lambda: subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)


def short_run() -> tuple[float, float]:
    """Seconds until a training run reports its first update, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory(prefix="rheo-bench-") as folder:
        words = [*TRAIN, "episodes=1", f"name={Path(folder) / 'run'}"]
        command = [sys.executable, "-m", "rheo.scripts.cli", "train", *words]
        start = perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first, memory = None, 0.0
            for line in process.stdout:
                if first is None and updated(line):
                    first = perf_counter() - start
                memory = peak(process.pid) or memory  # the last line comes at the run's end
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if first is None or process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    per_mib = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there
    return first, memory or usage.ru_maxrss / per_mib


def peak(pid: int) -> float:
    """Peak memory of a running process in MiB; 0 where the system does not tell.

    A finished child's `ru_maxrss` is no substitute: on Linux it starts from its parent's memory.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 2**10 for x in lines if x.startswith("VmHWM:")), 0.0)


def updated(line: str) -> bool:
    """Whether a line of the display comes after an update."""
    found = STEP.search(line)
    return found is not None and int(found[1].replace(",", "")) > WARMUP
