"""A process that was asked to stop and does not: where it stands is told, and in the end it ends.

A handler written in Python runs when the main thread is back in Python, which one that is asleep in
C, or in a loop there, is not. So signals are read from a pipe, into which the interpreter writes
them as they come (`signal.set_wakeup_fd`), by a thread of its own. A call in C that keeps the
interpreter's lock keeps that one from running too: nothing but SIGKILL ends it.
"""

import contextlib
import logging
import math
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from time import monotonic
from typing import Any

from rheo.errors import REQUEUE

log = logging.getLogger("rheo")
PATIENCE = 10.0  # seconds after which it is said why nothing has stopped yet
GRACE = 30.0  # seconds after which a process ends that has not stopped
SAVING = 10  # times as long is waited for a save that is under way
SECOND = 3.0  # seconds in which a second Ctrl-C is heard where Python runs
SPEAKING = 2.0  # seconds that the last word may take
OVER = 0  # no signal's number
leave = os._exit  # no other way leads out of a thread while the main one stands


class Watch:
    """Inside, a wish to stop that is not followed is told, and ends the process (code 75) at last.

    stop: has `grace`, seconds or None, `saving`, `interrupted` (a second Ctrl-C was heard) and
    `last_word`, what is left behind. heard: numbers of the signals that ask to stop.
    """

    def __init__(self, stop: Any, heard: Sequence[int]) -> None:
        self.stop, self.numbers = stop, heard
        self.since: float | None = None  # when the first signal came
        self.pressed: float | None = None  # when Ctrl-C came again
        self.name, self.told = "", 0.0

    def __enter__(self) -> "Watch":
        self.out, self.into = os.pipe()
        os.set_blocking(self.into, False)
        self.before = signal.set_wakeup_fd(self.into, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.before)
        os.write(self.into, bytes([OVER]))
        self.thread.join()
        os.close(self.into)
        os.close(self.out)

    def run(self) -> None:
        """The thread."""
        pause = PATIENCE
        while True:
            ready = select.select([self.out], [], [], pause)[0]
            came = os.read(self.out, 64) if ready else b""
            if OVER in came:
                return
            for number in came:
                self.note(number)
            if self.since is not None:
                pause = self.look(monotonic())

    def note(self, number: int) -> None:
        """A signal came."""
        if number not in self.numbers:
            return
        name = signal.Signals(number).name
        if name == self.name == "SIGINT" and self.pressed is None:
            self.pressed = monotonic()
        self.since, self.name = self.since or monotonic(), name

    def look(self, now: float) -> float:
        """What is due now is done; seconds until something is again."""
        assert self.since is not None
        grace = (self.stop.grace or math.inf) * (SAVING if self.stop.saving else 1)
        ends, speaks = self.since + grace, self.since + self.told + PATIENCE
        deaf = self.pressed is not None and not self.stop.interrupted
        presses = self.pressed + SECOND if deaf and self.pressed else math.inf
        asked = f"stopped by {self.name}"
        if now >= presses:
            self.end("stopped by a second Ctrl-C: ends at once, unsaved", 128 + signal.SIGINT)
        elif now >= ends:
            text = f"{asked} {now - self.since:.0f} s ago and still at work ({self.place()})"
            self.end(f"{text}: ends here; {self.stop.last_word()}", REQUEUE)
        elif now >= speaks:
            self.told += PATIENCE
            text = "%s %g s ago and still at work (%s); a second Ctrl-C ends at once, unsaved"
            log.warning(text, asked, self.told, self.place())
        return max(min(ends, speaks, presses) - now, 0.01)

    def place(self) -> str:
        """Where the main thread is."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        if frame is None:
            return "it is gone"
        last = traceback.extract_stack(frame)[-1]
        return f"{last.filename}:{last.lineno}, in {last.name}"

    def end(self, text: str, code: int) -> None:
        """Ends the process with a last word, for which nobody is waited long."""
        speaker = threading.Thread(target=speak, args=(text,), daemon=True)
        speaker.start()
        speaker.join(SPEAKING)
        leave(code)
        self.stop.grace = self.pressed = None  # where a test does not let it end


def speak(text: str) -> None:
    """Says it, and leaves a terminal as it was."""
    log.error(text)
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # the live line hid the cursor
        sys.stdout.flush()


def mute() -> None:
    """A forked child's signals are not written into its parent's pipe."""
    with contextlib.suppress(ValueError):  # not of the main thread
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=mute)
