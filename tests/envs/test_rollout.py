"""Evaluation: how many episodes, which ones, and what is said about them."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.envs import rollout
from rheo.envs.chunk import ChunkEnv
from rheo.envs.rollout import Episode, as_rows, evaluate, summary
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.stats import of_mean


class Dice(gymnasium.Env):
    """Every episode draws its length from {2, 20}; its return is its length."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.choice([2, 20]))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {}


class Endless(Dice):
    """Never ends."""

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Dice-v0", lambda **_: Dice())
gymnasium.register("Endless-v0", lambda **_: Endless())


def chunk_env(name, num_envs, execute=1, **options):
    return ChunkEnv(make(name, num_envs, **options), execute=execute, obs_steps=1, gamma=0.99)


def still(obs, generator):
    return torch.zeros(len(obs), 3, 1)


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (7, 3), (3, 5), (6, 2), (1, 4)])
def test_exactly_as_many_episodes_as_asked_the_first_of_every_environment(episodes, num_envs):
    rows = evaluate(chunk_env("Dice-v0", num_envs), still, episodes, seed=5)
    assert len(rows) == episodes
    owed = [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]
    places = [(row.env, row.episode) for row in rows]
    assert places == [(i, k) for k in range(max(owed)) for i in range(num_envs) if k < owed[i]]
    assert all(row.seed == 5 + row.env for row in rows)


def test_the_episodes_are_those_that_each_seed_gives_by_itself():
    rows = evaluate(chunk_env("Dice-v0", 4, execute=3), still, 10, seed=9)
    for i in range(4):
        world = Dice()
        lengths = []
        for seed in [9 + i, None, None]:
            world.reset(seed=seed)
            lengths.append(world.left)
        mine = [row for row in rows if row.env == i]
        assert [row.length for row in mine] == lengths[: len(mine)]
        assert [row.ret for row in mine] == lengths[: len(mine)]


def test_whoever_remembers_is_told_which_episodes_are_over():
    told = []
    rows = evaluate(chunk_env("Dice-v0", 3), still, 6, seed=9, on_end=told.append)
    when = torch.stack(told)  # [decisions, 3]
    for i in range(3):
        lengths = [row.length for row in rows if row.env == i]
        assert when[:, i].nonzero()[: len(lengths), 0].tolist() == [
            sum(lengths[: k + 1]) - 1 for k in range(len(lengths))
        ]


def test_short_episodes_are_not_favoured():
    """Counting whatever ends first would give a mean near 4 here; the true mean is 11."""
    rows = evaluate(chunk_env("Dice-v0", 64), still, 640, seed=0)
    mean, error = np.mean([row.length for row in rows]), 9 / 640**0.5
    assert abs(mean - 11) < 4 * error


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    env = chunk_env("InvertedPendulum-v5", 3)

    def noisy(obs, generator):
        return 2 * torch.rand(len(obs), 1, 1, generator=generator) - 1

    first = evaluate(env, noisy, 7, seed=4)
    env.step(torch.ones(3, 1, 1))  # whatever happened to the environments in between
    assert evaluate(env, noisy, 7, seed=4) == first
    assert evaluate(env, noisy, 7, seed=5) != first


def test_the_return_is_undiscounted_and_a_time_limit_is_a_truncation():
    env = chunk_env("InvertedPendulum-v5", 2, max_episode_steps=5)
    rows = evaluate(env, still, 4, seed=0)
    assert all((row.ret, row.length, row.truncated) == (5.0, 5, True) for row in rows)
    assert not any(row.broken for row in rows)


def test_an_episode_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(rollout, "ENDLESS", 50)
    with pytest.raises(EnvError, match="Endless-v0: an episode has not ended after 50 frames"):
        evaluate(chunk_env("Endless-v0", 2), still, 1, seed=0)
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        evaluate(chunk_env("Dice-v0", 1), still, 0, seed=0)


def rows_of(returns):
    return [Episode(i, i, 0, ret, int(ret), False, False) for i, ret in enumerate(returns)]


def test_the_interval_is_that_of_the_bootstrapped_mean():
    returns = np.random.default_rng(1).gamma(2.0, 50.0, 80)
    figures = summary(rows_of(returns))
    assert figures["eval/return"] == pytest.approx(returns.mean())
    error = returns.std(ddof=1) / 80**0.5
    assert figures["eval/return_low"] == pytest.approx(returns.mean() - 1.96 * error, abs=2.5)
    assert figures["eval/return_high"] == pytest.approx(returns.mean() + 1.96 * error, abs=2.5)
    assert summary(rows_of(returns)) == figures


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        low, high = of_mean(rng.normal(10.0, 3.0, 50), samples=300)
        inside += low <= 10.0 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_one_episode_has_an_interval_of_no_width_and_broken_ones_are_counted():
    figures = summary(rows_of([7.0]))
    assert figures["eval/return_low"] == figures["eval/return_high"] == 7.0
    assert "eval/broken" not in figures
    broken = [row._replace(broken=True) for row in rows_of([1.0, 2.0])]
    assert summary(broken)["eval/broken"] == 2.0
    assert as_rows(broken)[1]["ret"] == 2.0
