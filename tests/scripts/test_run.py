"""Run folders: made whole or not at all, one writer each, and exact after an interruption."""

import errno
import json
import logging
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rheo.errors import RheoError
from rheo.scripts.config.compose import compose
from rheo.scripts.stopping import Stop
from rheo.scripts.store import waiting
from rheo.scripts.store.evaluations import read_evaluation
from rheo.scripts.store.journal import Events
from rheo.scripts.store.run import Run
from rheo.scripts.store.where import locate

CONFIG = compose(["algo=sac", "env=hopper"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(waiting, "PAUSE", 0.0)
    logging.getLogger("rheo").propagate = True
    return tmp_path


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_run_says_what_it_depends_on() -> None:
    with Run.create("a/b", CONFIG) as run:
        start = json.loads((run.path / "run.json").read_text())["starts"][0]
        assert (run.path / "lock").exists()
    assert run.path == Path("runs/a/b")
    assert start["versions"]["torch"] == torch.__version__ and start["cpus"] >= 1
    assert {"commit", "command", "host", "started"} <= set(start)
    assert Run.open("a/b").config == CONFIG == Run.open("runs/a/b").config
    assert not (run.path / "lock").exists()


def test_a_folder_that_holds_something_is_refused_and_left_alone(here: Path) -> None:
    Run.create("a", CONFIG).close()
    with pytest.raises(RheoError, match="already holds a run; `rheo resume runs/a`"):
        Run.create("a", CONFIG)
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RheoError, match="not empty .it holds thesis.tex"):
        Run.create(str(here / "mine"), CONFIG)
    assert [path.name for path in (here / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["/proc/nothing/x", "file/x"])
def test_an_unwritable_folder_is_refused_with_nothing_left(here: Path, name: str) -> None:
    (here / "runs").mkdir()
    (here / "runs" / "file").write_text("x")
    with pytest.raises(RheoError, match="cannot write to") as caught:
        Run.create(name, CONFIG)
    assert caught.value.code == 2
    assert [path.name for path in (here / "runs").iterdir()] == ["file"]


def test_a_run_that_fails_to_start_leaves_nothing(here: Path) -> None:
    with full_disk(100), pytest.raises(RheoError, match="cannot write to runs/a: File too large"):
        Run.create("a", CONFIG)
    assert not (here / "runs" / "a").exists()


@pytest.mark.parametrize("name", ["", "../a", "a/../../b"])
def test_names_stay_below_the_runs_folder(name: str) -> None:
    with pytest.raises(RheoError, match="cannot be empty or contain"):
        locate(name)


def test_an_unknown_run_is_answered_with_the_nearest() -> None:
    Run.create("hopper-1", CONFIG).close()
    with pytest.raises(RheoError, match="no run at runs/hoper-1 .*did you mean 'hopper-1'"):
        Run.open("hoper-1")


def test_metrics_are_logged_as_numbers_in_both_places() -> None:
    with Run.create("a", CONFIG) as run:
        row = {"policy/loss": torch.tensor(0.5), "env/return": 3, "critic/q": float("nan")}
        numbers = run.log(10, row)
        run.log(20, {"policy/loss": torch.tensor(0.25, dtype=torch.float64)})
    assert numbers["policy/loss"] == 0.5 and numbers["critic/q"] != numbers["critic/q"]
    first, second = run.rows()
    assert list(first) == ["step", "policy/loss", "env/return", "critic/q", "time/wall"]
    assert (first["step"], first["env/return"], first["critic/q"]) == (10, 3.0, None)
    assert second["policy/loss"] == 0.25 and second["time/wall"] >= first["time/wall"] >= 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "events")).Reload()
    assert [event.value for event in events.Scalars("policy/loss")] == [0.5, 0.25]


def test_evaluations_are_kept_by_step_and_label() -> None:
    with Run.create("a", CONFIG) as run:
        run.record_eval(5, [{"return": 1.0}], **{"eval/return": 1.0})
        run.record_eval(5, [], label="100")
    files = sorted(path.name for path in (run.path / "eval").iterdir())
    assert files == ["000000000005-100.json", "000000000005.json"]
    stored = read_evaluation(run.path / "eval" / "000000000005.json")
    assert stored == {"step": 5, "eval/return": 1.0, "episodes": [{"return": 1.0}]}


def interrupted() -> Run:
    """A run that logged to step 50 and saved at 20 and 40, then was killed."""
    run = Run.create("a", CONFIG)
    for step in range(10, 60, 10):
        run.log(step, {"x/y": step})
        if step in (20, 40):
            run.save(step, {"algo": {"w": torch.full((50,), step)}, "n": step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "x/')
    run.close()
    return run


def test_resuming_removes_what_was_logged_after_the_checkpoint() -> None:
    interrupted()
    with Run.open("a", write=True) as run:
        tree = run.resume()
        assert tree is not None and run.step == 40
        assert tree["n"] == 40 and bool((tree["algo"]["w"] == 40).all())
        run.log(50, {"x/y": 51})
    rows = run.rows()
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50] and rows[-1]["x/y"] == 51
    walls = [row["time/wall"] for row in rows]
    assert walls == sorted(walls)
    starts = json.loads((run.path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 40]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "events")).Reload()
    assert [e.value for e in events.Scalars("x/y")] == [10, 20, 30, 40, 51]


def test_a_run_that_got_no_further_than_its_start_starts_over() -> None:
    run = Run.create("a", CONFIG)
    run.log(0, {"eval/return": 1})
    run.close()
    with Run.open("a", write=True) as run:
        assert run.resume() is None and run.rows() == [] and run.step == 0


@pytest.mark.parametrize("lost", ["all", "manifests"])
def test_a_log_without_a_checkpoint_is_refused_and_nothing_is_lost(lost: str) -> None:
    run = interrupted()
    if lost == "all":
        shutil.rmtree(run.path / "ckpt")
    else:
        (run.path / "metrics.jsonl").unlink()
        for file in run.path.glob("ckpt/*/manifest.json"):
            file.unlink()
    before = contents(run.path)
    with (
        Run.open("a", write=True) as run,
        pytest.raises(RheoError, match="no checkpoint") as caught,
    ):
        run.resume()
    assert caught.value.code == 3
    assert contents(run.path) == before


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but its lock."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("text", ['{"starts": [{"st', "[]", '{"starts": 3}', ""])
def test_an_unreadable_run_json_is_set_aside_with_a_note(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = interrupted()
    (run.path / "run.json").write_text(text)
    with Run.open("a", write=True) as run:
        assert run.resume() is not None
    assert (run.path / "run.json.broken").read_text() == text
    starts = json.loads((run.path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [40]
    assert "set aside as run.json.broken" in caplog.text


def test_a_broken_checkpoint_is_passed_over_loudly_and_put_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    newest = interrupted().path / "ckpt" / "000000000040"
    data = bytearray((newest / "algo.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "algo.safetensors").write_bytes(data)
    reader = Run.open("a")
    with pytest.raises(RheoError, match="algo.safetensors: corrupted"):
        reader.load(strict=True)
    tree = reader.load()
    assert tree is not None and tree["n"] == 20 and newest.exists()
    with Run.open("a", write=True) as run:
        caplog.clear()
        tree = run.resume()
        assert tree is not None and (tree["n"], run.step) == (20, 20)
        assert "REFUSED" in caplog.text and "FALLING BACK" in caplog.text
        assert [row["step"] for row in run.rows()] == [10, 20]
        assert newest.with_name("000000000040.broken").exists() and not newest.exists()
        run.save(40, {"n": 41})
    tree = Run.open("a").load(strict=True)
    assert tree is not None and tree["n"] == 41


def test_a_run_whose_checkpoints_are_all_broken_is_refused_naming_each() -> None:
    run = interrupted()
    for file in run.path.glob("ckpt/*/state.json"):
        file.write_text("{}")
    with pytest.raises(RheoError, match="(?s)no checkpoint can be trusted.*40.*20") as caught:
        Run.open("a").load()
    assert caught.value.code == 3


def test_resuming_takes_the_lock_first() -> None:
    interrupted()
    with pytest.raises(RuntimeError, match="write=True"):
        Run.open("a").resume()


def test_a_full_disk_holds_rows_back_and_loses_none(caplog: pytest.LogCaptureFixture) -> None:
    with Run.create("a", CONFIG) as run:
        run.events.dropped = 1  # TensorBoard has its own test
        run.log(1, {"x/y": 1.0})
        size = (run.path / "metrics.jsonl").stat().st_size
        with full_disk(size + 10):
            run.log(2, {"x/y": 2.0})
            run.log(3, {"x/y": 3.0})
            assert [row["step"] for row in run.rows()] == [1]
            assert (run.path / "metrics.jsonl").stat().st_size == size
        run.log(4, {"x/y": 4.0})
        assert [row["x/y"] for row in run.rows()] == [1.0, 2.0, 3.0, 4.0]
    assert "going on" in caplog.text


def test_rows_that_can_never_be_written_stop_the_run_with_code_three() -> None:
    run = Run.create("a", CONFIG)
    run.events.dropped = 1
    with full_disk(0):
        for step in range(4):
            run.log(step, {"x/y": 1.0})
        with pytest.raises(RheoError, match="5 failures in a row") as caught:
            run.log(4, {"x/y": 1.0})
    assert caught.value.code == 3
    run.close()


def test_a_full_disk_keeps_the_last_good_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    with Run.create("a", CONFIG) as run:
        tree: dict[str, Any] = {"algo": {"w": torch.zeros(5000)}}
        assert run.save(1, tree) is not None
        with full_disk(2000):
            for step in range(2, 6):
                assert run.save(step, tree) is None
            with pytest.raises(RheoError, match="in a row") as caught:
                run.save(6, tree)
        assert caught.value.code == 3 and "the last good checkpoint is kept" in caplog.text
        assert [path.name for path in (run.path / "ckpt").iterdir()] == ["000000000001"]
        assert run.save(7, tree) is not None
        with full_disk(2000):
            assert [run.save(step, tree) for step in range(8, 12)] == [None] * 4


def test_what_the_disk_refused_is_tried_again_after_pauses_that_double(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 100.0
    monkeypatch.setattr(waiting, "PAUSE", 1.0)
    monkeypatch.setattr(waiting, "monotonic", lambda: clock)
    tries: list[float] = []

    def refuse(_: list[Any]) -> None:
        tries.append(clock)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run.create("a", CONFIG) as run:
        run.events.dropped = 1
        run.journal.waiting.write = refuse
        with pytest.raises(RheoError, match=r"metrics.jsonl: \d+ rows not written: No space left"):
            while clock < 200:
                run.log(int(clock * 4), {"x/y": 1.0})
                clock += 0.25
    assert tries[:5] == [100, 101, 103, 107, 115]  # and once more at its end


def test_an_evaluation_waits_for_the_disk_as_rows_do(caplog: pytest.LogCaptureFixture) -> None:
    with Run.create("a", CONFIG) as run:
        run.events.dropped = 1
        with full_disk(20):
            file = run.record_eval(5, [{"return": 1.0}])
            run.record_eval(6, [{"return": 2.0}])
        assert "2 files not written" in caplog.text and not file.exists()
        run.log(7, {"x/y": 1.0})
        assert sorted(path.name for path in file.parent.iterdir()) == [
            file.name,
            "000000000006.json",
        ]
        assert json.loads(file.read_text())["episodes"] == [{"return": 1.0}]
        step = 8
        with full_disk(20), pytest.raises(RheoError, match="5 failures in a row") as caught:
            for step in range(8, 20):
                run.record_eval(step, [{"return": 1.0}])
        assert caught.value.code == 3 and step == 12


def test_an_evaluation_by_hand_says_at_once_that_it_is_not_kept() -> None:
    Run.create("a", CONFIG).close()
    with (
        full_disk(20),
        pytest.raises(RheoError, match="cannot write to .*eval: File too large") as no,
    ):
        Run.open("a").record_eval(5, [{"return": 1.0}])
    assert no.value.code == 3


def test_no_checkpoint_is_published_before_its_rows(caplog: pytest.LogCaptureFixture) -> None:
    """A process that is killed after the save would have lost them."""
    with Run.create("a", CONFIG) as run:
        run.events.dropped = 1
        run.log(1, {"x/y": 1.0})
        size = (run.path / "metrics.jsonl").stat().st_size
        tree: dict[str, Any] = {"algo": {"n": 1}}
        with full_disk(size + 10):
            run.log(2, {"x/y": 2.0})
            assert run.save(2, tree) is None and "have no room" in caplog.text
            assert not (run.path / "ckpt").exists()
        assert run.save(3, tree) is not None
        assert [row["step"] for row in run.rows()] == [1, 2]


def test_a_run_that_ends_on_a_full_disk_gives_its_lock_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run.create("a", CONFIG)
    with full_disk(0):
        run.log(1, {"x/y": 2.0})
        run.record_eval(5, [])
        run.close()
    assert not (run.path / "lock").exists()
    assert "1 rows not written" in caplog.text and "1 files not written" in caplog.text


def test_events_wait_for_the_disk_too_and_every_file_stays_readable(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = Events(small_disk(16_384) / "events")
    wide = {f"group/name{k}": float(k) for k in range(40)}
    step = 0
    while not events.waiting.things:
        events.add(step, wide)
        step += 1
    events.add(step, wide)
    assert len(events.waiting.things) == 2 and "2 rows not written: No space left" in caplog.text
    seen = EventAccumulator(str(events.folder)).Reload()
    assert [one.step for one in seen.Scalars("group/name7")] == list(range(step - 1))
    remount = ["mount", "-o", "remount,size=100000", str(events.folder.parent)]
    subprocess.run(remount, check=True)
    events.add(step + 1, wide)
    events.close("finished")
    seen = EventAccumulator(str(events.folder)).Reload()
    assert [one.step for one in seen.Scalars("group/name7")] == list(range(step + 2))


def test_tensorboard_that_fails_stops_alone(caplog: pytest.LogCaptureFixture) -> None:
    with Run.create("a", CONFIG) as run:
        (run.path / "events").write_text("a file where the folder should be")
        run.log(1, {"x/y": 1.0})
        run.log(2, {"x/y": 2.0})
        assert run.events.dropped == 2
    assert len(run.rows()) == 2 and "TensorBoard events stop here" in caplog.text


def test_the_resume_command_can_be_typed(here: Path) -> None:
    with Run.create("a", CONFIG) as run:
        assert run.resume_command() == "rheo resume runs/a"
    with Run.create(str(here / "far"), {**CONFIG, "config_dir": ["/lab"]}) as run:
        assert run.resume_command() == "rheo resume far --config-dir /lab"
    with Run.create("a b=c", {**CONFIG, "config_dir": ["/my lab"]}) as run:
        assert run.resume_command() == "rheo resume 'runs/a b=c' --config-dir '/my lab'"


@pytest.mark.parametrize("name", ["lr=0.1", "~nobody-there/x", "Zürich #3", "[a,b]", "it's"])
def test_a_run_may_be_called_anything(here: Path, name: str, monkeypatch) -> None:
    Run.create(name, CONFIG).close()
    assert Run.open(name).path == Path("runs", name) == Run.open(f"runs/{name}").path
    monkeypatch.chdir(here / "runs" / name)
    assert Run.open(".").path == here / "runs" / name
    assert Run.open(f"../{Path(name).name}").path == Path("..", Path(name).name)


HOLD = """
import sys, time
from rheo.scripts.config.compose import compose
from rheo.scripts.store.run import Run
run = Run.create("a", compose(["algo=sac", "env=hopper"]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_in_use_is_refused_and_a_dead_owners_lock_is_not(here: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        message = rf"runs/a is in use by process {holder.pid} on .* since"
        with pytest.raises(RheoError, match=message) as caught:
            Run.open("a", write=True)
        assert caught.value.code == 2
        with pytest.raises(RheoError, match=message):
            Run.create("a", CONFIG)
        assert Run.open("a").load() is None  # reading needs no lock
    finally:
        holder.kill()
        holder.wait()
    assert (here / "runs" / "a" / "lock").exists()
    with Run.open("a", write=True) as run:
        assert run.resume() is None


def test_a_lock_of_another_machine_is_honoured(here: Path) -> None:
    Run.create("a", CONFIG).close()
    lock = here / "runs" / "a" / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "2026-01-01"}))
    with pytest.raises(RheoError, match="process 1 on elsewhere .*remove runs/a/lock"):
        Run.open("a", write=True)
    lock.write_text("{")
    Run.open("a", write=True).close()


def test_a_forked_child_does_not_give_the_lock_back() -> None:
    import os

    with Run.create("a", CONFIG) as run:
        assert run.lock is not None
        child = os.fork()
        if child == 0:
            run.lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RheoError, match="in use"):
            Run.open("a", write=True)


def test_a_flag_that_nobody_raised_is_false() -> None:
    assert not Stop()
