"""Other programs' recordings from a file on disk to a trained run: what a person types."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.scripts.cli import main
from rheo.scripts.store.run import Run

LENGTHS = [9, 8, 7]
SMALL = [
    *("policy.net.width=16", "policy.net.depth=1", "policy.steps=2", "source.batch_size=16"),
    *("horizon=2", "steps=30", "log_every=10", "eval_every=30", "save_every=30"),
]


def written(foreign: Any, folder: Path, kind: str, scale: float = 0.9) -> str:
    """The data of a kind, as they are given on the command line."""
    if kind in ("lerobot v2.1", "lerobot v3.0"):
        return str(foreign.lerobot(folder / "set", LENGTHS, kind[8:], scale=scale))
    if kind == "maniskill":
        return str(foreign.maniskill(folder / "trajectory.state.h5", LENGTHS))
    if kind == "aloha":
        return str(foreign.aloha(folder / "episodes", LENGTHS, scale))
    action = np.concatenate([foreign.actions(e, n, scale) for e, n in enumerate(LENGTHS)])
    store = foreign.pusht(folder / "replay.zarr", LENGTHS, action=action)
    return str(foreign.zipped(store) if kind == "zarr.zip" else store)


KINDS = ["lerobot v2.1", "lerobot v3.0", "zarr", "zarr.zip", "aloha", "maniskill"]


@pytest.mark.parametrize("kind", KINDS)
def test_cloning_learns_from_it(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(foreign, tmp_path, kind)
    assert main(["train", "algo=bc", f"data={path}", *SMALL, "name=run"]) == 0
    run = Run.open("run", [])
    rows = run.rows()
    assert all(np.isfinite(list(row.values())).all() for row in rows) and rows[-1]["step"] == 30
    tree = run.load()
    assert tree is not None
    # the statistics that the policy saw are those of the episodes that are not held out
    recording = read(path)
    shift = tree["algo"]["policy"]["obs_norm.shift"].numpy()
    assert shift.shape == (recording.obs.shape[1],)
    bounds = recording.obs.min(0) - 1e-3, recording.obs.max(0) + 1e-3
    assert ((shift >= bounds[0]) & (shift <= bounds[1])).all() and np.ptp(recording.obs) > 5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "maniskill"])
def test_actions_in_physical_units_need_bounds_and_their_extremes_may_be_these(
    tmp_path: Path,
    foreign: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(foreign, tmp_path, kind, scale=150.0)
    assert main(["train", "algo=bc", f"data={path}", *SMALL, "name=run"]) == 2
    assert "action_scale=extremes" in capsys.readouterr().err
    words = ["data.action_scale=extremes", "data.holdout=0", *SMALL, "name=run"]
    assert main(["train", "algo=bc", f"data={path}", *words]) == 0
    told = json.loads(Path("runs/run/data.json").read_text())
    raw = np.concatenate([foreign.actions(e, n, 150.0, 14 if kind == "aloha" else 2)
                          for e, n in enumerate(LENGTHS)])  # fmt: skip
    low, high = np.array(told["action_low"]), np.array(told["action_high"])
    np.testing.assert_allclose([low, high], [raw.min(0), raw.max(0)], rtol=1e-6)
    unit = read(path, action_scale="extremes").action
    np.testing.assert_allclose((low + high) / 2 + (high - low) / 2 * unit, raw, atol=1e-4)
    assert told["obs_keys"] == read(path, action_scale="extremes").about["obs_keys"]


def test_a_clone_of_pixels_plays_in_its_environment(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(foreign.pusht(tmp_path / "replay.zarr", LENGTHS))
    words = ["env=pusht", "data.action_scale=physical", *SMALL, "episodes=1", "name=run"]
    assert main(["train", "algo=bc", f"data={path}", *words]) == 0
    told = json.loads(Path("runs/run/data.json").read_text())
    assert (told["action_low"], told["action_high"]) == ([0, 0], [512, 512])
    assert told["obs_keys"] == ["state"] and "PushT" in told["unit"]


def test_learning_from_rewards_reads_maniskills(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(foreign, tmp_path, "maniskill")
    words = ["policy.net.width=16", "policy.net.depth=1", "policy.steps=2", "critic.width=16"]
    words += ["critic.depth=1", "algo.value.width=16", "algo.value.depth=1", "steps=10"]
    words += ["source.batch_size=16", "log_every=10", "eval_every=10", "save_every=10"]
    assert main(["train", "algo=iql", f"data={path}", *words, "name=run"]) == 0
