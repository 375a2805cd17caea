"""PushT's zarr, ALOHA's and ManiSkill's HDF5, and what is said of files that are not read."""

import io
import json
import pickle
import re
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rheo.envs.data.formats import head
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Reading
from rheo.errors import EnvError

LENGTHS = [5, 8, 4]


def arrays(recording: Any) -> int:
    """Bytes of a recording's arrays."""
    return sum(value.nbytes for value in recording if isinstance(value, np.ndarray))


@pytest.mark.parametrize("how", ["folder", "zip", "zip of a folder"])
def test_pushts_replay_buffer_is_read_from_a_folder_and_from_an_archive(
    tmp_path: Path, foreign: Any, how: str
) -> None:
    inside = np.concatenate([foreign.actions(e, n) for e, n in enumerate(LENGTHS)])
    folder = foreign.pusht(tmp_path / "replay.zarr", LENGTHS, action=inside)
    path = folder
    if how != "folder":
        path = foreign.zipped(folder, "" if how == "zip" else "pusht/pusht_cchi_v7_replay.zarr/")
    recording = read(str(path))
    assert recording.ends.tolist() == [5, 13, 17] and recording.about["format"] == "zarr"
    assert recording.about["obs_keys"] == ["state"]
    told = ["keypoint", "img (an image)", "n_contacts (no observation)"]
    assert sorted(recording.about["left_out"]) == sorted(told)
    for episode, (end, length) in enumerate(zip(recording.ends, LENGTHS, strict=True)):
        rows = slice(end - length, end)
        np.testing.assert_allclose(recording.obs[rows], foreign.states(episode, length, 5))
    np.testing.assert_allclose(recording.action, inside)
    assert head(str(path), Reading()).sizes.nbytes == arrays(recording)
    both = read(str(path), obs_keys=["keypoint", "state"])
    assert both.obs.shape == (17, 23) and both.obs[3, 17] == 3
    np.testing.assert_allclose(both.obs[:, 18:], recording.obs)
    with pytest.raises(EnvError, match="img: an image; .*can name keypoint, state"):
        read(str(path), obs_keys=["img"])


def test_a_replay_buffer_without_a_state_is_read_by_its_tables(
    tmp_path: Path, foreign: Any
) -> None:
    inside = np.concatenate([foreign.actions(e, n) for e, n in enumerate(LENGTHS)])
    extra = {
        "robot0_eef_pos": np.arange(17.0)[:, None] + [0, 0.1, 0.2],
        "gripper_width": np.arange(17.0),
        "robot0_rgb": np.zeros((17, 4, 4, 3), np.uint8),
    }
    path = foreign.pusht(tmp_path / "umi.zarr", LENGTHS, action=inside, state=None, **extra)
    recording = read(str(path))
    assert recording.about["obs_keys"] == ["gripper_width", "robot0_eef_pos"]
    np.testing.assert_allclose(recording.obs[4], [4, 4, 4.1, 4.2], rtol=1e-6)


def test_rows_after_the_last_episode_are_no_steps(tmp_path: Path, foreign: Any) -> None:
    inside = np.concatenate([foreign.actions(0, 20)])
    state = foreign.states(0, 20, 5)
    path = foreign.pusht(tmp_path / "r.zarr", LENGTHS, action=inside, state=state)
    assert len(read(str(path)).action) == 17
    path = foreign.pusht(tmp_path / "s.zarr", LENGTHS, action=inside[:12])
    with pytest.raises(EnvError, match="data/action: has 12 rows, and the last episode ends at 17"):
        read(str(path))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (
            [5, 4, 17],
            r"must rise strictly from above 0 to 17, the number of steps; got \[ 5 4 17\]",
        ),
        ([0, 5, 17], "must rise strictly from above 0"),
        ([], "meta/episode_ends: empty: no episodes"),
    ],
)
def test_ends_of_a_replay_buffer_have_to_rise(
    tmp_path: Path, foreign: Any, ends: list[int], message: str
) -> None:
    import zarr

    root = zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=2)
    held = {"data/state": foreign.states(0, 17, 5), "data/action": foreign.actions(0, 17)}
    for key, values in (held | {"meta/episode_ends": np.array(ends, np.int64)}).items():
        root.create_array(key, data=values)
    with pytest.raises(EnvError, match=message):
        read(str(tmp_path / "r.zarr"))


def test_rewards_of_a_replay_buffer_are_one_number_for_every_step(
    tmp_path: Path, foreign: Any
) -> None:
    held: dict[str, Any] = {"action": foreign.actions(0, 17)}
    for shape in ((17,), (17, 1)):
        reward = np.arange(17.0).reshape(shape)
        path = foreign.pusht(tmp_path / f"{len(shape)}.zarr", LENGTHS, **held, reward=reward)
        recording = read(str(path))
        assert recording.reward is not None and recording.reward.tolist() == list(range(17))
    path = foreign.pusht(tmp_path / "short.zarr", LENGTHS, **held, reward=np.ones(12))
    with pytest.raises(EnvError, match="data/reward: has 12 rows, and the last episode ends at 17"):
        read(str(path))
    path = foreign.pusht(tmp_path / "wide.zarr", LENGTHS, **held, reward=np.ones((17, 2)))
    with pytest.raises(
        EnvError, match=r"rewards: has shape \(17, 2\) .*expected a list of numbers"
    ):
        read(str(path))


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("observations/qvel", np.zeros((4, 14)), "observations/qvel: 4 rows but 5 actions"),
        ("action", np.zeros(5), r"action: has shape \(5,\) and type float64, expected numbers"),
        ("action", np.full((5, 2), b"a"), r"action: has shape \(5, 2\) and type \|S1, expected"),
    ],
)
def test_an_episode_of_aloha_that_does_not_fit_is_refused_by_key(
    tmp_path: Path, foreign: Any, key: str, values: Any, message: str
) -> None:
    path = foreign.aloha(tmp_path / "set", [5]) / "episode_0.hdf5"
    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = values
    with pytest.raises(EnvError, match=message):
        read(str(path))


@pytest.mark.parametrize("storage", ["ram", "mmap"])
@pytest.mark.parametrize("kind", ["lerobot", "pusht", "aloha"])
def test_a_time_limit_cuts_what_lies_end_to_end(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch, kind: str, storage: str
) -> None:
    monkeypatch.setattr(foreign, "states", foreign.slowing)
    change = {"action": foreign.actions(0, 9)} if kind == "pusht" else {}
    path = str(getattr(foreign, kind)(tmp_path / "set", [9], **change))
    path = f"{path}/episode_0.hdf5" if kind == "aloha" else path
    how = {"storage": storage, "action_scale": "extremes"}
    whole, cut = read(path, **how), read(path, **how, time_limit=4)
    assert whole.ends.tolist() == [9] and whole.successor.tolist() == [-1]
    assert cut.ends.tolist() == [4, 8, 9] and cut.successor.tolist() == [9, 10, -1]
    np.testing.assert_array_equal(cut.obs[:9], whole.obs)
    np.testing.assert_array_equal(cut.obs[9:], whole.obs[[4, 8]])
    assert isinstance(cut.obs, np.memmap) == (storage == "mmap")


def test_a_zarr_store_that_is_no_replay_buffer_shows_what_it_holds(
    tmp_path: Path, foreign: Any
) -> None:
    foreign.zarr_array(tmp_path / "a.zarr" / "temperature", np.zeros((3, 2)), 2)
    (tmp_path / "a.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(EnvError, match=r"no replay buffer .*it holds temperature"):
        read(str(tmp_path / "a.zarr"))
    path = foreign.pusht(tmp_path / "b.zarr", LENGTHS, action=None)
    with pytest.raises(EnvError, match=r"no data/action; data holds .*keypoint"):
        read(str(path))
    path = foreign.pusht(tmp_path / "c.zarr", LENGTHS)
    (path / "data" / "state" / "1.0").write_bytes(b"not a chunk")
    with pytest.raises(EnvError, match=r"data/state: zarr cannot read it \("):
        read(str(path))


def test_zarr_format_3_is_read_as_well(tmp_path: Path, foreign: Any) -> None:
    import zarr

    root = zarr.open_group(str(tmp_path / "r.zarr"), mode="w", zarr_format=3)
    held = {"data/state": foreign.states(0, 17, 5), "data/action": foreign.actions(0, 17)}
    for key, values in (held | {"meta/episode_ends": np.cumsum(LENGTHS)}).items():
        root.create_array(key, data=values)
    recording = read(str(tmp_path / "r.zarr"))
    np.testing.assert_allclose(recording.obs, held["data/state"])
    assert recording.ends.tolist() == [5, 13, 17]


def test_alohas_episodes_are_read_one_by_one_and_as_a_folder(tmp_path: Path, foreign: Any) -> None:
    folder = foreign.aloha(tmp_path / "sim_transfer", [5] * 11, scale=0.9)
    one = read(str(folder / "episode_2.hdf5"))
    assert one.obs.shape == (5, 42) and one.ends.tolist() == [5]
    assert one.about["obs_keys"] == ["qpos", "qvel", "effort"] and one.about["sim"] is True
    assert one.about["left_out"] == ["images/top (an image)", "compress_len"]
    np.testing.assert_allclose(one.obs[:, 14:28], foreign.states(2, 5, 14) + 0.5)
    whole = read(str(folder), obs_keys=["qpos"])
    assert whole.obs.shape == (55, 14) and len(whole.ends) == 11
    for episode in range(11):  # episode_10 comes after episode_9
        rows = slice(5 * episode, 5 * episode + 5)
        np.testing.assert_allclose(whole.obs[rows], foreign.states(episode, 5, 14))
        np.testing.assert_allclose(whole.action[rows], foreign.actions(episode, 5, 0.9, 14))
    assert whole.about["format"] == "11 files of ALOHA"
    assert whole.about["demos"][10] == "episode_10.hdf5"
    assert head(str(folder), Reading(obs_keys=["qpos"])).sizes.nbytes == arrays(whole)


@pytest.mark.parametrize("nested", [True, False])
def test_maniskills_trajectories_hold_every_successor(
    tmp_path: Path, foreign: Any, nested: bool
) -> None:
    path = foreign.maniskill(tmp_path / "trajectory.state.h5", LENGTHS + [3] * 8, nested)
    recording = read(str(path))
    keys = ["agent/qpos", "extra/is_grasped", "extra/tcp_pose"] if nested else ["obs"]
    assert recording.about["obs_keys"] == keys
    assert recording.about["env_id"] == played_in(str(path))[0] == "PickCube-v1"
    assert recording.about["control_mode"] == "pd_ee_delta_pos"
    assert recording.about["demos"][:3] == ["traj_0", "traj_1", "traj_2"]
    columns = [0, 1, 2, 3, 5, 6] if nested else range(6)
    for episode, (end, length) in enumerate(zip(recording.ends, LENGTHS, strict=False)):
        rows, whole = slice(end - length, end), foreign.states(episode, length + 1, 6)
        np.testing.assert_allclose(recording.obs[rows][:, columns], whole[:-1])
        after = recording.obs[recording.successor[episode]]
        np.testing.assert_allclose(after[list(columns)], whole[-1])
        np.testing.assert_allclose(recording.action[rows], foreign.actions(episode, length, 0.9, 3))
    assert recording.terminated[recording.ends - 1].tolist() == [False] + [True] * 10
    assert recording.reward is not None and recording.reward.sum() == 10
    told = recording.about["left_out"]
    assert "env_states" in told and ("sensor_data/base/rgb (an image)" in told) == nested
    assert head(str(path), Reading()).sizes.nbytes == arrays(recording)


def test_what_is_wrong_with_a_maniskill_file_is_named(tmp_path: Path, foreign: Any) -> None:
    path = foreign.maniskill(tmp_path / "a.h5", LENGTHS, False)
    told = path.with_suffix(".json")
    mixed = json.loads(told.read_text())
    mixed["episodes"][1]["control_mode"] = "pd_joint_pos"
    whole = told.read_text()
    told.write_text(json.dumps(mixed))
    with pytest.raises(EnvError, match=r"several control modes \(pd_ee_delta_pos, pd_joint_pos\)"):
        read(str(path))
    told.write_text(whole)
    with h5py.File(path, "a") as file:
        del file["traj_1/obs"]
        file["traj_1/obs"] = np.zeros((8, 6))
    with pytest.raises(EnvError, match="obs, episode 1: traj_1 has 8 rows and 8 actions"):
        read(str(path))
    kept = read(str(path), on_bad="drop")
    assert kept.about["dropped"] == [1] and kept.about["demos"] == ["traj_0", "traj_2"]
    np.testing.assert_allclose(
        kept.obs[kept.successor[1]], foreign.states(2, LENGTHS[2] + 1, 6)[-1]
    )
    with h5py.File(path, "a") as file:
        for name in ("traj_0", "traj_1", "traj_2"):
            del file[f"{name}/obs"]
    with pytest.raises(EnvError, match=r"without observations .*replay_trajectory --traj-path /"):
        read(str(path))


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, "{}")


def torch_old(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def script(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as out:
        info = tarfile.TarInfo("demo.hdf5")
        out.addfile(info, io.BytesIO(b""))


def arrow(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.feather as feather

    feather.write_feather(pa.table({"a": [1]}), str(path))


def weights(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(3, np.float32)}, str(path))


XLSX = ("[Content_Types].xml", "xl/workbook.xml")
FOREIGN = {
    "a.pt": (lambda p: torch.save({"a": torch.zeros(2)}, p), r"a torch file .*np\.savez"),
    "old.pth": (torch_old, r"a torch file .*never opened here"),
    "program.pt": (script, r"an exported torch program; .*policy=exported policy.path=FILE"),
    "a.pkl": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), r"a Python pickle; .*np\.savez"),
    "zero.pkl": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 0)), r"a Python pickle"),
    "a.xlsx": (lambda p: archive(p, *XLSX), r"a spreadsheet \(Excel\); .*np\.savez"),
    "a.docx": (lambda p: archive(p, XLSX[0], "word/document.xml"), "a Word document"),
    "a.ods": (lambda p: archive(p, "mimetype", "content.xml"), r".*\(OpenDocument\)"),
    "a.zip": (
        lambda p: archive(p, "readme.txt", "demos/low_dim.hdf5"),
        r"a zip archive of 2 entries \(demos/low_dim.hdf5\); .*unpack it",
    ),
    "a.csv": (
        lambda p: p.write_text("t,x,y\n0,1,2\n1,2,3\n"),
        r"a table of text, columns between commas \(CSV\)",
    ),
    "a.tsv": (
        lambda p: p.write_text("t\tx\n0\t1\n"),
        r"a table of text, columns between tabs \(CSV\)",
    ),
    "a.json": (lambda p: p.write_text('{"obs": [1, 2]}'), r"a JSON file; .*np\.savez"),
    "a.txt": (lambda p: p.write_text("notes of the day\n"), r"a text file .*'notes of the day'"),
    "a.tar": (tar, "a tar archive; .*unpack it"),
    "a.gz": (lambda p: p.write_bytes(b"\x1f\x8b\x08\0"), "gzip-compressed; .*unpack it"),
    "a.arrow": (arrow, "an Arrow .* file"),
    "a.safetensors": (weights, "a safetensors file .*not a checkpoint"),
    "a.mp4": (lambda p: p.write_bytes(b"\0\0\0\x20ftypisom"), r"a video \(MP4\)"),
    "a.bag": (lambda p: p.write_bytes(b"#ROSBAG V2.0\n"), "a ROS bag"),
    "a.mat": (lambda p: p.write_bytes(b"MATLAB 5.0 MAT-file, 2020"), "a MATLAB file"),
    "x.tfrecord-00000-of-00001": (lambda p: p.write_bytes(bytes(20)), "a TFRecord file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    make, message = FOREIGN[name]
    make(tmp_path / name)
    with pytest.raises(EnvError, match=rf"{name}: {message}") as caught:
        read(str(tmp_path / name))
    assert "npz file" not in str(caught.value) and "it holds nothing" not in str(caught.value)


def test_a_files_name_does_not_decide_what_it_is(tmp_path: Path, foreign: Any) -> None:
    np.savez(tmp_path / "a.npz", observations=np.eye(4), actions=np.eye(4), episode_ends=[4])
    (tmp_path / "a.npz").rename(tmp_path / "a.zip")
    assert read(str(tmp_path / "a.zip")).about["format"] == "npz"
    path = foreign.maniskill(tmp_path / "b.hdf5", LENGTHS)
    path.rename(tmp_path / "b.npz")
    assert read(str(tmp_path / "b.npz")).about["format"] == "ManiSkill"


TREES = {
    "droid": (
        {"observation/robot_state/joint": (5, 7), "action/cartesian_position": (5, 6)},
        r"it holds action/ \(cartesian_position \[5, 6\]\), observation/ \(robot_state/ \(joint",
    ),
    "groups": ({"run_1/pose": (5, 3)}, r"it holds run_1/ \(pose \[5, 3\]\)"),
    "empty group": ({"log": None}, "it holds log/; load it in Python"),
}


@pytest.mark.parametrize("kind", TREES)
def test_an_hdf5_file_of_another_layout_shows_its_groups(tmp_path: Path, kind: str) -> None:
    tree, message = TREES[kind]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, shape in tree.items():
            if shape is None:
                file.create_group(key)
            else:
                file[key] = np.zeros(shape)
    with pytest.raises(EnvError, match=message):
        read(str(tmp_path / "a.hdf5"))


def test_robosuites_raw_demonstrations_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_1/states"], file["data/demo_1/actions"] = np.zeros((5, 30)), np.eye(5)
    with pytest.raises(EnvError, match=r"robosuite's raw demonstrations.*dataset_states_to_obs"):
        read(str(tmp_path / "demo.hdf5"))


def rlds(folder: Path) -> str:
    (folder / "a.tfrecord-00000-of-00002").write_bytes(bytes(20))
    return "an RLDS data set .*tensorflow_datasets"


def several_sets(folder: Path) -> str:
    for name in ("aloha", "pusht"):
        (folder / name / "meta").mkdir(parents=True)
        (folder / name / "meta" / "info.json").write_text("{}")
    return rf"a folder of 2 data sets; give one of them: {folder}/aloha, {folder}/pusht"


def unpacked(folder: Path) -> str:
    (folder / "pusht_cchi_v7_replay.zarr").mkdir()
    (folder / "pusht_cchi_v7_replay.zarr" / ".zgroup").write_text("{}")
    return f"a folder of 1 data sets; give one of them: {folder}/pusht_cchi_v7_replay.zarr"


def pickles(folder: Path) -> str:
    for i in range(3):
        (folder / f"{i}.pkl").write_bytes(pickle.dumps(i))
    (folder / "README.md").write_text("A set")
    return r"a folder of 4 files; 0.pkl is a Python pickle; it can run code"


def run(folder: Path) -> str:
    for name in ("run.json", "config.yaml"):
        (folder / name).write_text("{}")
    return f"a run's folder, not data; init={re.escape(str(folder))}"


@pytest.mark.parametrize(
    "make", [rlds, several_sets, unpacked, pickles, run, lambda _: "an empty folder"]
)
def test_a_folder_is_named_for_what_is_in_it(tmp_path: Path, make: Any) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(EnvError, match=make(folder)):
        read(str(folder))


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("lerobot/pusht", "lerobot/pusht"),
        ("hf://datasets/me/so-100_pick", "me/so-100_pick"),
        ("https://huggingface.co/datasets/lerobot/aloha_sim", "lerobot/aloha_sim"),
        ("demos/mine.hdf5", None),
        ("/data/pusht", None),
    ],
)
def test_a_name_of_the_hub_gets_the_command_that_downloads_it(name: str, there: str | None) -> None:
    with pytest.raises(EnvError) as caught:
        read(name)
    command = f"hf download {there} --repo-type dataset --local-dir {(there or '/').split('/')[1]}`"
    assert (command in str(caught.value)) == (there is not None)
    assert "no such file" in str(caught.value)


@pytest.mark.parametrize(("module", "kind"), [("pyarrow.parquet", "lerobot"), ("zarr", "pusht")])
def test_a_missing_package_is_one_line_with_the_command(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch, module: str, kind: str
) -> None:
    path = getattr(foreign, kind)(tmp_path / "set", LENGTHS)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvError, match=r"pip install .*'rheo-rl\[formats\]'$"):
        read(str(path))
