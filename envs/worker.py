"""The learner's hold on a process that hosts environments (`hosted.py`)."""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from multiprocessing.reduction import send_handle
from time import monotonic
from types import ModuleType
from typing import Any

import gymnasium
import torch

from ..errors import EnvError
from .guard import once
from .hosted import STOPS, Job, Layout, Said, flushes, receive, send, serve
from .packages import home
from .vector import say

log = logging.getLogger("rheo")
BUILDING = 600.0  # seconds that a worker's environments may take to be made
CLOSING = 5.0  # seconds that workers have to end by themselves


@contextlib.contextmanager
def unnamed_program() -> Iterator[None]:
    """Inside, processes are started without the program that runs here.

    multiprocessing would run it again in each of them, up to its `__main__` guard if it has one,
    and fails in a notebook. What it registers goes along with the job (`jobs`).
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


class Worker:
    """The learner's hold on one process."""

    def __init__(self, job: Job) -> None:
        self.job, self.rows = job, slice(job.first, job.first + job.share)
        self.begin()

    def begin(self) -> None:
        """Starts the process; `sizes` waits for it.

        It is forked from a server that has imported this library and nothing else, so no thread or
        graphics context of the learner's comes along. Signals that ask the learner to stop are
        blocked meanwhile, as the server and its children inherit that.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rheo.envs.hosted"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.job))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            with unnamed_program():
                self.process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise EnvError(
                f"{self.job.env_id} cannot be made in another process, as it or its options are "
                f"objects that are known in this one alone ({error}): register it by the text "
                "'module:Class', or set env.workers=0"
            ) from error
        except (EOFError, OSError) as error:
            text = f"{self.job.env_id}: no worker process can be started ({error})"
            raise EnvError(f"{text}: set env.workers=0") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def answer(self) -> Any:
        """What it answers, when it is there to be read. Raises EnvError for what went wrong."""
        try:
            kind, value, said = receive(self.pipe)
        except (EOFError, OSError) as error:
            raise Gone(self.ending()) from error
        self.repeat(said)
        if kind == "failed":
            raise EnvError(value)
        if kind == "fault":
            raise RuntimeError(f"env worker {self.job.number}:\n{value}")
        return value

    def sizes(self) -> Any:
        """Sizes of its environments, once they are made. Raises EnvError."""
        return self.first_answer("its environments are not made")

    def first_answer(self, what: str) -> Any:
        """An answer while there is no shared memory yet. Raises EnvError."""
        name = f"{self.job.env_id}, {self.named()}"
        if not self.pipe.poll(BUILDING):
            raise EnvError(f"{name}: {what} after {BUILDING:g} s")
        try:
            return self.answer()
        except Gone as error:
            raise EnvError(f"{name}: the process that makes them {error}") from error

    def hand(self, layout: Layout, memory: int) -> None:
        """Gives it the shared memory. Raises EnvError."""
        try:
            send(self.pipe, layout)
            send_handle(self.pipe, memory, self.process.pid)
        except OSError:  # said by the answer
            pass
        self.first_answer("no answer")

    def named(self) -> str:
        """'environments 2 to 3'."""
        first, last = self.rows.start, self.rows.stop - 1
        return f"environment {first}" if first == last else f"environments {first} to {last}"

    def ending(self) -> str:
        """How the process ended."""
        self.process.join(CLOSING)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        why = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{why}"

    def repeat(self, said: list[Said]) -> None:
        """Says what was said over there."""
        for level, text, key in said:
            if level <= logging.INFO:
                say(text)
            elif key is not None:
                once(key, text)
            else:
                log.log(level, "%s (%s)", text, self.named())

    def kill(self) -> None:
        """Ends the process at once."""
        self.pipe.close()
        if self.process.pid is not None:
            self.process.kill()
            self.process.join(CLOSING)


class Gone(Exception):
    """A worker's process has ended; how."""


def shut(team: list[Worker]) -> None:
    """Asks all processes to end, and ends those that do not."""
    for worker in team:
        with contextlib.suppress(OSError):
            send(worker.pipe, "end")
    limit = monotonic() + CLOSING
    for worker in team:
        worker.process.join(max(limit - monotonic(), 0))
        worker.kill()
    team.clear()


def jobs(env_id: str, num_envs: int, workers: int, options: dict[str, Any]) -> list[Job]:
    """The shares of the workers, as even as it goes, and what this process is like."""
    counts = [num_envs // workers + (w < num_envs % workers) for w in range(workers)]
    spec = gymnasium.registry.get(env_id) if home(env_id)[0] == "gymnasium" else None
    like = os.getcwd(), dict(os.environ), torch.get_num_threads(), flushes()
    return [
        Job(env_id, options, spec, w, sum(counts[:w]), counts[w], *like) for w in range(workers)
    ]
