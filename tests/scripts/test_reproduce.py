"""`rheo reproduce`: rows of pages run again, with what they begin with, and compared."""

import csv
import json
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from rheo.envs import packages
from rheo.scripts.cli import main
from rheo.scripts.summaries import Line, Made, text_of

ENV = "InvertedPendulum-v5"
SAC = "rheo train algo=sac env=inverted_pendulum critic.width=16 policy.width=16 steps=60 "
SAC += "source.warmup=20 source.batch_size=8 log_every=20 episodes=2"
PPO = "rheo train algo=ppo init=base env=inverted_pendulum env.num_envs=2 source.decisions=20 "
PPO += "steps=80 log_every=40 eval_every=40 episodes=2"
BASE = "rheo train algo=bc_gaussian data=random.npz env=inverted_pendulum policy.width=16 steps=10 "
BASE += "log_every=5 episodes=2 seed=0"


def told(row: str, command: str, seed: str = "0", **more) -> Line:
    """A line of a summary."""
    own: dict = {"mean": 10.0, "low": 0.0, "high": 1000.0, "episodes": 2.0, "frames": 60.0} | more
    return Line(row, ENV, "return", "m", seed=seed, command=command, **own)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Summaries of rows that take seconds."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "mine"
    place.mkdir()
    lines = [
        told("tiny/sac/pole", SAC, "0", mean=3.0, minutes=0.5, versions="rheo 0.0, torch 1.0"),
        told("tiny/sac/pole", SAC, "1", mean=60.0, minutes=0.5),
        told("tiny/high/pole", SAC, low=5000.0, high=5001.0),
        told("tiny/ppo/pole", PPO, evaluation="episodes=3 seed=11"),
        told("tiny/lost/pole", "rheo train algo=bc data=lost.npz"),
        told("tiny/silent/pole", ""),
        told("tiny/away/pole", SAC)._replace(environment="Nowhere-v0 speed=1"),
    ]
    made = [
        Made("random.npz", "rheo collect random env=inverted_pendulum steps=300 num_envs=2 out=x"),
        Made("base", BASE, minutes=1.0),
        Made("lost.npz", "", "somebody's hands"),
    ]
    (place / "tiny.csv").write_text(text_of(lines))
    (place / "made.csv").write_text(text_of(made))
    (place / "tiny.yaml").write_text("title: T\nsections: [{title: S, rows: tiny}]\n")
    return place


def call(folder: Path, *words: str) -> int:
    """The verb's exit status."""
    return main(["reproduce", *words, f"summaries={folder}"])


def test_a_row_is_run_with_its_seeds_compared_and_not_run_twice(folder: Path, capsys) -> None:
    assert call(folder, "tiny/sac/pole") == 0
    out = capsys.readouterr().out
    assert "2 runs of 60 frames; about 1.0 minutes" in out
    assert "rheo 0.0, here" in out and "torch 1.0, here" in out
    assert "0 done before, 0 to go on with, 2 new" in out and "inside the page's interval" in out
    place = Path("runs/reproduce/tiny-sac-pole")
    with (place / "report.csv").open() as file:
        whole, *runs = csv.DictReader(file)
    means = [json.loads(one.read_text()) for one in place.glob("seed=*/eval/000000000060.json")]
    ours = sum(row["ret"] for one in means for row in one["episodes"]) / 4
    assert float(whole["mean"]) == pytest.approx(ours, abs=1e-3)
    assert [row["seed"] for row in runs] == ["0", "1"]
    (shown,) = [line for line in out.splitlines() if line.startswith("here")]
    assert float(shown.split()[1]) == pytest.approx(ours, abs=0.06)
    assert call(folder, "tiny/sac/pole", "seeds=1") == 0
    assert "1 done before, 0 to go on with, 0 new" in capsys.readouterr().out


def test_what_lies_outside_the_interval_is_said_by_the_exit_status(folder: Path, capsys) -> None:
    assert call(folder, "tiny/high/pole", "out=other") == 5
    out = capsys.readouterr().out
    assert "outside the page's interval" in out and " below it" in out
    assert Path("runs/other/tiny-high-pole/seed=0/config.yaml").is_file()


def test_what_a_row_begins_with_is_made_first_and_once(folder: Path, capsys) -> None:
    assert call(folder, "tiny/ppo/pole") == 0
    out = capsys.readouterr().out
    assert "begins with random.npz, base" in out and "making runs/reproduce/made/random.npz" in out
    run = Path("runs/reproduce/tiny-ppo-pole/seed=0")
    (file,) = run.glob("eval/*-3-seed=11.json")  # evaluated as the page's row was
    before = file.stat().st_mtime_ns
    assert call(folder, "tiny/ppo/pole") == 0
    again = capsys.readouterr().out
    assert "making" not in again and file.stat().st_mtime_ns == before
    command = json.loads((run / "run.json").read_text())["starts"][0]["command"]
    assert "init=runs/reproduce/made/base" in command


class Interrupting(gymnasium.Env):
    """Sends its process a signal, as Ctrl-C does, in its third step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.count = 0
        return np.zeros(2), {}

    def step(self, action):
        self.count += 1
        if self.count == 3:
            signal.raise_signal(signal.SIGINT)
        return np.zeros(2), 1.0, False, self.count == 4, {}


def test_a_part_of_a_data_set_is_not_taken_for_the_whole(folder: Path, capsys) -> None:
    if "RheoCut-v0" not in gymnasium.registry:
        gymnasium.register("RheoCut-v0", Interrupting)  # pyright: ignore[reportArgumentType]
    words = "env=gym env.id=RheoCut-v0 steps=30 num_envs=1 out=x"
    (folder / "made.csv").write_text(text_of([Made("cut.npz", f"rheo collect random {words}")]))
    row = told("tiny/cut/pole", "rheo train algo=bc_gaussian data=cut.npz steps=10")
    (folder / "tiny.csv").write_text(text_of([row]))
    assert call(folder, "tiny/cut/pole") == 75
    assert "stopped by SIGINT" in capsys.readouterr().err
    made = Path("runs/reproduce/made")
    assert (made / "part-cut.npz").is_file() and not (made / "cut.npz").exists()


def test_a_dry_run_prints_the_commands_and_writes_nothing(folder: Path, capsys) -> None:
    assert call(folder, "tiny/ppo/pole", "seeds=4,5", "dry=true") == 0
    *_, collect, base, four, judged, five, _ = capsys.readouterr().out.splitlines()
    assert collect.endswith("num_envs=2 out=runs/reproduce/made/random.npz")
    assert "data=runs/reproduce/made/random.npz" in base and base.endswith("made/base")
    assert "seed=4 name=runs/reproduce/tiny-ppo-pole/seed=4" in four and "seed=5" in five
    assert judged == "rheo eval runs/reproduce/tiny-ppo-pole/seed=4 episodes=3 seed=11"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny/sack/pole"], "there is none; did you mean tiny/sac/pole or"),
        (["tiny/silent/pole"], "tiny/silent/pole: its command is not recorded"),
        (["tiny/lost/pole"], "lacks somebody's hands; put it at runs/reproduce/made/lost.npz"),
        (["tiny/away/pole"], "Nowhere-v0 needs a package: pip install no-such"),
        (["tiny/sac/pole", "seeds=0,x"], "seeds=0,x: a whole number"),
        (["tiny/sac/pole", "seeds=0,0"], "seeds=0,0: a seed is named twice"),
        (["tiny/sac/pole", "sed=0"], "unknown option 'sed'; did you mean 'seeds'?"),
        (["dry=true"], "ROW is missing"),
    ],
)
def test_a_row_that_cannot_be_run_is_answered_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], message: str
) -> None:
    monkeypatch.setitem(packages.ELSEWHERE, "Nowhere", ("no_such_module", "no-such"))
    assert call(folder, *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_rows_are_listed_with_what_they_take_and_lack(folder: Path, capsys) -> None:
    assert call(folder) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["tiny/sac/pole"] == "31.5 return, 2 x 0.5 minutes"
    assert lines["tiny/lost/pole"].startswith("10.0 return, minutes not recorded; not here: begins")
    assert main(["reproduce", "summaries=nowhere"]) == 2


def test_what_lacks_may_be_put_where_it_is_looked_for(folder: Path, capsys) -> None:
    place = Path("runs/reproduce/made/lost.npz")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert call(folder, "tiny/lost/pole", "dry=true") == 0
    assert f"data={place}" in capsys.readouterr().out


def test_the_shipped_rows_are_the_default(capsys) -> None:
    assert main(["reproduce", "locomotion-v5/rfm/hopper", "dry=true"]) == 0
    assert "rheo train algo=rfm env=hopper" in capsys.readouterr().out
