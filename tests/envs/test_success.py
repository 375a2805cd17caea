"""Success as a result: what an environment says, what an episode and a run make of it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.envs.acting import to_device
from rheo.envs.chunk import ChunkEnv
from rheo.envs.episodes import EpisodeStats
from rheo.envs.rollout import Episode, as_rows, evaluate, summary
from rheo.envs.suites import make
from rheo.stats import wilson

LENGTH = 6


class Target(gymnasium.Env):
    """Solved at exactly the steps where the action is above 0.5; six steps an episode.

    key: what success is called in the info. only: it is told at "every" step, at the "last", or
    only "when true".
    """

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)

    def __init__(self, key: str = "success", only: str = "every") -> None:
        self.key, self.only = key, only

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        ended, solved = self.steps == LENGTH, bool(action[0] > 0.5)
        told = {"every": True, "last": ended, "when true": solved}[self.only]
        return np.full(1, self.steps), 0.0, ended, False, {self.key: solved} if told else {}


if "RheoTarget-v0" not in gymnasium.registry:
    gymnasium.register("RheoTarget-v0", lambda **options: Target(**options))


def chunks(execute: int, num_envs: int = 1, **options: Any) -> ChunkEnv:
    env = make("RheoTarget-v0", num_envs, seed=0, **options)
    return ChunkEnv(env, execute=execute, obs_steps=1, gamma=0.9)


def run(env: ChunkEnv, solved: list[list[int]]) -> list[Any]:
    """Chunk steps of one episode per row of `solved` [N][6]: 1 where a step solves the task."""
    action = torch.tensor(solved, dtype=torch.float32)[..., None]
    return [env.step(action[:, k : k + env.execute]) for k in range(0, LENGTH, env.execute)]


@pytest.mark.parametrize("key", ["success", "is_success", "goal_achieved"])
def test_a_step_says_which_rows_are_solved_under_any_usual_key(key: str) -> None:
    env = make("RheoTarget-v0", 3, seed=0, key=key)
    env.reset()
    step = env.step(torch.tensor([[1.0], [0.0], [0.7]]))
    assert step.success is not None
    assert step.success.tolist() == [True, False, True]
    step = env.step(torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([False, True, True]))
    assert step.success is not None
    assert step.success.tolist() == [False, True, False]  # a row that waits solves nothing


def test_an_environment_that_says_nothing_has_no_success() -> None:
    env = make("RheoTarget-v0", 1, key="reached")
    env.reset()
    assert env.step(torch.ones(1, 1)).success is None
    native = make("InvertedPendulum-v5", 1, seed=0)
    native.reset()
    assert native.step(torch.zeros(1, 1)).success is None


@pytest.mark.parametrize("execute", [1, 2, 3, 4, 6])
def test_an_episode_is_solved_once_or_at_its_end_whatever_the_chunk(execute: int) -> None:
    rows = [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    env = chunks(execute, len(rows))
    env.reset()
    for _ in range(2):  # nothing is left over from the episode before
        padded = [row + [1] * execute for row in rows]  # what follows the end is not executed
        step = run(env, padded)[-1]
        assert step.terminated.all()
        assert step.success_once.tolist() == [True, True, False, True]
        assert step.success_at_end.tolist() == [False, True, False, True]


def test_a_saved_episode_remembers_that_it_was_solved() -> None:
    env = ChunkEnv(make("InvertedPendulum-v5", 1, seed=0), execute=2, obs_steps=1, gamma=0.9)
    env.reset()
    env.step(torch.zeros(1, 2, 1))
    saved = {**env.state_dict(), "solved": np.ones(1, bool)}
    assert env.load_state_dict(saved) is None  # it goes on
    assert env.state_dict()["solved"].tolist() == [True]


def test_where_an_episode_cannot_be_saved_the_new_one_owes_nothing_to_it() -> None:
    """Neither its success, nor its return, nor its last observations."""
    env, other = (
        ChunkEnv(make("RheoTarget-v0", 1, seed=0), execute=2, obs_steps=3, gamma=0.9)
        for _ in range(2)
    )
    env.reset()
    env.step(torch.tensor([[[0.0], [1.0]]]))
    other.reset()
    begun = other.load_state_dict(env.state_dict())
    assert begun is not None
    assert begun.tolist() == [[0.0, 0.0, 0.0]]
    step = other.step(torch.zeros(1, 2, 1))
    assert step.next_obs.tolist() == [[0.0, 1.0, 2.0]]
    assert step.success_once is not None
    assert step.success_once.tolist() == [False]
    assert step.episode_length.tolist() == [2]


def by_step(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Solves the third step of every episode, and the last of every fourth."""
    third = (obs == 2).float()
    lucky = torch.rand(len(obs), 1, generator=generator) < 0.25
    return torch.maximum(third, ((obs == LENGTH - 1) & lucky).float())[:, None]


def test_an_evaluation_reports_both_rates_and_stores_them_per_episode() -> None:
    rows = evaluate(chunks(1, 4), by_step, 40, seed=0)
    at_end = sum(bool(row.success_at_end) for row in rows)
    assert all(row.success_once for row in rows)
    assert 1 <= at_end <= 25
    figures = summary(rows)
    assert figures["eval/success_once"] == 1.0
    assert figures["eval/success_at_end"] == at_end / 40
    low, high = wilson(at_end, 40)
    assert figures["eval/success_at_end_low"] == low < at_end / 40 < high
    assert figures["eval/success_at_end_high"] == high
    stored = as_rows(rows)
    assert [row["success_at_end"] for row in stored] == [row.success_at_end for row in rows]


def test_nothing_is_added_where_there_is_no_notion_of_success() -> None:
    rows = evaluate(chunks(1, 2, key="reached"), by_step, 4, seed=0)
    assert not any("success" in name for name in summary(rows))
    assert set(as_rows(rows)[0]) == {
        *("env", "seed", "episode", "ret", "length", "truncated", "broken"),
    }


@pytest.mark.parametrize("only", ["last", "when true"])
def test_an_environment_that_tells_only_now_and_then_is_counted_in_full(only: str) -> None:
    """Episodes before the first word on success are failures, not missing."""

    def seldom(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        lucky = torch.rand(len(obs), 1, generator=generator) < 0.3
        return ((obs == LENGTH - 1) & lucky).float()[:, None]

    rows = evaluate(chunks(1, only=only), seldom, 30, seed=1)
    told = evaluate(chunks(1), seldom, 30, seed=1)
    assert summary(rows) == summary(told)
    assert 0 < summary(told)["eval/success_once"] < 1


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (40, 50, 0.6696, 0.8876),
        (80, 100, 0.7112, 0.8666),
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2)
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_is_wilsons(successes: int, count: int, low: float, high: float) -> None:
    interval = wilson(successes, count)
    assert interval == pytest.approx((low, high), abs=1e-4)
    rate, z = successes / count, 1.959963984540054
    for bound in interval:  # the closed form's definition: |rate - bound| = z standard errors
        error = (bound * (1 - bound) / count) ** 0.5
        assert abs(rate - bound) == pytest.approx(z * error, abs=1e-7)


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.1, 0.5, 0.9):
        draws = rng.binomial(50, rate, 2000)
        inside = [low <= rate <= high for low, high in (wilson(int(k), 50) for k in draws)]
        assert 0.93 <= np.mean(inside) <= 0.98


def test_training_reports_the_share_of_solved_episodes() -> None:
    env, stats = chunks(2, 2), EpisodeStats()
    env.reset()
    for step in run(env, [[0, 1, 0, 0, 0, 0], [0] * 6]) + run(env, [[0] * 6, [0] * 6]):
        stats.add(step)
    copy = EpisodeStats()
    copy.load_state_dict(stats.state_dict())
    assert stats.drain()["env/success"] == copy.drain()["env/success"] == 0.25
    assert stats.drain() == {}
    quiet = chunks(2, 1, key="reached")
    quiet.reset()
    for step in run(quiet, [[1] * 6]):
        stats.add(step)
    assert set(stats.drain()) == {"env/return", "env/length", "env/episodes"}


def test_a_step_without_success_moves_to_another_device() -> None:
    env = chunks(2, 1, key="reached")
    env.reset()
    moved = to_device(env.step(torch.zeros(1, 2, 1)), torch.device("meta"))
    assert moved.obs.device.type == "meta"
    assert moved.success_once is None


def test_rows_of_older_evaluations_have_no_success() -> None:
    assert summary([Episode(0, 0, 0, 1.0, 5, True, False)])["eval/return"] == 1.0
