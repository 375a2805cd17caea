"""Real `rheo` processes without their start-up: imports once, then forks a child for each order.

An order is a line of JSON on stdin; the child's pid and then its exit status are lines on stdout.
A child runs `rheo WORDS` with its output in a file and ends as the console command does. Its
`fault` is what happens to it and when: at the `count`th event whose text matches `place`, `delay`
seconds later. Events are what it does to files ("open ckpt/x", told by Python's audit hooks) and
calls of one function of the program ("call").
"""

import contextlib
import importlib
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")
HEAVY = (
    *("rheo.scripts.train", "rheo.scripts.collect", "rheo.scripts.evaluate", "rheo.scripts.data"),
    *("rheo.envs.mujoco.native", "rheo.scripts.config.compose", "h5py", "rich.live"),
    # what a run asks for late: torch with its first optimiser, its curve and its events at the end
    *("torch._dynamo", "torch.utils.tensorboard", "matplotlib.backends.backend_agg"),
    *("matplotlib.pyplot", "rheo.policies.heads", "rheo.algos.losses", "rheo.algos.offpolicy"),
    "gymnasium.envs.mujoco.mujoco_rendering",  # of its import, a process that looks for a library
)


def main() -> int:
    """Forks until stdin ends; a child returns from here with what it has to do."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal: nohup, and a shell that puts
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it in the background, ignore them
    for name in HEAVY:
        importlib.import_module(name)
    print("ready", flush=True)
    while line := sys.stdin.readline():
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            return child(order)
        with contextlib.suppress(BrokenPipeError):  # whoever asked was interrupted
            print(pid, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0


def child(order: dict[str, Any]) -> int:
    """One `rheo` command."""
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    quiet = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((quiet, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(order["cwd"])
    os.environ.update(order["environ"])
    sys.path[:0] = order["path"]
    sys.argv = ["rheo", *order["words"]]
    if order["memory"]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + (order["memory"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for fault in order["faults"]:
        Fault(**fault)
    return importlib.import_module("rheo.scripts.cli").main(order["words"])


class Fault:
    """What happens to this process, and when.

    act: signal (`number`), fill (the file `file` takes what is left of its disk) or note (every
    event is a line of `file`: seconds and text). A signal's moment is written to `file` where it
    is given. call: module:Class.method whose calls are events.
    """

    def __init__(
        self,
        act: str,
        place: str = "",
        count: int = 0,
        delay: float = 0.0,
        number: int = signal.SIGKILL,
        file: str = "",
        call: str = "",
    ) -> None:
        self.act, self.left, self.delay = act, count, delay
        self.number, self.file, self.place = number, file, re.compile(place)
        self.inside = False  # what it does to files itself is no event
        if call:
            self.count_calls(*call.split(":"))
        elif place or act == "note":
            sys.addaudithook(self.heard)
        else:
            self.later()

    def count_calls(self, module: str, name: str) -> None:
        """Makes calls of a method events."""
        owner, method = importlib.import_module(module), name
        if "." in name:
            inner, method = name.split(".")
            owner = getattr(owner, inner)
        meant = getattr(owner, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.event(f"call {name}")
            return meant(*args, **kwargs)

        setattr(owner, method, counted)

    def heard(self, name: str, args: tuple[Any, ...]) -> None:
        """An audited event."""
        if name not in EVENTS or self.inside or not isinstance(args[0], (str, bytes)):
            return
        text = f"{name} {os.fsdecode(args[1] if name == 'os.rename' else args[0])}"
        if self.place.search(text):
            self.inside = True
            try:
                self.event(text)
            finally:
                self.inside = False

    def event(self, text: str) -> None:
        """Counts, and acts when it is time."""
        if self.act == "note":
            with open(self.file, "a") as stream:
                stream.write(f"{time.monotonic():.4f} {text}\n")
            return
        self.left -= 1
        if self.left == -1:
            self.later()

    def later(self) -> None:
        """Acts now, or a moment later in a thread."""
        if self.delay:
            timer = threading.Timer(self.delay, self.do)
            timer.daemon = True
            timer.start()
        else:
            self.do()

    def do(self) -> None:
        """The fault itself."""
        if self.act == "fill":
            fill(Path(self.file))
            return
        if self.file:
            Path(self.file).write_text(str(time.monotonic()))
        os.kill(os.getpid(), self.number)


def fill(file: Path) -> None:
    """Takes what is left of a disk."""
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 16, 1 << 12, 1):
            piece = bytes(size)
            while os.write(stream, piece) == size:
                pass
    except OSError:
        pass
    finally:
        os.close(stream)


if __name__ == "__main__":
    sys.exit(main())
