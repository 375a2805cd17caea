"""robomimic files, written by hand, and what is wrong with some."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.formats import head
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Reading
from rheo.errors import EnvError

ARM = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]


def demos(path: Path, lengths: list[int], **env_args: Any) -> str:
    """A robomimic file; demo i's numbers tell i and the step, whatever order h5py lists them in."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if env_args:
            data.attrs["env_args"] = json.dumps(env_args)
        for i, length in enumerate(lengths):
            demo, place = data.create_group(f"demo_{i}"), 100 * i + np.arange(length + 1.0)
            for j, key in enumerate(("object", "robot0_eef_quat", "robot0_eef_pos", "other")):
                demo[f"obs/{key}"] = place[:-1, None] + [j / 10, j / 10]
                demo[f"next_obs/{key}"] = place[1:, None] + [j / 10, j / 10]
            demo["obs/robot0_gripper_qpos"] = place[:-1, None] + 0.5
            demo["next_obs/robot0_gripper_qpos"] = place[1:, None] + 0.5
            demo["obs/agentview_image"] = np.zeros((length, 4, 4, 3), np.uint8)
            demo["actions"] = np.full((length, 7), i / 20)
            demo["rewards"] = (np.arange(length) == length - 1) * (i != 1) * 1.0
            demo["dones"] = (np.arange(length) == length - 1) * 1
            demo["states"] = place[:-1, None]
    return str(path)


def test_robomimic_demonstrations_are_sorted_by_number_and_put_side_by_side(tmp_path: Path) -> None:
    lengths = [4, 2, 5, 1, 3, 2, 2, 2, 2, 2, 6, 3]
    kwargs = {"control_freq": 20}
    path = demos(tmp_path / "low_dim.hdf5", lengths, env_name="Lift", type=1, env_kwargs=kwargs)
    recording = read(path)
    starts: Any = np.cumsum(lengths) - lengths
    assert recording.ends.tolist() == np.cumsum(lengths).tolist()
    np.testing.assert_allclose(recording.obs[starts][:, 0], 100 * np.arange(12) + 0.2)
    np.testing.assert_allclose(recording.obs[0], [0.2, 0.2, 0.1, 0.1, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(recording.action[starts][:, 3], np.arange(12) / 20, atol=1e-6)
    after = recording.obs[recording.successor][:, -1]
    np.testing.assert_array_equal(after, 100 * np.arange(12) + lengths)
    ended = np.isin(np.arange(len(recording.action)), np.delete(recording.ends, 1) - 1)
    np.testing.assert_array_equal(recording.terminated, ended)  # demo_1 failed
    about = recording.about
    assert (about["env_id"], about["dt"]) == ("robosuite/Lift-v0", 0.05)
    assert about["left_out"] == ["other", "agentview_image (4, 4, 3) uint8"]
    assert about["unread"] == ["states"]
    assert about["obs_keys"] == [*ARM, "object"]
    assert read(path, obs_keys=["other"]).obs.shape == (sum(lengths) + 12, 2)


def test_robomimic_files_need_neither_env_args_nor_next_obs_nor_rewards(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", [3, 2])
    with h5py.File(path, "a") as file:
        for demo in ("demo_0", "demo_1"):
            for key in ("next_obs", "rewards", "dones", "obs/object"):
                del file[f"data/{demo}/{key}"]
    recording = read(path)
    assert recording.reward is None and not recording.terminated.any()
    assert (recording.successor == -1).all() and recording.about["env_id"] is None
    others = ["other", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert recording.about["obs_keys"] == others
    for demo in ("demo_0", "demo_1"):
        with h5py.File(path, "a") as file:
            file[f"data/{demo}/obs/depth"] = np.zeros((5 - int(demo[-1]), 4, 4, 1))
    with pytest.raises(EnvError, match="depth: .* float64, not .* can name other, robot0"):
        read(path, obs_keys=["depth"])
    with pytest.raises(EnvError, match="obs/objekt: not there"):
        read(path, obs_keys=["objekt"])


def test_the_second_arm_comes_before_the_object(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", [3])
    with h5py.File(path, "a") as file:
        for key in ARM:
            file[f"data/demo_0/obs/{key.replace('0', '1')}"] = np.ones((3, 2))
    arms = [*ARM, *(key.replace("0", "1") for key in ARM), "object"]
    assert read(path).about["obs_keys"] == arms


def change(file: Any, key: str, value: Any) -> None:
    del file[key]
    if value is not None:
        file[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("obs/object", None, "obs/object, episode 2: missing in demo_2; .*drop leaves it"),
        ("actions", np.zeros((4, 7)), "obs/robot0_eef_pos, episode 2: demo_2 has 5 rows and 4"),
        ("rewards", np.zeros(6), "rewards, episode 2: demo_2 has 6 rows and 5 actions"),
        ("actions", np.zeros((5, 6)), r"actions, episode 2: demo_2 has \(5, 6\) .* \[steps, 7\]"),
        ("actions", np.zeros(5), r"actions, episode 2: demo_2 has \(5,\) .* \[steps, 7\]"),
        ("actions", np.full((5, 7), 1.79), r"episode 2, step 0, value 1.79: 35 of .*\(demo_2\)"),
        ("obs/object", np.full((5, 2), np.nan), r"observations, episode 2, step 0, value nan"),
        ("next_obs/object", np.zeros((5, 2)), r"episode 2, step 0: not the observation of the fol"),
    ],
)
def test_the_demonstration_that_is_wrong_is_named(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = demos(tmp_path / "a.hdf5", [4, 2, 5])
    with h5py.File(path, "a") as file:
        change(file, f"data/demo_2/{key}", value)
    with pytest.raises(EnvError, match=message) as caught:
        read(path)
    assert path in str(caught.value)


def test_dropping_leaves_the_demonstration_and_its_name_out(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", [4, 2, 5])
    with h5py.File(path, "a") as file:
        change(file, "data/demo_1/actions", np.full((2, 7), np.inf))
    recording = read(path, on_bad="drop")
    assert recording.about["demos"] == ["demo_0", "demo_2"] and recording.about["dropped"] == [1]
    assert recording.ends.tolist() == [4, 9] and recording.successor.tolist() == [9, 10]
    np.testing.assert_array_equal(recording.obs[[0, 4, 9, 10], -1], [0, 200, 4, 205])


def test_headers_tell_size_and_environment(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", [4, 2], env_name="PickPlaceCan")
    arrays = [value for value in read(path) if isinstance(value, np.ndarray)]
    assert head(path, Reading()).sizes.nbytes == sum(array.nbytes for array in arrays)
    assert played_in(path).env_id == "robosuite/PickPlaceCan-v0"
    assert played_in(path).options == {"env_args": {"env_name": "PickPlaceCan"}}


def test_a_file_without_demonstrations_is_empty(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(EnvError, match="empty: no demonstrations"):
        read(str(tmp_path / "a.hdf5"))
