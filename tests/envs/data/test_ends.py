"""Columns that mark ends, under the names people use, against the episodes they were made from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.data.faults import faults
from rheo.envs.data.read import read
from rheo.envs.datasets import Dataset, Transitions
from rheo.errors import EnvError

LENGTHS = [4, 6, 3, 7]
ENDS = np.cumsum(LENGTHS)
STEPS = int(ENDS[-1])
LAST = np.isin(np.arange(STEPS), ENDS - 1)
TASK = np.isin(np.arange(STEPS), ENDS[[1, 2]] - 1)  # ended by the task; 0 and 3 are cut off
FIRST = np.roll(LAST, 1)
rng = np.random.default_rng(0)
TABLES: dict[str, Any] = {"observations": rng.normal(size=(STEPS, 3))}
TABLES["actions"] = rng.uniform(-1, 1, (STEPS, 2))


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """Writes observations, actions, rewards and the given columns; None leaves one out."""

    def write(**columns: Any) -> str:
        content: dict[str, Any] = TABLES | {"rewards": np.ones(STEPS)} | columns
        np.savez(tmp_path / "a.npz", **{k: v for k, v in content.items() if v is not None})
        return str(tmp_path / "a.npz")

    return write


def said(recording: Any) -> str:
    """All that its reader has to tell."""
    return "\n".join(f"{key}: {text}" for key, text in recording.about.get("remarks", ()))


READ = {  # each tells the same episodes
    "gymnasium": {"terminations": TASK, "truncations": LAST & ~TASK},
    "gymnasium, one name": {"terminated": TASK, "truncated": (LAST & ~TASK)[:, None]},
    "twice the same": {"terminals": TASK, "terminations": TASK * 1.0, "timeouts": LAST & ~TASK},
    "OGBench": {"terminals": LAST, "masks": 1.0 - TASK},
    "JAX learners": {"dones_float": LAST * 1.0, "masks": 1 - TASK},
    "masks beside agreeing columns": {
        "terminals": TASK, "timeouts": LAST & ~TASK, "masks": ~TASK,
    },
    "RLDS": {"is_first": FIRST, "is_last": LAST, "is_terminal": TASK},
    "dones and terminals": {"dones": LAST, "terminals": TASK},
    "dones and timeouts among them": {"dones": LAST, "timeouts": LAST & ~TASK},
    "dones and timeouts beside them": {"done": TASK, "timeouts": LAST & ~TASK},
    "dones of some episodes": {"dones": TASK, "episode_ends": ENDS},
    "DPPO": {"terminals": TASK, "traj_lengths": LENGTHS},
    "lengths": {"terminals": TASK, "episode_lengths": LENGTHS},
    "starts as flags": {"terminals": TASK, "episode_starts": FIRST},
    "starts as steps": {"terminals": TASK, "episode_starts": ENDS - LENGTHS},
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_other_names_of_ends_tell_the_same_episodes(save: Any, kind: str) -> None:
    recording = read(save(**READ[kind]))
    assert recording.ends.tolist() == ENDS.tolist()
    assert recording.terminated.tolist() == TASK.tolist()
    assert "not read" not in said(recording)


def test_dppo_calls_observations_states_and_that_is_said(save: Any) -> None:
    states = TABLES["observations"]
    path = save(observations=None, states=states, traj_lengths=LENGTHS, terminals=TASK)
    recording = read(path)
    np.testing.assert_array_equal(recording.obs, states.astype("f4"))
    assert recording.ends.tolist() == ENDS.tolist() and said(recording) == (
        "states: read as observations"
    )


def test_ends_by_the_task_inside_a_trajectory_end_an_episode(save: Any) -> None:
    masks = np.ones(STEPS)
    masks[[6, 9]] = 0  # OGBench's trajectories go on after the task was solved
    recording = read(save(terminals=LAST, masks=masks))
    assert recording.ends.tolist() == [4, 7, 10, 13, 20]
    assert np.flatnonzero(recording.terminated).tolist() == [6, 9]
    assert "masks: 0 is read as an end by the task, terminals as ends of any kind" in said(
        recording
    )


def test_dones_alone_are_ends_that_cloning_uses_and_rewards_do_not(save: Any) -> None:
    path = save(dones=LAST)
    how: dict[str, Any] = {"on_bad": "refuse", "action_scale": "auto", "storage": "ram"}
    recording = read(path)
    assert recording.ends.tolist() == ENDS.tolist() and not recording.terminated.any()
    assert any(f.key == "dones" and "but not whether" in f.text for f in faults(recording))
    how |= {"batch_size": 4, "holdout": 0.0, "obs_steps": 1, "obs_keys": None}
    how |= {"filter": None, "time_limit": None, "big": False}
    learn: dict[str, Any] = {"execute": 1, "n_step": 1, "gamma": 0.9, "reward_norm": "none"}
    generator = torch.Generator().manual_seed(0)
    assert len(Dataset(generator, 2, path=path, **how).train_steps) == STEPS
    with pytest.raises(ValueError, match="dones.* `terminals` .* `timeouts` .*time_limit=N"):
        Transitions(generator, 1, path=path, **how, **learn)
    how["time_limit"] = 7  # the last episode has this length
    data = Transitions(generator, 1, path=path, **how, **learn)
    assert int((data.discount == 0).sum()) == 3


def test_the_time_limit_tells_which_dones_are_cuts(save: Any) -> None:
    recording = read(save(dones=LAST), time_limit=7)
    assert recording.ends.tolist() == ENDS.tolist()
    assert np.flatnonzero(recording.terminated).tolist() == (ENDS[:3] - 1).tolist()
    assert "cut off after exactly 7 steps (the time limit): 3 ends by the task" in said(recording)


REFUSED = [
    ({"dones": TASK, "terminals": LAST}, "dones: not set at row 3, where terminals is"),
    ({"terminals": TASK, "terminations": LAST}, "terminations: differs from terminals.* at row 3"),
    (
        {"dones": LAST & (np.arange(STEPS) > 4), "timeouts": LAST & ~TASK},
        r"dones: set at some of timeouts and not at others \(row 3\)",
    ),
    ({"dones": FIRST, "episode_ends": ENDS}, "dones: set at row 0, which is no episode's end"),
    ({"masks": np.full(STEPS, 0.99)}, "masks, value 0.99: row 0 is neither 0"),
    (
        {"masks": ~LAST, "terminals": TASK, "timeouts": LAST & ~TASK},
        "masks: 0 at other steps than terminals, beside timeouts",
    ),
    ({"traj_lengths": [4, 6, 3, 8]}, "traj_lengths: must be above 0 and add up to 20"),
    ({"episode_starts": [1, 4, 10]}, "episode_starts: must mark step 0 and rise"),
    ({"is_first": ~FIRST}, "is_first: must mark step 0"),
    ({"dones": LAST[:-1]}, "dones: 19 rows but 20 actions"),
]


@pytest.mark.parametrize(("columns", "message"), REFUSED)
def test_ends_that_contradict_each_other_are_refused_by_name(
    save: Any, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        read(save(**columns))


def test_what_is_not_read_is_told_once(save: Any) -> None:
    other = {"qpos": np.zeros((STEPS, 9)), "log_probs": np.zeros(STEPS), "masks": np.zeros((2, 8))}
    path = save(terminals=LAST, states=TABLES["observations"], **other)
    recording = read(path)
    assert said(recording) == ": not read: log_probs, masks, qpos, states"
    assert [f.line() for f in faults(recording)] == ["not read: log_probs, masks, qpos, states"]
    with pytest.raises(EnvError, match=r"no episodes \(not read: qpos\); give data.time_limit=N"):
        read(save(qpos=other["qpos"]))


def test_scalars_of_an_archive_are_attributes(save: Any) -> None:
    recording = read(save(terminals=LAST, env_id="My-v0", dt=0.02, robot=b"panda"))
    assert recording.about["env_id"] == "My-v0" and recording.about["dt"] == 0.02
    assert recording.about["robot"] == "panda"


def test_a_time_limit_cuts_also_where_some_ends_are_marked(save: Any) -> None:
    timeouts = np.isin(np.arange(STEPS), [2, 9])
    recording = read(save(timeouts=timeouts, terminals=np.arange(STEPS) == 17), time_limit=5)
    assert recording.ends.tolist() == [3, 8, 10, 15, 18, 20]
    assert np.flatnonzero(recording.terminated).tolist() == [17]


def hopper(path: Path, steps: int, **columns: Any) -> str:
    """A file of Hopper's sizes."""
    sizes = {"observations": 11, "actions": 3}
    rows: dict[str, Any] = {key: rng.uniform(-1, 1, (steps, size)) for key, size in sizes.items()}
    with path.open("wb") as out:
        np.savez(out, **rows, **columns)
    return str(path)


def test_an_episode_longer_than_its_environment_allows_is_an_error(tmp_path: Path) -> None:
    terminals = np.isin(np.arange(2500), [120, 2400])
    named = hopper(tmp_path / "hopper_medium-v2.hdf5", 2500, terminals=terminals)
    told = hopper(tmp_path / "a.npz", 2500, terminals=terminals, env_id="MountainCarContinuous-v0")
    with pytest.raises(EnvError, match="timeouts, episode 1, step 1000: 1 of 3 .* Hopper-v4 allow"):
        read(named)
    with pytest.raises(EnvError, match=r"MountainCarContinuous-v0 allows \(999 steps\).*limit=999"):
        read(told)
    assert read(named, time_limit=1000).ends.tolist() == [121, 1121, 2121, 2401, 2500]
    assert read(named, time_limit=2280).ends.tolist() == [121, 2401, 2500]
    free = hopper(tmp_path / "mine.npz", 2500, terminals=terminals)  # nothing tells where
    assert read(free).ends.tolist() == [121, 2401, 2500]
    timeouts = np.arange(2500) % 1000 == 999
    whole = hopper(tmp_path / "hopper_expert-v2.hdf5", 2500, terminals=terminals, timeouts=timeouts)
    assert read(whole).ends.tolist() == [121, 1000, 2000, 2401, 2500]


def test_demonstrations_of_adroit_may_be_longer_than_the_environment(tmp_path: Path) -> None:
    rows: dict[str, Any] = {"observations": rng.normal(size=(600, 39))}
    rows["actions"] = rng.uniform(-1, 1, (600, 28))
    with (tmp_path / "door-human-v1.hdf5").open("wb") as out:
        np.savez(out, **rows, timeouts=np.arange(600) % 300 == 299)
    assert read(str(tmp_path / "door-human-v1.hdf5")).ends.tolist() == [300, 600]
