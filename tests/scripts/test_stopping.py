"""Being asked to stop."""

import logging
import os
import signal
import time

import pytest

from rheo.scripts import stopping
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
    monkeypatch.setattr(stopping, "PATIENCE", 0.1)
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
def test_forked_workers_leave_saving_to_their_parent(number: int, end: int) -> None:
    with stop_signals() as stop:
        child = os.fork()
        if child == 0:
            send(number)
            os._exit(0 if stop else 7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == end
        assert not stop
