"""Labels of recorded steps against plain loops over ragged episodes."""

import logging

import numpy as np
import pytest
import torch
from conftest import write_episodes

from rheo.envs.labelled import Labels

LENGTHS = [6, 3, 8]
SETTINGS = {
    "batch_size": 6, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse", "action_scale": "auto",
    "big": False, "storage": "ram", "obs_keys": None, "filter": None, "time_limit": None,
    "label": "return", "column": None, "edges": None, "labels": 2, "file": None, "execute": 2,
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """A small recording."""
    return write_episodes(tmp_path / "d.npz", LENGTHS)


@pytest.fixture
def data(path):
    """Makes a source of labels over it: `data(**changes)`."""

    def make(**changes):
        settings = {**SETTINGS, **changes}
        return Labels(torch.Generator().manual_seed(0), 4, path=str(path), **settings)

    return make


def came_of(rows, kind, column=0, execute=2):
    """What came of every step, None where it is not known."""
    found, start = [], 0
    obs, reward = rows["observations"].astype(np.float32), rows["rewards"].astype(np.float32)
    for length in LENGTHS:
        for step in range(start, start + length):
            n = min(execute, start + length - step)
            after = obs[step + n, column] if step + n < start + length else None
            now = {
                "obs": after,
                "change": None if after is None else (after - obs[step, column]) / n,
                "reward": reward[step : step + n].mean(dtype=np.float64),
                "return": reward[start : start + length].sum(dtype=np.float64),
            }
            found.append(now[kind])
        start += length
    return found


@pytest.mark.parametrize("kind", ["obs", "change", "reward", "return"])
def test_a_label_is_the_part_in_which_the_outcome_lies(data, path, kind):
    column = 1 if kind in ("obs", "change") else None
    came = came_of(np.load(path), kind, column or 0)
    low, *_, high = sorted({value for value in came if value is not None})
    edges = [float(low) + 1e-4, float(high)]  # an edge belongs to the part above it
    source = data(label=kind, column=column, edges=edges, labels=3)
    known = [step for step, value in enumerate(came) if value is not None]
    assert source.train_steps.tolist() == known
    assert len(known) < len(came) if kind in ("obs", "change") else len(known) == len(came)
    expected = [sum(came[step] >= edge for edge in edges) for step in known]
    batch = source.rows(source.train_steps)
    assert batch.label.tolist() == expected and set(expected) == {0, 1, 2}
    windows = source.windows(source.train_steps)
    assert torch.equal(batch.obs, windows.obs) and torch.equal(batch.action, windows.action)


def test_without_edges_labels_have_equal_shares_and_the_edges_are_told(data, caplog):
    caplog.set_level(logging.INFO, "rheo")
    source = data(label="reward", labels=4, execute=1)
    counts = source.rows(source.train_steps).label.bincount()
    assert counts.sum() == 17 and counts.max() - counts.min() <= 1
    edges = caplog.text.partition("source.edges=[")[2].partition("]")[0]
    again = data(label="reward", labels=4, execute=1, edges=[float(e) for e in edges.split(",")])
    assert torch.equal(again.target, source.target)


def test_a_file_labels_steps_or_episodes_and_may_leave_some_out(data, tmp_path):
    steps, episodes = np.arange(17) % 3 - 1, np.array([1, -1, 0])
    np.save(tmp_path / "steps.npy", steps)
    np.save(tmp_path / "episodes.npy", episodes)
    sources = [data(label="file", file=str(tmp_path / f"{n}.npy")) for n in ("steps", "episodes")]
    for source, given in zip(sources, (steps, episodes.repeat(LENGTHS)), strict=True):
        assert source.train_steps.tolist() == np.flatnonzero(given >= 0).tolist()
        found = source.rows(source.train_steps).label
        assert found.tolist() == given[given >= 0].tolist()
    assert len({source.digest for source in (*sources, data())}) == 3
    with pytest.raises(Exception, match="content changed"):
        sources[0].load_state_dict(sources[1].state_dict())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"column": 1}, "source.column=1 with source.label=return: nothing uses it"),
        ({"file": "x.npy"}, "source.file=x.npy with source.label=return: nothing uses it"),
        ({"label": "file", "file": "x.npy", "edges": [0.1]}, "source.edges=.*nothing uses it"),
        ({"label": "obs"}, "source.column=None.*columns 0 to 2"),
        ({"label": "change", "column": 3}, "source.column=3.*columns 0 to 2"),
        ({"label": "file"}, "source.file: has to be set"),
        ({"label": "file", "file": "no.npy"}, "source.file=no.npy: cannot be read"),
        ({"labels": 1}, "policy.labels=1"),
        ({"edges": [0.0, 1.0]}, "source.edges=.*set policy.labels=3"),
        ({"edges": [1.0, 0.0], "labels": 3}, "has to rise"),
        ({"edges": [1e9]}, "no step has the label 1"),
    ],
)
def test_what_labels_nothing_is_refused(data, changes, told):
    with pytest.raises(ValueError, match=told):
        data(**changes)


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (np.zeros(5, int), "int64 of the shape \\[5\\].*its 17 steps or its 3 episodes"),
        (np.zeros(17), "float64"),
        (np.arange(17), "from 0 to 16.*policy.labels=2"),
        (np.full(3, -2), "from -2 to -2"),
    ],
    ids=str,
)
def test_a_file_of_something_else_is_refused(data, tmp_path, label, told):
    np.save(tmp_path / "l.npy", label)
    with pytest.raises(ValueError, match=told):
        data(label="file", file=str(tmp_path / "l.npy"))


def test_a_recording_without_rewards_says_what_can_be_labelled(data, path):
    rows = {k: v for k, v in np.load(path).items() if k != "rewards"}
    np.savez(path, **rows)
    with pytest.raises(ValueError, match="holds no rewards.*source.label=obs"):
        data()
    assert len(data(label="obs", column=0, edges=[0.0]).train_steps) == 17 - 2 * 3
