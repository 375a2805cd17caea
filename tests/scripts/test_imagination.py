"""A world is learned and a policy tuned in it, on the command line, end to end."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_episodes

import rheo
from rheo.envs.imagined import Imagined
from rheo.errors import RheoError
from rheo.scripts import loop as training
from rheo.scripts.assemble import make_env, world_of
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.config.inherit import stored
from rheo.scripts.export import rate
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.worlds import elsewhere, real

NET = ["policy.net.width=8", "policy.net.depth=1", "policy.steps=2"]
MODEL = ["algo.model.width=8", "algo.model.depth=1", "algo.model.members=3"]
PERIODS = ["log_every=20", "eval_every=20", "save_every=1000", "episodes=2"]
WORLD = ["algo=world", "data=d.npz", *MODEL, "source.batch_size=12", *PERIODS, "steps=20"]
TUNE = ["algo=dppo", "init=base", *NET, "algo.tuned_steps=1", "algo.value.width=8", *PERIODS,
        "algo.learn.epochs=1", "env=imagined", "env.model=world", "env.num_envs=3",
        "source.decisions=6", "env.length=7"]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recorded steps of a pendulum's sizes, a world and a clone of them."""
    folder = tmp_path_factory.mktemp("imagined")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_episodes(Path("d.npz"), [30] * 5, obs_dim=4, action_dim=1)
        assert main(["train", *WORLD, "name=world"]) == 0
        clone = ["algo=bc", "data=d.npz", *NET, *PERIODS, "steps=20", "name=base"]
        assert main(["train", *clone]) == 0
        assert main(["train", *TUNE, "steps=40", "name=tuned"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)


def rows(name: str) -> list[dict[str, Any]]:
    """Metrics without what a clock measures."""
    found = Journal(Path("runs", name, "metrics.jsonl")).rows()
    return [{k: v for k, v in row.items() if k[:5] != "time/"} for row in found]


def refused(capsys: Any, *words: str) -> str:
    """The one line that a command is refused with."""
    assert main(list(words)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def same(one: Any, two: Any) -> bool:
    """Whether two saved trees are the same to the last bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    return np.array_equal(one, two) if isinstance(one, np.ndarray) else bool(one == two)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A real signal in this process once a run has passed a step."""
    go_between = training.Loop.between

    def between(self: Any, before: int, now: int, steps: int) -> None:
        go_between(self, before, now, steps)
        if before < step <= now:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training.Loop, "between", between)


def test_a_world_tells_its_losses_on_held_out_steps_and_paths() -> None:
    told = rows("world")
    assert [row["step"] for row in told] == [0, 20, 20]
    held = {"val/nll", "val/mse", "val/end_loss", "val/error_1", "val/error_5", "val/error_20"}
    assert held <= set(told[-1]) and {"world/nll", "world/mse", "world/end_loss"} < set(told[1])
    assert told[-1]["val/nll"] < told[0]["val/nll"]


def test_what_is_evaluated_in_imagination_is_named_so(capsys: Any) -> None:
    told = rows("tuned")
    assert not any(key.startswith("eval/") for row in told for key in row)
    assert "imagined/return" in told[-1] and told[-1]["imagined/length"] <= 7
    assert "env/cut" in told[1]
    assert main(["eval", "tuned", "episodes=2"]) == 0
    assert "imagined return " in capsys.readouterr().out
    assert main(["eval", "tuned", "episodes=2", "env.length=3", "env.quantile=null"]) == 0
    file = Path("runs/tuned/eval/000000000054-2-length=3-quantile=null.json")
    figures = json.loads(file.read_text())
    assert figures["env"] == "imagined" and "eval/return" not in figures
    assert all(row["length"] <= 3 for row in figures["episodes"])
    assert main(["checkpoint", "verify", "tuned"]) == 0


def test_the_same_run_is_evaluated_in_its_environment_and_any_other_in_the_world(
    capsys: Any,
) -> None:
    assert main(["eval", "tuned", "episodes=2", "env=inverted_pendulum"]) == 0
    told = capsys.readouterr().out
    assert "InvertedPendulum-v5 (trained in imagined)" in told and "imagined return" not in told
    words = ["env=imagined", "env.model=world", "env.start=first", "env.length=4"]
    assert main(["eval", "base", "episodes=2", *words]) == 0
    assert "imagined return" in capsys.readouterr().out
    node = elsewhere(stored("runs/tuned")["env"], ["env=hopper"], [])
    assert node["id"] == "Hopper-v5" and "model" not in node and node["num_envs"] == 3


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "world"],
        ["play", "world"],
        ["export", "world", "out=x.pt2"],
        ["serve", "world"],
        ["collect", "world", "out=x.npz"],
        ["train", "algo=reinflow", "init=world", "env=inverted_pendulum"],
    ],
    ids=lambda words: words[0],
)
def test_what_needs_a_policy_refuses_a_world_and_says_what_to_do(capsys: Any, words: Any) -> None:
    error = refused(capsys, *words)
    assert "has no policy; tune one in it by `rheo train algo=dppo init=RUN env=imagined" in error
    assert "env.model=world" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TUNE, "env.model=base"], "env.model=base: that run has learned no model"),
        ([*TUNE, "env.model=nowhere"], "no run at runs/nowhere"),
        (["algo=dppo", "init=base", "env=imagined"], "env.model: has to be set"),
        ([*TUNE, "env.quantile=0"], "env.quantile=0"),
        ([*TUNE, "env.length=0"], "env.length=0"),
        ([*TUNE, "env.options.x=1"], "env.options"),
        ([*WORLD, "init=base"], "init=base: is a policy's run"),
        (["algo=sac", "policy=none", "env=hopper"], "policy=none: SAC trains a policy"),
        (["algo=bc", "data=d.npz", "policy=none"], "policy: there is none, which could have steps"),
    ],
    ids=lambda each: each[-1] if isinstance(each, list) else "",
)
def test_what_cannot_be_imagined_is_one_line(capsys: Any, words: Any, message: str) -> None:
    assert message in refused(capsys, "train", *words, "name=not")
    assert not Path("runs/not").exists()


def test_a_policy_of_other_sizes_is_refused(capsys: Any) -> None:
    write_episodes(Path("other.npz"), [30] * 4, obs_dim=5, action_dim=1)
    words = [word.replace("d.npz", "other.npz") for word in WORLD]
    assert main(["train", *words, "name=other"]) == 0
    assert "another architecture" in refused(capsys, "train", *TUNE, "env.model=other")
    message = "has 5 observations and 1 actions, but the policy of runs/base takes 4"
    assert message in refused(capsys, "eval", "base", "env=imagined", "env.model=other")


def test_a_run_that_was_stopped_in_the_middle_of_episodes_goes_on_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*TUNE, "steps=100", "seed=3"]
    assert main(["train", *words, "name=straight"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 33)
        assert main(["train", *words, "name=stopped"]) == 75
    assert (Run.open("stopped").load() or {})["source"]["env"]["env"]["elapsed"].any()
    assert main(["resume", "stopped"]) == 0
    trees = [Run.open(name).load() for name in ("straight", "stopped")]
    assert same(*trees) and rows("straight") == rows("stopped")
    assert main(["train", *words, "name=again"]) == 0
    assert rows("again") == rows("straight")


def test_a_world_that_was_stopped_goes_on_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORLD[:-1], "steps=60"]
    assert main(["train", *words, "name=w1"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 33)
        assert main(["train", *words, "name=w2"]) == 75
    assert main(["resume", "w2"]) == 0
    assert same(*(Run.open(name).load() for name in ("w1", "w2"))) and rows("w1") == rows("w2")
    assert main(["train", *words, "init=w1", "name=w3"]) == 0  # and further, with all of it
    assert rows("w3")[0]["val/nll"] == pytest.approx(rows("w1")[-1]["val/nll"])


def test_a_run_does_not_go_on_in_a_world_that_has_changed(capsys: Any) -> None:
    assert main(["train", *WORLD, "name=moving"]) == 0
    words = [*TUNE, "env.model=moving"]
    assert main(["train", *words, "steps=20", "name=unmoved"]) == 0
    assert main(["resume", "moving", "steps=40"]) == 0
    error = refused(capsys, "resume", "unmoved", "steps=60")
    assert "env.model=moving: is not as it was when this run was saved" in error
    Path("runs/moving").rename("runs/moved")
    assert "no run at" in refused(capsys, "resume", "unmoved", "steps=60")


def test_a_run_that_starts_from_one_in_a_world_goes_on_there() -> None:
    config = compose(["algo=dppo", "init=tuned"])
    theirs = stored("runs/tuned")["env"]
    assert {k: config["env"][k] for k in ("id", "model", "length", "num_envs")} == {
        **{k: theirs[k] for k in ("id", "model", "length")}, "num_envs": 40,
    }  # fmt: skip
    assert compose(["algo=dppo", "init=tuned", "env.length=9"])["env"]["length"] == 9
    assert compose(["algo=dppo", "init=tuned", "env=hopper"])["env"]["id"] == "Hopper-v5"


def test_a_world_and_what_is_tuned_there_have_what_its_environment_tells() -> None:
    """Bounds of actions, the rate, what films are of: these data tell no environment."""
    assert real(stored("runs/tuned")["env"]) == {} and rate(Run.open("tuned")) is None
    assert world_of("world").high.tolist() == [1.0]
    assert main(["train", *WORLD, "env=inverted_pendulum", "name=told"]) == 0
    assert world_of("told").high.tolist() == [3.0]
    assert main(["train", *TUNE, "env.model=told", "steps=20", "name=there"]) == 0
    node = real(stored("runs/there")["env"])
    assert (node["id"], node["num_envs"]) == ("InvertedPendulum-v5", 3) and real(node) == node
    assert rheo.load("there").action_high.tolist() == [3.0]
    assert rate(Run.open("there")) == 25.0
    env = make_env({"env": {**stored("runs/tuned")["env"], "model": "told"}}, 2)
    assert env is not None and isinstance(env.env, Imagined) and env.env.action_low == [-3.0]
    with pytest.raises(RheoError, match="has learned no model"):
        world_of("base")
