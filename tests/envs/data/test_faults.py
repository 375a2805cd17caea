"""What is wrong with a file is refused with file, key, episode, step, value and remedy."""

import logging
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.faults import faults
from rheo.envs.data.read import read
from rheo.errors import EnvError

LENGTHS = [4, 6, 3, 7]
STEPS = sum(LENGTHS)
ENDS = np.cumsum(LENGTHS)
rng = np.random.default_rng(0)


def content() -> dict[str, Any]:
    """Twenty good steps."""
    obs = np.arange(STEPS * 3.0).reshape(STEPS, 3)
    return {
        "observations": obs,
        "actions": np.linspace(-0.9, 0.9, STEPS * 2).reshape(STEPS, 2),
        "rewards": np.ones(STEPS),
        "terminals": np.arange(STEPS) == 9,
        "timeouts": np.isin(np.arange(STEPS), ENDS - 1),
        "next_observations": obs + 3,
    }


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """Writes good content, some of it changed or left out (None), and returns the path."""

    def write(name: str = "a.hdf5", **changes: Any) -> str:
        kept = {k: v for k, v in (content() | changes).items() if v is not None}
        if name.endswith(".npz"):
            np.savez(tmp_path / name, **kept)
        else:
            with h5py.File(tmp_path / name, "w") as file:
                for key, value in kept.items():
                    file[key] = value
        return str(tmp_path / name)

    return write


def changed(key: str, place: Any, value: Any) -> dict[str, Any]:
    """Content with one entry changed."""
    array = content()[key].astype(float)
    array[place] = value
    return {key: array}


REFUSED = [
    (changed("observations", (11, 2), np.nan), "observations, episode 2, step 1, value nan: .*dim"),
    (changed("observations", (11, 2), np.nan), "1 such steps in 1 episodes; data.on_bad=drop"),
    (changed("actions", (4, 0), np.inf), "actions, episode 1, step 0, value inf: not a finite"),
    (changed("rewards", [5, 6, 19], -np.inf), "rewards, episode 1, step 1, value -inf.* 3 .* in 2"),
    (changed("rewards", 3, 1e300), "rewards, episode 0, step 3, value inf: not a finite"),
    ({"costs": np.where(np.arange(STEPS) == 7, np.nan, 0)}, "costs, episode 1, step 3, value nan"),
    ({"costs": np.zeros(21)}, "costs: 21 rows but 20 actions"),
    ({"costs": np.zeros((20, 2))}, r"costs: has shape \(20, 2\)"),
    (changed("next_observations", 12, np.nan), "next_observations, episode 2, step 2, value nan"),
    (changed("terminals", 3, np.nan), "terminals, value nan: row 3 is not a number"),
    (changed("actions", (10, 1), -1.79), r"actions, episode 2, step 0, value -1.79: 1 of 40"),
    (changed("actions", 10, [1.2, -1.79]), "2 of 40 entries lie outside .*, the largest 1.79;"),
    (changed("actions", (10, 1), 1.00001), "actions, episode 2, step 0, value 1.00001"),
    (changed("next_observations", 6, 0), "next_observations, episode 1, step 2: .* end is missing"),
    ({"timeouts": np.ones(STEPS)}, "timeouts, episode 0, step 0: 20 of 20 episodes have one step"),
    ({"timeouts": np.arange(STEPS) > 4}, "14 of 15 episodes have one step"),
    ({"timeouts": None, "terminals": None}, "there are no episodes; give data.time_limit=N"),
    ({"timeouts": np.zeros(STEPS), "terminals": None}, "there are no episodes; give data.time_l"),
    ({"actions": None}, "no key 'actions'; it holds next_observations, observations, rewards"),
    ({"observations": None}, "observations: no key 'observations'; it holds actions"),
    ({"actions": np.zeros((19, 2))}, "observations: 20 rows but 19 actions"),
    ({"rewards": np.zeros(21)}, "rewards: 21 rows but 20 actions"),
    ({"timeouts": np.zeros(19)}, "timeouts: 19 rows but 20 actions"),
    ({"next_observations": np.zeros((20, 4))}, r"next_observations: shape \(20, 4\)"),
    ({"observations": np.zeros(20)}, r"observations: has shape \(20,\) and type float64"),
    ({"observations": np.zeros((20, 8, 8, 3))}, r"observations: has shape \(20, 8, 8, 3\)"),
    ({"actions": np.zeros((20, 0))}, r"actions: has shape \(20, 0\)"),
    ({"rewards": np.zeros((20, 2))}, r"rewards: has shape \(20, 2\)"),
    ({"observations": np.full((20, 2), b"x")}, "expected numbers"),
    ({k: v[:0] for k, v in content().items()}, "observations: empty: no steps"),
    ({"episode_ends": np.array([10, 40])}, "must rise strictly from above 0 to 20, .* got .10 40."),
    ({"episode_ends": np.array([12, 9, 20])}, "must rise strictly"),
    ({"episode_ends": np.array([0, 20])}, "must rise strictly"),
    ({"episode_ends": np.array([10.0, 20.0])}, "must be a list of whole numbers"),
    ({"action_low": [-1, -1], "action_high": [1, np.inf]}, "are no finite ranges"),
    ({"action_low": [-1, -1, -1], "action_high": [2, 2]}, "3 and 2 bounds for 2 action dimensions"),
]


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz"])
@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_file_with_an_error_is_refused_by_place_and_value(
    save: Any, name: str, changes: dict[str, Any], message: str
) -> None:
    path = save(name, **changes)
    before = Path(path).read_bytes()
    with pytest.raises(EnvError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"data={path}: ")
    assert Path(path).read_bytes() == before


def test_several_errors_come_at_once(save: Any) -> None:
    path = save(**changed("rewards", 0, np.nan), **changed("actions", 0, 3.0))
    with pytest.raises(EnvError) as caught:
        read(path)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("2 errors") and len(lines) == 2
    assert "rewards, episode 0" in lines[0] and "largest 3" in lines[1]


def test_dropping_leaves_out_the_episodes_with_errors_and_no_other(
    save: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    whole = read(save("whole.hdf5"))
    costs = {"costs": np.arange(STEPS)}
    path = save(**changed("rewards", 0, np.nan), **changed("actions", 10, -1.79), **costs)
    recording = read(path, on_bad="drop")
    rows = np.r_[4:10, 13:20]
    np.testing.assert_array_equal(recording.obs, whole.obs[[*rows, 21, 23]])
    np.testing.assert_array_equal(recording.action, whole.action[rows])
    np.testing.assert_array_equal(recording.terminated, whole.terminated[rows])
    assert recording.ends.tolist() == [6, 13] and recording.successor.tolist() == [13, 14]
    assert recording.reward is not None and len(recording.reward) == 13
    assert recording.cost is not None and recording.cost.tolist() == rows.tolist()
    assert recording.about["dropped"] == [0, 2]
    assert "2 of 4 episodes are dropped for errors" in caplog.text
    boundary = save("b.hdf5", **changed("next_observations", 6, 0))
    assert read(boundary, on_bad="drop").ends.tolist() == [4, 7, 14]
    with pytest.raises(EnvError, match="no episode is without"):
        read(save("c.hdf5", rewards=np.full(STEPS, np.nan)), on_bad="drop")


def test_clipping_cuts_actions_and_refuses_the_rest(save: Any) -> None:
    recording = read(save(**changed("actions", 10, [0.5, -1.79])), on_bad="clip")
    assert recording.action[10].tolist() == [0.5, -1] and np.abs(recording.action).max() == 1
    for value in (np.nan, np.inf):
        bad = changed("actions", (10, 0), value)
        with pytest.raises(EnvError, match=f"value {value}"):
            read(save(**bad), on_bad="clip")
    with pytest.raises(EnvError, match="on_bad='skip'; there are refuse, drop, clip"):
        read(save(), on_bad="skip")


def test_rounding_of_bounds_and_of_next_observations_is_no_error(save: Any) -> None:
    actions = changed("actions", (10, 1), 1 + 5e-7)
    assert read(save(**actions, **changed("next_observations", (6, 0), 21.00001))).ends[-1] == 20


def test_oddities_are_notes_with_their_place(save: Any) -> None:
    content_ = content()
    content_["observations"][:, 1] = 5
    content_["observations"][10:13] = content_["observations"][:3]
    content_["actions"][10:13] = content_["actions"][:3]
    content_["actions"][[4, 5], 0] = 1, -1
    timeouts = np.isin(np.arange(STEPS), [2, 3, 9, 12, 19])
    changes = {"timeouts": timeouts, "terminals": None, "next_observations": None}
    found = faults(read(save(**(content_ | changes))))
    assert {fault.level for fault in found} == {"note"}
    lines = [fault.line() for fault in found]
    assert lines == [
        "observations, value 5: 1 of 3 dimensions never change (1); they get unit scale",
        "terminals, episode 1, step 0: 1 of 5 episodes have one step",
        "observations, episode 3: the same as episode 0; 1 episodes are duplicates",
        "actions: 5.0 % of entries are at a bound",
        "terminals: no episode ended by the task; each counts as cut off, and its value goes on",
    ]
    assert faults(read(save("good.hdf5"))) == []


BROKEN = {
    "empty": (b"", "empty; the file has 0 bytes"),
    "page": (b"\n<!DOCTYPE html><html>403</html>", "an HTML page .* the file has 32 bytes"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer.*git lfs pull"),
    "pickle": (pickle.dumps([1]), "a Python pickle; .*never opened here"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", ["a.hdf5", "a.npz"])
def test_a_file_that_is_something_else_is_named_for_what_it_is(
    tmp_path: Path, kind: str, name: str
) -> None:
    data, message = BROKEN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EnvError, match=rf"{name}: {message}"):
        read(str(tmp_path / name))


def test_a_truncated_file_is_named_with_both_sizes_and_the_way_to_a_whole_one(save: Any) -> None:
    path = Path(save("hopper_medium-v2.hdf5"))
    whole = path.read_bytes()
    for share in (0.99, 0.5, 0.1):
        part = whole[: int(len(whole) * share)]
        path.write_bytes(part)
        with pytest.raises(EnvError, match=f"{len(part):,} bytes") as caught:
            read(str(path))
        assert f"should have {len(whole):,} bytes" in str(caught.value)
        command = f"rheo data fetch hopper-medium-v2 --to {path.parent}"
        assert f"delete it and run `{command}`" in str(caught.value)
    archive = Path(save("a.npz"))
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(EnvError, match="not a readable .npz file .*; fetch or|fetch or write it"):
        read(str(archive))


def test_a_changed_byte_inside_an_archive_is_found(save: Any) -> None:
    path = Path(save("a.npz"))
    data = bytearray(path.read_bytes())
    data[400] ^= 255
    path.write_bytes(data)
    with pytest.raises(EnvError, match="not a readable .npz file"):
        read(str(path))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="none.npz: no such file; give the path"):
        read(str(tmp_path / "none.npz"))
    with pytest.raises(EnvError, match="an empty folder; give a file"):
        read(str(tmp_path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(EnvError, match="one array; a .npz file holds"):
        read(str(tmp_path / "one.npy"))


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_objects_in_an_archive_are_never_unpickled(save: Any, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * STEPS, object)
    with pytest.raises(EnvError, match="actions: holds Python objects, which are never read"):
        read(save("a.npz", actions=trap))
    assert not (tmp_path / "sprung").exists()


def test_keys_of_observations_are_for_files_that_have_them(save: Any) -> None:
    with pytest.raises(EnvError, match=r"obs_keys=\['x'\] is for robomimic and Minari"):
        read(save(), obs_keys=["x"])
