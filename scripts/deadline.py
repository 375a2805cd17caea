"""Ends this process where nothing of Python's can: while a loop in C holds the interpreter's lock.

A thread of the system's waits for a pipe and then ends the process. No line of Python may run in
it, so it goes through a chain of contexts (makecontext, of glibc) whose steps are calls of the C
library: poll for a signal, poll for the time that is given, write the last word, _exit.
"""

import ctypes
import os
import platform
import select
from typing import Any

CONTEXT, STACK = 16384, 65536  # bytes: more than a context takes on any processor, and of a stack
EXIT_THREAD = {"x86_64": 60, "aarch64": 93}  # the number of the system call `exit`
WORD = 2000  # bytes of a last word
FOREVER = -1


class Poll(ctypes.Structure):
    """struct pollfd."""

    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


class Context(ctypes.Structure):
    """The beginning of ucontext_t; the rest is the library's own."""

    _fields_ = [
        ("flags", ctypes.c_ulong),
        ("link", ctypes.c_void_p),
        ("stack", ctypes.c_void_p),
        ("stack_flags", ctypes.c_int),
        ("stack_size", ctypes.c_size_t),
        ("rest", ctypes.c_char * CONTEXT),
    ]


def available() -> bool:
    """Whether this system has what is needed."""
    return platform.machine() in EXIT_THREAD and platform.libc_ver()[0] == "glibc"


class Deadline:
    """From `start` on the process ends, with a code and a word, when the time is over.

    signals: a pipe's end that is readable when the time begins; None: it begins at once. It ends
    earlier by `cancel`, which waits for the thread. Raises OSError where there is no such thread.
    """

    def __init__(self, signals: int | None, seconds: float, code: int, word: str) -> None:
        self.libc = ctypes.CDLL(None)
        self.ask, self.tell = os.pipe()
        self.word = ctypes.create_string_buffer(word.encode()[:WORD])
        self.watched = (Poll * 2)(
            *(Poll(fd, select.POLLIN, 0) for fd in (self.ask, -1 if signals is None else signals))
        )
        self.steps = (Context * 4)()
        self.stacks = [ctypes.create_string_buffer(STACK) for _ in self.steps]
        wait = 0 if signals is None else FOREVER
        self.step(0, "poll", self.watched, 2, wait)
        self.step(1, "poll", self.watched, 1, int(1e3 * seconds))
        self.step(2, "write", 2, self.word, len(self.word.value))
        self.step(3, "_exit", code)
        self.thread = ctypes.c_ulong()
        start, first = self.call("setcontext"), ctypes.byref(self.steps[0])
        failed = self.libc.pthread_create(ctypes.byref(self.thread), None, start, first)
        if failed:
            raise OSError(failed, "no thread")

    def call(self, name: str) -> ctypes.c_void_p:
        """The address of a function of the C library."""
        return ctypes.cast(getattr(self.libc, name), ctypes.c_void_p)

    def step(self, i: int, name: str, *args: Any) -> None:
        """Makes step i a call, after which the next one follows."""
        step = self.steps[i]
        self.libc.getcontext(ctypes.byref(step))
        step.stack, step.stack_size = ctypes.addressof(self.stacks[i]), STACK
        step.link = ctypes.addressof(self.steps[i + 1]) if i + 1 < len(self.steps) else None
        held = [x if isinstance(x, ctypes.Array) else ctypes.c_long(x) for x in args]
        self.libc.makecontext(ctypes.byref(step), self.call(name), len(held), *held)

    def cancel(self) -> None:
        """The thread ends, and the process does not."""
        for i in (1, 2, 3):
            self.step(i, "syscall", EXIT_THREAD[platform.machine()], 0)
        os.write(self.tell, b"x")
        self.libc.pthread_join(self.thread, None)
        os.close(self.ask)
        os.close(self.tell)
