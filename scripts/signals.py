"""Being asked to stop: a flag for the loop to look at, so that it can save and leave."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stop:
    """Whether a signal asked the process to stop; true in a condition once it did."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM, SIGINT and SIGUSR1 set the flag; a second SIGINT raises KeyboardInterrupt.

    Handlers are put back at the end. Forked children inherit them: there SIGINT does nothing (the
    parent ends its workers) and the others do what they do by default.
    """
    stop, owner = Stop(), os.getpid()

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT and stop.signal == "SIGINT":
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
