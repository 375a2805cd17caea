"""Progress and timing."""

import io
import time

import pytest

from rheo.scripts.display import Display, Timer, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_time_inside_an_inner_span_counts_for_the_inner_one_only() -> None:
    timer = Timer()
    with timer("env"):
        time.sleep(0.02)
        with timer("act"):
            time.sleep(0.04)
        time.sleep(0.02)
    with timer("learn"):
        time.sleep(0.02)
    time.sleep(0.02)
    shares = timer.shares()
    assert list(shares) == ["env", "act", "learn"]
    assert sum(shares.values()) < 0.95
    assert shares["act"] / shares["learn"] == pytest.approx(2, rel=0.4)
    assert shares["env"] / shares["act"] == pytest.approx(1, rel=0.4)


def test_shares_start_anew_after_each_report() -> None:
    timer = Timer()
    with timer("env"):
        time.sleep(0.01)
    timer.shares()
    with timer("learn"):
        time.sleep(0.01)
    shares = timer.shares()
    assert shares["env"] == 0 and shares["learn"] > 0.8


def test_a_report_inside_a_span_counts_what_has_passed_of_it() -> None:
    timer = Timer()
    with timer("env"):
        time.sleep(0.01)
        assert timer.shares()["env"] > 0.8
        time.sleep(0.01)
    assert timer.shares()["env"] > 0.8


def test_a_span_that_raises_is_closed() -> None:
    timer = Timer()
    with pytest.raises(KeyError), timer("env"):
        raise KeyError
    assert timer.stack == []


def test_without_a_terminal_every_update_is_a_plain_line() -> None:
    out = io.StringIO()
    with Display(1000, title="demo", stream=out) as display:
        for step in range(100):
            display.tick(step)
        time.sleep(0.01)
        display.update(100, {"env/return": 12.5}, {"env": 0.25, "learn": 0.5})
        display.note("a note")
        display.tick(200)
    line, note = out.getvalue().splitlines()
    assert line.startswith("demo | step 100 / 1,000 (10%) | return 12.5 | ")
    assert "steps/s | env 25% learn 50% | " in line and line.endswith(" left")
    assert note == "a note" and "\x1b" not in line


def test_success_stands_beside_the_return() -> None:
    out = io.StringIO()
    with Display(1000, stream=out) as display:
        display.update(100, {"env/return": 12.5, "env/success": 0.25})
        display.update(200, {"eval/return": 3.0, "eval/success_once": 0.8})
    first, second = out.getvalue().splitlines()
    assert " | return 12.5 success 25% | " in first
    assert " | return 12.5 success 25% | eval return 3 success 80% | " in second


def test_a_chunk_that_overshoots_the_end_shows_a_finished_run() -> None:
    out = io.StringIO()
    with Display(1000, stream=out) as display:
        time.sleep(0.01)
        display.update(1012, {})
    line = out.getvalue().strip()
    assert "(100%)" in line and line.endswith(" 0s left")


def test_a_resumed_run_measures_its_own_speed() -> None:
    display = Display(2000, start=1000, stream=io.StringIO())
    time.sleep(0.05)
    display.update(1010, {})
    assert 50 < display.rate <= 200


def test_the_speed_follows_a_run_that_slows_down_after_its_warm_up() -> None:
    display = Display(10_000, stream=io.StringIO())
    display.update(5000, {})
    fast = display.rate
    for step in range(5001, 5007):
        time.sleep(0.01)
        display.update(step, {})
    assert display.rate <= 100 < fast
    display.update(5006, {"eval/return": 1.0})
    assert display.rate > 10


def test_on_a_terminal_one_line_is_redrawn_and_notes_stay_above() -> None:
    out = Terminal()
    with Display(10, title="demo", stream=out) as display:
        display.update(1, {"eval/return": 3.0})
        display.note("saved [bold]as[/bold] text")
        display.refresh = 0.0
        display.tick(5)
    text = out.getvalue()
    assert "saved [bold]as[/bold] text" in text
    assert "step 1 / 10" in text and "step 5 / 10" in text and "\x1b[2K" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "25h00m")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert duration(float("inf")) == "?"
