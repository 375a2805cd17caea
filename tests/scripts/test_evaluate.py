"""`rheo eval`: the same numbers as during training, from the run folder alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rheo.envs.rollout import Episode
from rheo.scripts.cli import main
from rheo.scripts.errors import RheoError
from rheo.scripts.evaluate import parse, score
from rheo.scripts.run import Run


def last_evaluation(name):
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "eval/return" in row][-1]


@pytest.mark.parametrize(("algo", "episodes"), [("rfm", 3), ("sac", 3), ("rfm", 9)])
@pytest.mark.parametrize("fast", ["precision", "off"])
def test_an_evaluation_equals_the_one_during_training(tiny, algo, episodes, fast):
    """To the last bit and for every episode; nine episodes use the faster product."""
    words = tiny(algo, "r", f"episodes={episodes}", "steps=120", f"fast={fast}")
    assert main(["train", *words]) == 0
    torch.set_flush_denormal(False)
    assert main(["eval", "r", f"episodes={episodes}"]) == 0
    during = json.loads(Path(f"runs/r/eval/{120:012d}.json").read_text())
    after = json.loads(Path(f"runs/r/eval/{120:012d}-{episodes}.json").read_text())
    assert len(after["episodes"]) == episodes and during["episodes"] == after["episodes"]
    row = last_evaluation("r")
    figures = {name for name in row if name.startswith("eval/")}
    assert figures and all(after[name] == row[name] for name in figures)


def test_the_report_names_the_run_the_task_and_the_interval(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    shutil.move("runs/r", "moved")  # the folder knows everything, wherever it is
    capsys.readouterr()
    assert main(["eval", "moved", "episodes=4"]) == 0
    out = capsys.readouterr().out
    assert "moved, step 60, InvertedPendulum-v5, 4 episodes" in out
    assert "95 % interval [" in out and "length " in out
    assert f"episodes in moved/eval/{60:012d}-4.json" in out


def test_a_run_can_be_evaluated_while_it_is_being_written(tiny):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    with Run.open("r", write=True):
        assert main(["eval", "r", "episodes=1"]) == 0


def test_runs_without_environment_or_checkpoint_are_refused(tiny, capsys):
    assert main(["train", *tiny("bc", "b", "steps=5")]) == 0
    assert main(["eval", "b"]) == 2
    assert "nothing to evaluate it in" in capsys.readouterr().err
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    shutil.rmtree("runs/r/ckpt")
    assert main(["eval", "r"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_options_are_checked():
    assert parse(["episodes=7", "device=cpu"]) == (7, ["device=cpu"])
    assert parse([]) == (50, [])
    for word, message in [
        ("episode=3", "did you mean 'episodes'"),
        ("episodes=0", "positive whole number"),
        ("episodes=x", "positive whole number"),
        ("algo.policy_lr=1", "unknown option"),
    ]:
        with pytest.raises(RheoError, match=message):
            parse([word])


def test_a_changed_package_is_said_aloud(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    file = Path("runs/r/run.json")
    saved = json.loads(file.read_text())
    saved["starts"][-1]["versions"]["mujoco"] = "1.50"
    file.write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["eval", "r", "episodes=1"]) == 0
    assert "mujoco 1.50 made this run" in capsys.readouterr().err


def test_a_score_is_given_where_one_is_defined():
    rows = [Episode(0, 0, 0, 3234.3, 1000, True, False)]
    assert score("Hopper-v4", rows)["eval/score"] == pytest.approx(100.0)
    assert "eval/score" not in score("Hopper-v5", rows)
