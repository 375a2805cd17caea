"""Memory that processes of one machine share, and numbers of theirs that are added up in it.

Between two processes a socket takes milliseconds for what memory passes on in a tenth of that: most
of it is the way of a core into its sleep and back. Here each process lays its numbers down, says so
in a counter, looks at the others' counters and reads what all have laid down. torch is imported
only where numbers meet.
"""

import mmap
import os
import platform
import select
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 4 << 20  # bytes of a process's numbers that are exchanged at once
LINE = 64  # bytes that processors hand to each other as a whole
AWAKE = 0.05  # seconds of a wait in which a process looks again at once: sleep makes cores slow
NAP = 0.001  # seconds between two looks after that
SIGNED = 16  # bytes by which the memory is known for the one that was meant


def nameless(size: int) -> int:
    """A file of so many bytes in memory that has no name. Raises OSError where that lacks."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("rheo")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    os.ftruncate(handle, size)
    return handle


def lacking() -> str | None:
    """Why this machine has no such exchange; None: it has.

    Counters may only be seen after the numbers that they tell of, which processors of this kind
    promise for plain writes and others do not.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"a processor of another kind ({platform.machine()})"
    if not (hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")):
        return "no Linux"
    return None


class Table:
    """Where the numbers of `size` processes meet; `rank` is this one.

    For each a line with two counters, exchanges it has laid its numbers down for and whether it has
    left, and two places for its numbers: who is an exchange ahead writes into the other one, and
    nobody can be two ahead, so one wait an exchange is enough.
    """

    def __init__(
        self, rank: int, size: int, handle: int, pids: dict[int, int], patience: float
    ) -> None:
        """Takes the memory behind a file. pids: of the others. Raises OSError.

        patience: seconds for one that lives and does not answer.
        """
        self.rank, self.size, self.patience, self.turn = rank, size, patience, 0
        self.block = mmap.mmap(handle, Table.bytes(size))
        self.counters = memoryview(self.block)[: size * LINE].cast("q")
        self.watched: dict[int, Any] = {}
        self.handles = [handle]  # as long as it is open others find it
        for other, pid in pids.items():
            self.handles.append(os.pidfd_open(pid))
            self.watched[other] = select.poll()
            self.watched[other].register(self.handles[-1], select.POLLIN)

    @staticmethod
    def bytes(size: int) -> int:
        """Bytes of the memory, of which only what is written to is really taken."""
        return size * LINE + 2 * size * PIECE

    def fold_(self, tensor: "Tensor", largest: bool = False) -> None:
        """Puts the sum over all processes into a contiguous tensor of the host, or the largest.

        Added up in the order of ranks, so that all have the same. Raises RuntimeError when one is
        gone or does not answer.
        """
        import torch

        how = torch.maximum if largest else torch.add
        for part in tensor.view(-1).split(PIECE // tensor.element_size()):
            self.turn += 1
            laid = [self._place(rank, part) for rank in range(self.size)]
            laid[self.rank].copy_(part)
            self.counters[self.rank * LINE // 8] = self.turn
            for rank in self.watched:
                self._await(rank)
            how(laid[0], laid[1], out=part)
            for more in laid[2:]:
                how(part, more, out=part)

    def leave(self) -> None:
        """Tells the others, who notice when they wait for this one."""
        self.counters[self.rank * LINE // 8 + 1] = 1
        self.counters.release()
        for handle in self.handles:
            os.close(handle)

    def _place(self, rank: int, like: "Tensor") -> "Tensor":
        """Where a process lays down numbers of that kind at this turn."""
        import torch

        start = self.size * LINE + (self.turn % 2 * self.size + rank) * PIECE
        return torch.frombuffer(self.block, dtype=like.dtype, count=like.numel(), offset=start)

    def _await(self, rank: int) -> None:
        """Waits until a process has laid down its numbers. Raises RuntimeError when it will not."""
        counters, place, turn = self.counters, rank * LINE // 8, self.turn
        begun = time.monotonic()
        while counters[place] < turn:
            waited = time.monotonic() - begun
            if waited < AWAKE:
                os.sched_yield()  # somebody who has work to do comes first
                continue
            gone = counters[place + 1] or self.watched[rank].poll(0)
            if gone and counters[place] < turn:  # it may have come before it went
                raise RuntimeError(f"rank {rank} is gone")
            if waited > self.patience:
                raise RuntimeError(f"rank {rank} does not answer for {self.patience:g} s")
            time.sleep(NAP)


def set_up(rank: int, size: int, store: Any, patience: float) -> Table | None:
    """The table of `size` processes, of which the first makes it; None where this one has none.

    store: where they leave words for each other. It is used if all have it, which is theirs to
    agree on.
    """
    handle: int | None = None
    store.set(f"pid/{rank}", str(os.getpid()))
    pids = {each: int(store.get(f"pid/{each}")) for each in range(size) if each != rank}
    try:
        if rank == 0:
            handle, words = _made(size)
            store.set("table", words)
        else:
            handle = _found(size, store.get("table").decode())
        return Table(rank, size, handle, pids, patience)
    except OSError:
        if rank == 0 and handle is None:
            store.set("table", "")
        if handle is not None:
            os.close(handle)
        return None


def _made(size: int) -> tuple[int, str]:
    """The memory, and words by which the others find it: a path, a signature. Raises OSError."""
    if lacking() is not None:
        raise OSError(lacking())
    handle, signature = nameless(Table.bytes(size) + SIGNED), os.urandom(SIGNED)
    os.pwrite(handle, signature, Table.bytes(size))
    return handle, f"/proc/{os.getpid()}/fd/{handle} {signature.hex()}"


def _found(size: int, words: str) -> int:
    """The memory of these words. Raises OSError where they are of none, or of another file.

    As in a container of its own, where other files have these names.
    """
    path, _, signature = words.partition(" ")
    handle = os.open(path, os.O_RDWR)
    if os.pread(handle, SIGNED, Table.bytes(size)) != bytes.fromhex(signature):
        os.close(handle)
        raise OSError(f"{path} is another file")
    return handle
