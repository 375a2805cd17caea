"""Windows and transitions of recorded episodes against plain loops over ragged episodes."""

import numpy as np
import pytest
import torch

from rheo.envs import datasets
from rheo.envs.chunk import ChunkEnv
from rheo.envs.datasets import Dataset, Transitions
from rheo.envs.mixed import Mixed, Shown
from rheo.envs.recorded import RETURN_RANGE
from rheo.envs.sources import Replay
from rheo.envs.suites import make
from rheo.errors import EnvError

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


SETTINGS = {
    "batch_size": 6,
    "holdout": 0.0,
    "obs_steps": 3,
    "on_bad": "refuse",
    "action_scale": "auto",
    "big": False,
    "storage": "ram",
    "obs_keys": None,
    "filter": None,
    "time_limit": None,
}


def dataset(path, *, horizon=4, seed=0, **changes):
    settings = {**SETTINGS, **changes}
    return Dataset(torch.Generator().manual_seed(seed), horizon, path=path, **settings)


def transitions(path, *, horizon=4, seed=0, **changes):
    more = {"execute": 2, "n_step": 1, "gamma": 0.9, "reward_norm": "none"}
    settings = {**SETTINGS, **more, **changes}
    return Transitions(torch.Generator().manual_seed(seed), horizon, path=path, **settings)


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
        first_repeat = len(set(future))
        assert windows.inside[step].tolist() == [i < first_repeat for i in range(horizon)]
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
        assert all(map(torch.equal, data.next(None)[:3], other.next(None)[:3]))


def test_a_run_does_not_go_on_with_other_data(write):
    state = dataset(write()).state_dict()
    changed = arrays()["actions"]
    changed[17, 1] += 1e-3
    with pytest.raises(EnvError, match="content changed"):
        dataset(write(actions=changed)).load_state_dict(state)
    moved = np.cumsum([2, 6, 2, 12, 3, 5])
    with pytest.raises(EnvError, match="content changed"):
        dataset(write(episode_ends=moved)).load_state_dict(state)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(write, share):
    with pytest.raises(ValueError, match="data.holdout=.* must lie in"):
        dataset(write(), holdout=share)


def test_the_only_episode_cannot_be_held_out(write):
    path = write(episode_ends=np.array([30]))
    with pytest.raises(ValueError, match="needs two episodes and there is one; set it to 0"):
        dataset(path, holdout=0.1)
    assert len(dataset(path).train_steps) == 30


TERMINATED = np.array([True, False, True, False, False, True])  # of the six episodes


def with_rewards(known):
    """`arrays` with rewards, ends of both kinds and, if `known`, the observations after ends."""
    content, ends = arrays(), np.cumsum(LENGTHS)
    terminals, timeouts = np.zeros(30, bool), np.zeros(30, bool)
    terminals[ends[TERMINATED] - 1], timeouts[ends[~TERMINATED] - 1] = True, True
    content["rewards"] = np.sin(np.arange(30.0))
    content["terminals"], content["timeouts"] = terminals, timeouts
    if known:
        content["next_observations"] = content["observations"] + 1.0
        content["next_observations"][ends - 1] += 0.5  # no observation of the recording
    return content


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("horizon", "execute", "obs_steps", "n_step"),
    [(1, 1, 1, 1), (4, 2, 3, 1), (4, 4, 1, 1), (16, 16, 2, 1), (3, 1, 20, 1), (3, 2, 2, 3)],
)
def test_transitions_equal_loops_over_episodes(write, known, horizon, execute, obs_steps, n_step):
    cost = np.cos(7 * np.arange(30.0)).astype(np.float32)
    path = write(**with_rewards(known), costs=cost)
    settings = {"horizon": horizon, "execute": execute, "obs_steps": obs_steps, "n_step": n_step}
    data = transitions(path, **settings)
    reward, seen, start = np.sin(np.arange(30.0)), [], 0
    for length, terminated in zip(LENGTHS, TERMINATED, strict=True):
        frames = [float(start + i) for i in range(length)] + [start + length + 0.5]
        for i in range(length):
            n = min(n_step * execute, length - i)
            ends_here = i + n == length
            if ends_here and not terminated and not known:
                continue  # nobody knows where that decision led
            batch = data.rows(torch.tensor([start + i], dtype=torch.int32))
            history = [frames[max(i - k, 0)] for k in reversed(range(obs_steps))]
            after = [frames[max(i + n - k, 0)] for k in reversed(range(obs_steps))]
            total = sum(0.9**k * reward[start + i + k] for k in range(n))
            assert batch.obs[0, ::2].tolist() == history
            assert batch.reward.item() == pytest.approx(total, abs=1e-6)
            assert batch.cost is not None
            assert batch.cost.item() == cost[start + i : start + i + n].max()
            bootstrap = 0.0 if ends_here and terminated else 0.9**n
            assert batch.discount.item() == pytest.approx(bootstrap)
            if bootstrap:
                assert batch.next_obs[0, ::2].tolist() == after
            chunk = [min(start + i + k, start + length - 1) for k in range(horizon)]
            assert (batch.action[0, :, 0] * 100).round().tolist() == chunk
            seen.append(start + i)
        start += length
    assert data.train_steps.tolist() == seen


def test_rewards_are_scaled_by_the_range_of_returns(write):
    path = write(**with_rewards(True))
    plain, scaled = (transitions(path, reward_norm=n) for n in ("none", "return_range"))
    reward = np.sin(np.arange(30.0))
    returns = [part.sum() for part in np.split(reward, np.cumsum(LENGTHS)[:-1])]
    factor = RETURN_RANGE / (max(returns) - min(returns))
    assert torch.allclose(scaled.reward, plain.reward * factor, rtol=1e-5)
    assert scaled.reward_scale == pytest.approx(factor) and plain.reward_scale == 1.0


def test_only_dense_rewards_are_scaled_by_themselves(write):
    dense, goal = with_rewards(True), np.zeros(30)
    goal[4] = 1.0
    sparse = {**dense, "rewards": goal}
    assert transitions(write(**sparse), reward_norm="auto").reward_scale == 1.0
    ranged = transitions(write(**dense), reward_norm="return_range")
    auto = transitions(write(**dense), reward_norm="auto")
    assert auto.reward_scale == ranged.reward_scale != 1.0


def test_data_without_rewards_or_with_equal_returns_say_what_to_do(write):
    with pytest.raises(ValueError, match="holds no rewards.*use algo=bc"):
        transitions(write())
    with pytest.raises(ValueError, match="all 6 episodes have the return 0.*reward_norm=none"):
        transitions(
            write(**{**with_rewards(True), "rewards": np.zeros(30)}), reward_norm="return_range"
        )


def test_storage_on_disk_gives_the_same_batches(write):
    path = write(**with_rewards(True))
    ram, disk = (transitions(path, storage=storage) for storage in ("ram", "mmap"))
    for _ in range(3):
        assert all(map(torch.equal, ram.next(None).columns, disk.next(None).columns))


def mixed(path, share=0.25, reward_norm="return_range", shown=(0.0, 1)):
    env = ChunkEnv(make("Pendulum-v1", 2), execute=1, obs_steps=1, gamma=0.9)
    env.reset(0)
    replay = Replay(
        env,
        torch.Generator().manual_seed(0),
        1,
        capacity=100,
        batch_size=8,
        warmup=4,
        update_ratio=1.0,
    )
    data = transitions(path, horizon=1, execute=1, obs_steps=1, reward_norm=reward_norm)
    sizes = {"batch_size": 16, "offline_share": share}
    return Mixed(replay, data, **sizes, shown_share=shown[0], shown_until=shown[1])


@pytest.fixture
def pendulum(write):
    """Recorded steps of the size of Pendulum-v1."""
    content = with_rewards(True)
    for key in ("observations", "next_observations"):
        content[key] = content[key][:, :1] + np.zeros(3)
    content["actions"] = content["actions"][:, :1]
    return write(**content)


def test_a_mixed_batch_holds_the_asked_shares_with_one_scale_of_rewards(pendulum):
    source = mixed(pendulum)
    act = lambda obs: torch.zeros(len(obs), 1, 1)  # noqa: E731
    batch = source.next(act)
    recorded = batch.obs[:, 0] == batch.obs[:, 1]  # pendulum's are cosine and sine
    assert batch.recorded is not None
    assert recorded.sum() == 4 and torch.equal(batch.recorded, recorded)
    assert source.progress == source.replay.frames > 0
    buffer = source.replay.buffer
    stored = set(buffer.rows[: buffer.size, -2].mul(source.dataset.reward_scale).tolist())
    assert set(batch.reward[~recorded].tolist()) <= stored
    other = mixed(pendulum)
    other.load_state_dict(source.state_dict())
    assert all(map(torch.equal, source.next(act).columns, other.next(act).columns))


def test_a_mixed_batch_tells_costs_only_where_both_sources_do(write, pendulum):
    act = lambda obs: torch.zeros(len(obs), 1, 1)  # noqa: E731
    held = dict(np.load(pendulum))
    source = mixed(write(**held, costs=np.ones(30)))
    assert source.dataset.costs and not source.costs and source.next(act).cost is None


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
def test_a_share_that_leaves_a_source_empty_is_refused(pendulum, share):
    with pytest.raises(ValueError, match=f"source.offline_share={share}.*without a row"):
        mixed(pendulum, share)


# ---- decisions that are shown --------------------------------------------------------------------


def test_the_nearest_recorded_observation_counts_deviations(write):
    data = transitions(write(**with_rewards(True)), execute=1, horizon=1, obs_steps=1)
    scaled = data.obs[data.train_steps] / data.obs[data.train_steps].std(0, correction=0)
    draws = torch.Generator().manual_seed(0)
    obs = data.obs.mean(0) + torch.randn((50, data.obs.shape[1]), generator=draws)
    far = torch.cdist(obs / data.obs[data.train_steps].std(0, correction=0), scaled)
    shown = Shown(data, 0.5, 100, draws)
    assert torch.equal(shown.nearest(obs), data.train_steps.long()[far.argmin(1)])
    own = data.train_steps.long()
    assert torch.equal(shown.nearest(data.obs[own]), own)
    history = torch.cat([99 + 0 * obs, obs], 1)  # of which the newest observation alone counts
    assert torch.equal(shown.nearest(history), shown.nearest(obs))


def test_shown_decisions_are_recorded_chunks_and_fade(write):
    data = transitions(write(**with_rewards(True)), execute=1, horizon=3, obs_steps=1)
    shown = Shown(data, 0.5, 1000, torch.Generator().manual_seed(0))
    steps = data.train_steps.long().repeat(200)
    obs, chunks = data.obs[steps], data.chunk(steps)
    act = lambda obs: torch.full((len(obs), 3, chunks.shape[-1]), 7.0)  # noqa: E731
    for frames, share in ((0, 0.5), (600, 0.2), (1000, 0.0), (5000, 0.0)):
        action = shown.among(act, frames)(obs)
        own = (action == 7.0).all((1, 2))
        assert torch.equal(action[~own], chunks[~own])
        assert (~own).float().mean().item() == pytest.approx(share, abs=0.02)
    assert shown.among(act, 1000) is act  # which draws nothing


def test_what_is_shown_is_executed_and_stored(pendulum):
    source = mixed(pendulum, shown=(1.0, 10**9))
    source.next(lambda obs: torch.full((len(obs), 1, 1), 0.123))
    buffer = source.replay.buffer
    action = buffer.rows[: buffer.size, 3]
    known = set(source.dataset.action.flatten().tolist())
    late = action[4:]  # behind the warm-up
    assert len(late) and set(late.tolist()) <= known
