"""Several files as one recording."""

import re
import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rheo.envs.data.formats import head
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Reading, joined
from rheo.envs.datasets import Dataset
from rheo.errors import EnvError
from rheo.scripts.cli import main


def npz(path: Path, lengths: list[int], seed: int = 0, **change: Any) -> str:
    """A file of random episodes whose successors are known."""
    steps, rng = sum(lengths), np.random.default_rng(seed)
    obs = rng.normal(size=(steps, 3)).astype(np.float32)
    after = np.concatenate([obs[1:], obs[:1]])
    after[np.cumsum(lengths) - 1] = 100 + np.arange(len(lengths))[:, None]
    content: dict[str, Any] = {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "next_observations": after,
        "episode_ends": np.cumsum(lengths),
    } | change
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return str(path)


def test_files_are_joined_in_the_order_that_is_given(tmp_path: Path) -> None:
    a, b = npz(tmp_path / "a.npz", [3, 2]), npz(tmp_path / "b.npz", [4], 1)
    both, one, two = read([b, a]), read(a), read(b)
    assert both.ends.tolist() == [4, 7, 9] and both.successor.tolist() == [9, 10, 11]
    np.testing.assert_array_equal(both.obs[:9], np.concatenate([two.obs[:4], one.obs[:5]]))
    np.testing.assert_array_equal(both.obs[9:, 0], [100, 100, 101])
    np.testing.assert_array_equal(both.action, np.concatenate([two.action, one.action]))
    assert both.reward is not None and one.reward is not None and two.reward is not None
    np.testing.assert_array_equal(both.reward, np.concatenate([two.reward, one.reward]))
    assert both.about["demos"] == ["b.npz", "a.npz", "a.npz"]
    assert both.about["path"] == f"[{b},{a}]" and both.about["format"] == "2 files of npz"
    arrays = [value for value in both if isinstance(value, np.ndarray)]
    assert head([b, a], Reading()).sizes.nbytes == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("storage", ["ram", "mmap"])
def test_successors_that_no_header_counts_are_joined(tmp_path: Path, storage: str) -> None:
    marks = {"episode_ends": None, "timeouts": np.isin(np.arange(5), (2, 4))}  # as D4RL has them
    files = [npz(tmp_path / f"{i}.npz", [3, 2], i, **marks) for i in range(2)]
    both, two = read(files, storage=storage), read(files[1])
    assert both.successor.tolist() == [10, 11, 12, 13]
    np.testing.assert_array_equal(both.obs[5:10], two.obs[:5])
    np.testing.assert_array_equal(both.obs[10:, 0], [100, 101, 100, 101])
    steady = np.arange(12, dtype=np.float32).reshape(4, 3)
    change = {"observations": steady, "next_observations": None}
    cut = read([npz(tmp_path / "c.npz", [4], **change)] * 2, time_limit=2, storage=storage)
    assert cut.ends.tolist() == [2, 4, 6, 8] and cut.successor.tolist() == [8, -1, 9, -1]
    np.testing.assert_array_equal(cut.obs[8:], cut.obs[[2, 6]])


def test_a_folder_of_episodes_is_the_same_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "demos").mkdir()
    files = [npz(tmp_path / "demos" / f"episode_{i}.npz", [2 + i % 3], i) for i in range(12)]
    whole, listed = read(str(tmp_path / "demos")), read(files)  # episode_10 after episode_9
    for mine, theirs in zip(whole[:6], listed[:6], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert whole.about["path"] == str(tmp_path / "demos")


def test_headers_of_a_folder_are_read_once_however_often_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"episode_{i}.hdf5" for i in range(3)]
    for file in files:
        with h5py.File(file, "w") as content:
            content["observations"], content["actions"] = np.ones((4, 3)), np.zeros((4, 2))
            content["terminals"] = np.arange(4) == 3
    opened, real = [], h5py.File
    monkeypatch.setattr(h5py, "File", lambda *a, **k: opened.append(a[0]) or real(*a, **k))
    played_in(str(tmp_path))
    assert opened == files
    head(str(tmp_path), Reading(storage="mmap"))
    assert opened == files
    assert len(read(str(tmp_path)).ends) == 3
    assert opened == [*files, *files]  # each once more, for what it holds


def test_formats_may_differ_where_their_sizes_do_not(tmp_path: Path) -> None:
    a = npz(tmp_path / "a.npz", [3, 2])
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["observations"], file["actions"] = np.ones((4, 3)), np.zeros((4, 2))
        file["rewards"], file["terminals"] = np.ones(4), np.arange(4) == 3
        file.attrs["env_id"] = "Mine-v0"
    both = read([a, str(tmp_path / "b.hdf5")])
    assert both.successor.tolist() == [9, 10, -1] and both.obs.shape == (11, 3)
    assert both.terminated.tolist() == [False] * 8 + [True]
    assert both.about["format"] == "2 files of npz, d4rl" and both.about["env_id"] == "Mine-v0"
    assert played_in([a, str(tmp_path / "b.hdf5")])[0] == "Mine-v0"


BOUNDS: dict[str, Any] = {"action_low": [-1, -1], "action_high": [1, 1]}
WIDE: dict[str, Any] = {"action_low": [-2, -2], "action_high": [2, 2]}
FOUR = {"observations": np.eye(4), "next_observations": None}
OTHER = {"attributes": np.array('{"env_id": "B-v0"}')}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, FOUR, "observations: has 4 dimensions, 3 in .*a.npz"),
        ({}, {"actions": np.zeros((4, 5))}, "actions: has 5 dimensions, 2 in .*a.npz"),
        (BOUNDS, WIDE, r"action_low: is \[-2, -2\], and \[-1, -1\] in .*a.npz"),
        (BOUNDS, {}, r"action_low: is not told, and \[-1, -1\] in .*a.npz"),
        ({}, OTHER, "env_id: is B-v0, and A-v0 in .*a.npz"),
        ({}, {"actions": np.full((4, 2), np.nan)}, "actions, episode 2, step 0, .*b.npz"),
    ],
)
def test_the_file_that_does_not_fit_is_named(
    tmp_path: Path, first: Any, second: Any, message: str
) -> None:
    told = {"attributes": np.array('{"env_id": "A-v0"}')}
    a = npz(tmp_path / "a.npz", [3, 2], **told, **first)
    b = npz(tmp_path / "b.npz", [4], **second)
    with pytest.raises(EnvError, match=message) as caught:
        read([a, b])
    assert b in str(caught.value)


def test_a_unit_that_the_user_names_holds_for_all_files(tmp_path: Path) -> None:
    a, b = npz(tmp_path / "a.npz", [3, 2], **BOUNDS), npz(tmp_path / "b.npz", [4], **WIDE)
    both = read([a, b], action_scale="unit")
    np.testing.assert_array_equal(both.action[5:], read(b, action_scale="unit").action)


def test_rewards_of_some_files_only_are_said_not_to_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = npz(tmp_path / "a.npz", [3, 2]), npz(tmp_path / "b.npz", [4], rewards=None)
    assert read([a, b]).reward is None
    assert f"no rewards in {b}, so those of the other files are not used" in caplog.text


def test_costs_are_joined_where_all_files_tell_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = npz(tmp_path / "a.npz", [3, 2], costs=np.arange(5))
    b, c = npz(tmp_path / "b.npz", [4], cost=np.arange(4)[:, None]), npz(tmp_path / "c.npz", [2])
    cost = read([b, a]).cost
    assert cost is not None and cost.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert read(c).cost is None and read([a, c]).cost is None
    assert f"no costs in {c}, so those of the other files are not used" in caplog.text


def test_a_broken_episode_of_one_file_can_be_dropped(tmp_path: Path) -> None:
    bad = npz(tmp_path / "bad.npz", [2, 3])
    with np.load(bad) as held:
        content = dict(held)
    content["actions"][3] = np.nan
    np.savez(bad, **content)
    both = read([npz(tmp_path / "a.npz", [4]), bad], on_bad="drop")
    assert both.ends.tolist() == [4, 6] and both.about["demos"] == ["a.npz", "bad.npz"]


def test_more_files_than_may_be_open_at_once(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = len(list(Path("/proc/self/fd").iterdir())) + 8
    files = [npz(tmp_path / f"{i}.npz", [2], i) for i in range(40)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        assert len(read(files).ends) == 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_dataset_learns_from_all_files_and_its_digest_covers_them(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        **{"batch_size": 4, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse", "storage": "ram"},
        **{
            "obs_keys": None,
            "filter": None,
            "time_limit": None,
            "action_scale": "auto",
            "big": False,
        },
    }

    def dataset(*paths: str) -> Dataset:
        return Dataset(torch.Generator().manual_seed(0), 1, path=list(paths), **how)

    a, b = npz(tmp_path / "a.npz", [3, 2]), npz(tmp_path / "b.npz", [4], 1)
    whole = dataset(a, b)
    assert len(whole.train_steps) == 9
    assert len({whole.digest, dataset(b, a).digest, dataset(a).digest}) == 3
    npz(tmp_path / "b.npz", [4], 2)
    assert dataset(a, b).digest != whole.digest


def test_recordings_in_memory_are_joined_by_the_same_piece(tmp_path: Path) -> None:
    a, b = npz(tmp_path / "a.npz", [3, 2]), npz(tmp_path / "b.npz", [4], 1)
    for mine, theirs in zip(joined([read(a), read(b)])[:6], read([a, b])[:6], strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_info_of_a_folder_tells_of_all_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demos").mkdir()
    for i in range(3):
        npz(tmp_path / "demos" / f"{i}.npz", [2, 4], i)
    assert main(["data", "info", str(tmp_path / "demos")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"format +3 files of npz, ", out) and "18 in 6 episodes" in out
    assert main(["data", "check", str(tmp_path / "demos")]) == 0
    assert len(re.findall("ok: 6 steps in 2 episodes", capsys.readouterr().out)) == 3
