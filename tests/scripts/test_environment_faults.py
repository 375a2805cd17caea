"""Whatever an environment raises, returns or does, in a run: told with its place, saved first."""

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
import yaml

from rheo.envs import acting, guard
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.library import load
from rheo.scripts.store.run import Run

WORLDS = Path(__file__).resolve().parents[1] / "envs"
FAULTY = "env.id=faulty:Faulty-v0"
SAC = [
    *("algo=sac", "env=gym", FAULTY, "env.num_envs=2", "policy.width=8", "critic.width=8"),
    *("steps=40", "source.warmup=10", "source.batch_size=4", "episodes=1", "eval_every=1000"),
    *("log_every=20", "save_every=1000", "algo.deploy_mean=false", "name=r", "fast=off"),
    *("source.update_ratio=0.1", "env.options.at=12"),
]
STUCK = "the gripper is stuck"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(WORLDS)
    monkeypatch.setattr(guard, "_said", set())


def faulty(fault: str, *words: str) -> list[str]:
    return ["train", *SAC, f"env.options.fault={fault}", *words]


def seed_of(row: int) -> int:
    """The seed of a row of a run's environments."""
    return int(np.random.SeedSequence(0).generate_state(4)[3]) + row


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]


CUT = {  # of one that is not sound a step is cut and not stored, and the run goes on
    "nan obs": "the observation is nan; steps",
    "inf obs": "the observation is inf; steps",
    "1e30 obs": "the observation is 1e+30, whose square float32 cannot hold; steps",
    "1e200 obs": "the observation is 1e+200, whose square",
    "nan reward": "the reward is nan; steps",
    "inf reward": "the reward is inf; steps",
    "1e300 reward": "the reward is 1e+300, whose square",
}


@pytest.mark.parametrize("fault", CUT)
def test_a_step_that_is_not_sound_is_told_cut_and_not_stored(fault: str, capsys: Any) -> None:
    assert main(faulty(fault)) == 0
    assert [row["env/bad_obs"] for row in rows() if "env/bad_obs" in row][-1] == 2
    source = Run.open("r", [FAULTY]).load()["source"]  # type: ignore[index]
    assert source["buffer"]["size"] == source["frames"] - 2
    stored = source["buffer"]["rows"]
    assert np.abs(stored.take(*stored.span).numpy()).max() < 100
    told = capsys.readouterr().err
    assert told.count("cut and not stored (env/bad_obs)") == 1
    assert f"environment 0 (seed {seed_of(0)}, episode 4), step 2: {CUT[fault]}" in told


# What it does wrong ends the run, which was saved at the last consistent step: status 3.
ENDS = {
    "wrong shape": "shape (4,), but its observation_space says (3,)",
    "scalar obs": "shape (), but its observation_space says (3,)",
    "no obs": "the observation has None (NoneType)",
    "dict obs": "the observation has {'x': ",
    "text obs": "the observation's type is <U1",
    "no reward": "the reward is None (NoneType), expected one real number",
    "text reward": "the reward is '1' (str), expected one real number",
    "two rewards": "the reward is an array of shape (2,) and type float64",
    "nan terminated": "the terminated is nan (float), expected True or False",
    "no info": "info is None (NoneType), expected a dictionary",
    "four values": "step returned a tuple of 4 values, expected the five (obs, reward,",
    "reset without info": "reset returned an array of shape (3,)",
    "reset of another shape": "shape (4,), but its observation_space says (3,)",
    "reset to nan": "reset starts with a non-finite observation",
    "reset raises": f"reset raised RuntimeError: {STUCK} (faulty.py, line",
    "RuntimeError": f"step raised RuntimeError: {STUCK} (faulty.py, line",
    "ValueError": f"step raised ValueError: {STUCK} (faulty.py, line",
    "FloatingPointError": f"step raised FloatingPointError: {STUCK} (faulty.py, line",
    "KeyboardInterrupt": "step raised KeyboardInterrupt (faulty.py, line",
    "SystemExit": "step raised SystemExit: 0 (faulty.py, line",
    "other actions": "its action_space is now Box(-2.0, 2.0, (1,), float32)",
}


TAKEN = {  # and what is taken as it is, or as what it stands for
    "array reward": "",
    "obs out of bounds": "number 1 of the observation is 1e+06, but its observation_space says -9",
}


@pytest.mark.parametrize("fault", TAKEN)
def test_what_can_be_learned_from_is_taken(fault: str, capsys: Any) -> None:
    assert main(faulty(fault, "env.options.always=true")) == 0
    assert [row["env/bad_obs"] for row in rows() if "env/bad_obs" in row][-1] == 0
    told = capsys.readouterr().err
    assert TAKEN[fault] in told and told.count("observation_space") == bool(TAKEN[fault])


BEFORE = {  # what is seen before any work leaves nothing: status 2
    "constructor raises": f"it raised RuntimeError: {STUCK} (faulty.py, line",
    "constructor exits": "it raised SystemExit: 0 (faulty.py, line",
    "unbounded actions": "has unbounded actions",
    "discrete actions": "but Rheo's policies are continuous",
    "an image": "but a vector (1-D Box) is needed",
    "reset to nan": "reset starts with a non-finite observation",
    "SystemExit": "step 1: step raised SystemExit: 0",
    "KeyboardInterrupt": "step 1: step raised KeyboardInterrupt",
    "FloatingPointError": f"step 1: step raised FloatingPointError: {STUCK}",
}


@pytest.mark.parametrize("fault", BEFORE)
def test_a_fault_before_any_work_leaves_nothing(fault: str, capsys: Any) -> None:
    early = [f"env.options.at={'reset' not in fault:d}", "env.options.everywhere=true"]
    assert main(faulty(fault, *early)) == 2
    told = capsys.readouterr().err
    assert BEFORE[fault] in told and "Traceback" not in told
    assert not Path("runs").exists()


def test_an_environment_of_nothing_sound_ends_the_run(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(acting, "BARREN", 40)
    assert main(faulty("nan obs", "env.options.always=true", "env.options.at=1")) == 3
    assert "not one of the last 40 frames can be learned from" in capsys.readouterr().err


def test_a_traceback_is_shown_to_who_asks_for_it(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RHEO_TRACEBACK", "1")
    words = ["env.options.everywhere=true", "env.options.at=1"]
    assert main(faulty("RuntimeError", *words)) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and "raised(RuntimeError(" in told


@pytest.mark.parametrize("fault", ENDS)
def test_a_fault_in_the_middle_is_named_saved_and_ends_with_status_3(
    fault: str, capsys: Any
) -> None:
    assert main(faulty(fault)) == 3
    told = capsys.readouterr().err
    assert "faulty:Faulty-v0, environment 0 (seed " in told and ENDS[fault] in told
    assert "Traceback" not in told and "learning rates" not in told
    step = Run.open("r", [FAULTY]).load()["source"]["frames"]  # type: ignore[index]
    assert step in (22, 28) and f"runs/r: saved at step {step}; mend the environment" in told


# ---- a step that does not come back --------------------------------------------------------------


def started(*words: str) -> "subprocess.Popen[str]":
    """`rheo train` in a process of its own, once its faulty step has begun."""
    paths = [str(WORLDS), *filter(None, sys.path)]
    run = subprocess.Popen(
        [sys.executable, "-m", "rheo.scripts.cli", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 240
    while not Path("stuck").exists() and run.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.05)
    return run


@pytest.mark.parametrize("fault", ["sleeps", "spins"])
def test_a_stuck_step_ends_with_the_last_checkpoint(fault: str) -> None:
    run = started(*faulty(fault, "signal.grace=1", "save_every=10"))
    run.send_signal(signal.SIGTERM)
    told = run.communicate(timeout=240)[1]
    assert run.returncode == 75, told
    assert "still at work (" in told and "faulty.py" in told
    step = Run.open("r", [FAULTY]).load()["source"]["frames"]  # type: ignore[index]
    assert f"signal.grace=1; the last checkpoint is of step {step}; go on with: rheo resume" in told
    assert main(["resume", "r", FAULTY, "steps=20"]) == 0


def test_a_stuck_worker_is_not_waited_for_once_the_run_is_to_stop() -> None:
    run = started(*faulty("sleeps", "env.workers=2"))
    run.send_signal(signal.SIGTERM)
    told = run.communicate(timeout=240)[1]
    assert run.returncode == 75, told
    assert "no answer for 5 s and the run is to stop; environment" in told
    assert Run.open("r", [FAULTY]).load()["source"]["frames"] > 20  # type: ignore[index]


@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSEGV"])
def test_a_process_that_its_environment_ends_is_gone_on_with(fault: str, capsys: Any) -> None:
    run = started(*faulty(fault, "save_every=10"))
    told = run.communicate(timeout=240)[1]
    assert run.returncode == -getattr(signal, fault)
    assert fault == "SIGKILL" or ("Segmentation fault" in told and "faulty.py" in told)
    assert main(["resume", "r", FAULTY, "steps=20"]) == 0
    assert "env.workers=1" in capsys.readouterr().err


# ---- who else has environments -------------------------------------------------------------------


@pytest.fixture
def trained() -> None:
    """A run whose environment is sound."""
    assert main(faulty("none", "steps=20")) == 0


def bad(fault: str) -> list[str]:
    told = [f"env.options.fault={fault}", "env.options.everywhere=true", "env.options.at=3"]
    return [FAULTY, *told]


def test_an_evaluation_and_a_collection_name_what_an_environment_did(
    trained: None, capsys: Any
) -> None:
    place = "environment 0 (seed 100000, episode 1), step 3: "
    for i, fault in enumerate(("no reward", "KeyboardInterrupt", "SystemExit")):
        capsys.readouterr()
        assert main(["eval", "r", "episodes=2", *bad(fault)]) == 3
        assert place + ENDS[fault] in capsys.readouterr().err
        assert main(["collect", "r", f"out={i}.npz", "steps=12", "num_envs=2", *bad(fault)]) == 3
        told = capsys.readouterr().err
        assert ENDS[fault] in told and f"What was collected until then is in {i}.npz" in told
    assert main(["eval", "r", "episodes=2", *bad("1e30 obs")]) == 0
    assert "2 episodes were cut because" in capsys.readouterr().out
    assert main(["eval", "r", "episodes=2", *bad("close raises")]) == 0
    assert "closing it raised SystemExit: 0" in capsys.readouterr().err


def test_a_loaded_policy_says_the_same(trained: None) -> None:
    policy = load("r", config_dir=[WORLDS])
    policy.run.config["env"]["options"] = {"fault": "SystemExit", "everywhere": True, "at": 3}
    with pytest.raises(RheoError, match=r"step 3: step raised SystemExit: 0") as caught:
        policy.evaluate(2)
    assert caught.value.code == 3


FILMED = {
    "nan obs": (0, ""),
    "array reward": (0, ""),
    "close raises": (0, "closing it raised SystemExit"),
    "no reward": (3, ENDS["no reward"]),
    "no info": (3, ENDS["no info"]),
    "four values": (3, ENDS["four values"]),
    "render raises": (3, "render raised OSError: no display (faulty.py, line"),
    "render exits": (3, "render raised SystemExit: 0 (faulty.py, line"),
    "no picture": (3, "render returned None (NoneType), expected an array [height, width, 3]"),
    "grey picture": (3, "render returned an array of shape (32, 48) and type uint8"),
    "float picture": (3, "render returned an array of shape (32, 48, 3) and type float64"),
}


def test_a_film_of_what_is_broken_is_made_or_refused_by_name(
    trained: None, unvouched: Any, capsys: Any
) -> None:
    unvouched(Path("runs/r"))
    file = Path("runs/r/config.yaml")
    settings = file.read_text()
    for fault, (code, text) in FILMED.items():
        config = yaml.safe_load(settings)
        config["env"]["options"] = {"fault": fault, "everywhere": True, "at": 3}
        file.write_text(yaml.safe_dump(config))
        capsys.readouterr()
        film = ["play", "r", "episodes=2", "out=o.gif", "size=32", "--config-dir", str(WORLDS)]
        assert main(film) == code, fault
        assert text in capsys.readouterr().err
        assert Path("o.gif").exists() == (code == 0), fault
        Path("o.gif").unlink(missing_ok=True)
