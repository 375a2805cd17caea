"""Names of public data sets."""

from pathlib import Path

import numpy as np
import pytest

from rheo.envs.data.catalogue import (
    WORLDS,
    addresses,
    env_by_name,
    file_name,
    find,
    fits,
    known,
)
from rheo.envs.data.read import played_in, read
from rheo.envs.suites import make
from rheo.errors import EnvError


def small(file: Path) -> None:
    """A data set; what is in a file decides its format, whatever its suffix."""
    content = {"observations": np.eye(4), "actions": np.eye(4), "episode_ends": np.array([2, 4])}
    with file.open("wb") as out:
        np.savez(out, **content)


def test_names_are_found_in_the_usual_folders_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, folder in (("D4RL_DATASET_DIR", "a"), ("HOME", "b"), ("RHEO_DATASETS", "c")):
        monkeypatch.setenv(key, str(tmp_path / folder))
    with pytest.raises(EnvError, match="run `rheo data fetch hopper-medium-v2`"):
        find("hopper_medium-v2")
    for folder in ("c", "b/.d4rl/datasets", "a"):
        (tmp_path / folder).mkdir(parents=True)
        file = tmp_path / folder / "hopper_medium-v2.hdf5"
        small(file)
        assert find("hopper-medium-v2") == find("hopper_medium-v2") == file
    assert read("hopper-medium-v2").ends.tolist() == [2, 4]
    assert find(str(file)) == file
    with pytest.raises(EnvError, match="no such file"):
        read("nothing-v0")


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        ("hopper-medium-v2", "Hopper-v4"),
        ("data/halfcheetah_full_replay-v2.hdf5", "HalfCheetah-v4"),
        ("walker2d-expert-v2", "Walker2d-v4"),
        ("ant-random-v2", "Ant-v4"),
        ("antmaze-umaze-v2", None),
        ("pen-cloned-v1", "AdroitHandPen-v1"),
        ("relocate-human-v1", "AdroitHandRelocate-v1"),
        ("mine.npz", None),
        ("hopper-medium-v2.npz", "Hopper-v4"),
        ("hopper_expert-v0.hdf5", "Hopper-v4"),
        ("hopper_v5_mine.npz", None),
        ("hopper_medium.hdf5", None),
        ("hopper-medium-v5", None),
        ("walker2d-v5-expert.npz", None),
        ("my-hopper-medium-v2.hdf5", None),
        ("door_opening_ur5.npz", None),
        ("pen_grasp.npz", None),
        ("ant_dir.npz", None),
        ("Ant_maze_u-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5", None),
    ],
)
def test_only_the_full_name_of_a_set_tells_the_environment(name: str, env_id: str | None) -> None:
    assert env_by_name(name) == env_id


@pytest.mark.parametrize(
    ("name", "sizes", "env_id"),
    [
        ("hopper_medium-v2.hdf5", (11, 3), "Hopper-v4"),
        ("hopper_medium-v2.hdf5", (3, 2), None),
        ("door-human-v1.hdf5", (39, 28), "AdroitHandDoor-v1"),
        ("door-human-v1.hdf5", (7, 7), None),
    ],
)
def test_a_name_tells_nothing_of_data_of_other_sizes(
    tmp_path: Path, name: str, sizes: tuple[int, int], env_id: str | None
) -> None:
    obs, action = (np.zeros((4, size)) for size in sizes)
    with (tmp_path / name).open("wb") as out:
        np.savez(out, observations=obs, actions=action, episode_ends=[2, 4])
    assert played_in(str(tmp_path / name))[0] == env_id


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Walker2d-v5", "Reacher-v5", "Ant-v4"])
def test_the_known_sizes_are_those_of_the_environments(env_id: str) -> None:
    env = make(env_id, 1, backend="gymnasium")
    assert WORLDS[env_id] == (env.obs_dim, env.action_dim, env.max_steps)
    assert fits(env_id, env.obs_dim, env.action_dim) and not fits(env_id, 1, env.action_dim)
    assert fits("Own-v0", 1, 1) and fits(None, 1, 1)


def test_addresses_are_those_of_the_public_server() -> None:
    base = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
    assert len(addresses()) == 24 + 12 + 47
    mujoco, hand = f"{base}/gym_mujoco_v2", f"{base}/hand_dapg_v1"
    assert addresses()["hopper-medium-v2"] == f"{mujoco}/hopper_medium-v2.hdf5"
    assert addresses()["ant-full-replay-v2"] == f"{mujoco}/ant_full_replay-v2.hdf5"
    assert addresses()["door-human-v1"] == f"{hand}/door-human-v1.hdf5"
    assert known("x/hopper_medium_replay-v2.hdf5") == "hopper-medium-replay-v2"
    assert file_name("hopper-medium-replay-v2") == "hopper_medium_replay-v2.hdf5"
    assert known("hopper-medium-v3") is None
