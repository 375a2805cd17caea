"""Starts `rheo` processes with a fault in them, and waits for their ends."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PATIENCE = 300.0  # seconds after which a process is taken for hung, on a busy machine too
TRACEBACK = "Traceback (most recent call last)"
Fault = dict[str, Any]


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    text: str  # all that it printed
    seconds: float  # until its end, from its beginning or from the fault that says its moment
    hung: bool = False

    def crashed(self) -> str:
        """What no process of ours may do, whatever happens to it; empty: it did not."""
        if self.hung:
            return f"hung: {last(self.text)}"
        if TRACEBACK in self.text:
            return f"traceback: {traced(self.text)}"
        return f"died of signal {-self.code}" if self.code in (-11, -6, -7, -8) else ""


class Zygote:
    """A process that forks `rheo` commands, one at a time. space: KiB of a disk of its own.

    The disk is a tmpfs in a mount namespace of its own, which needs no rights where user namespaces
    are allowed; `disk` is where it is seen from outside.
    """

    def __init__(self, space: int = 0) -> None:
        words = [sys.executable, str(HERE / "zygote.py")]
        if space:
            mount = f'mount -t tmpfs -o size={space}k none /mnt && exec "$@"'
            words = [
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                mount,
                "-",
                *words,
            ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.buffer = b""
        if self.line(PATIENCE) != "ready":
            raise RuntimeError("the process that forks others did not begin")
        self.disk = Path(f"/proc/{self.process.pid}/root/mnt")

    def start(self, words: Sequence[str], cwd: Path, log: Path, *faults: Fault, **more: Any) -> int:
        """Begins a command; its pid."""
        order = {"words": list(words), "cwd": str(cwd), "log": str(log), "faults": faults}
        order |= {"environ": more.get("environ", {}), "path": more.get("path", [])}
        order |= {"memory": more.get("memory")}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.line(PATIENCE) or 0)

    def wait(self, seconds: float) -> int | None:
        """The exit status of the command that was started, None when it takes longer."""
        line = self.line(seconds)
        return None if line is None else int(line)

    def line(self, seconds: float) -> str | None:
        """The next line that it prints."""
        assert self.process.stdout is not None
        stream, end = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                return None
            piece = os.read(stream, 4096)
            if not piece:
                raise RuntimeError("the process that forks others has ended")
            self.buffer += piece
        text, _, self.buffer = self.buffer.partition(b"\n")
        return text.decode()

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@cache
def zygote(space: int = 0) -> Zygote:
    """The one of this process."""
    return Zygote(space)


@cache
def small_disks() -> bool:
    """Whether a full disk can be had here."""
    words = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


def rheo(cwd: Path, words: Sequence[str], *faults: Fault, space: int = 0, **more: Any) -> Ended:
    """Runs a command to its end. more: environ, path, within (seconds), memory (MiB it may take).

    A `file` of a signal tells when it came: `seconds` then count from there.
    """
    log = Path(more.pop("log", cwd / "log"))
    log.unlink(missing_ok=True)
    begun = time.monotonic()
    pid = zygote(space).start(words, cwd, log, *faults, **more)
    code = zygote(space).wait(more.get("within", PATIENCE))
    hung = code is None
    if hung:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        code = zygote(space).wait(PATIENCE)
    ended = time.monotonic()
    for fault in faults:
        moment = Path(fault.get("file", ""))
        if fault["act"] == "signal" and moment.is_file():
            begun = float(moment.read_text())
    text = log.read_text(errors="replace") if log.exists() else ""
    return Ended(code or 0, text, ended - begun, hung)


def traced(text: str) -> str:
    """The last lines of the first traceback: where it came from, and what it was."""
    lines = text.partition(TRACEBACK)[2].splitlines()[1:]
    inner = next((i for i, line in enumerate(lines) if line and line[0] != " "), len(lines) - 1)
    return "\n".join(lines[max(0, inner - 4) : inner + 1])


def last(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing printed"


def of_marker(marker: str) -> Iterator[int]:
    """Processes that still live and have a text in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "environ").read_bytes():
                yield int(folder.name)
