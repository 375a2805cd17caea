"""Training from the command line: what a run leaves behind, and what it refuses."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.algos.bc import BC
from rheo.algos.sac import SAC
from rheo.errors import RheoError
from rheo.policies.flow import FlowPolicy
from rheo.scripts import ending
from rheo.scripts.assemble import assemble, device_of, refuse_misfit
from rheo.scripts.cli import main
from rheo.scripts.config import schema
from rheo.scripts.config.compose import compose
from rheo.scripts.loop import due
from rheo.scripts.start import start_from
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import capture, not_finite, restore
from rheo.scripts.store.where import default_name


def answer(capsys, *words):
    """Exit code and error message of a command."""
    capsys.readouterr()
    code = main(list(words))
    return code, capsys.readouterr().err


def rows(name):
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("algo", ["bc", "rfm", "sac"])
def test_a_run_trains_to_its_end_and_says_where_it_is(tiny, algo, capsys):
    assert main(["train", *tiny(algo, "r")]) == 0
    assert "run runs/r, curve runs/r/curve.png" in capsys.readouterr().out
    logged = rows("r")
    steps = [row["step"] for row in logged]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 200
    assert any("policy/loss" in row for row in logged)
    figure = "val/loss" if algo == "bc" else "eval/return"
    assert sum(figure in row for row in logged) == 3  # at 0, 100, 200
    assert (Path("runs/r/curve.png").read_bytes()[:4]) == b"\x89PNG"
    assert [p.name for p in sorted(Path("runs/r/ckpt").iterdir())][-1] == f"{200:012d}"
    assert not Path("runs/r/lock").exists()


def test_evaluation_rows_of_training_are_kept_per_episode(tiny):
    assert main(["train", *tiny("sac", "r", "episodes=3")]) == 0
    saved = json.loads(Path(f"runs/r/eval/{200:012d}.json").read_text())
    assert len(saved["episodes"]) == 3
    mean = np.mean([episode["ret"] for episode in saved["episodes"]])
    assert rows("r")[-1]["eval/return"] == pytest.approx(mean) == saved["eval/return"]


@pytest.mark.parametrize(
    ("before", "now", "every", "is_due"),
    [(0, 4, 4, True), (4, 7, 4, False), (4, 8, 4, True), (4, 4, 4, False), (3, 40, 4, True)],
)
def test_a_period_is_due_when_a_multiple_was_crossed(before, now, every, is_due):
    assert due(before, now, every) is is_due


def test_names_of_runs_are_plain_folder_names():
    config = {"algo": {"_target_": "rheo.algos.rfm.RFM"}, "seed": 3, "data": None}
    assert default_name({**config, "env": {"id": "Hopper-v5"}}) == "rfm-hopper-v5-s3"
    pusht = {**config, "env": {"id": "gym_pusht/PushT-v0"}}
    assert default_name(pusht) == "rfm-gym_pusht-pusht-v0-s3"
    assert default_name({**config, "env": None, "data": "/a b/door.v1.npz"}) == "rfm-door.v1-s3"


# ------------------------------------------------------------------ numbers that break


def poison(monkeypatch, kind, after, value=torch.nan):
    """The algorithm's update returns a broken loss, or breaks a weight, after so many calls."""
    update, calls = kind.update, []

    def broken(self, batch):
        calls.append(1)
        metrics = update(self, batch)
        if len(calls) > after:
            with torch.no_grad():
                next(self.policy.parameters()).fill_(value)
        return metrics

    monkeypatch.setattr(kind, "update", broken)


@pytest.mark.parametrize("periods", [["log_every=7"], ["log_every=1000", "save_every=10"]])
def test_numbers_that_break_end_the_run_with_the_last_good_checkpoint(
    tiny, monkeypatch, capsys, periods
):
    """Also when checkpoints are due far more often than logs: a broken one is never written."""
    poison(monkeypatch, BC, after=130)
    code, message = answer(capsys, "train", *tiny("bc", "r", *periods))
    assert code == 4 and "Traceback" not in message
    assert "training broke and stops here; the last checkpoint is kept" in message
    run = Run.open("r")
    tree = run.load()
    assert tree is not None and 120 <= run.step <= 130
    assert not_finite(tree["algo"], "algo") is None
    assert not Path("runs/r/lock").exists()


def test_a_broken_action_is_stopped_before_the_physics(tiny, monkeypatch, capsys):
    poison(monkeypatch, SAC, after=30)
    code, message = answer(capsys, "train", *tiny("sac", "r", "log_every=1000"))
    assert code == 4 and "is not finite" in message and "Traceback" not in message


def test_an_infinite_loss_counts_as_broken(tiny, monkeypatch, capsys):
    update = BC.update
    monkeypatch.setattr(
        BC, "update", lambda self, b: update(self, b) | {"policy/loss": torch.tensor(torch.inf)}
    )
    code, message = answer(capsys, "train", *tiny("bc", "r"))
    assert code == 4 and "policy/loss is inf at step 20" in message
    assert "nothing was saved" in message


class Unsound(gymnasium.Env):
    """Nothing that it observes is a number."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2), {}

    def step(self, action):
        return np.full(2, np.nan), 0.0, False, False, {}


@pytest.mark.parametrize(("algo", "frames"), [("sac", 1000), ("ppo", 32)])
def test_an_environment_without_one_sound_frame_ends_the_run(tiny, capsys, algo, frames):
    if "RheoUnsound-v0" not in gymnasium.registry:
        kind: Any = Unsound
        gymnasium.register("RheoUnsound-v0", kind, max_episode_steps=9)
    words = [w for w in tiny(algo, "r", "steps=5000") if not w.startswith("env=")]
    code, message = answer(capsys, "train", *words, "env=gym", "env.id=RheoUnsound-v0")
    assert code == 3
    assert f"not one of the last {frames} frames can be learned from" in message
    assert f"bad_obs {frames})" in message and "saved at step" in message


def test_a_run_that_is_stopped_before_its_first_step_leaves_no_folder(tiny, monkeypatch, capsys):
    """While the base of a method that steers is tried out."""
    assert main(["train", *tiny("rfm", "base")]) == 0
    decide = FlowPolicy.act

    def interrupted(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return decide(self, *args)

    monkeypatch.setattr(FlowPolicy, "act", interrupted)
    words = [*tiny("dsrl_na", "r", "init=base", "horizon=1"), "algo.gate=0.5"]
    code, message = answer(capsys, "train", *words)
    assert code == 75 and message.endswith("rheo: stopped by SIGTERM before its first step\n")
    assert not Path("runs/r").exists()


# ------------------------------------------------------------------ what is refused


class Unbounded(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-np.inf, np.inf, (1,))


gymnasium.register("Unbounded-v0", lambda **_: Unbounded())

REFUSED = [
    (["env.id=Hoper-v5"], "did you mean 'Hopper-v5'"),
    (["env.id=CartPole-v1"], "CartPole-v1 has the action space Discrete(2)"),
    (["env.id=Unbounded-v0"], "Unbounded-v0 has unbounded actions"),
    (["horizon=2", "env.execute=3"], "env.execute=3: more steps than the policy plans"),
    (["env.id=FetchReach-v4"], "pip install gymnasium-robotics"),
    (["env.options={no_such: 1}"], "no_such"),
    (["source.capacity=1"], "source.capacity=1 cannot hold one step of 2 environments"),
    (["algo=dsrl_na", "init=scratch", "algo.base_cache=1000000000"], "keep fewer answers: algo.ba"),
    (["device=cuda:7"], "device=cuda:7: torch sees"),
    (["algo=rfm_box", "algo.estimator=gradient"], "algo.estimator=gradient is biased on a box"),
    (["algo=bc", "data=other.npz", "env=none"], "no such file"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_trained_is_one_message_and_leaves_nothing(
    tiny, tmp_path, capsys, words, message
):
    tiny("sac", "x")  # moves to an empty folder
    base = ["algo=sac", "env=inverted_pendulum", "env.num_envs=2", "steps=10", "name=r"]
    replaced = {word.partition("=")[0] for word in words}
    base = [word for word in base if word.partition("=")[0] not in replaced]
    if "FetchReach" in words[0] and importlib.util.find_spec("gymnasium_robotics"):
        pytest.skip("gymnasium-robotics is installed here")
    code, error = answer(capsys, "train", *base, *words)
    assert code == 2 and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"actions": np.zeros((5, 2))}, "no key 'observations'"),
        (
            {
                "observations": np.full((5, 3), np.nan),
                "actions": np.zeros((5, 2)),
                "episode_ends": [2, 5],
            },
            r"observations, episode 0, step 0, value nan",
        ),
    ],
)
def test_data_that_cannot_be_used_leaves_no_run(tiny, tmp_path, capsys, data, message):
    words = tiny("bc", "r")
    np.savez(tmp_path / "data.npz", **data)
    code, error = answer(capsys, "train", *words)
    assert code == 2 and message in error
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_data_and_environment_of_other_sizes_are_refused(tiny, tmp_path, capsys):
    code, error = answer(capsys, "train", *tiny("bc", "r", "env=inverted_pendulum"))
    assert code == 2 and "InvertedPendulum-v5 has 4 and 1" in error and "has 3 and 2" in error
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_other_runs_and_a_users_empty_folder_survive_a_refusal(tiny, tmp_path, capsys):
    words = tiny("sac", "group/r", "env.id=CartPole-v1")
    (tmp_path / "runs" / "group" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "group" / "r").mkdir()
    assert answer(capsys, "train", *words)[0] == 2
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == ["runs", "runs/group", "runs/group/other", "runs/group/r"]


def test_a_folder_that_cannot_be_written_is_refused(tiny, tmp_path, capsys):
    words = tiny("sac", "r/inside/file")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r").write_text("a file where a folder should be")
    code, error = answer(capsys, "train", *words)
    assert code == 2 and "cannot write to runs/r/inside/file" in error
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["r"]


def test_a_read_only_folder_is_refused(tiny, tmp_path, capsys):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    words = tiny("sac", "r")
    (tmp_path / "runs").mkdir(mode=0o555)
    code, error = answer(capsys, "train", *words)
    assert code == 2 and "cannot write to runs/r: Permission denied" in error


def test_a_run_in_use_is_refused_by_every_writer_and_left_alone(tiny, capsys):
    words = tiny("bc", "r")
    with Run.create("r", compose(words)):
        before = sorted(p.name for p in Path("runs/r").iterdir())
        for verb in (["train", *words], ["resume", "r"]):
            code, error = answer(capsys, *verb)
            assert code == 2 and f"in use by process {os.getpid()}" in error
        assert sorted(p.name for p in Path("runs/r").iterdir()) == before


def test_a_finished_run_is_not_overwritten(tiny, capsys):
    words = tiny("bc", "r", "steps=5")
    assert main(["train", *words]) == 0
    before = rows("r")
    code, error = answer(capsys, "train", *words)
    assert code == 2 and "rheo resume" in error and rows("r") == before


def test_a_device_that_is_not_there_is_refused():
    assert device_of("cpu").type == "cpu"
    with pytest.raises(RheoError, match="device=cuda:99: torch sees"):
        device_of("cuda:99")


def test_a_part_of_the_wrong_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "picky_lab.py").write_text(
        "from typing import Any\nimport torch\n\n\nclass Picky:\n"
        "    def __init__(self, policy: torch.nn.Linear, critic: Any):\n        pass\n"
    )
    schema.allow([tmp_path])
    node = {"_target_": "picky_lab.Picky"}
    refuse_misfit(node, policy=torch.nn.Linear(1, 1), critic=None)
    with pytest.raises(RheoError, match="policy: Picky needs a Linear and this is a ReLU"):
        refuse_misfit(node, policy=torch.nn.ReLU(), critic=None)
    with pytest.raises(RheoError, match="policy=none: Picky trains a policy"):
        refuse_misfit(node, policy=None, critic=None)


def test_a_full_disk_does_not_stop_a_run_but_its_end_must_be_saved(tiny, monkeypatch, capsys):
    from rheo.scripts.store import checkpoint

    write, calls = checkpoint.write, []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", full)
    code, error = answer(capsys, "train", *tiny("bc", "r"))
    assert code == 3 and "could not be saved" in error and "rheo resume runs/r" in error
    assert Run.open("r").load() is not None


def test_a_curve_that_cannot_be_drawn_does_not_undo_the_training(tiny, monkeypatch, capsys):
    def full(folder, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ending, "plot", full)
    code, error = answer(capsys, "train", *tiny("bc", "r", "steps=5"))
    assert code == 0 and "no curve drawn" in error


# ------------------------------------------------------------------ starting from another run


def test_a_run_starts_from_the_weights_of_another(tiny):
    assert main(["train", *tiny("bc", "a", "steps=60")]) == 0
    config = compose(tiny("bc", "b", "init=a", "seed=5"))
    algo = assemble(config).algo
    start_from(algo, config)
    tree = Run.open("a").load()
    assert tree is not None
    for part in ("policy", "average"):
        for name, tensor in getattr(algo, part).state_dict().items():
            assert torch.equal(tensor, tree["algo"][part][name]), name
    assert main(["train", *tiny("bc", "b", "init=a", "steps=20")]) == 0
    first = [row["val/loss"] for row in rows("b") if "val/loss" in row][0]
    last = [row["val/loss"] for row in rows("a") if "val/loss" in row][-1]
    assert first == last


def test_the_same_algorithm_starts_with_its_critics_and_another_with_the_deployed_policy(tiny):
    assert main(["train", *tiny("rfm", "a", "steps=80")]) == 0
    tree = Run.open("a").load()
    assert tree is not None
    config = compose(tiny("rfm", "b", "init=a", "seed=5"))
    algo = assemble(config).algo
    start_from(algo, config)
    for part in ("policy", "average", "critic", "target"):
        for name, tensor in getattr(algo, part).state_dict().items():
            assert torch.equal(tensor, tree["algo"][part][name]), (part, name)
    config = compose(tiny("bc", "c", "init=a", "env=inverted_pendulum", "policy/net=mlp_small"))
    config["policy"] = compose(tiny("rfm", "b"))["policy"]
    config["source"] = compose(tiny("rfm", "b"))["source"]
    other = assemble(config).algo
    start_from(other, config)
    for policy in (other.policy, other.average):
        for name, tensor in policy.state_dict().items():
            assert torch.equal(tensor, tree["algo"]["average"][name]), name


def test_the_architecture_and_the_chunks_of_the_base_are_taken_over(tiny):
    words = tiny("bc", "a", "steps=5", "policy/net=unet", "horizon=4", "policy.path=cosine")
    words = [word for word in words if not word.startswith("policy.net")]
    assert main(["train", *words, "policy.net.widths=[8,16]", "policy.net.groups=4"]) == 0
    base, mine = (compose(["algo=bc", "data=data.npz", *w]) for w in (["init=a"], []))
    assert base["horizon"] == base["env"]["execute"] == 4 and mine["horizon"] == 1
    assert base["policy"] == Run.open("a").config["policy"] != mine["policy"]
    other = compose(["algo=sac", "env=inverted_pendulum", "init=a"])
    assert other["policy"] == compose(["algo=sac", "env=inverted_pendulum"])["policy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("policy.net.width=24", "another architecture: net."),
        ("horizon=3", "another architecture: net."),
        ("policy/net=transformer", "another architecture: net."),
        ("policy.prediction=eps", "its policy.prediction is v and here it is eps"),
        ("policy.path=cosine", "its policy.path is linear and here it is cosine"),
        ("policy.net.activation=tanh", "policy.net.activation is"),
        ("policy.obs_norm.kind=minmax", "its policy.obs_norm.kind is gaussian"),
    ],
)
def test_weights_that_do_not_fit_or_mean_something_else_are_refused(tiny, capsys, change, message):
    assert main(["train", *tiny("bc", "a", "steps=5")]) == 0
    words = tiny("bc", "b", "init=a", change)
    if change.startswith("policy/net"):
        words = [w for w in words if not w.startswith("policy.net")] + ["policy.net.width=16"]
    code, error = answer(capsys, "train", *words)
    assert code == 2 and message in error
    assert not Path("runs/b").exists()


def test_starting_from_a_run_that_never_saved_is_refused(tiny, capsys):
    Run.create("a", compose(tiny("bc", "a"))).close()
    code, error = answer(capsys, "train", *tiny("bc", "b", "init=a"))
    assert code == 2 and "init=runs/a: that run has no checkpoint yet" in error


def test_fine_tuning_starts_from_the_base_and_tells_the_shift(tiny, episodes, tmp_path, capsys):
    """A cloned policy into ReinFlow: chunks, statistics and the base's own evaluation."""
    words = [*tiny("bc", "base", "steps=30", "horizon=4", "env=inverted_pendulum")]
    episodes(tmp_path / "data.npz", [30, 30], obs_dim=4, action_dim=1)
    assert main(["train", *words]) == 0
    capsys.readouterr()
    tuned = tiny("reinflow", "tuned", "init=base", "steps=200", "eval_every=1000")
    tuned = [word for word in tuned if not word.startswith("policy.net")]
    code, said = answer(capsys, "train", *tuned)
    assert code == 0 and "from the base's data" in said
    tree = Run.open("tuned").load()
    assert tree is not None and tree["algo"]["value"]["obs_norm.fitted"]
    base = Run.open("base").load()
    assert base is not None
    mean = base["algo"]["average"]["obs_norm.shift"]
    assert torch.equal(tree["algo"]["noise"]["obs_norm.shift"], mean)
    first = next(row for row in rows("tuned") if "eval/return" in row)
    assert first["step"] == 0
    last = [row for row in rows("tuned") if "policy/first_ratio_error" in row]
    assert last and all(row["policy/first_ratio_error"] < 1e-5 for row in last)


def test_a_policy_goes_where_its_data_do_not(tiny, episodes, tmp_path, capsys):
    """A run folder alone is evaluated and tuned; cloning further needs the data, and says so."""
    words = tiny("bc", "base", "steps=20", "env=inverted_pendulum")
    data = episodes(tmp_path / "data.npz", [30, 30], obs_dim=4, action_dim=1)
    assert main(["train", *words]) == 0
    data.unlink()
    assert main(["eval", "base", "episodes=2"]) == 0
    tuned = tiny("reinflow", "tuned", "init=base", "steps=100", "eval_every=1000")
    assert main(["train", *[w for w in tuned if not w.startswith("policy.net")]]) == 0
    shutil.rmtree("runs/base")
    assert main(["eval", "tuned", "episodes=2"]) == 0
    assert main(["resume", "tuned", "steps=200"]) == 0
    words = tiny("bc", "base", "steps=20", "env=inverted_pendulum")
    data.unlink()
    code, error = answer(capsys, "train", *words)
    assert code == 2 and "no such file or data set" in error and not Path("runs/base").exists()


@pytest.mark.parametrize("algo", ["reinflow", "dppo", "awm_gae"])
def test_a_diffusion_base_is_tuned_by_its_own_steps(tiny, episodes, tmp_path, algo):
    """The noisy chain of a diffusion base is that of its DDIM steps, and as exact."""
    kind = ["policy.path=cosine", "policy.prediction=eps", "env=inverted_pendulum"]
    words = tiny("bc", "base", "steps=20", *kind)
    episodes(tmp_path / "data.npz", [30, 30], obs_dim=4, action_dim=1)
    assert main(["train", *words]) == 0
    words = ["eval_every=1000", "policy.steps=3", "limits.saturated=null"]
    words += ["algo.weighting=data2"] if algo == "awm_gae" else []  # it predicts the noise
    tuned = tiny(algo, "tuned", "init=base", "steps=100", *words)
    tuned = [w for w in tuned if not w.startswith("policy.net") and w != "policy.steps=2"]
    assert main(["train", *tuned]) == 0
    assert Run.open("tuned").config["policy"]["path"] == "cosine"
    last = [row for row in rows("tuned") if "policy/first_ratio_error" in row]
    assert last and all(row["policy/first_ratio_error"] < 1e-4 for row in last)


def test_an_algorithm_and_a_source_that_do_not_fit_are_refused(tiny, capsys):
    for algo, source in (("ppo", "replay"), ("sac", "rollouts")):
        words = [word for word in tiny(algo, "a") if not word.startswith("source.")]
        code, error = answer(capsys, "train", *words, f"source={source}")
        assert code == 2 and not Path("runs/a").exists()
        if algo == "ppo":
            assert "set source=rollouts" in error
    assert code == 2 and "does not learn on policy" in error


def test_a_run_stops_with_a_diagnosis_when_a_metric_passes_its_limit(tiny, capsys):
    code, error = answer(capsys, "train", *tiny("sac", "a", "limits.q=1e-9"))
    assert code == 4 and "above limits.q=1e-09" in error and "lower algo.critic_lr" in error
    assert main(["train", *tiny("sac", "b", "limits.q=null", "steps=60")]) == 0
    code, error = answer(capsys, "train", *tiny("sac", "c", "limits.kl=-1"))
    assert code == 2 and "limits.kl=-1: must be a positive number" in error
    code, error = answer(capsys, "train", *tiny("sac", "c", "limits.qq=1"))
    assert code == 2 and "limits.qq: unknown key; did you mean 'q'?" in error


# ------------------------------------------------------------------ the state of an algorithm


class Small:
    """State of every kind."""

    def __init__(self, generator, *, rate: float):
        self.generator, self.rate = generator, rate
        self.net, self.scale, self.updates = torch.nn.Linear(2, 2), torch.ones(3), 0
        self.mean = 0.5


def small(rate=0.1):
    return Small(torch.Generator().manual_seed(0), rate=rate)


def test_captured_state_comes_back_and_settings_stay():
    algo, other = small(), small(rate=0.2)
    algo.scale.mul_(3.0)
    algo.updates, algo.mean = 7, 0.25
    algo.generator.manual_seed(5)
    state = capture(algo)
    assert set(state) == {"generator", "net", "scale", "updates", "mean"}
    scale = other.scale
    restore(other, state)
    assert other.rate == 0.2 and other.updates == 7 and other.mean == 0.25
    assert other.scale is scale and torch.equal(scale, algo.scale)
    assert torch.equal(other.net.weight, algo.net.weight)
    draws = [torch.rand(3, generator=one.generator) for one in (algo, other)]
    assert torch.equal(*draws)
    restore(other, state, generators=False)
    assert not torch.equal(
        torch.rand(3, generator=other.generator), torch.rand(3, generator=other.generator)
    )


def test_state_that_would_be_lost_or_stretched_is_refused():
    algo = small()
    state = capture(algo)
    with pytest.raises(RheoError, match="algo.scale does not fit"):
        restore(algo, {**state, "scale": torch.ones(1)})
    with pytest.raises(RheoError, match="algo.net does not fit"):
        restore(algo, {**state, "net": torch.nn.Linear(2, 3).state_dict()})
    with pytest.raises(RheoError, match="algo.mean does not fit: the checkpoint has none"):
        restore(algo, {name: part for name, part in state.items() if name != "mean"})
    with pytest.raises(RheoError, match="algo.extra does not fit: Small has none"):
        restore(algo, {**state, "extra": 1})
    algo.queue = [torch.ones(1)]  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="Small.queue is a list"):
        capture(algo)
