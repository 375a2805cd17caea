"""SAC against closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.sac import SAC
from rheo.envs.batch import Batch
from rheo.policies.heads import TanhGaussian


def gaussian(obs_dim=1, action_dim=1, width=32):
    """A small tanh-Gaussian policy."""
    return TanhGaussian(
        obs_dim,
        action_dim,
        1,
        width=width,
        depth=1,
        activation="relu",
        log_std_min=-5.0,
        log_std_max=2.0,
    )


def judge(critic: nn.Module) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return critic


class Fixed(nn.Module):
    """Two members with constant values."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, obs, action):
        return self.level[:, None] + 0 * action.sum((-2, -1))


def test_the_soft_target_is_reward_plus_discounted_pessimistic_value_minus_entropy_cost(
    settings, generator
):
    algo = SAC(gaussian(), judge(Fixed()), generator, **settings("sac"))
    rows = 4
    obs = torch.randn((rows, 1), generator=generator)
    discount = torch.tensor([0.9, 0.9, 0.0, 0.5])
    batch = Batch(obs, torch.zeros(rows, 1, 1), torch.ones(rows), discount, obs)
    noise = torch.randn((rows, 1, 1), generator=generator)
    loss, _ = algo.critic_loss(batch, noise, torch.tensor(0.1))
    _, logp = algo.policy.sample(obs, noise)
    target = 1 + discount * (2.0 - 0.1 * logp.detach())
    expected = 0.5 * ((2 - target).square().mean() + (3 - target).square().mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


class Hill(nn.Module):
    """Q = -c (a - 0.2)^2: the soft optimum is close to N(0.2, alpha / (2 c))."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))

    def forward(self, obs, action):
        value = -self.curvature * (action - 0.2).square().sum((-2, -1))
        return torch.stack([value, value])


@pytest.mark.learns
def test_the_actor_reaches_the_soft_optimum_and_alpha_the_entropy_target(settings, generator):
    torch.manual_seed(0)
    target = -0.5  # nats for one dimension
    algo = SAC(
        gaussian(),
        judge(Hill(4.0)),
        generator,
        **settings("sac", entropy_per_dim=target, policy_lr=3e-3, alpha_lr=1e-2),
    )
    obs = torch.zeros(256, 1)
    metrics = {}
    for _ in range(600):
        metrics = algo.update_policy(obs)
    samples, logp = algo.policy.sample(
        obs[:1].expand(20_000, 1), algo.policy.noise(20_000, generator)
    )
    assert samples.mean().item() == pytest.approx(0.2, abs=0.03)
    assert -logp.mean().item() == pytest.approx(target, abs=0.08)
    std = math.exp(target) / math.sqrt(2 * math.pi * math.e)
    assert samples.std().item() == pytest.approx(std, rel=0.1)
    assert metrics["policy/temperature"].item() == pytest.approx(2 * 4.0 * std**2, rel=0.25)


def test_delayed_actor_updates_make_up_in_number(critic, settings, generator):
    algo = SAC(gaussian(2, 2), critic(2, 2), generator, **settings("sac", policy_every=2))
    batch = Batch(
        torch.zeros(8, 2), torch.zeros(8, 1, 2), torch.zeros(8), torch.zeros(8), torch.zeros(8, 2)
    )
    first, second = algo.update(batch), algo.update(batch)
    assert "policy/loss" not in first and "policy/loss" in second
    steps = {int(state["step"]) for state in algo.policy_opt.state.values()}
    assert steps == {2}


def test_the_actor_step_leaves_the_critic_alone(critic, settings, generator):
    algo = SAC(gaussian(2, 2), critic(2, 2), generator, **settings("sac"))
    before = [p.clone() for p in algo.critic.parameters()]
    algo.update_policy(torch.randn((8, 2), generator=generator))
    assert all(torch.equal(a, b) for a, b in zip(before, algo.critic.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in algo.critic.parameters())


def test_deployment_uses_the_mode_or_a_sample(critic, settings, generator):
    obs = torch.zeros(64, 1)
    mode = SAC(gaussian(), critic(1, 1), generator, **settings("sac", deploy_mean=True))
    action = mode.deploy(obs, generator)
    torch.testing.assert_close(action, action[:1].expand_as(action))
    sample = SAC(gaussian(), critic(1, 1), generator, **settings("sac", deploy_mean=False))
    assert sample.deploy(obs, generator).std() > 0.02  # a fresh policy's: about 0.1
