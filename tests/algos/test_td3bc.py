"""TD3+BC against its equations."""

import pytest
import torch
from torch import nn

from rheo.envs.batch import Batch


class Fixed(nn.Module):
    """Q_1 = scale * (1 + a), Q_2 = Q_1 - 1."""

    members = 2

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, obs, action):
        first = self.scale * (1 + action.sum((-2, -1)))
        return torch.stack([first, first - 1])


def test_lambda_is_alpha_over_the_mean_size_of_q(learner):
    algo = learner("td3bc", 1, 1, critic=Fixed(3.0), alpha=2.5)
    obs, action = torch.randn(32, 1), torch.zeros(32, 1, 1)
    loss, metrics = algo.policy_loss(obs, action)
    own = algo.policy(obs)
    q = 3.0 * (1 + own.flatten())
    scale = 2.5 / q.abs().mean()
    assert metrics["policy/lambda"].item() == pytest.approx(scale.item(), rel=1e-5)
    expected = -scale * q.mean() + own.square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_scaling_q_leaves_the_actors_gradient_unchanged(learner):
    grads = []
    for scale in (1.0, 10.0):
        torch.manual_seed(0)
        algo = learner("td3bc", 1, 1, critic=Fixed(scale))
        loss, _ = algo.policy_loss(torch.linspace(-1, 1, 32)[:, None], torch.zeros(32, 1, 1))
        grads.append(torch.autograd.grad(loss, list(algo.policy.parameters())))
    for first, second in zip(*grads, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-7)


def test_smoothing_noise_and_target_action_are_clipped(learner):
    algo = learner("td3bc", 1, 1, critic=Fixed(), target_noise=0.2, noise_clip=0.5)
    obs = torch.randn(64, 1)
    batch = Batch(obs, torch.zeros(64, 1, 1), torch.ones(64), torch.full((64,), 0.9), obs)
    loss, _ = algo.critic_loss(batch, torch.full((64, 1, 1), 100.0))
    nearby = (algo.slow(obs) + 0.5).clamp(max=1.0).flatten()
    goal = 1 + 0.9 * nearby  # the smaller member is Q_1 - 1 = a
    expected = 0.5 * ((1 - goal).square().mean() + goal.square().mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_actor_and_targets_move_every_second_update(learner):
    algo = learner("td3bc", 1, 1)
    obs = torch.randn(16, 1)
    batch = Batch(obs, torch.zeros(16, 1, 1), torch.ones(16), torch.zeros(16), obs)
    before = [p.clone() for p in (*algo.slow.parameters(), *algo.target.parameters())]
    assert "policy/loss" not in algo.update(batch)
    after = [*algo.slow.parameters(), *algo.target.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert "policy/loss" in algo.update(batch)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
