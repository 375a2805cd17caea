"""`rheo collect` end to end: files that can be trained on, and cards that tell the truth."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from rheo.envs.data.read import played_in, read
from rheo.envs.scores import REFERENCES
from rheo.scripts.cli import main
from rheo.scripts.collect import Maker, Source

EXPERTS = (
    Path(os.environ.get("RHEO_DATA", Path(__file__).parents[3] / "shared" / "data")) / "experts"
)
needs_experts = pytest.mark.skipif(not EXPERTS.is_dir(), reason=f"no actors in {EXPERTS}")


@pytest.fixture
def collect(tmp_path, monkeypatch, capsys):
    """Runs the verb; returns its status, the recording if there is one, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words, out="set.hdf5"):
        code = main(["collect", *words, f"out={out}"])
        printed = capsys.readouterr()
        file = tmp_path / out
        return code, read(str(file)) if code == 0 else None, printed.out + printed.err

    return run


def card_of(file):
    return json.loads(Path(f"{file}.card.json").read_text())


@pytest.mark.parametrize("out", ["set.hdf5", "set.npz"])
def test_random_actions_are_recorded_with_a_card_that_names_the_file(collect, out):
    code, recording, _ = collect("random", "env=hopper_v4", "steps=300", "num_envs=4", out=out)
    assert code == 0 and len(recording.action) == 300 and recording.about["env_id"] == "Hopper-v4"
    assert -0.2 < recording.action.mean() < 0.2 and recording.action.std() == pytest.approx(
        3**-0.5, abs=0.05
    )
    card = card_of(out)
    assert card["sha256"] == hashlib.sha256(Path(out).read_bytes()).hexdigest()
    assert card["steps"] == 300 and card["env_id"] == "Hopper-v4"
    whole = recording.terminated[recording.ends - 1]
    starts = np.concatenate([[0], recording.ends[:-1]])
    returns = np.add.reduceat(recording.reward, starts)[whole]
    assert card["whole"] == whole.sum()
    assert card["return_mean"] == pytest.approx(returns.mean(), rel=1e-5)
    low, high = REFERENCES["Hopper-v4"]
    assert card["score"] == pytest.approx(100 * (returns.mean() - low) / (high - low), rel=1e-4)


def test_the_same_seed_records_the_same_set(collect):
    words = ("random", "env=hopper_v4", "steps=200")
    sets = [collect(*words, f"seed={s}", out=f"{i}.hdf5")[1] for i, s in enumerate((3, 3, 4))]
    assert np.array_equal(sets[0].obs, sets[1].obs)
    assert not np.array_equal(sets[0].obs, sets[2].obs)


@needs_experts
def test_an_actor_of_another_library_keeps_its_return(collect):
    actor = str(EXPERTS / "hopper_tqc_sb3.npz")
    _, recording, _ = collect(actor, "env=hopper_v4", "episodes=4")
    assert len(recording.ends) == 4
    assert recording.reward.sum() / 4 > 2500  # 3,256 over five episodes
    _, noisy, _ = collect(actor, "env=hopper_v4", "episodes=4", "noise=1.0", out="noisy.hdf5")
    assert noisy.reward.sum() / 4 < 1500
    source = card_of("noisy.hdf5")["sources"][0]
    assert source["noise"] == 1.0 and source["name"] == "hopper_tqc_sb3.npz"


@needs_experts
@pytest.mark.parametrize("name", ["medium", "medium_replay", "medium_expert", "expert"])
def test_graded_sets_are_made_of_the_actors_that_the_card_names(collect, monkeypatch, name):
    monkeypatch.setattr("rheo.scripts.collect.SCORED", 3)
    words = (f"set={name}", "env=hopper_v4", f"actors={EXPERTS}", "steps=900", "num_envs=3")
    code, recording, printed = collect(*words)
    assert code == 0 and len(recording.action) == 900, printed
    sources = card_of("set.hdf5")["sources"]
    assert sum(source["steps"] for source in sources) == 900
    names = [source["name"] for source in sources]
    expected = {
        "medium": 1,
        "expert": 1,
        "medium_expert": 2,
    }
    assert len(names) == expected.get(name, len(names))
    if name == "medium_replay":
        assert names[0] == "random" and names[-1] in ("hopper_sac_sb3.npz", "hopper_a2c_sb3.npz")


def test_a_run_folder_is_recorded_in_its_own_environment(collect, tiny):
    assert main(["train", *tiny("sac", "runs/mine", "steps=60", "env.num_envs=2")]) == 0
    code, recording, _ = collect("mine", "episodes=3")
    assert code == 0 and recording.about["env_id"] == "InvertedPendulum-v5"
    assert len(recording.ends) == 3 and recording.obs.shape[1] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random"], "random: give the environment to act in"),
        (["random", "env=hoper"], "did you mean 'hopper'?"),
        (["nosuch.npz", "env=hopper_v4"], "nosuch.npz: no such actor file"),
        (["nosuchrun"], "no run at"),
        ([], "usage: rheo collect"),
        (["random", "set=medium"], "set= needs env=NAME"),
        (
            ["set=best", "env=hopper_v4"],
            "set=best: not known; there are: expert, medium,",
        ),
        (["set=medium", "env=hopper_v4"], "needs actors=FOLDER"),
        (["set=medium", "env=hopper_v4", "actors=.", "steps=9"], "no actor that fits"),
        (["random", "env=hopper_v4", "steps=3", "episodes=3"], "contradict each other"),
        (["random", "env=hopper_v4", "steps=0"], "steps=0: a positive whole number is needed"),
        (["random", "env=hopper_v4", "noise=x"], "noise=x: a number is needed"),
        (["random", "env=hopper_v4", "sampel=true"], "did you mean 'sample'?"),
    ],
)
def test_a_bad_request_is_refused_before_anything_is_written(collect, tmp_path, words, message):
    code, _, printed = collect(*words)
    assert code == 2 and message in printed
    assert not list(tmp_path.glob("*.hdf5*"))


def test_files_are_never_overwritten(collect, tmp_path):
    (tmp_path / "set.hdf5").write_text("mine")
    code, _, printed = collect("random", "env=hopper_v4")
    assert code == 2 and "exists; choose another name" in printed
    assert (tmp_path / "set.hdf5").read_text() == "mine"


@needs_experts
def test_an_actor_of_another_environment_is_refused_with_both_sizes(collect):
    code, _, printed = collect(str(EXPERTS / "walker2d_tqc_sb3.npz"), "env=hopper_v4", "steps=5")
    assert code == 2 and "gives 6, but Hopper-v4 has 11 observations and 3 actions" in printed


class Falling(gymnasium.Env):
    """Episodes of four steps; the step after the eleventh of all raises."""

    def __init__(self, steps: int = 11):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.left, self.count = steps, 0

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(2), {}

    def step(self, action):
        self.left, self.count = self.left - 1, self.count + 1
        if self.left < 0:
            raise RuntimeError("no power")
        return np.full(2, self.count), 1.0, self.count == 4, False, {}


class Interrupting(Falling):
    """Sends its process a signal, as Ctrl-C does, in the sixth step."""

    def step(self, action):
        if self.left == 6:
            signal.raise_signal(signal.SIGINT)
        return super().step(action)


FALLING: Any = Falling
INTERRUPTING: Any = Interrupting


@pytest.mark.parametrize("out", ["set.hdf5", "set.npz"])
def test_what_was_collected_before_a_signal_is_kept_and_said(collect, out):
    if "RheoInterrupting-v0" not in gymnasium.registry:
        gymnasium.register("RheoInterrupting-v0", INTERRUPTING)
    words = ("env=gym", "env.id=RheoInterrupting-v0", "steps=30", "num_envs=1")
    code, _, printed = collect("random", *words, out=out)
    assert code == 75
    assert f"stopped by SIGINT\nWhat was collected until then is in {out}" in printed
    assert read(out).ends.tolist() == [4, 6]
    assert card_of(out)["stopped"] == "stopped by SIGINT"


@pytest.mark.parametrize("amount", ["steps=30", "episodes=9"])
@pytest.mark.parametrize("out", ["set.hdf5", "set.npz"])
def test_what_was_collected_before_an_environment_failed_is_kept_and_said(
    collect, capsys, amount, out
):
    if "RheoFalling-v0" not in gymnasium.registry:
        gymnasium.register("RheoFalling-v0", FALLING)
    words = ("env=gym", "env.id=RheoFalling-v0", amount, "num_envs=1")
    code, _, printed = collect("random", *words, out=out)
    assert code == 3
    assert (
        "environment 0 (seed 0, episode 3), step 4: step raised RuntimeError: no power" in printed
    )
    assert f"What was collected until then is in {out}" in printed
    kept = read(out)
    assert kept.ends.tolist() == [4, 8, 11] and kept.terminated.nonzero()[0].tolist() == [3, 7]
    assert kept.obs[kept.successor[2]].tolist() == [3, 3]
    card = card_of(out)
    assert card["steps"] == 11 and "no power" in card["stopped"]


class Mortal(Falling):
    """All copies of it together make eight steps."""

    lives = 8

    def step(self, action):
        Mortal.lives -= 1
        self.left = Mortal.lives + 1
        return super().step(action)


MORTAL: Any = Mortal


def test_the_parts_before_one_that_fails_at_once_are_kept(collect, monkeypatch):
    """A graded set is of several behaviours, each in environments of its own."""
    gymnasium.register("RheoMortal-v0", MORTAL)
    parts = [(Source("random", 0.0, False), 8)] * 2
    monkeypatch.setattr(Maker, "plan", lambda *_: parts)
    words = ("set=random", "env=gym", "env.id=RheoMortal-v0", "steps=16", "num_envs=1")
    code, _, printed = collect(*words)
    assert code == 3 and "random: RheoMortal-v0, environment 0 (seed 1000" in printed
    assert "What was collected until then is in set.hdf5" in printed
    assert read("set.hdf5").ends.tolist() == [4, 8]
    card = card_of("set.hdf5")
    assert card["steps"] == 8 and "no power" in card["stopped"] and len(card["sources"]) == 1


STUCK = """
import sys, time
from functools import partial
import gymnasium
sys.path.insert(0, {folder!r})
from test_collect import Falling, main
from rheo.scripts import collect, stopping

class Stuck(Falling):
    def step(self, action):
        if self.left == 5:
            print("stuck", flush=True)
            time.sleep(3600)
        return super().step(action)

gymnasium.register("RheoStuck-v0", Stuck)
collect.stop_signals = partial(stopping.stop_signals, 0.5)
main(["collect", "random", "env=gym", "env.id=RheoStuck-v0", "steps=30", "num_envs=1",
      "env.workers=0", "out=set.npz"])
"""


def test_what_was_collected_before_an_environment_got_stuck_is_written_at_a_signal(tmp_path):
    script = STUCK.format(folder=str(Path(__file__).parent))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=env, **pipe)
    assert process.stdout is not None
    assert any(line == "stuck\n" for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "still at work" in said and "what was collected until then is in set.npz" in said
    assert read(str(tmp_path / "set.npz")).ends.tolist() == [4, 6]
    assert card_of(tmp_path / "set.npz")["stopped"] == "stopped by SIGTERM"


def test_an_environment_that_fails_at_once_leaves_no_file(collect, tmp_path):
    if "RheoFalling-v0" not in gymnasium.registry:
        gymnasium.register("RheoFalling-v0", FALLING)
    words = ("env=gym", "env.id=RheoFalling-v0", "env.options.steps=0", "steps=30", "num_envs=2")
    code, _, printed = collect("random", *words)
    assert code == 2 and "step 1: step raised RuntimeError: no power" in printed
    assert not list(tmp_path.glob("set*"))


@pytest.mark.parametrize("words", [("layout=robomimic",), ()])
def test_parts_and_options_of_the_environment_are_written(collect, words):
    pytest.importorskip("gymnasium_robotics")
    made = ("env=pointmaze_umaze", "env.options.max_episode_steps=20", "steps=60", "num_envs=2")
    code, recording, _ = collect("random", *made, *words)
    assert code == 0 and recording.about["obs_keys"] == ["observation", "desired_goal"]
    assert recording.about["obs_widths"] == [4, 2]
    assert card_of("set.hdf5")["obs_keys"] == ["observation", "desired_goal"]
    told = played_in("set.hdf5")
    assert told.env_id == "PointMaze_UMaze-v3"
    assert told.options["max_episode_steps"] == 20
    with h5py.File("set.hdf5") as file:
        assert ("data" in file) == bool(words)
