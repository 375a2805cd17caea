"""Every format, written by hand with h5py and numpy, is read as the same episodes."""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data import read as recordings
from rheo.envs.data import recording as record
from rheo.envs.data.faults import faults
from rheo.envs.data.formats import head
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Reading
from rheo.envs.data.writing import write
from rheo.errors import EnvError

LENGTHS = [3, 1, 7, 2, 12, 5]
ENDS = np.cumsum(LENGTHS)
STEPS = int(ENDS[-1])
LAST = np.isin(np.arange(STEPS), ENDS - 1)
ENDED = np.isin(np.arange(STEPS), ENDS[[0, 2, 3]] - 1)  # by the task
OBS = np.arange(STEPS)[:, None] + np.arange(3) / 10
ACTION = np.sin(np.arange(STEPS)[:, None] + np.arange(2))
REWARD = np.arange(STEPS) / 2
NEXT = np.where(LAST[:, None], -1 - OBS, np.roll(OBS, -1, axis=0))


def d4rl_v2() -> dict[str, Any]:
    """The published keys of the v2 locomotion sets."""
    policy = {f"metadata/policy/fc{i}/{k}": np.ones(3) for i in (0, 1) for k in ("weight", "bias")}
    return {
        "observations": OBS.astype("f4"),
        "actions": ACTION.astype("f4"),
        "rewards": REWARD.astype("f4"),
        "terminals": ENDED,
        "timeouts": LAST & ~ENDED,
        "next_observations": NEXT.astype("f4"),
        "infos/action_log_probs": REWARD.astype("f4"),
        "infos/qpos": OBS,
        "infos/qvel": OBS,
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.int32(999),
        "metadata/policy/nonlinearity": np.bytes_("relu"),
        **policy,
    }


def some(*keys: str, **changes: Any) -> dict[str, Any]:
    """Some keys of d4rl_v2, and others."""
    return {key: d4rl_v2()[key] for key in keys} | changes


STEPWISE = ("observations", "actions", "rewards", "terminals")


def hdf5(path: Path, content: dict[str, Any], **attrs: Any) -> str:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            packed = {"compression": "gzip"} if np.ndim(value) else {}
            file.create_dataset(key, data=value, **packed)
        file.attrs.update(attrs)
    return str(path)


def npz(path: Path, content: dict[str, Any]) -> str:
    np.savez(path, **content)
    return str(path)


def holds(recording: Any, successor: bool = True, reward: bool = True) -> None:
    """The recording is LENGTHS' episodes in every field."""
    assert recording.obs.dtype == recording.action.dtype == np.float32
    assert recording.terminated.dtype == bool
    assert recording.ends.dtype == recording.successor.dtype == np.int64
    np.testing.assert_array_equal(recording.obs[:STEPS], OBS.astype("f4"))
    np.testing.assert_array_equal(recording.action, ACTION.astype("f4"))
    np.testing.assert_array_equal(recording.terminated, ENDED)
    np.testing.assert_array_equal(recording.ends, ENDS)
    if reward:
        assert recording.reward.dtype == np.float32
        np.testing.assert_array_equal(recording.reward, REWARD.astype("f4"))
    else:
        assert recording.reward is None
    if successor:
        np.testing.assert_array_equal(recording.successor, STEPS + np.arange(6))
        np.testing.assert_array_equal(recording.obs[STEPS:], NEXT[ENDS - 1].astype("f4"))
    else:
        assert (recording.successor == -1).all() and len(recording.obs) == STEPS


def test_a_d4rl_v2_file_is_read_in_every_field(tmp_path: Path) -> None:
    recording = read(hdf5(tmp_path / "hopper_medium-v2.hdf5", d4rl_v2()))
    holds(recording)
    assert recording.about["format"] == "d4rl" and recording.about["env_id"] is None  # 3 numbers
    assert recording.about["remarks"] == [("", "not read: infos/, metadata/")]


def test_adroit_and_maze_files_without_next_observations_know_no_successor(tmp_path: Path) -> None:
    content = some(*STEPWISE, "timeouts", "infos/qpos") | {"infos/goal": OBS}
    recording = read(hdf5(tmp_path / "door-human-v1.hdf5", content))
    holds(recording, successor=False)


def test_kitchen_terminals_are_floats_and_the_only_ends(tmp_path: Path) -> None:
    content = some("observations", "actions", infos=np.zeros(STEPS), terminals=LAST.astype("f4"))
    recording = read(hdf5(tmp_path / "kitchen.hdf5", content))
    assert recording.ends.tolist() == ENDS.tolist()
    assert (recording.terminated == LAST).all() and recording.about["env_id"] is None


def test_runs_of_terminal_steps_are_one_step_episodes(tmp_path: Path) -> None:
    terminals = np.isin(np.arange(STEPS), [10, 11, 12])
    content = some("observations", "actions", terminals=terminals, timeouts=LAST)
    recording = read(hdf5(tmp_path / "antmaze-umaze-v2.hdf5", content))
    assert recording.ends.tolist() == [3, 4, 11, 12, 13, 25, 30]
    assert recording.about["env_id"] is None
    fault = next(f for f in faults(recording) if f.key == "terminals")
    assert fault.level == "note" and "3 of 7 episodes have one step" in fault.text


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_npz_files_hold_the_same_keys(tmp_path: Path, saver: Any) -> None:
    ended = some("observations", "actions", terminals=ENDED[:, None], rewards=REWARD[:, None])
    saver(tmp_path / "a", **ended, episode_ends=ENDS.astype("u4"))
    holds(read(str(tmp_path / "a.npz")), successor=False)
    saver(tmp_path / "b", **some(*STEPWISE, "timeouts", "next_observations"))
    holds(read(str(tmp_path / "b.npz")))
    turned = some("actions", "terminals", observations=np.asfortranarray(OBS))
    saver(tmp_path / "c", **turned, episode_ends=ENDS)
    holds(read(str(tmp_path / "c.npz")), successor=False, reward=False)


def test_a_time_limit_cuts_what_no_timeout_ends(tmp_path: Path) -> None:
    terminals = np.isin(np.arange(STEPS), [2, 9])
    path = npz(tmp_path / "a.npz", some("observations", "actions", terminals=terminals))
    recording = read(path, time_limit=5)
    assert recording.ends.tolist() == [3, 8, 10, 15, 20, 25, 30]
    assert np.flatnonzero(recording.terminated).tolist() == [2, 9]
    assert read(path).ends.tolist() == [3, 10, 30]
    with pytest.raises(EnvError, match="time_limit=0; a positive number"):
        read(path, time_limit=0)


def test_physical_actions_are_mapped_by_the_bounds_that_a_file_tells(tmp_path: Path) -> None:
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 4.0])
    content = d4rl_v2() | {"actions": ACTION * 2 + [0, 2]}
    path = hdf5(tmp_path / "a.hdf5", content, action_low=low, action_high=high, env_id="My-v0")
    recording = read(path)
    np.testing.assert_allclose(recording.action, ACTION, atol=1e-6)
    assert recording.about["env_id"] == played_in(path)[0] == "My-v0"
    small = some("observations", "timeouts", actions=ACTION * 2 + [0, 2])
    path = npz(tmp_path / "a.npz", small | {"action_low": low, "action_high": high})
    np.testing.assert_allclose(read(path).action, ACTION, atol=1e-6)


def test_minari_episodes_have_one_observation_more_than_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari", reason="pip install minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    first = ENDS - LENGTHS
    episodes = [
        minari.data_collector.EpisodeBuffer(
            observations=np.concatenate([OBS[a:b], NEXT[b - 1 : b]]).astype("f4"),
            actions=ACTION[a:b].astype("f4") * 2,
            rewards=REWARD[a:b],
            terminations=ENDED[a:b],
            truncations=(LAST & ~ENDED)[a:b],
        )
        for a, b in zip(first, ENDS, strict=True)
    ]
    from gymnasium.spaces import Box

    spaces = {
        "observation_space": Box(-99, 99, (3,), np.float32),
        "action_space": Box(-2, 2, (2,), np.float32),
    }
    minari.create_dataset_from_buffers("test/ragged-v0", episodes, data_format="hdf5", **spaces)
    holds(read("minari:test/ragged-v0"))
    with pytest.raises(EnvError, match="local store; `minari download test/none-v0`"):
        read("minari:test/none-v0")


def test_a_missing_minari_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(
        EnvError, match=r"^data=minari:a/b-v0: .*missing: pip install .*'rheo-rl\[minari\]'$"
    ):
        read("minari:a/b-v0")


@pytest.mark.parametrize("name", ["out.hdf5", "out.h5", "out.npz"])
@pytest.mark.parametrize("known", [0, 4, 6])
def test_what_is_written_is_read_again_bit_for_bit(
    tmp_path: Path, name: str, known: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BLOCK_BYTES", 64)  # many pieces
    whole = read(hdf5(tmp_path / "in.hdf5", d4rl_v2()))
    successor = np.where(np.arange(6) < known, whole.successor, -1)
    obs = whole.obs[: STEPS + known]
    before = whole._replace(obs=obs, successor=successor, about={"env_id": "My-v0", "dt": 0.02})
    write(before, tmp_path / name, action_low=[-2, -2], action_high=[2, 2], versions={"a": "1"})
    after = read(str(tmp_path / name))
    for field in ("obs", "action", "reward", "terminated", "ends", "successor"):
        np.testing.assert_array_equal(getattr(after, field), getattr(before, field), field)
        assert getattr(after, field).dtype == getattr(before, field).dtype
    assert {
        "env_id": "My-v0",
        "dt": 0.02,
        "action_low": [-2, -2],
        "versions": {"a": "1"},
    }.items() <= (after.about.items())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    if known and name == "out.hdf5":
        with h5py.File(tmp_path / name) as file:
            assert set(d4rl_v2()) & set(file) == set(file) - {"episode_ends", "successor_known"}
            stored: Any = file["next_observations"]
            np.testing.assert_array_equal(stored[:3], NEXT[:3].astype("f4"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    whole = read(hdf5(tmp_path / "in.hdf5", d4rl_v2()))
    write(whole, tmp_path / "out.npz")
    with pytest.raises(TypeError):
        write(whole._replace(reward=np.array([object()])), tmp_path / "out.hdf5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.hdf5", "out.npz"]
    with pytest.raises(EnvError, match=r"unknown suffix '.zarr'; there are .hdf5, .h5, .npz"):
        write(whole, tmp_path / "out.zarr")


def test_mapped_storage_holds_the_same_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEO_CACHE", str(tmp_path / "cache"))
    recording = read(hdf5(tmp_path / "a.hdf5", d4rl_v2()), storage="mmap")
    holds(recording)
    assert isinstance(recording.obs.base, np.memmap) or isinstance(recording.obs, np.memmap)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(EnvError, match="storage='disk'; there are ram and mmap"):
        read(str(tmp_path / "a.hdf5"), storage="disk")


def test_memory_is_estimated_from_headers_and_checked_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (
        hdf5(tmp_path / "a.hdf5", d4rl_v2()),
        npz(tmp_path / "b.npz", d4rl_v2()),
    ):
        arrays = [v for v in read(path) if isinstance(v, np.ndarray)]
        assert head(path, Reading()).sizes.nbytes == pytest.approx(
            sum(a.nbytes for a in arrays), rel=0.2
        )
    with h5py.File(tmp_path / "huge.hdf5", "w") as file:  # 4 TB that nobody wrote
        for key, width in (("observations", 1000), ("actions", 10)):
            file.create_dataset(key, (10**9, width), "f4", chunks=(4096, width))
        file.create_dataset("timeouts", (10**9,), "?", chunks=(4096,))
    assert head(str(tmp_path / "huge.hdf5"), Reading()).sizes.nbytes == 4 * 1010 * 10**9 + 10**9
    monkeypatch.setattr(recordings, "available", lambda: 10**10)
    with pytest.raises(EnvError, match=r"huge.hdf5: needs 4849.20 GB .*; set data.storage=mmap"):
        read(str(tmp_path / "huge.hdf5"), big=True)
    with pytest.raises(EnvError, match=r"0.0 MB on disk would become 4041.00 GB .*data.big=true"):
        read(str(tmp_path / "huge.hdf5"))
