"""Rollouts that tell nothing: the value of a sparse task learns, its policy waits for a reward."""

from typing import Any

import pytest
import torch

from rheo.algos.gae import tells
from rheo.envs.batch import Rollout
from rheo.policies.heads import Gaussian

NAMES = ["ppo", "reinflow", "dppo", "awm_gae", "fpo", "fpo_pp", "resip"]
LEARN = {"epochs": 2, "minibatch": 100, "policy_lr": 1e-3, "value_lr": 1e-3, "lr_floor": 1.0}
STEPS, ROWS, GAMMA = 20, 10, 0.9
FALL = (7, 3)


def make(name, flow, learner, **learn) -> Any:
    """A small algorithm on policy with its shipped values."""
    torch.manual_seed(0)
    policy: Any = flow(2, 1, 1, steps=3)
    torch.nn.init.normal_(policy.net.outlet.weight, std=0.1)
    changes: dict[str, Any] = {}
    if name == "ppo":
        policy = Gaussian(2, 1, 1, width=16, depth=1, activation="tanh", std=0.4)
    if name == "dppo":
        policy.eta, changes = 1.0, {"tuned_steps": 2}
    return learner(name, 2, 1, policy=policy, learn={**LEARN, **learn}, **changes)


def walk(algo, reward, ended=None):
    """A rollout in a world that pays `reward` [S, N]; `ended` decisions terminate their episode."""
    generator, columns = algo.generator, []
    width = 4 if hasattr(algo, "head") else 2  # the head of a correction sees plan and phase too
    obs = torch.randn((ROWS, width), generator=generator)
    for _ in range(STEPS):
        choice, ahead = algo.act(obs), obs + 0.1 * torch.randn(obs.shape, generator=generator)
        columns.append((obs, choice.action, ahead, choice.kept))
        obs = ahead
    here, action, there = (torch.stack([c[i] for c in columns]) for i in range(3))
    kept = {name: torch.stack([c[3][name] for c in columns]) for name in columns[0][3]}
    ends = torch.zeros((STEPS, ROWS), dtype=torch.bool)
    if ended is not None:
        ends[ended] = True
    one = torch.ones((STEPS, ROWS), dtype=torch.int64)
    discount = GAMMA * (~ends).float()
    return Rollout(here, action, reward, discount, there, ends, one.bool(), one, kept)


def level(value):
    """The same reward in every step."""
    return torch.full((STEPS, ROWS), value)


def once(low=0.0, high=1.0):
    """One step that is worth more than all others."""
    reward = level(low)
    reward[FALL] = high
    return reward


NOTHING = {
    "no reward": (level(0.0), None),
    "no reward, and a fall": (level(0.0), FALL),
    "a cost per step, and no end to it": (level(-1.0), None),
    "survival, before any fall": (level(1.0), None),
}
SOMETHING = {
    "one success": (once(), FALL),
    "one success that goes on": (once(), None),
    "a cost per step until one success": (level(-1.0), FALL),
    "one fall in a task of survival": (level(1.0), FALL),
    "a cost that one step does not have": (once(-1.0, 0.0), None),
}


def cases(kinds):
    """All kinds for one algorithm, the first for the others."""
    first = next(iter(kinds))
    return [(NAMES[0], what) for what in kinds] + [(name, first) for name in NAMES[1:]]


@pytest.mark.parametrize(("name", "what"), cases(NOTHING))
def test_a_rollout_that_tells_nothing_leaves_the_policy_as_it_is(flow, learner, name, what):
    algo = make(name, flow, learner)
    tuned = [parameter.clone() for parameter in algo.tuned()]
    values = [parameter.clone() for parameter in algo.value.parameters()]
    for _ in range(2):
        metrics = algo.update(walk(algo, *NOTHING[what]))
        assert metrics["policy/kl"] == metrics["policy/minibatches"] == 0
        assert metrics["rollout/tells"] == 0
    assert all(map(torch.equal, tuned, algo.tuned()))
    assert not all(map(torch.equal, values, algo.value.parameters()))


@pytest.mark.parametrize(("name", "what"), cases(SOMETHING))
def test_one_reward_teaches_whatever_came_before(flow, learner, name, what):
    for before in ([], [NOTHING["no reward"]]):
        algo = make(name, flow, learner)
        for given in before:
            algo.update(walk(algo, *given))
        tuned = [parameter.clone() for parameter in algo.tuned()]
        metrics = algo.update(walk(algo, *SOMETHING[what]))
        assert metrics["rollout/tells"] == 1
        assert metrics["policy/minibatches"] == 4 * algo.samples
        assert metrics["policy/kl"] > 0
        assert not all(map(torch.equal, tuned, algo.tuned()))


@pytest.mark.parametrize(("level_", "taught"), [(1.0, True), (-1.0, False), (0.0, False)])
def test_a_value_that_has_seen_falls_knows_survival_but_not_failure(flow, learner, level_, taught):
    algo = make("ppo", flow, learner)
    algo.update(walk(algo, level(level_) if level_ else once(), FALL))
    assert (algo.update(walk(algo, level(level_)))["policy/kl"] > 0) == taught


@pytest.mark.learns
def test_the_value_of_a_sparse_task_goes_to_zero_before_its_first_reward(flow, learner):
    algo = make("ppo", flow, learner, epochs=10, value_lr=3e-3)
    obs = torch.randn(200, 2)
    before = algo.value(obs).square().mean().item()
    for _ in range(12):
        algo.update(walk(algo, level(0.0)))
    assert algo.value(obs).square().mean().item() < 0.1 * before


@pytest.mark.parametrize("name", ["ppo", "awm_gae"])
def test_only_rollouts_that_tell_something_count_for_the_warm_up(flow, learner, name):
    algo = make(name, flow, learner, value_warmup=2)
    tuned = [parameter.clone() for parameter in algo.tuned()]
    for reward in (level(0.0), once(), level(0.0), level(0.0), once()):
        assert algo.update(walk(algo, reward))["policy/kl"] == 0
    assert all(map(torch.equal, tuned, algo.tuned()))
    assert algo.update(walk(algo, once()))["policy/kl"] > 0


def test_it_is_said_once(flow, learner, caplog):
    algo = make("ppo", flow, learner)
    for _ in range(3):
        algo.update(walk(algo, level(0.0)))
    assert caplog.text.count("rollout of 200 decisions: no reward, so the policy rests") == 1


# ------------------------------------------------------------------ what tells, by hand


def chunks(counts, rates, gamma=0.99, ended=()):
    """Decisions of `counts` steps that are each worth a rate, discounted within."""
    frames = torch.tensor(counts)[:, None]
    reward = [rate * sum(gamma**k for k in range(n)) for n, rate in zip(counts, rates, strict=True)]
    discount = torch.tensor([gamma**n for n in counts])[:, None]
    discount[list(ended)] = 0.0
    valid = torch.ones(len(counts), 1, dtype=torch.bool)
    return torch.tensor(reward)[:, None], discount, frames, valid


@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("rate", [1.0, -1.0, 0.01, 1e4])
def test_chunks_cut_short_by_a_time_limit_are_worth_the_same_per_step(gamma, rate):
    counts = [8, 8, 3, 8, 1, 8]
    assert not tells(*chunks(counts, [rate] * 6, gamma))
    assert tells(*chunks(counts, [rate] * 6, gamma, ended=[2]))
    assert tells(*chunks(counts, [rate] * 5 + [1.01 * rate], gamma))
    assert tells(*chunks(counts, [0.0] * 5 + [rate], gamma))


def test_broken_rows_tell_nothing():
    reward, discount, frames, valid = chunks([1, 1, 1], [0.0, 0.0, 5.0])
    valid[2] = False
    assert not tells(reward, discount, frames, valid)
    assert not tells(reward, discount, frames, torch.zeros_like(valid))
