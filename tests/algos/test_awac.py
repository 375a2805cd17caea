"""Advantage-weighted actor-critic against closed forms."""

import math

import pytest
import torch
from torch import nn

from rheo.envs.batch import Batch


class Slope(nn.Module):
    """Q_1 = 2 sum(a), Q_2 = Q_1 + 1."""

    members = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, obs, action):
        first = self.scale * action.sum((-2, -1))
        return torch.stack([first, first + 1])


@pytest.mark.parametrize("count", [1, 7])
def test_an_advantage_is_what_an_action_is_worth_beyond_the_policys_own(learner, count):
    algo = learner("awac", 3, 2, critic=Slope(), own_samples=count)
    obs, action = torch.randn(5, 3), torch.rand(5, 1, 2)
    state = algo.generator.get_state()
    found = algo.advantage(obs, action)
    algo.generator.set_state(state)
    noise = algo.policy.noise(5 * count, algo.generator)
    with torch.no_grad():
        own = algo.policy.act(obs.repeat_interleave(count, 0), noise).sum((-2, -1)).view(5, count)
    expected = 2 * (action.sum((-2, -1)) - own.mean(1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_policy_step_is_that_of_the_weighted_matching_error(learner):
    """Actions worth 0 and ln(3) more weigh 1 and 3; a weight ends at weight_max."""
    algo = learner("awac", 3, 2, beta=1.0, weight_max=2.5)
    obs, action = torch.randn(8, 3), torch.rand(8, 1, 2)
    noise, t = algo.policy.noise(8, algo.generator), torch.rand(8)
    weight = torch.tensor([0.0, math.log(3.0)]).repeat(4).exp().clamp(max=2.5)
    found = algo.policy_loss(obs, action, weight, (noise, t))
    error = algo.policy.match(obs, action, noise, t, space=algo.policy.prediction)
    expected = (error[0::2].sum() + 2.5 * error[1::2].sum()) / 8
    torch.testing.assert_close(found, expected)


def test_q_is_that_of_the_averaged_policy_by_the_slow_critic(learner):
    algo = learner("awac", 3, 2)
    for part, seed in ((algo.average, 1), (algo.target, 2)):  # no two copies alike
        g = torch.Generator().manual_seed(seed)
        for parameter in part.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=g)
    obs, following = torch.randn(2, 16, 3)
    batch = Batch(obs, torch.rand(16, 1, 2), torch.rand(16), torch.full((16,), 0.5), following)
    state = algo.generator.get_state()
    with torch.no_grad():
        ahead = algo.average.act(following, algo.average.noise(16, algo.generator))
        goal = batch.reward + 0.5 * algo.target(following, ahead).amin(0)
        expected = 0.5 * (algo.critic(obs, batch.action) - goal).square().mean(1).sum()
    algo.generator.set_state(state)
    torch.testing.assert_close(algo.update(batch)["critic/loss"], expected)


def test_a_flat_critic_leaves_cloning(learner):
    algo = learner("awac", 1, 1)
    for parameter in algo.critic.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(algo.advantage(torch.ones(4, 1), torch.rand(4, 1, 1)), torch.zeros(4))
