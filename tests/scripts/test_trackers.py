"""Trackers: a run sends what it logs, goes on there after a cut, and no tracker can stop it."""

import importlib
import importlib.util
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose, load
from rheo.scripts.store.run import Run
from rheo.scripts.store.services import FINISHED, STOPPED

SINK = '''
import json, time

class Sink:
    """Writes what it is told to a file. fault: what happens at row `at`."""

    def __init__(self, *, path: str, fault: str = "", at: int = 3, timeout: float = 5.0) -> None:
        self.path, self.fault, self.at, self.count = path, fault, at, 0

    def put(self, **told):
        with open(self.path, "a") as file:
            print(json.dumps(told), file=file)

    def begin(self, about):
        print("a package that prints")
        if self.fault == "refuse":
            raise RuntimeError("no key was given")
        self.put(begin=about._asdict())
        return about.id or "id-1", "nowhere"

    def add(self, step, numbers):
        self.count += 1
        if self.fault == "slow":
            time.sleep(0.3)
        if self.count == self.at and self.fault == "raise":
            raise ConnectionError("the server is gone\\nfor good")
        if self.count == self.at and self.fault == "hang":
            time.sleep(600)
        if self.count == self.at and self.fault == "exit":
            import os
            os._exit(9)
        self.put(step=step, row=numbers)

    def end(self, how, final):
        self.put(end=how, final=final)
'''
PARENT = "runs/mlflow.db"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    logging.getLogger("rheo").propagate = True
    (tmp_path / "mine" / "tracker").mkdir(parents=True)
    (tmp_path / "mine" / "mysink.py").write_text(SINK)
    text = "# @package tracker.sink\n_target_: mysink.Sink\n"
    text += f"path: {tmp_path / 'sent'}\nfault: ''\nat: 3\ntimeout: 5.0\n"
    (tmp_path / "mine" / "tracker" / "sink.yaml").write_text(text)
    return tmp_path


def of_sink(here: Path, **values: Any) -> dict[str, Any]:
    """The configuration of a run that has the sink of this test."""
    node = {"_target_": "mysink.Sink", "path": str(here / "sent"), **values}
    return {
        **compose(["algo=sac", "env=hopper"]),
        "tracker": {"sink": node},
        "config_dir": [str(here / "mine")],
    }


def sent(here: Path, key: str = "step") -> list[Any]:
    """What reached the sink, by one of its keys."""
    told = map(json.loads, (here / "sent").read_text().splitlines())
    return [each[key] for each in told if key in each]


def logged(run: Run, steps: range, end: str = FINISHED) -> None:
    """Logs a row of training and one of an evaluation at each step, and closes the run."""
    with run:
        for step in steps:
            run.log(step, {"policy/loss": float(step), "critic/q": math.nan})
            run.log(step, {"eval/return": step + 0.5})
        run.end = end


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_rows_configuration_versions_and_the_last_evaluation_are_sent(here: Path) -> None:
    logged(Run.create("a", of_sink(here)), range(10, 40, 10))
    (about,) = sent(here, "begin")
    assert about["name"] == "a" and about["id"] is None and about["group"] is None
    assert about["config"]["algo"]["_target_"].endswith("SAC")
    assert about["facts"]["versions"]["torch"]
    assert sent(here) == [10, 10, 20, 20, 30, 30]
    assert sent(here, "row")[0]["policy/loss"] == 10 and "time/wall" in sent(here, "row")[0]
    assert sent(here, "end") == [FINISHED] and sent(here, "final") == [{"eval/return": 30.5}]
    state = json.loads(Path("runs/a/tracker/sink.json").read_text())
    assert state == {"id": "id-1", "sent": [30, 2]}
    assert "a package that prints" in Path("runs/a/tracker/sink.log").read_text()


def test_a_run_that_is_cut_goes_on_there_and_sends_no_row_twice(here: Path) -> None:
    run = Run.create("a", of_sink(here))
    run.save(20, {"algo": {}})
    run.log(30, {"x/y": 30.0})
    run.log(40, {"x/y": 40.0})
    run.end = STOPPED
    run.close()
    assert sent(here) == [30, 40] and sent(here, "end") == [STOPPED]
    with Run.open("a", ["--config-dir", str(here / "mine")], write=True) as again:
        again.resume()
        for step in (30, 40, 40, 50):  # of step 40 a row was sent, and one was not
            again.log(step, {"x/y": step + 0.5})
    assert sent(here) == [30, 40, 40, 50]
    assert [about["id"] for about in sent(here, "begin")] == [None, "id-1"]
    assert [row["step"] for row in again.rows()] == [30, 40, 40, 50]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "ConnectionError: the server is gone for good"),
        ("exit", "its process is gone"),
        ("hang", "no answer for 1 s"),
        ("refuse", "RuntimeError: no key was given"),
    ],
)
def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(
    here: Path, caplog: pytest.LogCaptureFixture, fault: str, message: str
) -> None:
    run = Run.create("a", of_sink(here, fault=fault, timeout=5.0 if fault != "hang" else 1.0))
    start = time.monotonic()
    for step in range(5):
        run.log(step, {"x/y": float(step)})
    tracker: Any = run.sinks[2]
    while not tracker.dead and time.monotonic() - start < 60:
        time.sleep(0.05)
    began = time.monotonic()
    for step in range(5, 10):
        run.log(step, {"x/y": float(step)})
    run.close()
    assert time.monotonic() - began < 10
    told = [text for text in warnings_of(caplog) if text.startswith("tracker sink:")]
    assert message in told[0] and "runs/a/tracker/sink.log" in told[0] and "\n" not in told[0]
    assert len([text for text in told if "goes on without it" in text]) == 1
    assert [row["step"] for row in run.rows()] == list(range(10))
    assert gone(tracker.process.pid)


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_slow_tracker_slows_no_run_and_loses_what_does_not_fit(
    here: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rheo.scripts.store.tracker.ROWS", 10)
    run = Run.create("a", of_sink(here, fault="slow", timeout=30.0))
    run.events.dropped = 1  # TensorBoard takes its own time
    start = time.monotonic()
    for step in range(200):
        run.log(step, {"x/y": float(step)})
    assert time.monotonic() - start < 20  # 60 s of waiting are in the sink
    run.end = FINISHED
    run.close()
    told = [text for text in warnings_of(caplog) if text.startswith("tracker sink:")]
    assert "beyond 10 waiting rows some are left out" in told[0] and len(told) == 2
    missing = int(told[1].split()[2])
    assert len(sent(here)) == 200 - missing and 0 < missing < 200
    assert sent(here, "end") == [FINISHED] and len(run.rows()) == 200


def test_a_tracker_that_hangs_at_the_end_is_left(here: Path, caplog) -> None:
    run = Run.create("a", of_sink(here, fault="hang", at=1, timeout=1.0))
    run.log(1, {"x/y": 1.0})
    start = time.monotonic()
    run.close()
    assert time.monotonic() - start < 30
    assert sum("goes on without it" in text for text in warnings_of(caplog)) == 1


def test_a_process_whose_run_was_killed_says_so_and_ends(here: Path) -> None:
    run = Run.create("a", of_sink(here))
    run.log(1, {"x/y": 1.0})
    tracker: Any = run.sinks[2]
    while tracker.process is None:
        time.sleep(0.05)
    until = time.monotonic() + 60
    while not (here / "sent").exists() or not sent(here):
        assert time.monotonic() < until
        time.sleep(0.05)
    tracker.process.terminate()  # a scheduler's signal to all, which the run's process answers
    tracker.process.stdin.close()  # as the system does when the run is killed
    tracker.process.wait(30)
    assert sent(here, "end") == ["failed"]


def test_nothing_is_begun_before_the_first_row_nor_by_who_only_reads(here: Path) -> None:
    Run.create("a", of_sink(here)).close()
    assert not Path("runs/a/tracker").exists()
    reader = Run.open("a", ["--config-dir", str(here / "mine")])
    assert len(reader.sinks) == 2


TRAIN = [
    *("env=inverted_pendulum", "steps=60", "episodes=1", "log_every=20", "eval_every=60"),
    *("critic.width=16", "policy.width=16", "source.warmup=20", "source.batch_size=8"),
]


def test_a_sweep_groups_its_runs_and_a_tracker_does_not_make_them_other_runs(here: Path) -> None:
    mine = ["--config-dir", str(here / "mine")]
    words = ["sweep", "name=s", "seed=0,1", "algo=sac", *TRAIN, *mine]
    assert main([*words, "tracker=sink"]) == 0
    assert [about["group"] for about in sent(here, "begin")] == ["s", "s"]
    assert sorted(about["name"] for about in sent(here, "begin")) == ["seed=0", "seed=1"]
    assert len(sent(here, "final")[0]) > 3 and sent(here, "end") == [FINISHED] * 2
    again = [*words, "steps=80", "tracker=none"]
    assert main(again) == 0  # the same runs, gone on with, now without a tracker
    assert len(sent(here, "begin")) == 2


def test_a_resume_takes_another_tracker_and_keeps_the_settings_of_its_own(here: Path) -> None:
    mine = ["--config-dir", str(here / "mine")]
    other = (here / "mine" / "tracker" / "sink.yaml").read_text().replace(".sink", ".other")
    (here / "mine" / "tracker" / "other.yaml").write_text(other)
    config = compose(["algo=sac", "env=hopper", "tracker=sink", "tracker.sink.at=7", *mine])
    run = Run.create("a", config)
    run.close()
    both = load(run.path, [*mine, "tracker=[sink,other]"])["tracker"]
    assert both["sink"]["at"] == 7 and both["other"]["at"] == 3
    assert load(run.path, [*mine, "tracker=none"])["tracker"] == {}
    assert load(run.path, [*mine, "tracker.sink.at=9"])["tracker"]["sink"]["at"] == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tracker=wand"], "tracker=wand: no such tracker; did you mean 'wandb'?"),
        (["tracker.wandb.project=x"], "tracker.wandb: unknown key; it is there with tracker=wandb"),
        (["policy=[flow,gaussian]"], "policy=[flow,gaussian]: one policy is meant"),
    ],
)
def test_a_word_that_names_no_tracker_is_answered(capsys, words: list[str], message: str) -> None:
    assert main(["train", "algo=sac", "env=hopper", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_missing_package_is_told_with_its_remedy_before_any_work(
    here: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda x, *a: None if x == name else find(x))
    assert main(["train", "algo=sac", f"tracker={name}", *TRAIN]) == 2
    text = f"tracker={name} needs a package that is missing: pip install 'rheo-rl[{name}]'; or go "
    assert text + "without, tracker=none" in capsys.readouterr().err
    assert not Path("runs").exists()


# ---- the packages themselves ---------------------------------------------------------------------


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package may take its time to be imported where other tests run beside this one."""
    monkeypatch.setattr("rheo.scripts.store.tracker.PATIENCE", 300.0)


def with_package(name: str) -> dict[str, Any]:
    """The configuration of a run with a tracker whose package is there."""
    pytest.importorskip(name)
    own = f"tracker.{name}"
    return compose(
        ["algo=sac", "env=hopper", f"tracker={name}", f"{own}.project=p", f"{own}.timeout=300"]
    )


def twice(config: Mapping[str, Any]) -> None:
    """A run that is cut at step 40 with a checkpoint at 20, and goes on to 60."""
    run = Run.create("a", dict(config))
    run.save(20, {"algo": {}})
    logged(run, range(30, 50, 10), STOPPED)
    with Run.open("a", write=True) as again:
        again.resume()
        logged(again, range(30, 70, 10))


@pytest.mark.usefixtures("patience")
def test_wandb_offline_writes_into_the_run_folder(
    here: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    twice(with_package("wandb"))
    assert not [text for text in warnings_of(caplog) if text.startswith("tracker")]
    folders = sorted(Path("runs/a/tracker/wandb").glob("offline-run-*"))
    assert len(folders) == 2
    identity = json.loads(Path("runs/a/tracker/wandb.json").read_text())["id"]
    assert all(folder.name.endswith(identity) for folder in folders)
    kept = [rows_of_wandb(next(folder.glob("*.wandb"))) for folder in folders]
    assert [[row["_step"] for row in rows] for rows in kept] == [[30, 40], [50, 60]]
    assert kept[1][-1]["policy/loss"] == 60 and kept[1][-1]["eval/return"] == 60.5


def rows_of_wandb(file: Path) -> list[dict[str, float]]:
    """The rows of a file of wandb's: LevelDB's log format, with protocol buffers in it."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, part, rows = file.read_bytes(), 7, b"", []  # after the file's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits into what is left of a block
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            record = records.Record.FromString(part)
            items, part = record.history.item, b""
            if items:
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.usefixtures("patience")
def test_trackio_writes_a_table_on_this_machine(
    here: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(here / "trackio"))
    twice(with_package("trackio"))
    assert not [text for text in warnings_of(caplog) if text.startswith("tracker")]
    (file,) = (here / "trackio").glob("p*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    told = [(step, json.loads(text)) for _, step, text in rows]
    assert [step for step, row in told if "policy/loss" in row] == [30, 40, 50, 60]
    assert [row["final/eval/return"] for _, row in told if "final/eval/return" in row][-1] == 60.5


@pytest.mark.usefixtures("patience")
def test_mlflow_writes_a_file_beside_the_runs(
    here: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    twice(with_package("mlflow"))
    assert not [text for text in warnings_of(caplog) if text.startswith("tracker")]
    with sqlite3.connect(PARENT) as base:
        metrics = base.execute("select key, value, step from metrics order by step").fetchall()
        (run,) = base.execute("select name, status from runs").fetchall()
        params = dict(base.execute("select key, value from params").fetchall())
    assert run == ("a", "FINISHED")
    assert [x for x in metrics if x[0] == "policy/loss"] == [
        ("policy/loss", float(step), step) for step in (30, 40, 50, 60)
    ]
    assert ("final/eval/return", 60.5) in [x[:2] for x in metrics]
    assert params["algo._target_"].endswith("SAC") and params["seed"] == "0"
