"""Windows of recorded episodes against plain loops, and files that cannot be used."""

import pickle

import numpy as np
import pytest
import torch

from rheo.envs import datasets
from rheo.envs.datasets import Dataset, read_npz
from rheo.envs.vector import EnvError

LENGTHS = [1, 7, 2, 12, 3, 5]


def arrays(lengths=LENGTHS, obs_dim=2, action_dim=3):
    """Numbers that tell their step: obs[s] = s, action[s] = s / 100."""
    steps = sum(lengths)
    return {
        "observations": np.arange(steps)[:, None] + np.zeros(obs_dim),
        "actions": np.arange(steps)[:, None] / 100 + np.zeros(action_dim),
        "episode_ends": np.cumsum(lengths),
    }


@pytest.fixture
def write(tmp_path):
    """Writes arrays, some of them changed or left out (None), and returns the path."""

    def save(**changes):
        content = {k: v for k, v in {**arrays(), **changes}.items() if v is not None}
        path = tmp_path / "data.npz"
        np.savez(path, **content)
        return str(path)

    return save


def dataset(path, *, horizon=4, batch_size=6, holdout=0.0, obs_steps=3, seed=0):
    return Dataset(
        torch.Generator().manual_seed(seed),
        horizon,
        path=path,
        batch_size=batch_size,
        holdout=holdout,
        obs_steps=obs_steps,
    )


def expected_windows(horizon, obs_steps):
    """(observation steps, action steps) of every window, by loops over ragged episodes."""
    found, start = {}, 0
    for length in LENGTHS:
        for i in range(length):
            past = [start + max(i - back, 0) for back in reversed(range(obs_steps))]
            future = [start + min(i + ahead, length - 1) for ahead in range(horizon)]
            found[start + i] = (past, future)
        start += length
    return found


@pytest.mark.parametrize(("horizon", "obs_steps"), [(1, 1), (4, 3), (16, 2), (3, 20)])
def test_every_step_has_one_window_that_stays_in_its_episode(write, horizon, obs_steps):
    data = dataset(write(), horizon=horizon, obs_steps=obs_steps)
    windows = data.windows(torch.arange(sum(LENGTHS)))
    assert windows.obs.shape == (30, obs_steps * 2) and windows.action.shape == (30, horizon, 3)
    for step, (past, future) in expected_windows(horizon, obs_steps).items():
        assert windows.obs[step, ::2].tolist() == past
        assert (windows.action[step, :, 0] * 100).round().tolist() == future
    assert data.obs_size == obs_steps * 2 and data.action_dim == 3
    obs, action = data.statistics()
    assert torch.equal(obs, data.obs.repeat(1, obs_steps)) and torch.equal(action, data.action)


def test_batches_are_uniform_over_all_training_windows(write):
    data = dataset(write(), batch_size=9000, obs_steps=1)
    counts = data.next(None).obs[:, 0].long().bincount(minlength=30)
    assert len(counts) == 30 and (counts.double() - 300).abs().max() < 5 * 300**0.5
    assert data.progress == 1


@pytest.mark.parametrize(
    ("share", "count"), [(0.1, 1), (0.34, 2), (0.5, 3), (0.99, 5), (0.0, 0), (0.001, 1)]
)
def test_whole_episodes_are_held_out_and_never_trained_on(write, share, count):
    data = dataset(write(), holdout=share, batch_size=3000, obs_steps=1)
    episode_of = np.repeat(np.arange(6), LENGTHS)
    held, kept = (set(episode_of[s.numpy()]) for s in (data.held_steps, data.train_steps))
    assert len(held) == count and len(kept) == 6 - count and not held & kept
    drawn = data.next(None).obs[:, 0].long().unique().tolist()
    assert drawn == data.train_steps.tolist()
    obs, action = data.statistics()
    assert obs[:, 0].tolist() == data.train_steps.tolist() and len(action) == len(obs)
    windows = data.held_out()
    if not count:
        assert windows is None
    else:
        assert windows is not None and windows.obs[:, 0].tolist() == data.held_steps.tolist()


def test_the_held_out_episodes_do_not_depend_on_the_seed(write):
    path = write()
    splits = {tuple(dataset(path, holdout=0.5, seed=s).held_steps.tolist()) for s in range(4)}
    assert len(splits) == 1


def test_a_large_held_out_part_is_thinned_evenly(write, monkeypatch):
    monkeypatch.setattr(datasets, "HELD_WINDOWS", 8)
    data = dataset(write(), holdout=0.99, obs_steps=1)
    windows = data.held_out()
    assert windows is not None and len(windows.obs) <= 8
    assert set(windows.obs[:, 0].tolist()) <= set(data.held_steps.tolist())


def test_a_restored_dataset_goes_on_with_the_same_batches(write):
    path = write()
    data, other = dataset(path), dataset(path, seed=9)
    for _ in range(5):
        data.next(None)
    other.load_state_dict(data.state_dict())
    assert other.progress == 5
    for _ in range(5):
        assert all(map(torch.equal, data.next(None), other.next(None)))


def test_a_run_does_not_go_on_with_other_data(write):
    state = dataset(write()).state_dict()
    changed = arrays()["actions"]
    changed[17, 1] += 1e-3
    with pytest.raises(EnvError, match="content changed"):
        dataset(write(actions=changed)).load_state_dict(state)
    moved = np.cumsum([2, 6, 2, 12, 3, 5])
    with pytest.raises(EnvError, match="content changed"):
        dataset(write(episode_ends=moved)).load_state_dict(state)


def test_actions_outside_the_box_are_kept_and_said(write, caplog, monkeypatch):
    monkeypatch.setattr(datasets.log, "propagate", True)
    actions = arrays()["actions"]
    actions[3, 0] = -1.79
    episodes = read_npz(write(actions=actions))
    assert episodes.action[3, 0] == torch.tensor(-1.79)
    assert "1.1 % of action entries lie outside [-1, 1] (largest 1.79)" in caplog.text


def test_whole_numbers_and_unsigned_ends_are_read(write):
    whole = np.arange(60).reshape(30, 2)
    ends = np.cumsum(LENGTHS).astype(np.uint32)
    episodes = read_npz(write(observations=whole, episode_ends=ends))
    assert episodes.obs.dtype == torch.float32 and episodes.ends.tolist() == [1, 8, 10, 22, 25, 30]


def bad(value, step=4, dim=1):
    result = arrays()["observations"]
    result[step, dim] = value
    return result


BAD = [
    ({"actions": None}, "no key 'actions'; it holds episode_ends, observations"),
    ({"observations": None, "observation": np.ones(3)}, "did you mean 'observation'"),
    ({"actions": np.zeros((29, 3))}, "30 observations but 29 actions"),
    ({"observations": bad(np.nan)}, r"observations\[4, 1\] is nan; remove that episode"),
    ({"observations": bad(-np.inf)}, r"observations\[4, 1\] is -inf"),
    ({"observations": bad(1e300)}, r"observations\[4, 1\] is 1e\+300"),
    ({"observations": np.zeros(30)}, r"observations has shape \(30,\)"),
    ({"observations": np.float64(3.0)}, r"observations has shape \(\)"),
    ({"observations": np.full((30, 2), "x")}, "expected numbers"),
    ({"observations": np.zeros((30, 2), complex)}, "expected numbers"),
    ({"actions": np.zeros((30, 0))}, r"actions has shape \(30, 0\)"),
    ({"episode_ends": np.array([10, 20])}, "must rise strictly from above 0 to 30"),
    ({"episode_ends": np.array([10, 40])}, "must rise strictly"),
    ({"episode_ends": np.array([20, 10, 30])}, "must rise strictly"),
    ({"episode_ends": np.array([20, 10, 30], np.uint64)}, "must rise strictly"),
    ({"episode_ends": np.array([10, 10, 30])}, "must rise strictly"),
    ({"episode_ends": np.array([0, 30])}, "must rise strictly"),
    ({"episode_ends": np.array([-3, 30])}, "must rise strictly"),
    ({"episode_ends": np.array([], int)}, "must rise strictly"),
    ({"episode_ends": np.array([10.0, 30.0])}, "must be a list of whole numbers"),
    ({"episode_ends": np.array([[10, 30]])}, "must be a list of whole numbers"),
    ({"actions": np.array([{}] * 30, object)}, "not a readable .npz file"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_file_that_cannot_be_used_is_refused_by_name(write, changes, message):
    path = write(**changes)
    with pytest.raises(EnvError, match=message) as caught:
        read_npz(path)
    assert path in str(caught.value)


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_archives_are_refused_and_never_unpickled(tmp_path):
    trap, file = tmp_path / "sprung", tmp_path / "data.npz"
    np.savez(file, **arrays())
    whole = file.read_bytes()
    contents = {
        "empty": b"",
        "html": b"<!DOCTYPE html><html>403</html>",
        "pickle": pickle.dumps(Trap(trap)),
        "half": whole[: len(whole) // 2],
        "changed": whole[:300] + bytes([whole[300] ^ 255]) + whole[301:],
    }
    for name, content in contents.items():
        file.write_bytes(content)
        with pytest.raises(EnvError, match=f"not a readable .npz file .* {len(content)} bytes"):
            read_npz(str(file))
        assert not trap.exists(), name
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(EnvError, match="holds one array"):
        read_npz(str(tmp_path / "one.npy"))
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(EnvError, match="no such file"):
            read_npz(str(missing))


def test_an_object_array_inside_an_archive_is_never_unpickled(write, tmp_path):
    trap = tmp_path / "sprung"
    loaded = np.empty(30, object)
    loaded[:] = [Trap(trap)] * 30
    with pytest.raises(EnvError, match="without objects"):
        read_npz(write(actions=loaded))
    assert not trap.exists()


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(write, share):
    with pytest.raises(ValueError, match="source.holdout=.* must lie in"):
        dataset(write(), holdout=share)


def test_the_only_episode_cannot_be_held_out(write):
    path = write(episode_ends=np.array([30]))
    with pytest.raises(ValueError, match="needs two episodes and there is one; set it to 0"):
        dataset(path, holdout=0.1)
    assert len(dataset(path).train_steps) == 30
