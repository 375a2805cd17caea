"""A reward of pairs against closed forms; what it makes of a policy."""

import math
from typing import Any

import pytest
import torch

from rheo.algos.preferences import agreement, preferred
from rheo.envs.batch import Compared
from rheo.policies.nets import clone


def pairs(rows: int = 32, size: int = 1) -> Compared:
    """Uniform chunks of which the larger one won, without more than this label."""
    draws = torch.Generator().manual_seed(3)
    action = (2 * torch.rand((rows, 2, 1, 1), generator=draws) - 1).sort(1, descending=True)[0]
    return Compared(torch.randn((rows, size), generator=draws), action, None)


def small(learner, **changes: Any) -> Any:
    return learner("gendrive", 1, 1, **({"reward_updates": 5} | changes))


@pytest.fixture
def judge(critic):
    """One small network of rewards."""
    return critic(1, 1, members=1)


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_reward_comes_to_the_log_odds_of_who_wins(learner, judge, share):
    """Of labels that name one of two chunks with probability p: r(a) - r(b) = log(p / (1 - p))."""
    algo = small(learner, critic=judge, critic_lr=1e-2, reward_updates=10_000)
    action = torch.tensor([0.5, -0.5]).expand(50, 2).clone()
    action[: round(50 * (1 - share))] = torch.tensor([-0.5, 0.5])  # the loser comes second
    batch = Compared(torch.zeros(50, 1), action[..., None, None], None)
    for _ in range(150):
        algo.update(batch)
    reward = algo.reward(torch.zeros(1, 1), torch.tensor([0.5, -0.5]).view(1, 2, 1, 1))[0]
    assert (reward[0] - reward[1]).item() == pytest.approx(math.log(share / (1 - share)), abs=0.05)


def test_right_pairs_are_counted_and_equal_ones_by_half():
    sign = preferred(torch.tensor([[3.0, 2.0, 2.0]]), "hard", torch.Generator())
    assert agreement(torch.tensor([[1.0, 0.0, 5.0]]), sign).item() == 0.5  # of 1 > 2 and 1 > 3
    assert agreement(torch.tensor([[1.0, 1.0, 0.0]]), sign).item() == 0.75
    assert agreement(torch.zeros(1, 3), torch.zeros(1, 3, 3)).item() == 0.0


def test_first_the_reward_learns_then_the_policy(learner, judge):
    algo = small(learner, critic=judge)

    def weights(part: torch.nn.Module) -> list[torch.Tensor]:
        return [p.detach().clone() for p in part.parameters()]

    def moved(part: torch.nn.Module, before: list[torch.Tensor]) -> bool:
        return not all(map(torch.equal, part.parameters(), before))

    policy, reward = weights(algo.policy), weights(algo.critic)
    for _ in range(5):
        assert "critic/accuracy" in algo.update(pairs())
    assert moved(algo.critic, reward) and not moved(algo.policy, policy)
    reward = weights(algo.critic)
    assert "policy/agreement" in algo.update(pairs())
    assert moved(algo.policy, policy) and not moved(algo.critic, reward)


@pytest.mark.learns
def test_what_is_preferred_is_done_more_and_the_best_of_it_acts(
    learner, flow, critic, clone_normal
):
    policy, judge = flow(2, 1), critic(2, 1, members=1)
    clone_normal(policy, 0.3)
    base = clone(policy)
    algo = small(learner, policy=policy, critic=judge, critic_lr=1e-2, policy_lr=1e-3, beta=2.0,
                 reward_updates=100)  # fmt: skip
    for _ in range(250):
        algo.update(pairs(size=2))  # the larger action wins
    told = algo.validate(pairs(200, 2), torch.Generator().manual_seed(0))
    assert told["val/accuracy"] > 0.9
    obs, draws = torch.randn(400, 2), torch.Generator().manual_seed(1)
    before = base.act(obs, base.noise(400, draws)).mean()
    best = algo.deploy(obs, draws).mean()
    assert algo.deploy_one() == 8
    sampled = algo.deploy(obs, draws).mean()
    assert sampled > before + 0.1 and best > sampled + 0.1


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"members": 2}, "critic.members=2"), ({"particles": 1}, "algo.particles")],
)
def test_what_means_nothing_is_refused(learner, critic, changes, told):
    members = changes.pop("members", 1)
    with pytest.raises(ValueError, match=told):
        small(learner, critic=critic(1, 1, members=members), **changes)
