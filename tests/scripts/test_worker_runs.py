"""Runs whose environments live in worker processes, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.data.read import read
from rheo.scripts.cli import main
from rheo.scripts.store.run import Run
from rheo.scripts.worlds import elsewhere

WORLDS = Path(__file__).resolve().parents[1] / "envs"
FRAGILE = "env.id=fragile:Fragile-v0"
SAC = [
    *("algo=sac", "env=gym", FRAGILE, "env.num_envs=4", "policy.width=8", "critic.width=8"),
    *("steps=160", "source.warmup=10", "source.batch_size=4", "episodes=3", "eval_every=80"),
    *("log_every=40", "save_every=80", "algo.deploy_mean=false"),
]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(WORLDS)


def rows(name: str) -> list[dict[str, Any]]:
    """Metrics without what a clock or the workers count."""
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    own = ("time/", "env/restarts", "crc")
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(own)} for x in lines]


def loaded(name: str) -> dict[str, Any]:
    tree = Run.open(name, [FRAGILE]).load()
    assert tree is not None
    return tree


def weights(name: str) -> torch.Tensor:
    values = loaded(name)["algo"]["policy"].values()
    return torch.cat([value.flatten() for value in values if value.is_floating_point()])


def test_workers_change_no_number_of_a_run_and_may_change_on_the_way() -> None:
    assert main(["train", *SAC, "env.workers=0", "name=loop"]) == 0
    assert main(["train", *SAC, "env.workers=2", "steps=80", "name=shared"]) == 0
    assert main(["resume", "shared", "steps=160", "env.workers=3"]) == 0
    assert rows("loop") == rows("shared")
    assert torch.equal(weights("loop"), weights("shared"))
    results = []
    for workers in (0, 2):
        assert main(["eval", "shared", "episodes=7", f"env.workers={workers}"]) == 0
        (file,) = Path("runs/shared/eval").glob("*-7.json")
        results.append(json.loads(file.read_text())["episodes"])
    assert results[0] == results[1] and len(results[0]) == 7
    for workers in (0, 2):
        words = [f"env.workers={workers}", "steps=40", "num_envs=3", f"out={workers}.npz"]
        assert main(["collect", "shared", *words]) == 0
    assert_same_recordings()


def test_chunks_on_policy_are_the_same_in_workers() -> None:
    small = ["algo=reinflow", "init=scratch", "env=gym", FRAGILE, "env.num_envs=4", "horizon=3"]
    small += ["source.decisions=6", "steps=120", "episodes=2", "policy.net.width=8", "fast=off"]
    small += ["eval_every=60", "log_every=60", "algo.learn.minibatch=8", "algo.learn.epochs=1"]
    for workers in (0, 2):
        assert main(["train", *small, f"env.workers={workers}", f"name=w{workers}"]) == 0
    assert rows("w0") == rows("w2")
    assert torch.equal(weights("w0"), weights("w2"))


def test_a_recording_is_the_same_in_workers() -> None:
    for workers in (0, 2):
        words = ["env=gym", FRAGILE, f"env.workers={workers}", "steps=50", "num_envs=3"]
        assert main(["collect", "random", *words, f"out={workers}.npz"]) == 0
    assert_same_recordings()


def test_what_steps_a_run_elsewhere_is_the_runs_own_unless_typed() -> None:
    node = {"id": "Pendulum-v1", "backend": "auto", "workers": 3, "restarts": 5, "options": {}}
    other = elsewhere(node, ["env.workers=2"], [])
    assert (other["id"], other["workers"], other["restarts"]) == ("Pendulum-v1", 2, 5)
    assert elsewhere(node, ["env=hopper"], [])["workers"] == 3


def assert_same_recordings() -> None:
    found = [read("0.npz"), read("2.npz")]
    for name in ("obs", "action", "reward", "terminated", "ends"):
        assert np.array_equal(getattr(found[0], name), getattr(found[1], name))


def seed_of(row: int, seed: int = 0) -> int:
    """The seed of a row of a run's environments."""
    return int(np.random.SeedSequence(seed).generate_state(4)[3]) + row


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("die", "its process was ended by SIGKILL"),
        ("hang", "no answer for 4 s (env.step_timeout)"),
        ("raise", "step raised ValueError: the gripper is stuck (fragile.py, line"),
    ],
)
def test_a_run_goes_on_without_what_a_worker_failed_in(
    fault: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [f"env.options.fault={fault}", f"env.options.bad={seed_of(1)}", "env.options.at=12"]
    told += ["env.workers=2", "env.step_timeout=4", "name=hurt"]
    assert main(["train", *SAC, *told]) == 0
    said = capsys.readouterr().err
    assert f"fragile:Fragile-v0, environment 1 (seed {seed_of(1)}, episode" in said
    assert cause in said and "environments 0 to 1: new episodes in a new process (rest" in said
    source = loaded("hurt")["source"]
    assert source["buffer"]["size"] == source["frames"] - 2  # two rows were cut, none was stored
    lines = Path("runs/hurt/metrics.jsonl").read_text().splitlines()
    counts = [json.loads(line).get("env/restarts") for line in lines]
    assert [count for count in counts if count is not None] == [0, 1, 1, 1]


def test_when_the_restarts_are_used_up_the_run_is_saved_and_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = ["env.options.fault=exit", "env.options.at=12", "env.workers=2", "env.restarts=1"]
    assert main(["train", *SAC, *told, "episodes=1", "eval_every=1000", "name=torn"]) == 3
    said = capsys.readouterr().err
    assert "exit code 7; env.restarts=1: no worker is started again" in said
    assert "torn: saved at step" in said and "rheo resume" in said
    frames = loaded("torn")["source"]["frames"]
    assert frames > 0
    assert main(["resume", "torn", "env.restarts=0"]) == 3  # it still fails, after new episodes
    assert "running episodes were replaced by new ones" in capsys.readouterr().err
    assert loaded("torn")["source"]["frames"] > frames


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["env=hopper", "env.workers=2"], "env.workers=2: Hopper-v5 is stepped in batches"),
        (["env=gym", FRAGILE, "env.workers=some"], "env.workers: must be"),
        (["env=gym", FRAGILE, "env.workers=-1"], "env.workers=-1: must be 0 or more"),
        (["env=gym", FRAGILE, "env.step_timeout=0"], "env.step_timeout=0: must be above 0"),
        (["env=gym", FRAGILE, "env.restarts=-2"], "env.restarts=-2: must be 0 or more"),
        (
            ["env=gym", FRAGILE, "env.workers=2", "env.options.fault=raise", "env.options.at=1"],
            "step 1: step raised ValueError: the gripper is stuck",
        ),
        (["env=gym", FRAGILE, "env.workers=2", "env.options.fult=raise"], "refuses its options"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "env=hopper" in words:
        pytest.importorskip("mujoco.batch")
    assert main(["train", "algo=sac", *words, "name=never"]) == 2
    assert text in capsys.readouterr().err
    assert not Path("runs/never").exists()


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_the_run_and_leaves_no_process(number: int) -> None:
    """As Ctrl-C in a terminal and a scheduler send it: to the workers too."""
    told = ["steps=1e9", "log_every=4", "env.workers=2", "name=long"]
    paths = [str(WORLDS), *filter(None, sys.path)]
    run = subprocess.Popen(
        [sys.executable, "-m", "rheo.scripts.cli", "train", *SAC, *told],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    file, limit = Path("runs/long/metrics.jsonl"), time.monotonic() + 120
    while not (file.exists() and file.read_text().count("\n") > 2) and run.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert len(members(run.pid)) >= 4  # the learner, two workers, and whom they come from
    os.killpg(run.pid, number)
    out, error = run.communicate(timeout=120)
    assert run.returncode == 75 and "stopped by SIG" in out and "new process" not in error
    assert loaded("long")["source"]["frames"] > 0
    while members(run.pid):
        assert time.monotonic() < limit
        time.sleep(0.05)
