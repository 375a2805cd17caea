"""A run that was stopped and continued equals the one that never stopped, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rheo.envs.acting import Acting
from rheo.envs.chunk import ChunkEnv
from rheo.scripts import loop
from rheo.scripts import train as training
from rheo.scripts.assemble import make_env, make_eval_env
from rheo.scripts.cli import main
from rheo.scripts.config import schema
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import generator_states

RHEO = [sys.executable, "-m", "rheo.scripts.cli"]
ALGOS = ["bc", "rfm", "sac"]
ONE_ROW = ["env.num_envs=1", "policy.net.activation=silu"]  # acts through the light loop


def rows(name):
    """Metrics without what a clock measures."""
    found = Journal(Path("runs", name, "metrics.jsonl")).rows()
    return [{k: v for k, v in row.items() if k[:5] != "time/"} for row in found]


ON_POLICY = ["ppo", "reinflow", "dppo", "awm_gae"]


def differences(a, b, place=""):
    """Places where two trees differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{place}.{k}" for k in set(a) ^ set(b)]
        return found + [d for k in set(a) & set(b) for d in differences(a[k], b[k], f"{place}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{place}.{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return [] if a.dtype == b.dtype and np.array_equal(a, b) else [place]
    return [] if type(a) is type(b) and a == b else [place]


def assert_equal_runs(straight, stopped):
    """Weights, optimisers, buffer, environments, generators and metrics."""
    first, second = (Run.open(name).load() for name in (straight, stopped))
    assert first is not None and second is not None
    assert differences(first, second) == []
    assert {"algo", "source", "loop"} <= set(first)
    assert rows(straight) == rows(stopped)


def test_the_comparison_sees_one_bit():
    tree = {"a": [torch.ones(3), {"n": 1}], "b": np.arange(3)}
    other = {"a": [torch.ones(3), {"n": 1}], "b": np.arange(3)}
    assert differences(tree, other) == []
    other["a"][0].view(torch.int32)[1] ^= 1
    assert differences(tree, other) == [".a.0"]


def stop_at(monkeypatch, step, signal_name="SIGTERM"):
    """Raises a real signal in this process once the source has passed `step`."""
    go_between = training.Loop.between

    def between(self, before, now, steps):
        go_between(self, before, now, steps)
        if before < step <= now:
            os.kill(os.getpid(), getattr(signal, signal_name))

    monkeypatch.setattr(training.Loop, "between", between)


@pytest.mark.parametrize("algo", [*ALGOS, *ON_POLICY, "shortcut"])
def test_a_run_stopped_by_signals_twice_equals_the_straight_one(tiny, algo, monkeypatch, capsys):
    """At steps that are no multiples of any period; the replay's ring has wrapped by the second."""
    more = ["steps=330"] if algo in ("rfm", "sac") else []
    more = ["algo.anchor_coef=0.5"] if algo in ("reinflow", "awm_gae") else more
    dual = "{kind: path, rule: dual, coef: 1, threshold: 0.1, rate: 0.1, every: 2}"
    more = [f"algo.pulls=[{dual}]"] if algo == "dppo" else more
    assert main(["train", *tiny(algo, "straight", *more)]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 73)
        assert main(["train", *tiny(algo, "stopped", *more)]) == 75
    assert "stopped by SIGTERM and saved; go on with: rheo resume runs/stopped" in (
        capsys.readouterr().out
    )
    with monkeypatch.context() as patch:
        stop_at(patch, 151, "SIGUSR1")
        assert main(["resume", "stopped"]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")
    starts = json.loads(Path("runs/stopped/run.json").read_text())["starts"]
    assert len(starts) == 3 and starts[0]["step"] == 0 and starts[1]["step"] >= 73


def stop_in(monkeypatch, where, method, count):
    """Raises a real signal in the `count`th call of a method."""
    calls, meant = [], getattr(where, method)

    def counted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGHUP)
        return meant(self, *args, **kwargs)

    monkeypatch.setattr(where, method, counted)


MIXED = [  # recorded rows beside those of a replay
    *("source=mixed", "env=inverted_pendulum", "env.num_envs=2", "source.replay.warmup=60"),
    *("source.batch_size=8", "source.offline_share=0.25", "source.replay.update_ratio=0.05"),
]
CUTS = {  # where a signal comes: an algorithm, settings, and the call of a method
    "warm-up": ("sac", ["source.warmup=60"], (Acting, "step", 9)),
    "between updates": ("rfm", ["source.update_ratio=0.05"], (Acting, "step", 43)),
    "rollout": ("ppo", ["source.decisions=20"], (Acting, "step", 27)),
    "chunks of a rollout": ("reinflow", ["horizon=2", "log_every=7"], (Acting, "step", 17)),
    "first evaluation": ("sac", [], (ChunkEnv, "step", 2)),
    "evaluation": ("ppo", ["source.decisions=10", "eval_every=40"], (training.Loop, "figure", 2)),
    "last evaluation": ("sac", ["eval_every=1000"], (training.Loop, "figure", 2)),
    "warm-up of a mixed source": ("iql", MIXED, (Acting, "step", 9)),
    "between updates of a mixed source": ("iql", MIXED, (Acting, "step", 43)),
}


@pytest.mark.parametrize("place", CUTS)
def test_a_signal_is_heard_in_every_phase_and_the_run_goes_on_exactly(
    tiny, episodes, place, monkeypatch, capsys
):
    algo, more, call = CUTS[place]
    words = {name: tiny(algo, name, *more) for name in ("straight", "stopped")}
    if more is MIXED:
        episodes(Path("data.npz"), [9, 30, 25], obs_dim=4, action_dim=1)
    assert main(["train", *words["straight"]]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_in(patch, *call)
        assert main(["train", *words["stopped"]]) == 75
    assert "stopped by SIGHUP and saved" in capsys.readouterr().out
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


@pytest.mark.parametrize("more", [("reinflow",), ("rfm", "horizon=4", "steps=330")])
def test_a_run_on_warp_goes_on_exactly_and_is_judged_by_mujoco_itself(tiny, more, monkeypatch):
    """Falls end episodes within chunks; the worlds' state, their bank and their sums are saved."""
    pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")
    algo, *rest = more
    place = ["env=hopper", "env.num_envs=4", "env.backend=warp", *rest]

    def words(name):
        return [w for w in tiny(algo, name) if not w.startswith("env")] + place

    assert main(["train", *words("straight")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 113)
        assert main(["train", *words("stopped")]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")
    cfg, tree = Run.open("straight").config, Run.open("straight").load()
    assert tree is not None and tree["source"]["env"]["env"]["backend"] == "warp"
    assert any(row.get("env/episodes") for row in rows("straight"))
    judges = [make_env(cfg, 1), make_eval_env(cfg, 1)]
    assert [each is not None and each.env.backend for each in judges] == ["native", "native"]


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_run_in_bfloat16_goes_on_in_it(tiny, algo, monkeypatch, capsys):
    assert main(["train", *tiny(algo, "straight", "precision=bf16")]) == 0
    assert "precision=bf16: a CPU without units for it" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_at(patch, 73)
        assert main(["train", *tiny(algo, "stopped", "precision=bf16")]) == 75
    assert main(["resume", "stopped", "precision=float32"]) == 2
    assert "precision" in capsys.readouterr().err
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")
    assert main(["train", *tiny(algo, "exact")]) == 0
    assert rows("exact") != rows("straight")


@pytest.mark.parametrize("algo", ALGOS)
def test_a_run_that_ended_and_is_extended_equals_the_longer_one(tiny, algo):
    """The schedule of `bc` follows the length of the run, so there only a constant one can."""
    more = ["algo.lr_warmup=0.0", "algo.lr_floor=1.0"] if algo == "bc" else []
    assert main(["train", *tiny(algo, "straight", *more, "steps=200")]) == 0
    assert main(["train", *tiny(algo, "stopped", *more, "steps=100")]) == 0
    assert main(["resume", "stopped", "steps=200"]) == 0
    assert_equal_runs("straight", "stopped")
    assert Run.open("stopped").config["steps"] == 200


@pytest.mark.parametrize("options", ["gymnasium", "chunks", "rows"])
def test_other_settings_resume_exactly_too(tiny, options, monkeypatch):
    """`rows`: the first row after the stop repeats a policy loss from before it."""
    more = {
        "rows": [*ONE_ROW, "log_every=1", "algo.policy_every=2", "steps=130"],
        "gymnasium": ["env.backend=gymnasium"],
        "chunks": ["horizon=4", "env.execute=2", "env.obs_steps=2", "source.update_ratio=0.3"],
    }[options]
    assert main(["train", *tiny("rfm", "straight", *more)]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 112)
        assert main(["train", *tiny("rfm", "stopped", *more)]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def wait_for(condition, process, log, seconds=240):
    """Polls until a condition holds while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)


def start(words, log):
    """`rheo ...` in a process of its own, its output in a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as stream:
        return subprocess.Popen(
            [*RHEO, *words], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )


def test_a_real_process_that_is_stopped_loses_nothing(tiny, tmp_path):
    """Those that are killed, and when, are in tests/faults."""
    more = ["steps=600", "log_every=50", "eval_every=300", "save_every=100"]
    log = tmp_path / "log"
    process = start(["train", *tiny("bc", "stopped", *more)], log)
    wait_for(lambda: any(Path("runs/stopped/ckpt").glob("0*")), process, log)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=120)
    text = log.read_text()
    assert code == 75 and "rheo resume runs/stopped" in text, text
    assert not Path("runs/stopped/lock").exists()
    assert main(["resume", "stopped"]) == 0
    assert main(["train", *tiny("bc", "straight", *more)]) == 0
    assert_equal_runs("straight", "stopped")


def test_a_process_stopped_while_it_assembles_saves_and_resumes(tiny, monkeypatch):
    """The flag is set before the first step: nothing has been evaluated or collected yet."""
    assemble = training.assemble

    def slow(config):
        os.kill(os.getpid(), signal.SIGTERM)
        return assemble(config)

    assert main(["train", *tiny("sac", "straight")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training, "assemble", slow)
        assert main(["train", *tiny("sac", "stopped")]) == 75
    assert not Path("runs/stopped/metrics.jsonl").exists()
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def cut_at_its_first_save(monkeypatch, words):
    """As a kill there leaves a run: what it logged is on the disk, and no checkpoint."""

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(training.Loop, "save", killed)
        with pytest.raises(SystemExit):
            main(["train", *words])


FIRST = {  # what a run draws or measures before its first step
    "from scratch": ("sac", []),
    "a flow of another run": ("reinflow", ["init=base", "horizon=1"]),
    "a steered flow": ("dsrl_na", ["init=base", "horizon=1"]),
    "a frozen flow below": ("expo", ["init=base", "horizon=1"]),
    "a choice before training": ("dsrl_na", ["init=base", "horizon=1", "algo.gate=0.01"]),
}


@pytest.mark.parametrize("kind", FIRST)
def test_a_run_killed_before_its_first_save_resumes_to_the_straight_one(tiny, kind, monkeypatch):
    algo, more = FIRST[kind]
    if more:
        place = ["env=inverted_pendulum", "steps=10", "horizon=1"]
        words = [word for word in tiny("bc", "base", *place) if not word.startswith("data=")]
        assert main(["collect", "random", "out=d.npz", "env=inverted_pendulum", "steps=200"]) == 0
        assert main(["train", *words, "data=d.npz"]) == 0
    more = [*more, "steps=80", "eval_every=40"]
    assert main(["train", *tiny(algo, "straight", *more)]) == 0
    cut_at_its_first_save(monkeypatch, tiny(algo, "stopped", *more))
    assert Path("runs/stopped/metrics.jsonl").exists() and not Path("runs/stopped/ckpt").exists()
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


@pytest.mark.parametrize("algo", ["bc", "sac", "ppo"])
def test_saves_by_the_clock_change_nothing_and_are_gone_on_from(tiny, algo, monkeypatch):
    """However often, and the run is killed after the first one, which is early."""
    more = ["save_every=1000"]
    assert main(["train", *tiny(algo, "straight", *more, "save_minutes=null")]) == 0
    assert main(["train", *tiny(algo, "often", *more, "save_minutes=1e-9")]) == 0
    assert_equal_runs("straight", "often")
    clock, save, saved = [0.0], training.Loop.save, []

    def slow():
        clock[0] += 25.0  # seconds
        return clock[0]

    def once(self, step):
        save(self, step)
        saved.append((step, clock[0]))
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(loop, "monotonic", slow)
        patch.setattr(training.Loop, "save", once)
        with pytest.raises(SystemExit):
            main(["train", *tiny(algo, "stopped", *more)])
    assert 0 < saved[0][0] < 200 and 75 < saved[0][1] <= 125
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def test_a_run_without_a_checkpoint_starts_over_only_from_its_start(tiny, capsys):
    assert main(["train", *tiny("sac", "straight")]) == 0
    assert main(["train", *tiny("sac", "stopped")]) == 0
    shutil.rmtree("runs/stopped/ckpt")
    log = Path("runs/stopped/metrics.jsonl")
    old = log.read_text()
    assert main(["resume", "stopped"]) == 3
    assert "no checkpoint in ckpt/ to go on from" in capsys.readouterr().err
    assert log.read_text() == old
    log.write_text(old.splitlines(keepends=True)[0])
    shutil.rmtree("runs/stopped/eval")
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def test_resuming_a_finished_run_changes_nothing(tiny):
    assert main(["train", *tiny("bc", "r")]) == 0
    before = rows("r"), sorted(p.name for p in Path("runs/r/ckpt").iterdir())
    half = Path("runs/r/ckpt/.staging-000000000060")  # killed while it removed an old checkpoint
    half.mkdir()
    (half / "algo.safetensors").touch()
    assert main(["resume", "r"]) == 0
    assert (rows("r"), sorted(p.name for p in Path("runs/r/ckpt").iterdir())) == before


def test_a_signal_in_the_last_step_leaves_a_finished_run(tiny, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 200)
        assert main(["train", *tiny("bc", "r")]) == 0


@pytest.mark.parametrize("word", ["algo.lr=1.0", "seed=3", "step=9", "policy.path=cosine"])
def test_only_the_loops_own_settings_change_between_starts(tiny, capsys, word):
    assert main(["train", *tiny("bc", "r", "steps=5")]) == 0
    capsys.readouterr()
    assert main(["resume", "r", word]) == 2
    error = capsys.readouterr().err
    assert "fixed by the checkpoint" in error and "init=r" in error


def test_a_run_does_not_resume_on_other_data(tiny, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 50)
        assert main(["train", *tiny("bc", "r")]) == 75
    with np.load(tmp_path / "data.npz") as file:
        content = dict(file)
    content["actions"][0, 0] = 0.0
    np.savez(tmp_path / "data.npz", **content)
    capsys.readouterr()
    assert main(["resume", "r"]) == 2
    assert "content changed since the run was saved" in capsys.readouterr().err


def test_a_run_is_told_where_its_data_are_now(tiny, tmp_path, monkeypatch, capsys):
    """From another working folder as well: what a run refers to is stored as it is found."""
    more = ["algo.lr_warmup=0.0", "algo.lr_floor=1.0"]
    words = [w for w in tiny("bc", "r", *more, "steps=40") if not w.startswith("data=")]
    assert main(["train", *words, "data=data.npz"]) == 0
    monkeypatch.chdir(tmp_path.parent)
    folder = str(tmp_path / "runs" / "r")
    assert main(["resume", folder, "steps=60"]) == 0
    (tmp_path / "new = place").mkdir()
    moved = (tmp_path / "data.npz").rename(tmp_path / "new = place" / "data.npz")
    capsys.readouterr()
    assert main(["resume", folder, "steps=80"]) == 2
    assert "data=FILE" in capsys.readouterr().err
    assert main(["resume", folder, "steps=80", f"data={moved}", "device=auto"]) == 0
    config = Run.open(folder).config
    assert config["data"] == config["source"]["path"] == str(moved)
    with np.load(moved) as file:
        content = dict(file)
    content["actions"][0, 0] = 0.0
    np.savez(tmp_path / "other.npz", **content)
    text = (tmp_path / "runs" / "r" / "config.yaml").read_text()
    assert main(["resume", folder, "steps=99", f"data={tmp_path / 'other.npz'}"]) == 2
    assert "content changed since" in capsys.readouterr().err
    assert (tmp_path / "runs" / "r" / "config.yaml").read_text() == text


def test_a_run_is_not_shortened_and_its_end_is_said(tiny, capsys):
    assert main(["train", *tiny("bc", "r", "steps=40")]) == 0
    text = Path("runs/r/config.yaml").read_text()
    capsys.readouterr()
    assert main(["resume", "r", "steps=10"]) == 2
    assert "runs/r has reached step 40 already" in capsys.readouterr().err
    assert main(["resume", "r", "steps=40"]) == 0
    assert "step 40 of 40: nothing to do" in capsys.readouterr().out
    assert Path("runs/r/config.yaml").read_text() == text


def test_noise_begins_anew_on_another_kind_of_device(tiny, monkeypatch, caplog):
    """A checkpoint whose generators are of a GPU, whose states have another size."""
    with monkeypatch.context() as patch:
        stop_at(patch, 100)
        assert main(["train", *tiny("sac", "r")]) == 75
    with Run.open("r", write=True) as run:
        tree = run.load()
        assert tree is not None
        for node, key in generator_states(tree):
            node[key] = torch.zeros(16, dtype=torch.uint8)
        for path in Path("runs/r/ckpt").iterdir():
            shutil.rmtree(path)
        run.save(run.step, tree)
    assert main(["resume", "r", "device=cpu"]) == 0
    assert rows("r")[-1]["step"] == 200
    finished = Run.open("r").load()
    assert finished is not None
    assert all(len(node[key]) > 16 for node, key in generator_states(finished))


LAB = """
from rheo.algos.bc import BC


class Mine(BC):
    def __init__(self, policy, critic, generator, run_updates: int, *, lr: float):
        super().__init__(
            policy, generator, run_updates,
            lr=lr, weight_decay=0.0, lr_warmup=0.0, lr_floor=1.0, ema_rate=1.0,
            learn_padding=True, max_norm=1.0, draws=1, condition=[],
            contrast_coef=0.0, contrast_beta=1.0,
        )
"""
LAB_FILE = """# @package _global_
defaults:
  - override /policy: flow
  - override /critic: none
  - override /source: dataset
  - override /env: none
algo:
  _target_: resume_lab.Mine
  lr: 1.0e-3
"""


def test_an_algorithm_from_a_users_folder_resumes_by_the_command_that_is_printed(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "lab" / "algo").mkdir(parents=True)
    (tmp_path / "lab" / "resume_lab.py").write_text(LAB)
    (tmp_path / "lab" / "algo" / "mine.yaml").write_text(LAB_FILE)
    mine = ["algo=mine", "--config-dir", "lab"]
    assert main(["train", *tiny("bc", "straight")[1:], *mine]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 90)
        assert main(["train", *tiny("bc", "stopped")[1:], *mine]) == 75
    command = capsys.readouterr().out.rpartition("go on with: ")[2].split()
    assert command[:2] == ["rheo", "resume"] and "--config-dir" in command
    schema.allowed.clear()  # as in a new process, where nobody has named the folder yet
    assert main(command[1:3]) == 2 and "if you trust them" in capsys.readouterr().err
    assert main(command[1:]) == 0
    folder = ["--config-dir", str(tmp_path / "lab")]
    first, second = (Run.open(name, folder).load() for name in ("straight", "stopped"))
    assert first is not None and differences(first, second) == []
    assert rows("straight") == rows("stopped")
    started = [*tiny("bc", "third", "init=stopped", "steps=20")[1:], *mine]
    assert main(["train", *started]) == 0


@pytest.mark.parametrize(
    ("algo", "key", "more"),
    [
        ("align", "source.judged", ["source.labels=[brave]", "policy.want=[0.9]"]),
        ("ctrl", "source.file", ["source.label=file"]),
    ],
)
def test_a_file_beside_the_data_is_found_from_anywhere_and_may_move(
    tiny, tmp_path, monkeypatch, capsys, algo, key, more
):
    first, second = np.arange(20), np.arange(40, 60)
    np.savez("beside.npz", first=first, second=second, more=np.ones((20, 1), np.int64))
    np.save("beside.npy", np.arange(104) % 2)
    name = "beside.npz" if algo == "align" else "beside.npy"
    run, place = tmp_path / "runs" / "a", tmp_path / "elsewhere"
    assert main(["train", *tiny(algo, "a", *more, f"{key}={name}")]) == 0
    place.mkdir()
    monkeypatch.chdir(place)
    assert main(["resume", str(run), "steps=220"]) == 0
    (tmp_path / name).rename(place / name)
    assert main(["resume", str(run), "steps=240"]) == 2
    assert f"{key}=" in capsys.readouterr().err
    assert main(["resume", str(run), "steps=240", f"{key}={name}"]) == 0
    assert Run.open(str(run)).config["source"][key.partition(".")[2]] == str(place / name)
