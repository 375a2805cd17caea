"""A user's own environments on the command line: guarded, saved, evaluated elsewhere, allowed."""

import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs import families, rollout
from rheo.envs.mujoco import physics
from rheo.envs.recorder import Recorder
from rheo.envs.suites import make
from rheo.scripts import doctor
from rheo.scripts.cli import main
from rheo.scripts.config import schema
from rheo.scripts.store.run import Run
from rheo.scripts.worlds import elsewhere

LAB = '''
import numpy as np, gymnasium as gym
from gymnasium import spaces

FAULT = {"after": float("inf"), "error": ConnectionError("simulator went away")}
COUNT = [0]


class Lab(gym.Env):
    """Five steps an episode; it fails behind FAULT["after"] steps of all copies together."""

    def __init__(self, size=3, ends=True):
        self.observation_space = spaces.Box(-9, 9, (size,))
        self.action_space = spaces.Box(-1, 1, (1,))
        self.size, self.ends = size, ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=self.size).astype(np.float32), {}

    def step(self, action):
        COUNT[0] += 1
        if COUNT[0] > FAULT["after"]:
            raise FAULT["error"]
        self.t += 1
        obs = np.full(self.size, self.t, np.float32)
        return obs, float(action[0]), self.ends and self.t >= 5, False, {}


gym.register("Lab-v0", Lab)
'''
SAC = [
    *("algo=sac", "env=gym", "env.num_envs=2", "policy.width=8", "critic.width=8", "steps=120"),
    *("source.warmup=10", "source.batch_size=4", "episodes=2", "eval_every=50", "log_every=20"),
    *("save_every=1000", "algo.deploy_mean=false"),
]


@pytest.fixture
def lab(tmp_path, monkeypatch, request):
    """A folder with a module of a name of its own, and the module once it was imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(schema, "trusted", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "lab_" + re.sub(r"\W", "_", request.node.name)[:60].lower()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{name}.py").write_text(LAB)
    yield name
    sys.modules.pop(name, None)


def train(lab: str, *words: str) -> int:
    return main(["train", "--config-dir", "mine", *SAC, f"env.id={lab}:Lab-v0", "name=r", *words])


def imported(lab: str) -> Any:
    """The module, to set when it fails."""
    sys.path.append(str(Path("mine").resolve()))
    return importlib.import_module(lab)


def frames() -> list[int]:
    return sorted(int(path.name) for path in Path("runs/r/ckpt").iterdir() if path.is_dir())


@pytest.mark.parametrize("where", ["rollout", "evaluation"])
def test_a_run_whose_environment_fails_is_saved_and_goes_on_once_it_is_mended(lab, capsys, where):
    """The first evaluation and its trial are 12 steps; the one at 50 comes after 62 of them."""
    imported(lab).FAULT["after"] = 40 if where == "rollout" else 65
    assert train(lab) == 3
    error = capsys.readouterr().err
    assert "step raised ConnectionError: simulator went away" in error
    assert f"{lab}:Lab-v0, environment" in error and "Traceback" not in error
    saved = frames()
    assert len(saved) == 1 and 20 <= saved[0] <= 50
    assert f"saved at step {saved[0]}; mend the environment and go on with: rheo resume" in error
    assert "--config-dir" in error
    sys.modules[lab].FAULT["after"] = float("inf")
    assert main(["resume", "r", "--config-dir", "mine"]) == 0
    rows = [json.loads(line) for line in Path("runs/r/metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if row.get("eval/return") is not None]
    assert frames()[-1] == 120 and evaluated[-1] == 120
    assert where == "rollout" or saved[0] in evaluated  # the one that broke off is made up for


@pytest.mark.parametrize("after", [0, 3])
def test_an_environment_that_fails_before_any_work_leaves_nothing(lab, capsys, after):
    imported(lab).FAULT["after"] = after
    assert train(lab) == 2
    error = capsys.readouterr().err
    assert "step raised ConnectionError" in error and "Traceback" not in error
    assert not Path("runs").exists()


def test_a_real_interrupt_inside_an_environment_stays_one(lab, monkeypatch):
    """What an environment raises itself is its fault: test_environment_faults.py."""
    imported(lab).FAULT.update(after=40, error=KeyboardInterrupt())
    place = sys.modules[lab].Lab

    def pressed(self, action):
        for _ in range(2 * (sys.modules[lab].COUNT[0] >= 40)):
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, action)

    step = place.step
    monkeypatch.setattr(place, "step", pressed)
    assert train(lab) == 130


def test_an_environment_that_works_is_left_alone(lab):
    assert train(lab) == 0
    assert frames()[-1] == 120


# ---- evaluation elsewhere ----------------------------------------------------------------------


def rows_of(label: str) -> list[dict[str, Any]]:
    return json.loads(next(Path("runs/r/eval").glob(f"*-{label}.json")).read_text())["episodes"]


def test_an_episode_does_not_depend_on_how_many_are_asked_for(lab):
    """More than 64 give second episodes, behind all first ones."""
    assert train(lab) == 0
    for count in (2, 5, 9, 70):
        assert main(["eval", "r", "--config-dir", "mine", f"episodes={count}"]) == 0
    many = rows_of("70")
    assert len({row["ret"] for row in many}) == 70
    for count in (2, 5, 9):
        for few, one in zip(rows_of(str(count)), many, strict=False):
            assert {**few, "ret": pytest.approx(one["ret"], abs=1e-5)} == {**one, "ret": few["ret"]}


@pytest.mark.parametrize("algo", ["rfm", "resip", "dppo", "dsrl_na", "expo"])
def test_nor_does_it_for_any_way_of_drawing_noise(tiny, episodes, tmp_path, algo):
    """Candidates, chains of kicks, edits, codes and the plans of a corrected base."""
    episodes(tmp_path / "demos.npz", [30, 30], obs_dim=4, action_dim=1)
    tuned = algo in ("resip", "dppo", "dsrl_na")
    if tuned:
        words = tiny("bc", "base", "steps=20", "horizon=2", "env=inverted_pendulum")
        words = [w for w in words if not w.startswith("data=")]
        assert main(["train", *words, f"data={tmp_path / 'demos.npz'}"]) == 0
    more = ["init=base"] if tuned else []
    assert main(["train", *tiny(algo, "r", "steps=60", *more)]) == 0
    for count in (3, 11):
        assert main(["eval", "r", f"episodes={count}"]) == 0
    few, many = rows_of("3"), rows_of("11")
    assert [row["length"] for row in few] == [row["length"] for row in many[:3]]
    assert [row["ret"] for row in few] == pytest.approx([row["ret"] for row in many[:3]], abs=1e-3)


def test_another_version_options_and_seed_are_used_and_said(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60", "env=hopper")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=2"]) == 0
    plain = capsys.readouterr().out
    assert "score" not in plain and "trained in" not in plain
    assert main(["eval", "r", "episodes=2", "env=hopper_v4"]) == 0
    out = capsys.readouterr().out
    assert "Hopper-v4 (trained in Hopper-v5), 2 episodes" in out
    score = next(line for line in out.splitlines() if line.startswith("score"))
    assert "in Hopper-v4 (trained in Hopper-v5)" in score and "D4RL" in score
    assert main(["eval", "r", "episodes=2", "seed=5"]) == 0
    assert "Hopper-v5 (seed 5)" in capsys.readouterr().out
    assert [row["seed"] for row in rows_of("2-seed=5")] == [5, 6]
    assert rows_of("2-seed=5") != rows_of("2")
    assert main(["eval", "r", "episodes=2", "env.options.max_episode_steps=4"]) == 0
    assert "(options {'max_episode_steps': 4}; trained in Hopper-v5)" in capsys.readouterr().out
    assert {row["length"] for row in rows_of("2-max_episode_steps=4")} == {4}


def test_a_backend_typed_for_an_evaluation_is_used_or_refused(tiny, capsys):
    """It was not used, without a word, where no environment was named beside it."""
    assert main(["train", *tiny("sac", "r", "steps=60", "env=hopper")]) == 0
    node = Run.open("r").config["env"]
    assert elsewhere(node, ["env.backend=gymnasium"], [])["backend"] == "gymnasium"
    assert elsewhere(node, ["env.threads=1"], [])["backend"] == node["backend"]
    capsys.readouterr()
    assert main(["eval", "r", "episodes=1", "env.backend=warp"]) == 2
    assert "env.backend=warp: episodes are evaluated and recorded in MuJoCo itself" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
def test_a_run_begun_in_a_loop_goes_on_in_it_where_new_ones_take_a_batch(tiny, unvouched, capsys):
    """As one of an earlier version, whose `auto` had no batch for its task."""
    for name in ("old", "straight"):
        steps = "steps=120" if name == "old" else "steps=180"
        assert main(["train", *tiny("sac", name, steps, "env.backend=gymnasium")]) == 0
    unvouched(Path("runs/old"))
    settings = Path("runs/old/config.yaml")
    settings.write_text(settings.read_text().replace("backend: gymnasium", "backend: auto"))
    capsys.readouterr()
    assert main(["resume", "old", "steps=180"]) == 0
    told = capsys.readouterr()
    assert "stepped in a loop, and goes on so" in told.out + told.err
    ends: list[Any] = [Run.open(name).load() for name in ("old", "straight")]
    assert ends[0]["source"]["env"]["env"]["backend"] == "gymnasium"
    assert torch.equal(ends[0]["source"]["obs"], ends[1]["source"]["obs"])
    assert main(["resume", "straight", "steps=200"]) == 0
    assert "goes on so" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["env=halfcheetah"], "env.id=HalfCheetah-v5 has 17 observations and 6 actions, but"),
        (["env.id=Walker2d-v5"], "env.id=Walker2d-v5 has 17 observations and 6 actions"),
        (["env.id=Hoper-v5"], "did you mean 'Hopper-v5'"),
        (["env=hoper"], "no such env; did you mean 'hopper'"),
    ],
)
def test_an_environment_of_other_sizes_is_refused_by_name(tiny, capsys, words, found):
    assert main(["train", *tiny("sac", "r", "steps=60", "env=hopper")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=1", *words]) == 2
    assert found in capsys.readouterr().err
    assert main(["collect", "r", "out=out.npz", "steps=10", *words]) == 2
    assert found in capsys.readouterr().err


# ---- episodes that never end -------------------------------------------------------------------


def test_collect_answers_an_endless_environment_as_training_does(lab, capsys, monkeypatch):
    monkeypatch.setattr(rollout, "ENDLESS", 50)
    monkeypatch.setattr(rollout, "SAID", 20)
    world = ["--config-dir", "mine", "env=gym", f"env.id={lab}:Lab-v0", "env.options.ends=false"]
    assert main(["collect", "random", *world, "out=a.npz", "episodes=2"]) == 2
    error = capsys.readouterr().err
    assert "an episode has run for 20 frames and there is no time limit" in error
    assert "has not ended after 50 frames" in error and "max_episode_steps=1000" in error
    assert not Path("a.npz").exists()
    limited = ["env.options.max_episode_steps=60"]  # controls: a limit, steps, an end
    assert main(["collect", "random", *world, *limited, "out=b.npz", "episodes=2"]) == 0
    assert main(["collect", "random", *world, "out=c.npz", "steps=300", "num_envs=2"]) == 0
    assert main(["collect", "random", *world[:-1], "out=d.npz", "episodes=2"]) == 0
    capsys.readouterr()
    assert train(lab, "env.options.ends=false") == 2
    assert "has not ended after 50 frames" in capsys.readouterr().err
    assert not Path("runs").exists()


# ---- environments of packages ------------------------------------------------------------------


def test_an_installed_package_is_imported_when_it_was_typed_and_only_then(
    lab, capsys, monkeypatch, tmp_path
):
    """Training, evaluation, resuming and collecting; a stored configuration alone runs nothing."""
    monkeypatch.syspath_prepend(tmp_path / "mine")  # as if it were installed
    word = f"env.id={lab}:Lab-v0"
    assert main(["train", *SAC, word, "name=r"]) == 0
    verbs = ["eval", "r", "episodes=1"], ["resume", "r", "steps=130"], ["collect", "r", "out=o.npz"]
    for verb in verbs:
        monkeypatch.setattr(schema, "trusted", set())
        sys.modules.pop(lab)
        capsys.readouterr()
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert f"imports {lab}, which only you can allow: add {word}" in error
        assert lab not in sys.modules
        assert main([*verb, word]) == 0
    assert main(["resume", "r", "env.id=Hopper-v5"]) == 2
    assert "fixed by the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["no_such_lab:Lab-v0", "os:Lab-v0", "no.such:Lab-v0"])
def test_a_module_that_is_none_is_answered_before_any_work(lab, capsys, name):
    assert main(["train", *SAC, f"env.id={name}", "name=r"]) == 2
    assert f"env.id='{name}': no " in capsys.readouterr().err
    assert not Path("runs").exists()


def test_collect_stores_no_more_than_is_owed(lab):
    """Ten times longer episodes of one environment do not fill memory with those of the others."""
    imported(lab)
    env = make(f"{lab}:Lab-v0", 2)
    recorder = Recorder(env, np.array([1, 3]))
    recorder.reset(0)
    for _ in range(15):
        recorder.step(torch.zeros(2, 1))
    assert sum(len(rows) for rows in recorder.columns[-1]) == 5 + 15
    assert recorder.finished.tolist() == [1, 3]


def test_doctor_lists_the_families_that_run_and_those_that_are_not_installed():
    found = list(doctor.families_here())
    text = " ".join(f"{finding.what} {finding.fix}" for finding in found)
    assert all(name in text for name in families.SAMPLES)
    assert all(finding.status in ("ok", "note") for finding in found)
    assert not [finding for finding in found if "does not run here" in finding.what]
