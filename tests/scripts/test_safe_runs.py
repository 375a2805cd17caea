"""Costs from the command line: recorded, learned from, counted by an evaluation, and refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.envs.mujoco import physics
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose

pytestmark = pytest.mark.skipif(not physics.available(), reason="needs mujoco.batch")
COST = ["env=halfcheetah", "env.cost={kind: speed, limit: 0.3}"]
SMALL = ["policy.net.width=8", "policy.net.depth=1", "critic.width=8", "critic.depth=1"]
SMALL += ["algo.value.width=8", "algo.value.depth=1", "source.batch_size=16", "device=cpu"]
SHORT = ["env.options.max_episode_steps=20", "episodes=2"]


def test_costs_are_recorded_learned_from_and_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["random", *COST, "env.options.max_episode_steps=20", "steps=160", "num_envs=2"]
    words += ["out=a.hdf5"]
    assert main(["collect", *words]) == 0
    recording, card = read("a.hdf5"), json.loads(Path("a.hdf5.card.json").read_text())
    assert recording.cost is not None and set(recording.cost.tolist()) == {0.0, 1.0}
    sums = np.add.reduceat(recording.cost, recording.starts)[recording.lengths == 20]
    assert card["cost_mean"] == pytest.approx(sums.mean())
    train = ["algo=fisor", "data=a.hdf5", *SMALL, "steps=6", "log_every=2", "eval_every=6"]
    assert main(["train", *train, *SHORT, "name=safe"]) == 0  # the file says what costs
    rows = [json.loads(line) for line in Path("runs/safe/metrics.jsonl").read_text().splitlines()]
    told = {key for row in rows for key in row}
    assert {"critic/cost_loss", "critic/infeasible", "policy/matched", "eval/cost"} <= told
    capsys.readouterr()
    assert main(["eval", "safe", "episodes=3"]) == 0
    assert " an episode  95 % interval [" in capsys.readouterr().out
    assert main(["eval", "safe", "episodes=3", "env.cost.limit=1000"]) == 0
    assert "cost 0.0 an episode" in capsys.readouterr().out


def test_what_a_recording_says_of_costs_gives_way_to_what_is_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, limit in (("a.npz", 0.3), ("b.npz", 2.0)):
        words = [*COST[:1], f"env.cost={{kind: speed, limit: {limit}}}", f"out={name}"]
        assert main(["collect", "random", *words, "steps=40", "num_envs=2"]) == 0
    assert read("a.npz").about["env_cost"] == {"kind": "speed", "limit": 0.3}
    base = ["algo=fisor", "data=a.npz"]
    assert compose(base)["env"]["cost"] == {"kind": "speed", "limit": 0.3}
    assert compose(["algo=bc", "data=a.npz"])["env"]["cost"]["limit"] == 0.3
    assert compose([*base, "env.cost.limit=1.5"])["env"]["cost"]["limit"] == 1.5
    assert compose([*base, "env.cost={}"])["env"]["cost"] == {}
    assert compose([*base, "env.backend=gymnasium"])["env"]["cost"] == {}  # which tells no speed
    assert compose([*base, "env=hopper"])["env"]["cost"] == {}
    capsys.readouterr()
    assert main(["train", "algo=bc", "data=[a.npz,b.npz]", "steps=2"]) == 2
    assert "env_cost: is {'kind': 'speed', 'limit': 2.0}, and" in capsys.readouterr().err


def test_what_tells_no_costs_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(
        "a.npz", observations=np.random.randn(20, 3), actions=np.zeros((20, 1)),
        rewards=np.random.randn(20), episode_ends=[8, 20],
    )  # fmt: skip
    assert main(["train", "algo=fisor", "data=a.npz", *SMALL, "steps=2"]) == 2
    assert "a.npz: it holds no costs, which FISOR learns from" in capsys.readouterr().err
    assert main(["collect", "random", "env=reacher", COST[1], "steps=20", "out=b.npz"]) == 2
    assert "Reacher-v5 has no speed to charge" in capsys.readouterr().err
