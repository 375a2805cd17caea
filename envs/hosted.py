"""A process that hosts environments: the memory it shares with the learner, and what it does there.

The learner's side is `workers.py`. Only bytes of a few words go through the pipe in a step;
actions, observations, rewards and flags lie in one block of memory that has no name, so that
nothing is left of it when the processes are gone, however they went.
"""

import contextlib
import fcntl
import logging
import math
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import EnvError
from . import families
from .adapter import GymnasiumVector

STOPS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGHUP,
)  # meant for the learner, who decides
ALIGNED = 64  # bytes
AWAKE = 0.003  # seconds in which a worker looks for the next request without sleep


class Layout(NamedTuple):
    """Sizes of the shared block: N rows of environments, W workers, K steps of a chunk."""

    rows: int
    workers: int
    steps: int
    obs_dim: int
    action_dim: int

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shapes and types by name."""
        n, w, k = self.rows, self.workers, self.steps
        steps = {"reward": np.float64} | dict.fromkeys(
            ("terminated", "truncated", "valid", "success"), np.bool_
        )
        return {
            "action": ((n, k, self.action_dim), np.float64),
            "active": ((n,), np.bool_),
            "obs": ((n, self.obs_dim), np.float64),  # where to act next
            "final": ((n, k, self.obs_dim), np.float64),  # true successors
            **{name: ((n, k), kind) for name, kind in steps.items()},
            **dict.fromkeys(("elapsed", "seed", "episode"), ((n,), np.int64)),
            "at": ((w, 2), np.int64),  # rows a worker has worked on so far, and which it is
            "counters": ((w, 2), np.int64),  # physics_resets, bad_obs
        }

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(taken(shape, kind) for shape, kind in self.fields().values())

    def views(self, memory: mmap.mmap) -> dict[str, NDArray]:
        """Arrays over the block, by name."""
        found, start = {}, 0
        for name, (shape, kind) in self.fields().items():
            found[name] = np.ndarray(shape, kind, memory, start)
            start += taken(shape, kind)
        return found


def taken(shape: tuple[int, ...], kind: type) -> int:
    """Bytes of an array, up to where the next one may begin."""
    return -(-math.prod(shape) * np.dtype(kind).itemsize // ALIGNED) * ALIGNED


class Job(NamedTuple):
    """What a worker hosts, and the settings of the learner's process that results depend on."""

    env_id: str
    options: dict[str, Any]
    spec: Any  # as it is registered, where only the learner's process knows it
    number: int  # of the worker
    first: int  # its first row
    share: int  # how many rows are its own
    folder: str
    environ: dict[str, str]
    threads: int  # of torch
    flushes: bool  # whether numbers below the normal range count as zero

    def settle(self) -> None:
        """Makes this process like the learner's."""
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environ)
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(self.flushes)


def flushes() -> bool:
    """Whether this thread counts numbers below the normal range as zero."""
    return float((np.array([2.3e-308]) * 0.1)[0]) == 0


def end_with_the_learner() -> None:
    """The kernel ends this process when the learner is gone, even where a step never returns.

    The learner holds the other end of a pipe; that it closes is a signal, which ends whoever does
    not handle it. (Where there is no such signal, a worker ends when it next wants to answer.)
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    sentinel: Any = parent.sentinel
    flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | getattr(os, "O_ASYNC", 0))
    if not parent.is_alive():
        os._exit(1)


class Said(NamedTuple):
    """Something that the library says: how urgent, what, and for what it is said but once."""

    level: int
    text: str
    once: Hashable


class Overheard(logging.Handler):
    """What the library says in this process, for the learner to say it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Said] = []
        logger = logging.getLogger("rheo")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(Said(record.levelno, record.getMessage(), getattr(record, "once", None)))

    def drained(self) -> list[Said]:
        """What was said since the last call."""
        heard, self.heard = self.heard, []
        return heard


def send(pipe: Connection, *words: Any) -> None:
    """A message; plain pickles are much quicker than the connection's own."""
    pipe.send_bytes(pickle.dumps(words, pickle.HIGHEST_PROTOCOL))


def receive(pipe: Connection) -> Any:
    """A message's words."""
    return pickle.loads(pipe.recv_bytes())  # noqa: S301 - of our own process


def awaited(pipe: Connection) -> Any:
    """The next message's words, for which this process stays awake a while.

    A core that sleeps between two steps is slow to come back, and two processes that are woken at
    once may be put on one core. Whoever has work to do on this core comes first meanwhile.
    """
    poller, until = select.poll(), time.monotonic() + AWAKE
    poller.register(pipe.fileno(), select.POLLIN)
    while not poller.poll(0) and time.monotonic() < until:
        os.sched_yield()
    return receive(pipe)


def serve(pipe: Connection, job: Job) -> None:
    """A worker's life: makes its environments, says their sizes, and answers until told to end.

    An answer is (kind, value, what was said): "done", "failed" with the message of what is wrong
    with an environment, or "fault" with the traceback of an error of ours. After one of the last
    two the worker ends.
    """
    end_with_the_learner()
    overheard = Overheard()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            for value in answers(pipe, job):
                send(pipe, "done", value, overheard.drained())
        except EnvError as error:
            send(pipe, "failed", str(error), overheard.drained())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # noqa: BLE001 - of our own: the learner raises it
            send(pipe, "fault", traceback.format_exc(), overheard.drained())


def answers(pipe: Connection, job: Job) -> Iterator[Any]:
    """What is answered to the learner: first sizes, then one value to each request."""
    job.settle()
    if job.spec is not None:
        gymnasium.registry.setdefault(job.env_id, job.spec)
    families.register(job.env_id)
    env = GymnasiumVector(job.env_id, job.share, dtype=torch.float64, **job.options)
    env.first = job.first
    box = env.action_low, env.action_high
    yield env.obs_dim, *box, env.max_steps, env.obs_parts, env.obs_images
    (layout,) = receive(pipe)
    handle = recv_handle(pipe)
    host = Host(env, layout, mmap.mmap(handle, layout.size), job)
    os.close(handle)
    yield None
    requests: dict[str, Callable[..., Any]] = {
        **{"step": host.step, "reset": host.reset},
        **{"get": env.state_dict, "set": host.load},
    }
    while (words := awaited(pipe))[0] != "end":
        yield requests[words[0]](*words[1:])
    env.close()


class Host:
    """Environments whose numbers lie in the shared block, in the rows that are theirs."""

    def __init__(self, env: GymnasiumVector, layout: Layout, memory: mmap.mmap, job: Job) -> None:
        views = layout.views(memory)
        self.env, self.counters = env, views["counters"][job.number]
        mine = slice(job.first, job.first + job.share)
        self.mine = {name: views[name][mine] for name in views if name not in ("at", "counters")}
        env.share(self.mine, views["at"][job.number])
        self.flags = ("reward", "terminated", "truncated", "valid")

    def step(self, steps: int, last: int | None) -> tuple[int, int]:
        """The chunk's steps, until no row is left; `last` of each row are looked at, or all.

        How many were taken, and from which on a success is known (`steps` when it is not).
        """
        mine, known = self.mine, steps
        action, active = (torch.from_numpy(mine[name].copy()) for name in ("action", "active"))
        found = self.env.chunk(action[:, :steps], active, last)
        for k, out in enumerate(found):
            mine["final"][:, k] = out.final_obs
            for name in self.flags:
                mine[name][:, k] = getattr(out, name)
            if out.success is not None:
                mine["success"][:, k] = out.success
                known = min(known, k)
        self.counters[:] = list(self.env.counters.values())
        return len(found), known

    def reset(self, seed: int | None, own: list[int] | None = None) -> None:
        """New episodes; from seeds of its own for each row where `own` has them."""
        if own is None:
            self.env.reset(seed)
        else:
            self.env.restart(own)

    def load(self, state: dict[str, Any]) -> bool:
        """Goes on from a state; whether new episodes were begun."""
        return self.env.load_state_dict(state) is not None
