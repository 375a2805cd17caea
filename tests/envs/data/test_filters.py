"""Which demonstrations are read: filter keys, those that validate, and those that are broken."""

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rheo.envs.data.faults import faults
from rheo.envs.data.read import read
from rheo.envs.datasets import Dataset
from rheo.errors import EnvError
from rheo.scripts.cli import main


def lift(path: Path, **masks: Any) -> str:
    """Six demonstrations whose observations say their number, with filter keys."""
    masks = masks or {"train": [0, 1, 2, 10], "valid": [3], "few": [2]}
    with h5py.File(path, "w") as file:
        for i in (0, 1, 2, 3, 4, 10):
            demo = file.create_group(f"data/demo_{i}")
            place = np.full((6, 3), float(i)) + np.arange(6)[:, None] / 10
            demo["obs/object"], demo["next_obs/object"] = place[:-1], place[1:]
            demo["actions"], demo["rewards"] = np.full((5, 4), i / 20), np.ones(5)
        for key, numbers in masks.items():
            file[f"mask/{key}"] = np.array([f"demo_{i}" for i in numbers], "S")
    return str(path)


def held(path: str, **changes: Any) -> tuple[list[float], list[float]]:
    """The demonstrations that train and that validate."""
    settings: dict[str, Any] = {"batch_size": 2, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse"}
    settings |= {"action_scale": "auto", "storage": "ram", "obs_keys": None, "filter": None}
    settings |= {"time_limit": None, "big": False} | changes
    data = Dataset(torch.Generator().manual_seed(0), 1, path=path, **settings)
    return tuple(  # type: ignore[return-value]
        sorted({int(data.obs[step, 0]) for step in steps})
        for steps in (data.train_steps, data.held_steps)
    )


def test_a_filter_key_chooses_what_is_read(tmp_path: Path) -> None:
    path = lift(tmp_path / "a.hdf5")
    assert read(path, filter="train").about["demos"] == ["demo_0", "demo_1", "demo_2", "demo_10"]
    assert read(path, filter="few").about["demos"] == ["demo_2"]
    assert len(read(path).ends) == 6
    assert held(path, filter="train")[0] == [0, 1, 2, 10]


@pytest.mark.parametrize(
    ("words", "train", "valid"),
    [
        ({"filter": "train", "holdout": "valid"}, [0, 1, 2, 10], [3]),
        ({"holdout": "valid"}, [0, 1, 2, 4, 10], [3]),
        ({"filter": "train", "holdout": "few"}, [0, 1, 10], [2]),
        ({"filter": "train", "holdout": "valid", "on_bad": "drop"}, [0, 1, 2, 10], [3]),
    ],
)
def test_a_filter_key_validates(tmp_path: Path, words: Any, train: Any, valid: Any) -> None:
    path = lift(tmp_path / "a.hdf5")
    assert held(path, **words) == (train, valid)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/object"]
    if words.get("on_bad") == "drop":
        assert held(path, **words) == (train[1:], valid)


def test_filter_keys_are_told_everywhere(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = lift(tmp_path / "a.hdf5")
    for verb in ("info", "check"):
        assert main(["data", verb, path]) == 0
        assert "few (1), train (4), valid (1); all are read" in capsys.readouterr().out
    assert main(["data", "info", path, "--filter", "train"]) == 0
    assert "20 in 4 episodes" in capsys.readouterr().out
    assert main(["data", "convert", path, str(tmp_path / "b.npz"), "--filter", "valid"]) == 0
    assert "5 steps in 1 episodes" in capsys.readouterr().out
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    with caplog.at_level(logging.INFO, "rheo"):
        held(path, filter="train", holdout="valid")
    assert "train (4), valid (1); train is read, valid validates;" in caplog.text


def test_a_filter_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = lift(tmp_path / "a.hdf5")
    for words in ({"filter": "trian"}, {"filter": "train", "holdout": "trian"}):
        with pytest.raises(EnvError, match="mask/trian: no such .*there are few, train, valid"):
            held(path, **words)
    with h5py.File(path, "a") as file:
        del file["mask"]
    with pytest.raises(EnvError, match="mask/train: no such filter key; it has none"):
        held(path, filter="train")
    np.savez(
        tmp_path / "b.npz", observations=np.ones((4, 2)), actions=np.ones((4, 2)), episode_ends=[4]
    )
    for words in ({"filter": "train"}, {"holdout": "valid"}):
        with pytest.raises(EnvError, match="names a filter key .*this file has none"):
            held(str(tmp_path / "b.npz"), **words)
    path = lift(tmp_path / "c.hdf5", train=[0, 77])
    with pytest.raises(EnvError, match="mask, episode 1: names demo_77, which is not there"):
        held(path, filter="train")
    assert held(path, filter="train", on_bad="drop")[0] == [0]


def shorten(file: Any) -> None:
    del file["data/demo_2/actions"]
    file["data/demo_2/actions"] = np.zeros((4, 4))


def empty(file: Any) -> None:
    for key in ("obs/object", "actions", "rewards"):
        shape = file[f"data/demo_2/{key}"].shape[1:]
        del file[f"data/demo_2/{key}"]
        file[f"data/demo_2/{key}"] = np.zeros((0, *shape))


def replace(key: str, value: Any, demo: int = 2) -> Any:
    def change(file: Any) -> None:
        del file[f"data/demo_{demo}/{key}"]
        if value is not None:
            file[f"data/demo_{demo}/{key}"] = value

    return change


BROKEN = {
    "missing observation": replace("obs/object", None),
    "missing actions": replace("actions", None),
    "missing rewards": replace("rewards", None),
    "no observations": replace("obs", None),
    "empty": empty,
    "nothing in it": lambda file: [file["data/demo_2"].pop(k) for k in list(file["data/demo_2"])],
    "ragged": shorten,
    "other width": replace("obs/object", np.zeros((5, 2))),
    "text": replace("obs/object", np.array([[b"a"] * 3] * 5)),
    "three axes": replace("obs/object", np.zeros((5, 3, 1))),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("number", [0, 2])
def test_a_broken_demonstration_is_named_and_can_be_dropped(
    tmp_path: Path,
    kind: str,
    number: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        BROKEN[kind](file)
        if number != 2:  # the first one is no better than others
            file.move("data/demo_2", "data/kept")
            file.move(f"data/demo_{number}", "data/demo_2")
            file.move("data/kept", f"data/demo_{number}")
    for on_bad in ("refuse", "clip"):
        with pytest.raises(EnvError, match=f"episode {number}: .*demo_{number}\\b.*on_bad=drop"):
            read(path, on_bad=on_bad)
    recording = read(path, on_bad="drop")
    assert recording.about["demos"] == [f"demo_{i}" for i in (0, 1, 2, 3, 4, 10) if i != number]
    assert recording.about["dropped"] == [number] and len(recording.action) == 25
    after = recording.obs[recording.successor][:, 0]  # the others' successors moved along
    whole = [0, 1, 3, 4, 10] if number == 2 else [1, 0, 3, 4, 10]
    np.testing.assert_allclose(after, np.array(whole) + 0.5, rtol=1e-6)
    assert f"demo_{number}" in caplog.text and "1 of 6 episodes are left out" in caplog.text
    assert main(["data", "check", path]) == 2


def test_both_kinds_of_faults_are_reported_and_dropped_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        replace("obs/object", None)(file)
        replace("actions", np.full((5, 4), np.nan), 4)(file)
    assert main(["data", "check", path]) == 2
    out = capsys.readouterr().out
    assert "episode 2: missing in demo_2" in out and "episode 4, step 0, value nan" in out
    recording = read(path, on_bad="drop")
    assert recording.about["demos"] == ["demo_0", "demo_1", "demo_3", "demo_10"]
    assert recording.about["dropped"] == [2, 4] and not [
        f for f in faults(recording) if f.level == "error"
    ]
    for on_bad in ("refuse", "keep"):
        words = ["data", "convert", path, str(tmp_path / "b.npz"), "--on-bad", on_bad]
        assert main(words) == 2 and not (tmp_path / "b.npz").exists()


def test_a_file_without_a_whole_demonstration_is_refused(tmp_path: Path) -> None:
    path = lift(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for i in (0, 1, 2, 3, 4, 10):
            file[f"data/demo_{i}/dones"] = np.zeros(3)
    with pytest.raises(EnvError, match="6 errors"):
        read(path, on_bad="drop")


def test_every_array_is_opened_once_and_of_headers_only_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheo.envs.data import robomimic, trees

    path, opened = tmp_path / "a.hdf5", []
    with h5py.File(path, "w") as file:
        for i in range(200):
            for key in ("obs/a", "obs/b", "next_obs/a", "next_obs/b", "actions"):
                file[f"data/demo_{i}/{key}"] = np.zeros((3, 2)) + i / 400
    original = trees.h5o.open

    def counted(*at: Any, **how: Any) -> Any:
        opened.append(at[1])
        return original(*at, **how)

    monkeypatch.setattr(trees.h5o, "open", counted)
    assert main(["data", "check", str(path)]) == 0
    # a demonstration's group twice, its observations', the header of its actions, five arrays
    survey = robomimic.SAMPLED * (1 + 2 + 5)
    assert 200 * 9 < len(opened) <= 200 * 9 + survey + 20
