"""OGBench's public sets beside what its own package makes of them."""

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from ogbench_files import LENGTHS, record

from rheo.envs import packages
from rheo.envs.data import recording as pieces
from rheo.envs.data.catalogue import addresses, env_by_name, file_of, find, known, single_task
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Recording, Stage
from rheo.envs.datasets import Transitions
from rheo.errors import EnvError
from rheo.scripts.cli import main

ogbench = pytest.importorskip("ogbench")

SERVER = "https://rail.eecs.berkeley.edu/datasets/ogbench"
STEPS = sum(LENGTHS) - len(LENGTHS)
MAZE, MAZE_TASK = "pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-singletask-task2-v0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sets are looked for by name, and nowhere else."""
    monkeypatch.setenv("RHEO_DATASETS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def maze(folder: Path) -> Path:
    """A small set of a maze, whose second task is solved in some rows."""
    record(folder / f"{MAZE}.npz", "pointmaze-medium", "-task2")
    return folder / f"{MAZE}.npz"


def stage(env_id: str) -> Stage:
    return Stage(env_id, -np.ones(2), np.ones(2))


def reward(found: Recording) -> np.ndarray:
    """Rewards [S], which have to be there."""
    assert found.reward is not None
    return found.reward


def next_obs(found: Recording) -> np.ndarray:
    """Next observations [S, Do]."""
    rows = np.arange(1, len(found.action) + 1)
    rows[found.ends - 1] = found.successor
    return found.obs[rows]


def same(found: Recording, name: str, file: Path) -> None:
    """A recording is what the package makes of a file."""
    _, wanted, _ = ogbench.make_env_and_datasets(name, dataset_path=str(file))
    assert len(found.action) == STEPS == len(wanted["actions"])
    assert np.array_equal(found.obs[:STEPS], wanted["observations"])
    assert np.array_equal(next_obs(found), wanted["next_observations"])
    assert np.array_equal(found.action, wanted["actions"])
    assert np.array_equal(reward(found), wanted["rewards"])
    assert np.array_equal(found.terminated, wanted["masks"] == 0)
    cut = np.isin(np.arange(STEPS), found.ends - 1) & ~found.terminated
    assert np.array_equal(cut, (wanted["terminals"] == 1) & (wanted["masks"] == 1))


@pytest.mark.parametrize(
    ("world", "kind", "task"),
    [
        ("pointmaze-medium", "navigate", ""),
        ("antmaze-medium", "explore", "-task3"),
        ("humanoidmaze-medium", "stitch", "-task1"),
        ("antsoccer-arena", "stitch", ""),
        ("cube-double", "play", "-task2"),
        ("scene", "noisy", "-task5"),
        ("puzzle-3x3", "play", ""),
    ],
)
def test_a_single_task_is_read_as_its_own_package_reads_it(
    folder: Path, world: str, kind: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = f"{world}-{kind}-singletask{task}-v0", folder / f"{world}-{kind}-v0.npz"
    record(file, world, task)
    everyones: Any = np.random.get_state
    state = everyones()[1].tolist()
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 300)  # a row or a few at a time
    found = read(name, storage="mmap")
    assert everyones()[1].tolist() == state  # everyone's generator is left alone
    same(found, name, file)
    assert found.about["env_id"] == name and 0 < found.terminated.sum() < STEPS
    assert len(np.unique(reward(found))) > 2 or world not in ("cube-double", "scene", "puzzle-3x3")


def test_the_name_of_a_task_tells_set_and_environment(folder: Path, maze: Path) -> None:
    sets = [name for name, url in addresses().items() if url == f"{SERVER}/{name}.npz"]
    assert len(sets) == 47
    for name in sets:
        task = single_task(f"{name.removesuffix('-v0')}-singletask-task3-v0")
        assert task is not None and task.data_set == name and known(task.name) == name
        assert env_by_name(task.name) == task.name and gymnasium.spec(task.env_name) is not None
    assert known(f"x/{MAZE}.npz") == MAZE and env_by_name(f"{MAZE}.npz") is None
    for other in ("visual-cube-single-play-singletask-v0", "cube-single-play-singletask-task6-v0"):
        assert single_task(other) is None and known(other) is None
    assert find(MAZE) == find(MAZE_TASK) == Path(file_of(MAZE_TASK)) == maze
    assert played_in(MAZE_TASK).env_id == MAZE_TASK and played_in(MAZE).env_id is None
    (own := folder / "home" / ".ogbench" / "data").mkdir(parents=True)
    os.replace(maze, own / maze.name)
    assert find(MAZE_TASK) == own / maze.name


def test_a_path_takes_the_task_of_the_environment(maze: Path) -> None:
    plain = "pointmaze-medium-singletask-task2-v0"  # without the kind of data
    for env_id in (MAZE_TASK, plain):
        same(read(str(maze), stage=stage(env_id)), MAZE_TASK, maze)
    usual = "pointmaze-medium-navigate-singletask-v0"  # the first one
    first = read(usual, stage=stage("pointmaze-medium-singletask-task1-v0"))
    same(first, usual, maze)
    assert not np.array_equal(reward(first), reward(read(MAZE_TASK)))


def test_without_a_task_ends_are_cuts_and_nothing_is_learnt_from_rewards(
    maze: Path, folder: Path
) -> None:
    with np.load(maze) as columns, h5py.File(folder / "copy.hdf5", "w") as copy:
        for key in columns:
            copy[key] = columns[key]
    for path in (maze, folder / "copy.hdf5"):
        found = read(str(path))
        assert found.reward is None and not found.terminated.any()
        assert found.ends.tolist() == [6, 10, 18] and (found.successor >= 0).all()
    how = {"batch_size": 4, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse", "storage": "ram"}
    how |= {"action_scale": "auto", "obs_keys": None, "filter": None, "time_limit": None}
    how |= {"big": False, "execute": 1, "n_step": 1, "gamma": 0.5, "reward_norm": "none"}
    with pytest.raises(ValueError, match="pointmaze-medium-navigate-singletask-task1-v0 names one"):
        Transitions(torch.Generator(), 1, path=str(maze), **how)
    batch = Transitions(torch.Generator(), 1, path=MAZE_TASK, **how).rows(torch.arange(STEPS))
    _, wanted, _ = ogbench.make_env_and_datasets(MAZE_TASK, dataset_path=str(maze))
    assert np.array_equal(batch.next_obs, wanted["next_observations"])
    assert np.array_equal(batch.discount, 0.5 * wanted["masks"])
    assert np.array_equal(batch.reward, wanted["rewards"])


def test_a_time_limit_cuts_and_several_sets_are_joined(maze: Path, folder: Path) -> None:
    cut = read(str(maze), time_limit=4)
    assert cut.ends.tolist() == [4, 6, 10, 14, 18] and np.array_equal(
        next_obs(cut), next_obs(read(str(maze)))
    )
    both = read([MAZE_TASK, MAZE_TASK])
    one = read(MAZE_TASK)
    assert np.array_equal(reward(both), np.tile(reward(one), 2))
    assert np.array_equal(next_obs(both), np.tile(next_obs(one), (2, 1)))


@pytest.mark.parametrize(
    ("name", "env_id", "message"),
    [
        (MAZE_TASK, "pointmaze-medium-navigate-singletask-task1-v0", "those of another task"),
        (MAZE_TASK, "pointmaze-medium-navigate-singletask-v0", "those of another task"),
        (MAZE, "pointmaze-large-singletask-v0", "recorded in pointmaze-medium, and env.id="),
        ("renamed", "antmaze-medium-singletask-v0", "2 a row, and antmaze-medium has 29"),
        ("renamed", "puzzle-3x3-singletask-v0", "2 a row, and puzzle-3x3 has 55"),
    ],
)
def test_a_task_of_another_world_is_refused(
    maze: Path, folder: Path, name: str, env_id: str, message: str
) -> None:
    (folder / "renamed").write_bytes(maze.read_bytes())
    with pytest.raises(EnvError, match=message):
        read(str(folder / name) if name == "renamed" else name, stage=stage(env_id))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros(22)}, "none of OGBench's sets"),
        ({"qpos": np.zeros((21, 2))}, "qpos: 21 rows but 22"),
        ({"qpos": np.full((22, 2), np.nan)}, "qpos: holds numbers that are not finite"),
        ({"qpos": np.zeros(22)}, r"qpos: has shape \(22,\)"),
        ({"terminals": np.ones(22)}, "terminals: each row ends a trajectory"),
        ({"terminals": np.zeros(3)}, "terminals: 3 rows but 22"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_by_its_key(
    maze: Path, changes: dict[str, Any], message: str
) -> None:
    with np.load(maze) as columns:
        np.savez(maze, **(dict(columns) | changes))
    with pytest.raises(EnvError, match=message):
        read(MAZE_TASK)


def test_what_is_not_there_is_answered_with_its_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["train", "algo=rfm_offline", f"data={MAZE_TASK}"]
    assert main(words) == 2
    assert f"run `rheo data fetch {MAZE}`" in capsys.readouterr().err
    record(folder / f"{MAZE}.npz", "pointmaze-medium")
    monkeypatch.setitem(sys.modules, "ogbench", None)
    monkeypatch.setattr(packages, "bound_packages", lambda: [])
    with pytest.raises(EnvError, match=r"pip install 'rheo-rl\[ogbench\]'"):
        read(MAZE_TASK)
    assert read(MAZE).reward is None  # cloning needs no package


def test_a_task_is_trained_on_and_played_where_it_was_recorded(
    maze: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["train", "algo=rfm_offline", "source.batch_size=8", "algo.policy_batch=8", "steps=6"]
    words += ["episodes=1", "eval_every=6", "log_every=3", "env.options.max_episode_steps=20"]
    assert main([*words, f"data={MAZE_TASK}", "name=a"]) == 0
    told = (folder / "runs" / "a" / "config.yaml").read_text()
    assert f"id: {MAZE_TASK}" in told
    assert main([*words, f"data={maze}", "env=ogbench", f"env.id={MAZE_TASK}", "name=b"]) == 0
    capsys.readouterr()
    assert main([*words[:-1], f"data={maze}", "name=c"]) == 2
    text = capsys.readouterr().err
    assert "none is named" in text
    assert main(["train", "algo=bc", f"data={maze}", "steps=4", "name=d"]) == 0
