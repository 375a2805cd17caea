"""The console command `rheo VERB ...`. A verb's module is imported only when it is called."""

import contextlib
import errno
import faulthandler
import importlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from rheo import ranks
from rheo.errors import MACHINE, USER, RheoError, nearest, printable, trace
from rheo.files import FULL

from .screen import screened

VERBS = {  # verb -> module and function that do it, and what it is for
    "train": ("train", "main", "train a policy: rheo train algo=rfm env=hopper"),
    "eval": ("evaluate", "main", "evaluate a run: rheo eval RUN [episodes=100]"),
    "resume": ("resuming", "resume", "continue a run from its last checkpoint: rheo resume RUN"),
    "replay": ("replay", "main", "do a broken update again: rheo replay runs/NAME/broken/STEP"),
    "sweep": ("sweep", "main", "a run for every combination: rheo sweep seed=0,1,2 name=NAME ..."),
    "suite": ("suite", "main", "a sweep over the tasks of a suite: rheo suite dmc algo=rfm"),
    "info": ("info", "main", "what there is to choose from: rheo info algo, rheo info algo=rfm"),
    "play": ("play", "main", "a film of a policy, or several side by side: rheo play RUN"),
    "export": ("export", "main", "a policy as a program that runs without Rheo: rheo export RUN"),
    "zoo": ("zoo", "main", "policies made by a recipe, in minutes: rheo zoo build NAME"),
    "serve": ("serve", "main", "a policy that answers other programs: rheo serve RUN"),
    "compare": ("compare", "main", "runs of several seeds as a table: rheo compare runs/rfm-*"),
    "report": ("report", "main", "all runs of a folder as pages: rheo report runs/x"),
    "reproduce": ("reproduce", "main", "a row of docs/bench run again: rheo reproduce ROW"),
    "collect": ("collect", "main", "record a policy: rheo collect RUN steps=10000 out=data.hdf5"),
    "data": ("data", "main", "look at recorded data: rheo data info|check|convert|filter|..."),
    "demo": ("demo", "main", "learn a small task from scratch; clone and fine-tune a flow in it"),
    "completion": ("completion", "main", "make the shell complete: rheo completion bash|zsh"),
    "bench": ("bench", "main", "measure speed on this machine"),
    "checkpoint": ("verifying", "main", "is all of a run whole: rheo checkpoint verify RUN"),
    "doctor": ("doctor", "main", "check what this machine can do, and say how to fix the rest"),
}
LONG, DIGITS, NESTED = re.compile(r"[^\s/]{301,}"), re.compile(r"\d{301,}"), 50
ENDS = (signal.SIGTERM, signal.SIGHUP)
# module and function that read a verb's words, without torch: what they return is what is done
ASKED = {verb: ("config.verbs", verb) for verb in VERBS} | {
    **{"train": ("config.compose", "asked"), "demo": ("config.compose", "demo")},
    **{"bench": ("bench", "asked"), "eval": ("config.verbs", "evaluate")},
    **{"play": ("config.playing", "play"), "export": ("config.exporting", "export")},
    **{
        "sweep": ("config.sweeps", "sweep"),
        "suite": ("config.suites", "suite"),
        "info": ("info", "asked"),
    },
    **{"data": ("config.data", "data")},
    **{"reproduce": ("config.reproducing", "reproduce"), "zoo": ("config.zoo", "zoo")},
    **{"report": ("config.reporting", "report"), "completion": ("completion", "asked")},
    **{"serve": ("config.serving", "serve"), "replay": ("config.replaying", "replay")},
}


def usage() -> str:
    """The help text."""
    lines = [f"  {verb:10} {text}" for verb, (_, _, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: rheo VERB [key=value ...] [--config-dir DIR] [--program FILE]",
            "",
            *lines,
            "",
            "keys: algo policy critic source env data init steps seed device name recipe",
            "      log_every eval_every save_every episodes fast precision threads, and those",
            "      inside them (algo.lr=1e-4). `rheo info` lists what there is to choose from, and",
            "      `rheo info algo=rfm` tells what the keys of a choice mean.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    if not faulthandler.is_enabled():  # where Python was when something in C crashes
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            faulthandler.enable()
    with screened():
        return answered(sys.argv[1:] if argv is None else argv)


def answered(argv: list[str]) -> int:
    """Runs one verb, and says in a line what its user can mend."""
    try:
        with tidied():
            return call(argv[0], argv[1:]) if argv else call("help", [])
    except RheoError as error:
        ranks.let_first_speak()
        trace()
        print(f"rheo: {LONG.sub(shortened, str(error))}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("rheo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = LONG.sub(shortened, str(error.filename))
            print(f"rheo: {name}: longer than a file's name can be", file=sys.stderr)
            return USER
        if error.errno not in FULL:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"rheo: {where}{error.strerror}; make room and do it again", file=sys.stderr)
        return MACHINE


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the process as an exception does: no half-written file stays.

    Verbs that have something to save listen themselves. SIGHUP that is ignored (nohup) stays so.
    SIGINT does what it did, by a handler that an exception of it can be known by.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        usual = {**dict.fromkeys(ENDS, signal.SIG_DFL), signal.SIGINT: signal.default_int_handler}
        heard = [one for one in usual if signal.getsignal(one) is usual[one]]
        before = {one: signal.signal(one, end) for one in heard}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def call(verb: str, argv: list[str]) -> int:
    """Imports the verb's module and calls its function with the remaining arguments."""
    if verb in ("-h", "--help", "help", "-V", "--version"):
        print(f"rheo {version()}" if verb in ("-V", "--version") else usage(), flush=True)
        return 0
    if verb not in VERBS:
        raise RheoError(f"unknown verb {verb!r}{nearest(verb, VERBS)}\n`rheo --help` lists them.")
    (module, does, text), (reader, asked) = VERBS[verb], ASKED[verb]
    if any(word in ("-h", "--help") for word in argv):
        own = programs(reader).USAGE
        print(own.get(verb, f"rheo {verb}: {text}\n\n{usage()}"), flush=True)
        return 0
    if verb != "completion":  # whose words are a line
        refuse_absurd(argv)
    listen(enlisted(verb))
    request = getattr(programs(reader), asked)(argv)
    return getattr(programs(module), does)(request)


def refuse_absurd(words: list[str]) -> None:
    """Raises RheoError for words that no grammar should be asked to read."""
    for word in words:
        inner = deepest = 0
        for sign in word:
            inner += (sign in "([{") - (sign in ")]}")
            deepest = max(deepest, inner)
        name = LONG.sub(shortened, word)
        if deepest > NESTED:
            raise RheoError(f"{name}: {deepest} brackets inside each other; at most {NESTED}")
        if DIGITS.search(word):
            raise RheoError(f"{name}: no such number can be meant")


def shortened(text: re.Match[str]) -> str:
    """The beginning and the length of a word that is longer than anybody reads."""
    return f"{text[0][:40]}... ({len(text[0])} letters)"


def enlisted(verb: str) -> ranks.Place:
    """Which of several ranks this is. Raises RheoError for a verb that one process does."""
    place = ranks.asked()
    if place.size > 1 and verb not in ("train", "resume"):
        raise RheoError(f"rheo {verb} is done by one process: start it without torchrun")
    return place


def programs(module: str) -> Any:
    """A module of the programs."""
    return importlib.import_module(f"rheo.scripts.{module}")


def listen(place: ranks.Place = ranks.ALONE) -> None:
    """Shows the library's log messages on stderr, whatever stderr is at that moment.

    Of several ranks those of the first, and of the others only errors.
    The live display swaps sys.stderr, so a handler must not keep the stream it started with.
    """

    class Stderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(OSError):  # a full disk behind stderr must not stop a run
                print(printable(f"rheo: {self.format(record)}"), file=sys.stderr)

    logger = logging.getLogger("rheo")
    if not logger.handlers:
        logger.addHandler(Stderr())
        logger.setLevel(logging.INFO if place.rank == 0 else logging.ERROR)
        logger.propagate = False


def version() -> str:
    """The package's version."""
    return importlib.import_module("rheo").__version__


if __name__ == "__main__":
    sys.exit(main())
