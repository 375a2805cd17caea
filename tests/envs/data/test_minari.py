"""Minari data sets of dictionary observations (only where the package is installed)."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.faults import faults
from rheo.envs.data.read import read
from rheo.envs.datasets import Dataset
from rheo.envs.parts import GOAL_KEYS
from rheo.envs.suites import make
from rheo.errors import EnvError

ACTION = Box(-1, 1, (2,), np.float32)
STEPS = 5


def box(size: int) -> Box:
    return Box(-1, 1, (size,), np.float64)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a data set of random episodes of five steps in a store of its own."""
    minari = pytest.importorskip("minari", reason="pip install minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    def stacked(rows: list[Any]) -> Any:
        if isinstance(rows[0], dict):
            return {key: stacked([row[key] for row in rows]) for key in rows[0]}
        return np.stack(rows)

    def save(space: Any, episodes: int = 4, env: str | None = None) -> str:
        space.seed(0)
        buffers = [
            minari.data_collector.EpisodeBuffer(
                observations=stacked([space.sample() for _ in range(STEPS + 1)]),
                actions=np.full((STEPS, 2), i / 20, np.float32),
                rewards=np.ones(STEPS),
                terminations=np.zeros(STEPS, bool),
                truncations=np.arange(STEPS) == STEPS - 1,
            )
            for i in range(episodes)
        ]
        spaces = {"observation_space": space, "action_space": ACTION}
        minari.create_dataset_from_buffers(
            "test/own-v0", buffers, env=env, data_format="hdf5", **spaces
        )
        return "minari:test/own-v0"

    return save


def content(tmp_path: Path) -> Any:
    return h5py.File(tmp_path / "test" / "own-v0" / "data" / "main_data.hdf5", "a")


def dataset(name: str, space: Any, **changes: Any) -> Dataset:
    env = make("RheoSpaces-v0", 1, observation=space, action=ACTION)
    settings: dict[str, Any] = {"batch_size": 2, "holdout": 0.0, "obs_steps": 1, "storage": "ram"}
    settings |= {"action_scale": "auto", "on_bad": "refuse", "obs_keys": None, "filter": None}
    settings |= {"time_limit": None, "big": False} | changes
    chunks = ChunkEnv(env, execute=1, obs_steps=1, gamma=0.9)
    return Dataset(torch.Generator().manual_seed(0), 1, chunks, path=name, **settings)


def test_parts_follow_in_the_order_of_the_environment_they_come_from(
    store: Any, tmp_path: Path
) -> None:
    name = store(Dict(tip=box(2), aim=box(3)))
    recording = read(name)
    assert recording.about["obs_keys"] == ["tip", "aim"]
    with content(tmp_path) as file:
        tip, aim = (file[f"episode_0/observations/{key}"][()] for key in ("tip", "aim"))
    np.testing.assert_allclose(recording.obs[:5], np.hstack([tip, aim])[:5], rtol=1e-6)
    assert dataset(name, Dict({"tip": box(2), "aim": box(3)})).about["obs_keys"] == ["aim", "tip"]
    with pytest.raises(EnvError, match=r"obs_keys=\[tip,aim\] is its order"):
        dataset(name, Dict(tip=box(2), aim=box(3)), obs_keys=["aim", "tip"])


@pytest.mark.parametrize(
    ("env", "keys"), [(None, GOAL_KEYS), ("PointMaze_UMaze-v3", GOAL_KEYS[1:])]
)
def test_goal_parts_are_those_of_the_goal_environment(store: Any, env: Any, keys: Any) -> None:
    if env is not None:
        pytest.importorskip("gymnasium_robotics")
    sizes = {"achieved_goal": 2, "desired_goal": 2, "observation": 4}
    name = store(Dict({key: box(size) for key, size in sizes.items()}), env=env)
    assert read(name).about["obs_keys"] == list(keys)


def test_inner_parts_and_kinds_are_laid_out_as_the_environment_does(store: Any) -> None:
    space = Dict(tip=box(2), more=Dict(z=box(1), kind=Discrete(3)), on=MultiBinary(2))
    name = store(space)
    data = dataset(name, space)
    assert data.about["obs_keys"] == ["tip", "more/z", "more/kind", "on"]
    assert data.about["obs_widths"] == [2, 1, 3, 2] and data.about["left_out"] == []
    assert (data.obs[:, 3:6].sum(1) == 1).all()


def test_images_and_tables_are_told(store: Any) -> None:
    image = Box(0, 255, (8, 8, 3), np.uint8)
    name = store(Dict(tip=box(2), cameras=Dict(left=image), grid=Box(-1, 1, (2, 2))))
    text = next(fault.text for fault in faults(read(name)) if "left out" in fault.text)
    assert "cameras/left Box(0, 255, (8, 8, 3), uint8), grid Box" in text


def shorten(file: Any) -> None:
    held = file["episode_1/observations/tip"][:-1]
    del file["episode_1/observations/tip"]
    file["episode_1/observations/tip"] = held


def lose(file: Any) -> None:
    del file["episode_1/observations/tip"]


def lose_rewards(file: Any) -> None:
    del file["episode_1/rewards"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "has 5 rows and 5 actions, expected one more"),
        (lose, "missing in episode 1"),
        (lose_rewards, "Minari cannot read episode 1"),
    ],
)
def test_a_broken_episode_is_named_and_can_be_dropped(
    store: Any, tmp_path: Path, change: Any, message: str
) -> None:
    name = store(Dict(tip=box(2), aim=box(3)))
    with content(tmp_path) as file:
        change(file)
    with pytest.raises(EnvError, match=f"episode 1: .*{message}.*on_bad=drop"):
        read(name)
    recording = read(name, on_bad="drop")
    assert recording.ends.tolist() == [5, 10, 15] and recording.about["dropped"] == [1]
    np.testing.assert_allclose(recording.action[[0, 5, 10], 0], [0, 0.1, 0.15], rtol=1e-6)
    assert recording.successor.tolist() == [15, 16, 17] and len(recording.obs) == 18
