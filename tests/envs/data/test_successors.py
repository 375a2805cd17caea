"""Recorded next observations at ends: made by shifting, repeated, or true."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.faults import faults
from rheo.envs.data.read import read
from rheo.envs.data.writing import write

EPISODES, LENGTH = 6, 20
STEPS = EPISODES * LENGTH
LAST = np.arange(STEPS) % LENGTH == LENGTH - 1


def walks(seed: int, same_start: bool = False) -> Any:
    """Observations [S, 3] of random walks from starts far apart, and their true successors."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(EPISODES, LENGTH + 1, 3)) * 0.1
    rows[:, 0] = 1.0 if same_start else 5 * rng.normal(size=(EPISODES, 3))
    path = np.cumsum(rows, axis=1).astype("f4")
    return path[:, :-1].reshape(STEPS, 3), path[:, 1:].reshape(STEPS, 3)


def shifted(obs: Any) -> Any:
    return np.concatenate([obs[1:], obs[-1:]])


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(obs: Any, after: Any, **columns: Any) -> str:
        columns = {"timeouts": LAST} | columns
        actions = np.random.default_rng(1).uniform(-1, 1, (len(obs), 2))
        content = {"observations": obs, "actions": actions, "next_observations": after} | columns
        kept = {key: value for key, value in content.items() if value is not None}
        np.savez(tmp_path / "a.npz", **kept)
        return str(tmp_path / "a.npz")

    return write


def told(recording: Any) -> list[str]:
    return [fault.text for fault in faults(recording) if fault.key == "next_observations"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("same_start", [False, True])
def test_the_next_episodes_first_row_is_no_successor(
    save: Any, seed: int, same_start: bool
) -> None:
    obs, after = walks(seed, same_start)
    recording = read(save(obs, shifted(obs)))
    assert (recording.successor == -1).all() and len(recording.obs) == STEPS
    assert told(recording) == [
        "after 5 of 5 cut episodes it is the next episode's first observation; the observations "
        "after ends count as not known"
    ]
    rolled = read(save(obs, np.roll(obs, -1, 0)))
    assert (rolled.successor == -1).all() and told(rolled)
    true = read(save(obs, after))  # the control
    assert (true.successor >= 0).all() and not told(true)
    np.testing.assert_array_equal(true.obs[STEPS:], after[LAST])


def test_a_repeated_last_row_is_no_successor_unless_nothing_moves(save: Any) -> None:
    obs, after = walks(0)
    repeated = np.where(LAST[:, None], obs, after)
    recording = read(save(obs, repeated))
    assert (recording.successor == -1).all()
    assert "after 6 of 6 cut episodes it repeats the last observation" in told(recording)[0]
    for end in np.flatnonzero(LAST):  # it rests before the end already
        obs[end] = after[end - 1] = obs[end - 1]
    resting = read(save(obs, np.where(LAST[:, None], obs, after)))
    assert (resting.successor >= 0).all() and not told(resting)


def test_a_few_accidents_from_a_constant_start_are_believed(save: Any) -> None:
    obs, after = walks(3, same_start=True)
    after[np.flatnonzero(LAST)[:3]] = 1.0  # three of six are reset inside the recorder
    recording = read(save(obs, after))
    assert (recording.successor >= 0).all() and not told(recording)


def test_a_lap_that_ends_where_all_start_is_believed(save: Any) -> None:
    angle = 2 * np.pi * np.arange(LENGTH + 1) / LENGTH
    lap = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1).astype("f4")
    lap[-1] = lap[0]
    obs, after = (np.tile(part, (EPISODES, 1)) for part in (lap[:-1], lap[1:]))
    recording = read(save(obs, after))
    assert (recording.successor >= 0).all() and not told(recording)


def test_ends_by_the_task_say_nothing_of_a_column(save: Any) -> None:
    obs, _ = walks(0)
    recording = read(save(obs, shifted(obs), timeouts=None, terminals=LAST))
    assert not told(recording)  # nothing is bootstrapped there


def test_a_cut_by_the_time_limit_has_the_following_row_for_a_successor(save: Any) -> None:
    rng = np.random.default_rng(0)
    obs = np.cumsum(rng.normal(size=(STEPS, 3)), 0).astype("f4")  # one recording that goes on
    for after in (None, shifted(obs)):
        recording = read(save(obs, after, timeouts=None), time_limit=LENGTH)
        assert recording.ends.tolist() == list(range(LENGTH, STEPS + 1, LENGTH))
        assert not recording.terminated.any()
        followed = recording.obs[recording.successor[:-1]]
        np.testing.assert_array_equal(followed, obs[LENGTH::LENGTH])
    assert read(save(obs, None, timeouts=None), time_limit=LENGTH).successor[-1] == -1


def test_a_cut_by_the_time_limit_at_a_reset_knows_none(save: Any) -> None:
    obs, after = walks(0)
    for column in (None, shifted(obs)):
        recording = read(save(obs, column, timeouts=None), time_limit=LENGTH)
        assert (recording.successor[:-1] == -1).all()
        assert any("the rows jump there" in fault.text for fault in faults(recording))
    true = read(save(obs, after, timeouts=None), time_limit=LENGTH)
    assert (true.successor >= 0).all()
    np.testing.assert_array_equal(true.obs[STEPS:], after[LAST])


def test_what_a_file_of_ours_knows_is_kept(save: Any, tmp_path: Path) -> None:
    obs, after = walks(0)
    whole = read(save(obs, after))
    part = whole._replace(successor=np.where(np.arange(EPISODES) < 2, whole.successor, -1))
    write(part._replace(obs=whole.obs[: STEPS + 2]), tmp_path / "ours.hdf5")
    again = read(str(tmp_path / "ours.hdf5"))
    assert (again.successor >= 0).tolist() == [True] * 2 + [False] * 4
    cut = read(str(tmp_path / "ours.hdf5"), time_limit=LENGTH // 2)
    assert len(cut.ends) == 2 * EPISODES
    assert (cut.successor >= 0).tolist() == [True] * 4 + [True, False] * 4
    np.testing.assert_array_equal(cut.obs[cut.successor[1]], after[LENGTH - 1])


def test_robomimics_repeated_rows_are_not_believed_either(tmp_path: Path) -> None:
    obs, after = walks(0)
    for name, following in (("true", after), ("repeated", np.where(LAST[:, None], obs, after))):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            for i in range(EPISODES):
                rows = slice(i * LENGTH, (i + 1) * LENGTH)
                file[f"data/demo_{i}/obs/object"] = obs[rows]
                file[f"data/demo_{i}/next_obs/object"] = following[rows]
                file[f"data/demo_{i}/actions"] = np.zeros((LENGTH, 2))
    assert (read(str(tmp_path / "true.hdf5")).successor >= 0).all()
    assert (read(str(tmp_path / "repeated.hdf5")).successor == -1).all()
