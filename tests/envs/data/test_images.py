"""Images in recorded data: packed exactly, last in an observation, told and checked."""

import json
from pathlib import Path
from typing import Any

import dots
import h5py
import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.data import read as reading
from rheo.envs.data.faults import faults
from rheo.envs.data.read import played_in, read
from rheo.envs.data.writing import write
from rheo.envs.datasets import Dataset
from rheo.envs.pixels import unpacked
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.scripts.cli import main

KEYS = ["front_image", "tip", "robot0_wrist_image"]
SHAPES = {"front_image": (6, 8, 3), "robot0_wrist_image": (4, 4, 3)}


def images_of(demo: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(demo)
    return {key: rng.integers(0, 256, (length, *size), np.uint8) for key, size in SHAPES.items()}


def demos(path: Path, lengths: tuple[int, ...] = (5, 3, 4), **env_args: Any) -> str:
    """A robomimic file with images, in `next_obs` too."""
    with h5py.File(path, "w") as file:
        file.create_group("data")
        if env_args:
            file["data"].attrs["env_args"] = json.dumps(env_args)
        for i, length in enumerate(lengths):
            tip = 10.0 * i + np.arange(length + 1.0)[:, None] + [0, 0.5]
            for key, every in {"tip": tip, **images_of(i, length + 1)}.items():
                options = {} if key == "tip" else {"compression": "lzf"}
                for group, part in (("obs", every[:-1]), ("next_obs", every[1:])):
                    file.create_dataset(f"data/demo_{i}/{group}/{key}", data=part, **options)
            file[f"data/demo_{i}/actions"] = np.full((length, 2), i / 10)
            file[f"data/demo_{i}/rewards"] = np.zeros(length)
    return str(path)


@pytest.mark.parametrize("storage", ["ram", "mmap"])
def test_images_are_read_when_they_are_named_and_come_last(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEO_CACHE", str(tmp_path))
    recording = read(demos(tmp_path / "a.hdf5"), obs_keys=KEYS, storage=storage)
    assert isinstance(recording.obs, np.memmap) == (storage == "mmap")
    about = recording.about
    assert about["obs_keys"] == ["tip", "front_image", "robot0_wrist_image"]
    assert about["obs_widths"] == [2, 48, 16] and about["left_out"] == []
    assert recording.images == {"front_image": [6, 8], "robot0_wrist_image": [4, 4]}
    assert recording.obs.shape == (12 + 3, 66) and recording.state.shape == (15, 2)
    starts = np.cumsum([0, 5, 3])
    for i, (start, length) in enumerate(zip(starts, (5, 3, 4), strict=True)):
        every, after = images_of(i, length + 1), recording.successor[i]
        rows = [*range(start, start + length), after]
        front, wrist = recording.obs[rows, 2:50], recording.obs[rows, 50:]
        np.testing.assert_array_equal(unpacked(front, 6), every["front_image"])
        np.testing.assert_array_equal(unpacked(wrist, 4), every["robot0_wrist_image"])
        np.testing.assert_array_equal(recording.obs[rows, 0], 10 * i + np.arange(length + 1))


def test_images_are_left_out_and_told_unless_they_are_named(tmp_path: Path) -> None:
    recording = read(demos(tmp_path / "a.hdf5"))
    assert recording.about["obs_keys"] == ["tip"] and recording.images == {}
    told = ["front_image (6, 8, 3) uint8", "robot0_wrist_image (4, 4, 3) uint8"]
    assert recording.about["left_out"] == told
    alone = read(demos(tmp_path / "b.hdf5"), obs_keys=["front_image"])
    assert alone.obs.shape == (15, 48) and alone.state.shape == (15, 0)
    assert [found.text for found in faults(alone) if found.key == "observations"][:1] == [
        "read are front_image (48), in this order"
    ]


def test_only_numbers_are_looked_at_for_constants_and_ends(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for i in range(3):
            demo: Any = file[f"data/demo_{i}"]
            demo["obs/front_image"][...] = 7  # which never changes
            demo["obs/tip"][:, 1] = demo["next_obs/tip"][:, 1] = 3.0
    texts = [found.text for found in faults(read(path, obs_keys=KEYS))]
    assert any("1 of 2 dimensions never change (1)" in text for text in texts)
    assert not any("48" in text and "never" in text for text in texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("data/demo_1/obs/front_image"), "obs/front_image.*missing in demo_1"),
        (
            lambda f: (
                f.pop("data/demo_1/obs/front_image"),
                f.create_dataset("data/demo_1/obs/front_image", data=np.zeros((3, 8, 8, 3), "u1")),
            ),
            r"demo_1 has \(3, 8, 8, 3\) uint8, expected images \(3, 6, 8, 3\) uint8",
        ),
    ],
)
def test_a_demonstration_with_other_images_is_named(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = demos(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(EnvError, match=message):
        read(path, obs_keys=KEYS)
    assert len(read(path, obs_keys=KEYS, on_bad="drop").ends) == 2
    assert len(read(path).ends) == 3  # nobody asked for them


def test_memory_of_images_is_told_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = demos(tmp_path / "a.hdf5")
    monkeypatch.setattr(reading, "available", lambda: 3000)
    assert len(read(path).ends) == 3
    with pytest.raises(EnvError, match=r"needs .* of memory, .* free; set data.storage=mmap"):
        read(path, obs_keys=KEYS)


def test_a_recording_with_images_is_converted_and_still_knows_them(tmp_path: Path) -> None:
    recording = read(demos(tmp_path / "a.hdf5"), obs_keys=KEYS)
    for name in ("b.hdf5", "b.npz"):
        write(recording, tmp_path / name)
        again = read(str(tmp_path / name))
        assert again.images == recording.images
        np.testing.assert_array_equal(again.obs, recording.obs)


def test_info_says_which_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = demos(tmp_path / "a.hdf5")
    assert main(["data", "info", path, "--obs-keys", "tip,front_image"]) == 0
    told = capsys.readouterr().out
    assert "images       front_image (6 x 8)" in told and "observations 2 dimensions" in told
    assert main(["data", "info", path, "--obs-keys", "front_image"]) == 0
    assert "observations 0 dimensions, no numbers" in capsys.readouterr().out


def test_a_file_of_robosuite_tells_which_images_its_environment_has_to_show(
    tmp_path: Path,
) -> None:
    path = demos(tmp_path / "a.hdf5", env_name="Lift", type=1, env_kwargs={})
    assert set(played_in(path).options) == {"env_args"}
    asked = played_in(path, ["tip", "front_image"]).options
    assert asked["obs_keys"] == ["tip", "front_image"] and asked["size"] == [6, 8]


SETTINGS: dict[str, Any] = {
    **{"batch_size": 4, "holdout": 0.3, "obs_steps": 2, "on_bad": "refuse", "storage": "ram"},
    **{"obs_keys": KEYS, "filter": None, "time_limit": None, "action_scale": "auto", "big": False},
}


def dataset(path: str, **changes: Any) -> Dataset:
    return Dataset(torch.Generator().manual_seed(0), 1, None, path=path, **SETTINGS | changes)


def test_statistics_are_of_numbers_alone_and_histories_of_all(tmp_path: Path) -> None:
    data = dataset(demos(tmp_path / "a.hdf5"))
    obs, _ = data.statistics()
    assert obs.shape == (len(data.train_steps), 4) and data.obs_size == 2 * 66
    torch.testing.assert_close(obs[:, :2], obs[:, 2:])
    assert data.next(None).obs.shape == (4, 132)
    held = data.held_out().obs
    assert held.shape[1] == 132 and torch.equal(held[:, :66][0], held[:, 66:][0])  # the first step


def test_a_validation_keeps_to_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(demos(tmp_path / "a.hdf5", (5, 30)), holdout=0.5)
    count = len(data.held_steps)
    assert len(data.held_out().obs) == count
    monkeypatch.setattr("rheo.envs.datasets.HELD_BYTES", 132 * 4 * 2 + 8)
    assert len(data.held_out().obs) <= 2 < count


def test_an_environment_that_shows_images_chooses_them(tmp_path: Path) -> None:
    dots.register()
    env = ChunkEnv(make(dots.NAME, 1), execute=1, obs_steps=1, gamma=0.9)
    settings = {"obs_keys": None, "obs_steps": 1, "holdout": 0.0}
    path = dots.demos(tmp_path / "a.hdf5", 3)
    data = Dataset(torch.Generator(), 1, env, path=path, **SETTINGS | settings)
    assert data.about["obs_keys"] == ["tip", "front_image"] and data.obs_size == env.obs_dim
    small = ChunkEnv(make(dots.NAME, 1, size=8), execute=1, obs_steps=1, gamma=0.9)
    with pytest.raises(EnvError, match="front_image has 144 numbers, and 64 there"):
        Dataset(torch.Generator(), 1, small, path=path, **SETTINGS | settings)


minari = pytest.importorskip("minari")


def test_images_of_minari_are_read_when_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gymnasium.spaces import Box, Dict

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    space = Dict(tip=Box(-9, 9, (2,), np.float32), eye=Box(0, 255, (4, 6, 3), np.uint8))
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 256, (6, 4, 6, 3), np.uint8) for _ in range(2)]
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=i,
            observations={"tip": np.zeros((6, 2), np.float32), "eye": shown[i]},
            actions=np.zeros((5, 2), np.float32),
            rewards=np.zeros(5),
            terminations=np.zeros(5, bool),
            truncations=np.arange(5) == 4,
        )
        for i in range(2)
    ]
    minari.create_dataset_from_buffers(
        "tests/eye-v0", buffers, observation_space=space,
        action_space=Box(-1, 1, (2,), np.float32), eval_env=None,
    )  # fmt: skip
    recording = read("minari:tests/eye-v0", obs_keys=["eye", "tip"])
    assert recording.about["obs_keys"] == ["tip", "eye"] and recording.images == {"eye": [4, 6]}
    for i in range(2):
        rows = [*range(5 * i, 5 * i + 5), recording.successor[i]]
        np.testing.assert_array_equal(unpacked(recording.obs[rows, 2:], 4), shown[i])
    assert read("minari:tests/eye-v0").about["obs_keys"] == ["tip"]
