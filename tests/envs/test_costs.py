"""What steps cost: speeds against gymnasium's own, chunks, episodes, recordings, and refusals."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.costs import SPEEDS
from rheo.envs.episodes import EpisodeStats
from rheo.envs.mujoco import physics
from rheo.envs.recorder import collect
from rheo.envs.rollout import evaluate, summary
from rheo.envs.sources import Replay
from rheo.envs.suites import make
from rheo.errors import EnvError

pytestmark = pytest.mark.skipif(not physics.available(), reason="needs mujoco.batch")
STEPS = 40


def moves(action_dim: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, action_dim)).astype(np.float32)


def own_speeds(env_id: str) -> Any:
    """Speeds of gymnasium's own environment: forward, of what moves in a plane that in the plane.

    Where an episode ended a new one begins. [STEPS]
    """
    env: Any = gymnasium.make(env_id)
    env.reset(seed=3)
    box, found = env.action_space, []
    for move in moves(box.shape[0]):
        half, centre = (box.high - box.low) / 2, (box.high + box.low) / 2
        *_, terminated, truncated, info = env.step(move.astype(np.float64) * half + centre)
        speed = info["x_velocity"]
        if env_id.startswith(("Ant", "Humanoid")):
            speed = np.hypot(speed, info["y_velocity"])
        found.append(speed)
        if terminated or truncated:
            env.reset()
    env.close()
    return np.array(found)


def stepped(env: Any, count: int = STEPS) -> list[Any]:
    """Steps of one environment under `moves`."""
    env.reset(3)
    return [env.step(torch.from_numpy(move)[None]) for move in moves(env.action_dim)[:count]]


@pytest.mark.parametrize("robot", SPEEDS)
def test_a_step_costs_one_where_gymnasiums_speed_is_above_the_limit(robot):
    env_id = f"{robot}-v5"
    speeds = own_speeds(env_id)
    limit = float(np.median(speeds[speeds > 0]))
    env = make(env_id, 1, threads=1, cost={"kind": "speed", "limit": limit})
    cost = torch.cat([step.cost for step in stepped(env)])
    expected = (speeds > limit).astype(np.float32)
    assert 0 < expected.sum() < STEPS and cost.tolist() == expected.tolist()


def test_limits_are_those_of_safety_gymnasium_and_nothing_costs_without():
    env: Any = make("Hopper-v4", 1, threads=1, cost={"kind": "speed"})
    assert env.costs and env._speed_limit == 0.7402 == SPEEDS["Hopper"]
    env = make("Hopper-v4", 1, threads=1, cost={})
    assert not env.costs and stepped(env, 1)[0].cost is None
    assert "place" not in env.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Reacher-v5"}, "Reacher-v5 has no speed to charge; it is of HalfCheetah"),
        ({"id": "Pendulum-v1"}, "Pendulum-v1 has no speed to charge"),
        ({"backend": "gymnasium"}, "gymnasium environments do not tell their speed; set env.back"),
        ({"cost": {"kind": "heat"}}, "the kind that there is is speed; set env.cost.kind=speed"),
        ({"cost": {"kind": "speed", "limits": 1}}, "env.cost.limits: .*did you mean.*limit"),
        ({"cost": {"kind": "speed", "limit": -1}}, "env.cost.limit=-1: a speed above 0, or auto"),
        ({"cost": {"kind": "speed", "limit": "slow"}}, "env.cost.limit='slow': a speed above 0"),
    ],
)
def test_what_cannot_cost_is_refused(changes, message):
    settings = {"id": "HalfCheetah-v5", "num_envs": 1, "cost": {"kind": "speed"}, **changes}
    with pytest.raises(EnvError, match=message):
        make(**settings)


def cheetahs(count: int = 3, execute: int = 1, limit: float = 0.3, **options: Any) -> Any:
    env = make(
        "HalfCheetah-v5", count, threads=1, cost={"kind": "speed", "limit": limit}, **options
    )
    return ChunkEnv(env, execute=execute, obs_steps=1, gamma=0.9)


def pushes(count, chunk, decisions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand((decisions, count, chunk, 6), generator=generator) - 1


def test_a_chunk_costs_its_worst_step_and_an_episode_the_sum():
    single, chunked = cheetahs(), cheetahs(execute=4)
    actions = pushes(3, 4, 8)
    single.reset(0)
    chunked.reset(0)
    total = torch.zeros(3)
    for action in actions:
        steps = torch.stack([single.step(action[:, k : k + 1]).cost for k in range(4)])
        step, total = chunked.step(action), total + steps.sum(0)
        assert torch.equal(step.cost, steps.amax(0))
        assert step.episode_cost.tolist() == total.tolist()
    assert 0 < total.sum() < 3 * 32


def test_rows_that_stand_still_cost_nothing_and_go_on_from_where_they_stood():
    alone, paused = cheetahs(1), cheetahs(2)
    alone.reset(0)
    paused.reset(0)
    first, none = torch.tensor([True, False]), torch.tensor([False, True])
    for action in pushes(2, 1, 20):
        one = alone.step(action[:1])
        both = paused.step(action, first)
        assert torch.equal(both.cost, torch.stack([one.cost[0], torch.tensor(0.0)]))
        assert paused.step(action, none).cost[0] == 0


@pytest.mark.parametrize("execute", [1, 3])
def test_costs_go_on_where_they_were_saved(execute):
    env, other = cheetahs(execute=execute), cheetahs(execute=execute)
    env.reset(0)
    other.reset(7)
    actions = pushes(3, execute, 20)
    for action in actions[:10]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[10:]:
        one, two = env.step(action), other.step(action)
        assert torch.equal(one.cost, two.cost)
        assert torch.equal(one.episode_cost, two.episode_cost)


def test_a_new_episode_costs_from_nothing_on_and_figures_tell_the_mean():
    env, stats = cheetahs(2, max_episode_steps=10), EpisodeStats()
    env.reset(0)
    ended = []
    for action in pushes(2, 1, 30):
        step = env.step(action)
        stats.add(step)
        if bool(step.truncated.all()):
            ended += step.episode_cost.tolist()
    assert len(ended) == 6 and max(ended) <= 10 and len(set(ended)) > 1
    other = EpisodeStats()
    other.load_state_dict(stats.state_dict())
    assert other.drain()["env/cost"] == stats.drain()["env/cost"] == pytest.approx(sum(ended) / 6)


def test_an_evaluation_tells_costs_beside_returns():
    push = torch.Generator().manual_seed(0)
    act = lambda obs, _: 2 * torch.rand((len(obs), 1, 6), generator=push) - 1  # noqa: E731
    rows = evaluate(cheetahs(2, max_episode_steps=10), act, 4, 0)
    costs: list[Any] = [row.cost for row in rows]
    figures = summary(rows)
    assert figures["eval/cost"] == pytest.approx(np.mean(costs)) and sum(costs) > 0
    assert figures["eval/cost_low"] <= figures["eval/cost"] <= figures["eval/cost_high"]
    assert figures["eval/unsafe"] == np.mean([cost > 0 for cost in costs])
    free = [row._replace(cost=None) for row in rows]
    assert not any("cost" in name or "unsafe" in name for name in summary(free))


def test_recordings_and_replays_keep_what_steps_cost():
    push = torch.Generator().manual_seed(0)
    act = lambda obs: 2 * torch.rand((len(obs), 1, 6), generator=push) - 1  # noqa: E731
    env = cheetahs(2)
    recording = collect(env, act, steps=40, episodes=None, seed=0)
    assert recording.cost is not None and recording.cost.shape == (40,)
    # HalfCheetah pays its forward speed, less a tenth of the squared action
    paid = recording.reward + 0.1 * np.square(recording.action).sum(1)
    np.testing.assert_array_equal(recording.cost, paid > 0.3)
    env.reset(0)
    replay = Replay(
        env, push, 1, capacity=100, batch_size=64, warmup=40, update_ratio=1.0, n_step=2
    )
    batch: Any = replay.next(act)
    assert replay.costs and set(batch.cost.tolist()) == {0.0, 1.0}
