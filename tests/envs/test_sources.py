"""Sources against a plain list, and against gymnasium's own environments stepped one by one."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs import sources
from rheo.envs.batch import Batch, Choice, Coded
from rheo.envs.buffer import Buffer
from rheo.envs.chunk import ChunkEnv
from rheo.envs.datasets import Dataset
from rheo.envs.mujoco import physics
from rheo.envs.nstep import Decision, join
from rheo.envs.rollout import evaluate
from rheo.envs.sources import Replay, Rollouts
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.scripts.store.state import tensors

GAMMA = 0.9


def chunk_env(name="Pendulum-v1", num_envs=1, execute=1, obs_steps=1, **options):
    env = make(name, num_envs, threads=1, **options)
    return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=GAMMA)


def replay(
    env, *, horizon=1, capacity=1000, batch_size=8, warmup=0, update_ratio=1.0, seed=0, **more
):
    env.reset(seed)
    return Replay(
        env,
        torch.Generator().manual_seed(seed),
        horizon,
        capacity=capacity,
        batch_size=batch_size,
        warmup=warmup,
        update_ratio=update_ratio,
        **more,
    )


def random_batch(rows, generator, memo_rows=0):
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    memo = draw(rows, memo_rows, 2) if memo_rows else None
    columns = draw(rows, 3), draw(rows, 2, 2), draw(rows), draw(rows), draw(rows, 3)
    return Batch(*columns, memo=memo)


def as_set(batch):
    """Transitions as a set of tuples of numbers."""
    columns = (batch.obs, batch.action.flatten(1), batch.reward[:, None], batch.discount[:, None])
    memo = batch.reward[:, None] if batch.memo is None else batch.memo.flatten(1)
    return {tuple(row) for row in torch.cat([*columns, batch.next_obs, memo], 1).tolist()}


def test_costs_stay_with_their_transitions_and_cost_nothing_where_there_are_none():
    generator = torch.Generator().manual_seed(1)
    buffer, plain = Buffer(11, 3, 2, 2, "cpu", 1, costs=True), Buffer(11, 3, 2, 2, "cpu", 1)
    assert buffer.rows.shape[1] == plain.rows.shape[1] + 1
    batch = random_batch(9, generator, 1)
    batch = batch._replace(cost=batch.reward + 1)
    for one in (buffer, plain):
        one.add(batch, torch.ones(9, dtype=torch.bool))
    sample = buffer.sample(50, generator)
    assert sample.memo is not None and sample.cost is not None
    assert torch.equal(sample.cost, sample.reward + 1) and as_set(sample) <= as_set(batch)
    assert plain.sample(5, generator).cost is None


def test_several_decisions_cost_the_largest_up_to_an_end():
    decisions = []
    for cost, ended in (([1.0, 0.0, 5.0], [0, 1, 0]), ([3.0, 7.0, 2.0], [0, 0, 1])):
        batch = random_batch(3, torch.Generator())._replace(cost=torch.tensor(cost))
        flags = torch.tensor(ended, dtype=torch.bool)
        decisions.append(Decision(batch, flags, torch.ones(3, dtype=torch.bool)))
    cost = join(decisions)[0].cost
    assert cost is not None and cost.tolist() == [3.0, 0.0, 5.0]


@pytest.mark.parametrize("memo_rows", [0, 3])
def test_the_ring_holds_the_same_transitions_as_a_list_that_forgets_the_oldest(memo_rows):
    generator = torch.Generator().manual_seed(1)
    buffer, oracle = Buffer(11, 3, 2, 2, "cpu", memo_rows), []
    for count in (4, 1, 11, 3, 7, 2, 5, 9, 1, 1, 6):
        batch = random_batch(count, generator, memo_rows)
        valid = torch.rand(count, generator=generator) < 0.7
        buffer.add(batch, valid)
        rows = [batch.take(torch.tensor([i])) for i in range(count)]
        oracle = (oracle + [row for row, good in zip(rows, valid, strict=True) if good])[-11:]
        assert buffer.size == len(oracle)
        expected = set().union(*(as_set(row) for row in oracle)) if oracle else set()
        sample = buffer.sample(400, generator) if oracle else None
        assert (as_set(sample) if sample else set()) == expected


def test_a_sample_keeps_the_shapes_and_the_fields_together():
    generator = torch.Generator().manual_seed(2)
    buffer, batch = Buffer(8, 3, 2, 2, "cpu"), random_batch(8, torch.Generator().manual_seed(3))
    buffer.add(batch, torch.ones(8, dtype=torch.bool))
    sample = buffer.sample(5, generator)
    shapes = [tuple(column.shape) for column in sample.columns]
    assert sample.memo is None
    assert shapes == [(5, 3), (5, 2, 2), (5,), (5,), (5, 3)]
    for i in range(5):
        row = int((batch.obs == sample.obs[i]).all(1).nonzero())
        pairs = zip(batch.columns, sample.columns, strict=True)
        assert all(torch.equal(stored[row], drawn[i]) for stored, drawn in pairs)


def test_samples_are_uniform_over_what_is_stored():
    generator = torch.Generator().manual_seed(4)
    buffer = Buffer(10, 1, 1, 1, "cpu")
    for value in range(15):  # wrapped: 5 .. 14 remain
        one = torch.full((1, 1), float(value))
        row = Batch(one, one[:, None], one[:, 0], one[:, 0], one)
        buffer.add(row, torch.ones(1, dtype=torch.bool))
    values, counts = buffer.sample(20_000, generator).reward.unique(return_counts=True)
    assert values.tolist() == list(range(5, 15))
    assert ((counts - 2000).abs() < 5 * 2000**0.5).all()


def test_more_rows_than_the_ring_holds_are_refused():
    buffer = Buffer(3, 3, 2, 2, "cpu")
    with pytest.raises(ValueError, match="4 rows at once do not fit a buffer of 3"):
        buffer.add(random_batch(4, torch.Generator()), torch.ones(4, dtype=torch.bool))


def test_a_saved_ring_of_another_layout_is_refused():
    buffer, other = Buffer(5, 3, 2, 2, "cpu"), Buffer(6, 3, 2, 2, "cpu")
    buffer.add(random_batch(2, torch.Generator()), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not fit"):
        other.load_state_dict(buffer.state_dict())


def test_a_buffer_larger_than_the_machine_is_a_message():
    with pytest.raises(ValueError, match="source.capacity=1000000000000 needs .* GiB"):
        Buffer(10**12, 100, 1, 10, "cpu")


@pytest.mark.parametrize("ratio", [0.1, 0.3, 1.0, 2.0, 2.5])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_update_ratio_is_exact_after_the_warm_up(ratio, num_envs):
    source = replay(chunk_env(num_envs=num_envs), warmup=20, update_ratio=ratio)
    calls = []

    def act(obs):
        calls.append(len(obs))
        return torch.zeros(len(obs), 1, 1)

    start = -(-20 // num_envs) * num_envs  # warm-up ends with a whole step of all environments
    for batches in range(1, 120):
        source.next(act)
        decisions = next(d for d in range(2000) if int(d * num_envs * ratio + 1e-9) >= batches)
        assert source.progress == start + decisions * num_envs
        assert sum(calls) == decisions * num_envs


def test_the_warm_up_acts_uniformly_and_never_asks_the_policy():
    source = replay(chunk_env(), warmup=400)
    source.next(lambda obs: torch.full((1, 1, 1), 0.5))
    assert source.progress == source.buffer.size == 401
    actions = source.buffer.rows[:401, 3]
    assert actions[:400].unique().numel() > 390 and float(actions[400]) == 0.5
    assert actions.min() < -0.95 and actions.max() > 0.95 and actions.mean().abs() < 0.15


@pytest.mark.parametrize("name", ["Pendulum-v1", "InvertedPendulum-v5", "Hopper-v5"])
@pytest.mark.parametrize("execute", [1, 3])
def test_stored_transitions_are_those_of_gymnasiums_own_environment(name, execute):
    """Rewards, discounts, true successors and histories recomputed in a plain loop."""
    steps, limit, seed, horizon = 90, 25, 7, 4
    env = chunk_env(name, execute=execute, obs_steps=2, max_episode_steps=limit)
    source = replay(env, horizon=horizon, seed=seed, update_ratio=1e-6)
    generator = torch.Generator().manual_seed(5)
    plans = []

    def act(obs):
        plans.append(2 * torch.rand(1, horizon, env.action_dim, generator=generator) - 1)
        return plans[-1]

    for _ in range(steps):
        source.collect(act)
    stored = source.buffer.rows[: source.buffer.size]
    obs, action, next_obs, reward, discount, _ = stored.split(source.buffer.splits, 1)
    world = gymnasium.make(name, max_episode_steps=limit)
    world.reset(seed=seed)
    box = world.action_space
    assert isinstance(box, gymnasium.spaces.Box)
    low, high = box.low, box.high
    now = world.reset()[0]  # the source begins with a reset of its own
    history, frames = [now, now], 0
    endings = set()
    for i, plan in enumerate(plans):
        total, k, ends, cut = 0.0, 0, False, False
        assert np.allclose(obs[i], np.concatenate(history), atol=1e-5)
        assert torch.equal(action[i], plan.flatten())
        for k in range(execute):
            control = (low + high) / 2 + (high - low) / 2 * plan[0, k].numpy()
            now, value, ends, cut, _ = world.step(control.astype(box.dtype))
            total, frames = total + GAMMA**k * float(value), frames + 1
            history = [history[1], now]
            if ends or cut:
                break
        assert np.allclose(next_obs[i], np.concatenate(history), atol=1e-5)
        assert float(reward[i]) == pytest.approx(total, rel=1e-5, abs=1e-5)
        assert float(discount[i]) == pytest.approx(0.0 if ends else GAMMA ** (k + 1), rel=1e-6)
        if ends or cut:
            endings.add("terminated" if ends else "truncated")
            now = world.reset()[0]
            history = [now, now]
    assert source.progress == frames
    expected = {"Pendulum-v1": {"truncated"}}.get(name, {"terminated"})
    assert expected <= endings


@pytest.mark.parametrize(("name", "execute"), [("InvertedPendulum-v5", 1), ("Pendulum-v1", 2)])
def test_transitions_over_several_decisions_are_sums_of_single_ones(name, execute):
    """Every window of 3 decisions of either environment, cut where its episode ends."""
    n, rows = 3, 60
    single, several = (
        replay(
            chunk_env(name, num_envs=2, execute=execute, max_episode_steps=13),
            horizon=execute,
            update_ratio=1e-6,
            n_step=count,
        )
        for count in (1, n)
    )
    for source in (single, several):
        for _ in range(rows):
            source.collect(source.random_action)
    assert several.buffer.size == 2 * (rows - n + 1) and several.progress == single.progress
    split = lambda source: source.buffer.rows[: source.buffer.size].split(source.buffer.splits, 1)  # noqa: E731
    obs, action, next_obs, reward, discount, _ = split(single)
    found = split(several)
    ends = 0
    for i in range(several.buffer.size):
        total, factor, last = 0.0, 1.0, i
        for k in range(n):
            last = i + 2 * k
            total += factor * float(reward[last])
            factor *= float(discount[last])
            following = obs[last + 2] if last + 2 < len(obs) else next_obs[last]
            if not torch.equal(next_obs[last], following):  # the episode ended here
                ends += 1
                break
        assert torch.equal(found[0][i], obs[i]) and torch.equal(found[1][i], action[i])
        assert torch.equal(found[2][i], next_obs[last])
        assert float(found[3][i]) == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert float(found[4][i]) == pytest.approx(factor, rel=1e-6)
    assert ends > 10


def test_a_broken_step_spoils_the_transitions_that_reach_it_and_no_others():
    generator = torch.Generator().manual_seed(0)
    decisions = [
        Decision(random_batch(3, generator), torch.zeros(3).bool(), torch.ones(3).bool())
        for _ in range(3)
    ]
    decisions[1].ended[1] = True
    decisions[2].valid[1:] = False  # behind the end of row 1, inside the window of row 2
    batch, valid = join(decisions)
    assert valid.tolist() == [True, True, False]
    assert torch.equal(
        batch.next_obs[:2, 0],
        torch.stack([decisions[2].batch.next_obs[0, 0], decisions[1].batch.next_obs[1, 0]]),
    )


@pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
def test_rows_that_the_physics_broke_are_counted_and_not_stored():
    env = chunk_env("Hopper-v5", num_envs=2)
    source = replay(env, update_ratio=1e-6)
    act = lambda obs: torch.zeros(2, 1, 3)  # noqa: E731
    source.collect(act)
    state = env.env.state_dict()
    state["physics"][1, 1 + 6 :] = 1e12  # positions and velocities far out of any range
    env.env.load_state_dict(state)
    source.collect(act)
    assert source.buffer.size == 3 and source.progress == 4
    assert sum(value for name, value in source.metrics().items() if name in FAULTS) == 1.0


FAULTS = ("env/physics_resets", "env/bad_obs")


def test_episode_means_are_drained_once():
    source = replay(chunk_env(max_episode_steps=10), update_ratio=1e-6)
    for _ in range(25):
        source.collect(source.random_action)
    metrics = source.metrics()
    assert metrics["env/episodes"] == 2.0 and metrics["env/length"] == 10.0
    total = source.buffer.rows[:20, source.buffer.splits[0] + 1 + 3].sum()
    assert metrics["env/return"] == pytest.approx(float(total) / 2, rel=1e-5)
    assert "env/return" not in source.metrics()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"capacity": 1}, "source.capacity=1 cannot hold one step of 2 environments"),
        ({"update_ratio": 0.0}, "source.update_ratio=0.0 must be positive"),
        ({"warmup": -1}, "source.warmup=-1 must not be negative"),
        ({"horizon": 2}, "env.execute=3 is above horizon=2"),
    ],
)
def test_impossible_settings_of_a_replay_are_named(values, message):
    env = chunk_env(num_envs=2, execute=3)
    with pytest.raises(ValueError, match=message):
        replay(env, **{"horizon": 3, **values})


def test_a_code_is_kept_in_place_of_the_action_it_was_decoded_to():
    """From the first warm-up step on, when that is left to the algorithm."""
    env = chunk_env(num_envs=2, execute=3)
    source = replay(env, horizon=3, warmup=12, warmup_policy=True, kept_rows=1)
    seen = []

    def act(obs):
        code = torch.rand((2, 1, 1), generator=source.generator)
        seen.append(code)
        return Coded(code.expand(2, 3, 1) ** 2, code)

    batch = source.next(act)
    assert batch.action.shape == (8, 1, 1)
    assert source.frames >= 12 and len(seen) * 6 == source.frames
    assert torch.isin(batch.action, torch.cat(seen)).all()


@pytest.mark.parametrize("n_step", [1, 3])
def test_what_is_remembered_of_a_transition_stays_beside_it(n_step):
    env = chunk_env("InvertedPendulum-v5", num_envs=2, execute=3)  # episodes that end soon
    source = replay(env, horizon=3, warmup=300, n_step=n_step, capacity=200, batch_size=100)
    with pytest.raises(ValueError, match=r"source.capacity=.* lower it"):
        source.memorise(10**12, lambda batch: batch.obs)
    source.memorise(2, lambda batch: torch.stack([batch.obs[:, :1], batch.next_obs[:, :1]], 1))
    batch = source.next(lambda obs: obs[:, :1, None].expand(2, 3, 1))
    assert batch.memo is not None
    assert torch.equal(batch.memo[:, 0], batch.obs[:, :1])
    assert torch.equal(batch.memo[:, 1], batch.next_obs[:, :1])
    assert batch.memo[:, 0].unique().numel() > 3
    with pytest.raises(ValueError, match="not empty cannot begin to remember"):
        source.memorise(1, lambda batch: batch.obs[:, :1, None])


def recorded(path, generator, obs_steps=2, horizon=2):
    """Data of Hopper's sizes, every number of an action its row's."""
    if not path.exists():
        obs = np.random.default_rng(0).normal(size=(40, 11)).astype(np.float32)
        action = np.repeat(np.arange(40)[:, None] / 40, 3, 1).astype(np.float32)
        np.savez(path, observations=obs, actions=action, episode_ends=[15, 40])
    return Dataset(
        generator, horizon, path=str(path), batch_size=256, holdout=0.0, obs_steps=obs_steps,
        on_bad="refuse", action_scale="auto", storage="ram", obs_keys=None, filter=None,
        time_limit=None, big=False,
    )  # fmt: skip


def test_recorded_steps_come_beside_the_decisions_of_a_rollout(tmp_path):
    """Whole rows of the data, drawn anew for each, in memory that was reserved for them."""
    env = chunk_env("Hopper-v5", num_envs=3, execute=2, obs_steps=2)
    env.reset(3)
    data = recorded(tmp_path / "a.npz", torch.Generator().manual_seed(3))
    source = Rollouts(env, torch.Generator().manual_seed(3), 2, data, decisions=5)
    assert (source.obs_size, source.action_dim) == (22, 3)
    choice = Choice(torch.zeros(3, 2, 3), {"one": torch.ones(3)})
    source.store = source.reserve(choice)
    kept = source.next(lambda obs: choice).kept
    assert list(kept) == ["one", "data_obs", "data_action"]
    assert kept["data_obs"].shape == (5, 3, 22) and kept["data_action"].shape == (5, 3, 2, 3)
    rows = (kept["data_action"][..., 0, 0] * 40).round().long().flatten()
    expected = data.rows(rows)
    assert torch.equal(kept["data_obs"].flatten(0, 1), expected.obs)
    assert torch.equal(kept["data_action"].flatten(0, 1), expected.action)
    assert rows.unique().numel() > 8


@pytest.mark.parametrize(
    ("kind", "n_step", "memo"),
    [(Replay, 1, 0), (Replay, 3, 0), (Replay, 3, 2), (Rollouts, 1, 0), (Rollouts, 1, "data")],
)
def test_a_restored_source_goes_on_bit_for_bit(kind, n_step, memo, tmp_path):
    def fresh():
        env = chunk_env("Hopper-v5", num_envs=3, execute=2, obs_steps=2)
        env.reset(3)
        settings: dict[str, Any] = {"decisions": 5}
        if kind is Replay:
            settings = {"capacity": 50, "batch_size": 4, "warmup": 30, "update_ratio": 0.5}
            settings["n_step"] = n_step
        generator = torch.Generator().manual_seed(3)
        if memo == "data":
            settings["dataset"] = recorded(tmp_path / "a.npz", generator)
        made = kind(env, generator, 2, **settings)
        if isinstance(memo, int) and memo:
            made.memorise(memo, lambda batch: batch.next_obs[:, :6].unflatten(1, (2, 3)))
        return made

    def act(obs):
        action = (obs[:, :6].reshape(-1, 2, 3) * 3.0).sin()
        return action if kind is Replay else Choice(action, {"sum": action.sum((1, 2))})

    def numbers(source, times):
        return [
            torch.cat([tensor.flatten().float() for _, tensor in tensors(source.next(act), "")])
            for _ in range(times)
        ]

    source = fresh()
    numbers(source, 23)
    state = source.state_dict()
    state = (
        {**state, "buffer": {**state["buffer"], "rows": state["buffer"]["rows"].on_host()}}
        if (kind is Replay)
        else state
    )
    other = fresh()
    other.load_state_dict(state)
    expected, found = numbers(source, 40), numbers(other, 40)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert source.progress == other.progress and source.metrics() == other.metrics()


def test_rollouts_are_whole_and_in_time_order():
    env = chunk_env("InvertedPendulum-v5", num_envs=3, execute=2, obs_steps=2)
    env.reset(0)
    source = Rollouts(env, torch.Generator().manual_seed(0), 3, decisions=40)
    generator = torch.Generator().manual_seed(1)
    seen = []

    def act(obs):
        seen.append(obs.clone())
        action = 3 * torch.rand(3, 3, 1, generator=generator) - 1.5
        return Choice(action, {"first": action[:, 0]})

    first = copy.deepcopy(source.next(act))
    second = source.next(act)
    shapes = [tuple(field.shape) for field in first[:-1]]
    assert shapes == [(40, 3, 8), (40, 3, 3, 1), (40, 3), (40, 3), (40, 3, 8), *[(40, 3)] * 3]
    assert first.action.abs().max() > 1  # kept as it was chosen, clipped where it is executed
    assert torch.equal(first.kept["first"], first.action[:, :, 0])
    assert int(first.frames.sum() + second.frames.sum()) == source.progress
    obs = torch.cat([first.obs, second.obs])
    next_obs = torch.cat([first.next_obs, second.next_obs])
    boundary = torch.cat([first.boundary, second.boundary])
    assert torch.equal(obs, torch.stack(seen))  # the second goes on where the first ended
    assert boundary.any() and not boundary.all()
    same = (next_obs[:-1] == obs[1:]).all(-1)
    assert torch.equal(same, ~boundary[:-1])  # a new episode starts after a boundary, only there
    fresh = obs[1:][boundary[:-1]]
    assert torch.equal(fresh[:, :4], fresh[:, 4:])  # and its history knows nothing of the old one
    assert source.progress <= 2 * 80 * 3


def test_rollouts_tell_truncation_from_termination():
    env = chunk_env("InvertedPendulum-v5", num_envs=2, max_episode_steps=6)
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    source = Rollouts(env, generator, 1, decisions=120)
    rollout = source.next(lambda obs: Choice(2 * torch.rand(2, 1, 1, generator=generator) - 1, {}))
    cut = rollout.boundary & (rollout.discount > 0)
    over = rollout.boundary & (rollout.discount == 0)
    assert cut.any() and (rollout.discount[cut] == torch.tensor(GAMMA)).all()
    assert (rollout.discount[~rollout.boundary] == torch.tensor(GAMMA)).all()
    assert bool((rollout.next_obs[over][:, 1].abs() > 0.2).all())  # the pole fell
    assert bool((rollout.next_obs[cut][:, 1].abs() <= 0.2).all())
    with pytest.raises(ValueError, match="decisions=0 must be at least 1"):
        Rollouts(env, torch.Generator(), 1, decisions=0)


def test_a_rollout_larger_than_memory_is_refused_before_it_is_taken(monkeypatch, caplog):
    env = chunk_env("InvertedPendulum-v5", num_envs=2)
    source = Rollouts(env, torch.Generator(), 1, decisions=50)
    choice = Choice(torch.zeros(2, 1, 1), {"noise": torch.zeros(2, 7)})
    with caplog.at_level("INFO", "rheo"):
        store = source.reserve(choice)
    taken = sum(tensor.nbytes for _, tensor in tensors(store, ""))
    assert f"50 decisions of 2 environments take {taken / 1e6:.1f} MB" in caplog.text
    monkeypatch.setattr(sources, "available", lambda: taken)
    with pytest.raises(EnvError, match="lower source.decisions or env.num_envs"):
        source.reserve(choice)


def test_policies_see_observations_in_aligned_memory():
    """The last bit of a matrix product depends on it, so a resumed run would drift otherwise."""
    seen = []

    def act(obs, generator=None):
        seen.append(obs.data_ptr() % 64)
        return torch.zeros(len(obs), 1, 1)

    source = replay(chunk_env("InvertedPendulum-v5", num_envs=3))
    for _ in range(60):
        source.next(act)
    source.load_state_dict({**source.state_dict(), "obs": torch.zeros(17)[5:].view(3, 4)})
    source.collect(act)
    env = chunk_env("InvertedPendulum-v5", num_envs=3)
    Rollouts(env, torch.Generator(), 1, decisions=20).next(lambda obs: Choice(act(obs), {}))
    evaluate(env, act, 6, seed=0)
    assert len(seen) > 60 and set(seen) == {0}
