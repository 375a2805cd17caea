"""Being asked to stop."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from rheo.scripts import grace
from rheo.scripts.stopping import SIGNALS, stop_signals


def send(number: int) -> None:
    """Sends a signal to this process and lets Python's handler run."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with stop_signals() as stop:
        assert not stop
        send(number)
        assert stop and stop.signal == number.name
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_what_does_not_stop_is_told_with_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grace, "PATIENCE", 0.1)
    logging.getLogger("rheo").propagate = True
    with stop_signals():
        send(signal.SIGTERM)
        time.sleep(0.5)
    told = [record.getMessage() for record in caplog.records]
    assert "stopped by SIGTERM 0.1 s ago and still at work" in told[0] and len(told) > 1
    assert f"{__file__}:" in told[0] and "in test_what_does_not_stop" in told[0]
    caplog.clear()
    time.sleep(0.3)
    assert not caplog.records


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            send(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_stops_at_once() -> None:
    with stop_signals() as stop, pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
        assert stop.signal == "SIGINT"
        send(signal.SIGINT)


def test_a_repeated_termination_waits_for_the_save() -> None:
    with stop_signals() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.signal == "SIGTERM"


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGINT, 7), (signal.SIGTERM, -15), (signal.SIGUSR1, -10)]
)
def test_forked_workers_leave_saving_to_their_parent(
    number: int, end: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grace, "PATIENCE", 0.05)
    logging.getLogger("rheo").propagate = True
    with stop_signals() as stop:
        child = os.fork()
        if child == 0:
            send(number)
            os._exit(0 if stop else 7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == end
        time.sleep(0.2)
        assert not stop and not caplog.records


# ---- what does not stop --------------------------------------------------------------------------

STUCK = """
import ctypes, os, signal, subprocess, sys, time
from rheo.scripts import cli, grace
from rheo.scripts.stopping import stop_signals

cli.listen()
mutex = ctypes.create_string_buffer(64)
grace.SECOND = 0.5
with stop_signals(float(sys.argv[2])) as stop:
    stop.last_word = lambda: "the last word"
    orders = [f"sleep 0.4; kill -{number} {os.getpid()}" for number in sys.argv[3:]]
    subprocess.Popen(["sh", "-c", "; ".join(orders)])
    {
        "sleeps": lambda: time.sleep(60),
        "spins": lambda: [None for _ in iter(int, 1)],
        "in C": lambda: [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in "ab"],
        "saves": lambda: (setattr(stop, "saving", True), time.sleep(2)),
        "stops": lambda: time.sleep(0.6),
    }[sys.argv[1]]()
sys.exit(9)
"""


def stuck(kind: str, grace: float, *numbers: int) -> tuple[int, str]:
    """How a process ends that does this after these signals."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK, kind, str(grace), *map(str, map(int, numbers))],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("kind", ["sleeps", "spins", "in C"])
def test_a_process_that_does_not_stop_is_ended_with_a_last_word(kind: str) -> None:
    code, told = stuck(kind, 1, signal.SIGTERM)
    assert code == 75 and "ends here; the last word" in told
    assert "stopped by SIGTERM 1 s ago and still at work (<string>:" in told


def test_one_that_stops_or_saves_is_not_ended() -> None:
    assert stuck("stops", 0.5, signal.SIGTERM) == (9, "")
    assert stuck("saves", 0.5, signal.SIGTERM) == (9, "")


def test_two_interrupts_end_at_once_wherever_it_is() -> None:
    assert stuck("in C", 60, signal.SIGINT, signal.SIGINT)[0] == 130
    code, told = stuck("sleeps", 60, signal.SIGINT, signal.SIGINT)
    assert code == -signal.SIGINT and "KeyboardInterrupt" in told
