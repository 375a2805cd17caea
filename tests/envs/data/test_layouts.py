"""What is written can be read again: every layout, there and back."""

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Recording
from rheo.envs.data.writing import write
from rheo.envs.paths import LAYOUTS
from rheo.errors import EnvError
from rheo.scripts.cli import main

PARTS = {"hand": 3, "box/pose": 4}
WRITTEN = [(layout, suffix) for layout, suffixes in LAYOUTS.items() for suffix in suffixes]


def recording(episodes: int = 12, known: bool = True, **about: Any) -> Recording:
    """Episodes of several lengths, every third one ended by the task without a reward there."""
    rng, lengths = np.random.default_rng(0), 2 + np.arange(episodes) % 4
    ends = np.cumsum(lengths)
    steps, found = int(ends[-1]), np.full(episodes, known)
    found[1] = False
    terminated = np.zeros(steps, bool)
    terminated[ends[::3] - 1] = True
    return Recording(
        rng.normal(size=(steps + int(found.sum()), 7)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        -rng.uniform(size=steps).astype(np.float32),
        terminated,
        ends,
        np.where(found, steps + np.cumsum(found) - 1, -1),
        {"path": "made", "env_id": "FetchPush-v4", **about},
    )


def named(**about: Any) -> dict[str, Any]:
    """What tells the parts of an observation."""
    return {"obs_keys": list(PARTS), "obs_widths": list(PARTS.values()), **about}


def same(one: Recording, other: Recording) -> None:
    for field in ("obs", "action", "reward", "terminated", "ends", "successor"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), field)
    assert one.about["env_id"] == other.about["env_id"]


@pytest.mark.parametrize("parts", [{}, named()], ids=["flat", "parts"])
@pytest.mark.parametrize(("layout", "suffix"), WRITTEN)
def test_a_recording_comes_back_as_it_was(
    tmp_path: Path, layout: str, suffix: str, parts: dict[str, Any]
) -> None:
    made = recording(**parts)
    file = tmp_path / f"a{suffix}"
    write(made, file, layout=layout)
    back = read(str(file))
    same(back, made)
    if parts:
        assert back.about["obs_keys"] == list(PARTS) and back.about["obs_widths"] == [3, 4]


@pytest.mark.parametrize(("first", "second"), [("npz", "robomimic"), ("robomimic", "d4rl")])
def test_a_file_is_converted_and_back(tmp_path: Path, first: str, second: str) -> None:
    made = recording(**named())
    names = [f"{i}{LAYOUTS[layout][0]}" for i, layout in enumerate((first, second, first))]
    files = [str(tmp_path / name) for name in names]
    write(made, files[0], layout=first)
    assert main(["data", "convert", files[0], files[1], f"layout={second}"]) == 0
    assert main(["data", "convert", files[1], files[2], "--layout", first]) == 0
    same(read(files[2]), made)
    assert read(files[2]).about["obs_keys"] == list(PARTS)


def test_bounds_of_actions_are_kept_and_not_applied_twice(tmp_path: Path) -> None:
    made = recording(action_low=[0.0, 0.0], action_high=[512.0, 512.0])
    for layout, suffix in WRITTEN:
        write(made, tmp_path / f"{layout}{suffix}", layout=layout)
        back = read(str(tmp_path / f"{layout}{suffix}"))
        np.testing.assert_array_equal(back.action, made.action)
        assert back.about["action_high"] == [512.0, 512.0]


def test_a_robomimic_file_holds_what_robomimic_asks_for(tmp_path: Path) -> None:
    made = recording(**named(env_options={"max_episode_steps": 9}))
    write(made, tmp_path / "a.hdf5", layout="robomimic")
    with h5py.File(tmp_path / "a.hdf5") as file:
        data: Any = file["data"]
        args = json.loads(data.attrs["env_args"])
        assert args == {
            "env_name": "FetchPush-v4", "type": 2, "env_kwargs": {"max_episode_steps": 9},
        }  # fmt: skip
        assert data.attrs["total"] == len(made.action)
        demo = data["demo_2"]
        assert demo.attrs["num_samples"] == 4 and demo["dones"].dtype == np.int64
        rows = slice(*made.ends[1:3])
        np.testing.assert_array_equal(demo["obs/box/pose"], made.obs[rows, 3:])
        np.testing.assert_array_equal(demo["next_obs/hand"][:-1], demo["obs/hand"][1:])
        after = made.obs[made.successor[2], :3]
        np.testing.assert_array_equal(demo["next_obs/hand"][-1], after)
        assert "next_obs" not in data["demo_1"]
        lists: Any = file["mask"]
        held = [name.decode() for name in lists["valid"]]
        assert held == ["demo_9"] and len(lists["train"]) == 11


def test_of_what_nobody_knows_it_is_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = recording(env_id="robosuite/Lift-v0")
    with caplog.at_level(logging.WARNING, "rheo"):
        logging.getLogger("rheo").addHandler(caplog.handler)
        write(made, tmp_path / "a.hdf5", layout="robomimic")
        logging.getLogger("rheo").removeHandler(caplog.handler)
    assert "after 1 of 12 episodes is not known" in caplog.text
    assert "nothing tells what robosuite/Lift-v0 was made with" in caplog.text
    assert played_in(str(tmp_path / "a.hdf5")).env_id == "robosuite/Lift-v0"


def test_lists_of_demonstrations_and_their_names_are_kept(tmp_path: Path) -> None:
    first, second, third = (str(tmp_path / f"{name}.hdf5") for name in "abc")
    write(recording(), first, layout="robomimic")
    assert main(["data", "convert", first, second, "layout=robomimic", "filter=valid"]) == 0
    with h5py.File(second) as file:
        data, lists = file["data"], file["mask"]
        assert isinstance(data, h5py.Group) and isinstance(lists, h5py.Group)
        assert list(data) == ["demo_9"] and list(lists) == ["valid"]
    assert main(["data", "convert", first, third, "--layout", "robomimic"]) == 0
    assert read(third).about["demos"] == [f"demo_{i}" for i in range(12)]


def test_what_a_copy_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(recording(**named()), tmp_path / "a.hdf5", layout="robomimic")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for i in range(12):
            file[f"data/demo_{i}/states"] = np.zeros((2 + i % 4, 3))
            file[f"data/demo_{i}/obs/more"] = np.zeros((2 + i % 4, 3))
    words = ["obs_keys=hand,box/pose"]
    source = str(tmp_path / "a.hdf5")
    assert main(["data", "convert", source, str(tmp_path / "a.npz"), *words]) == 0
    assert "not in the copy: more, states" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layout", "name", "message"),
    [
        ("npz", "a.hdf5", "layout=npz is written to .npz"),
        ("robomimic", "a.npz", "layout=robomimic is written to .hdf5 or .h5"),
        (None, "a.zip", "unknown suffix '.zip'; there are .hdf5, .h5, .npz"),
    ],
)
def test_a_layout_that_a_suffix_cannot_hold_is_refused(
    tmp_path: Path, layout: str | None, name: str, message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        write(recording(), tmp_path / name, layout=layout)
    assert not list(tmp_path.iterdir())
