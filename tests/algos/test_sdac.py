"""SDAC, which is settings of RFM: its loss is that of the noise's posterior mean."""

from typing import Any

import pytest
import torch
from hills import Hill

from rheo.algos.reverse import SPREAD_SHARE

T = 0.5


@pytest.fixture
def agent(learner, flow):
    """SDAC as it ships, small: `agent(**changes)`."""

    def make(**changes: Any):
        policy = flow(1, 1, path="cosine", prediction="eps", clip_a=True, steps=20)
        return learner("sdac", 1, 1, policy=policy, critic=Hill(0.3), **changes)

    return make


def posterior(x, A, B):
    """E[eps | x] under actions of exp(Q / T) on [-1, 1], by quadrature."""
    a = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    eps = (x - A * a) / B
    weight = torch.softmax(-((a - 0.3) ** 2) / T - eps.square() / 2, 0)
    return (weight * eps).sum()


def test_the_target_is_the_posterior_mean_of_the_noise_on_the_box(agent, generator):
    algo = agent(particles=32_768)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9])
    x = torch.tensor([-0.9, 0.2, 0.8, 0.5])[:, None, None]
    uniform = algo.reverse.draw(algo.policy, 4, generator).uniform
    parts = torch.zeros(4, 1), x, t, torch.zeros_like(x), uniform, torch.tensor(T)
    velocity, *_ = algo.reverse.target(algo.policy, algo.critic, *parts, algo.spread)
    for row in range(4):
        A, B, dA, dB = (float(c[row]) for c in algo.policy.path.coefficients(t))
        point = x[row].item()
        found = (A * velocity[row].item() - dA * point) / (A * dB - dA * B)
        assert found == pytest.approx(posterior(point, A, B).item(), abs=0.02)


def test_the_loss_is_the_squared_error_of_the_predicted_noise_from_replayed_actions(
    agent, generator
):
    """(A / (A B' - A' B))^2 of the velocity's error, at x = A a + B eps with the given a."""
    algo = agent()
    with torch.no_grad():
        for p in algo.policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    obs, action = torch.zeros(32, 1), 2 * torch.rand(32, 1, 1) - 1
    draws, heat = algo.draw(32), torch.tensor(T)
    loss, *_ = algo.policy_loss(obs, action, draws, heat)
    c = algo.policy.path.coefficients(draws.t).over_chunk()
    x = c.a * action + c.b * draws.noise
    parts = obs, x, draws.t, torch.zeros_like(x), draws.uniform, heat
    target, *_ = algo.reverse.target(algo.policy, algo.critic, *parts, algo.spread)
    aim = (c.a * target - c.da * x) / c.det
    guess = algo.policy.net(x, algo.policy.net.embed(draws.t), algo.policy.features(obs))
    assert loss.item() == pytest.approx((guess - aim).square().mean().item(), rel=1e-3)
    assert len(draws.second) == 32 // SPREAD_SHARE


def test_its_temperature_is_in_units_of_q(agent):
    algo = agent()
    algo.q_scale.fill_(50.0)
    assert algo.T().item() == pytest.approx(0.05)


@pytest.mark.learns
def test_its_policy_is_drawn_to_the_best_action(agent):
    """Q = -(a - .3)^2 and T = .05: N(.3, .16^2)."""
    torch.manual_seed(0)
    algo = agent(policy_lr=3e-3, policy_every=1)
    for _ in range(200):
        action = 2 * torch.rand(128, 1, 1) - 1
        loss, *_ = algo.policy_loss(torch.zeros(128, 1), action, algo.draw(128), algo.T())
        algo.policy_opt.zero_grad()
        loss.backward()
        algo.policy_opt.step()
    sample = algo.policy.act(torch.zeros(2000, 1), algo.policy.noise(2000, None)).flatten()
    assert sample.mean().item() == pytest.approx(0.3, abs=0.1)
    assert 0.05 < sample.std() < 0.3  # five seeds: .108 to .126, means of .28 to .31
