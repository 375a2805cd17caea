"""Implicit Q-learning against closed forms."""

import math

import pytest
import torch

from rheo.algos.iql import IQL
from rheo.algos.optim import adam, step
from rheo.envs.batch import Batch
from rheo.policies.nets import lerp_


def one_step(rows, generator):
    """Two states whose recorded actions are worth 0 and 1 with other shares, and then it ends."""
    state = (torch.rand(rows, generator=generator) < 0.5).float()
    good = (torch.rand(rows, generator=generator) < 0.25 + 0.5 * state).float()
    obs, action = state[:, None], (2 * good - 1)[:, None, None]
    return Batch(obs, action, good, torch.zeros(rows), obs)


def expectile_of(share, tau):
    """The tau-expectile of a value that is 1 with `share` and else 0."""
    return tau * share / (tau * share + (1 - tau) * (1 - share))


@pytest.mark.learns
@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_values_are_expectiles_of_the_actions_of_the_data_and_means_at_one_half(
    learner, generator, tau
):
    torch.manual_seed(0)
    algo = learner("iql", 1, 1, expectile=tau, critic_lr=3e-3, target_rate=0.2, beta=0.0)
    for k in range(400):
        for group in algo.critic_opt.param_groups:
            group["lr"] = 3e-3 if k < 250 else 3e-4
        step(algo.critic_opt, algo.critic_loss(one_step(256, generator))[0])
        lerp_(algo.target, algo.critic, 0.2)
    value = algo.value(torch.tensor([[0.0], [1.0]])).tolist()
    # shares of 256 rows vary by 0.03, averaged over the last hundreds of steps
    assert value == pytest.approx([expectile_of(0.25, tau), expectile_of(0.75, tau)], abs=0.03)
    q = algo.critic(torch.tensor([[0.0], [0.0]]), torch.tensor([[[-1.0]], [[1.0]]]))
    assert q.mean(0).tolist() == pytest.approx([0.0, 1.0], abs=0.03)


@pytest.mark.learns
def test_weighted_matching_learns_the_tilted_density(flow, learner):
    """N(0, 1) data with weights exp(a / 2): the flow of N(1/2, 1)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy = flow(1, 1, width=48, steps=20)
    algo = learner("iql", 1, 1, policy=policy)
    assert isinstance(algo, IQL)
    opt = adam(policy.parameters(), 6e-3)
    updates = 300
    for k in range(updates):
        for group in opt.param_groups:
            group["lr"] = 6e-3 * 0.5 * (1 + math.cos(math.pi * k / updates))
        action = torch.randn((384, 1, 1), generator=generator)
        draws = algo.draw(384, generator)
        weight = (action.flatten() / 2).exp()
        loss = algo.policy_loss(torch.zeros(384, 1), action, weight, draws)
        step(opt, loss)
    noise = policy.noise(20_000, generator)
    with torch.no_grad():
        sample = policy.act(torch.zeros(20_000, 1), noise, steps=25, clip=False).flatten()
    assert sample.mean().item() == pytest.approx(0.5, abs=0.1)
    assert sample.var().item() == pytest.approx(1.0, abs=0.25)


def test_the_policys_rate_falls_to_its_floor_and_the_critics_stays(learner, generator):
    algo = learner("iql", 1, 1, run_updates=4, lr_floor=0.1, policy_lr=1e-3)
    for _ in range(4):
        algo.update(one_step(16, generator))
    assert algo.policy_opt.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert algo.critic_opt.param_groups[0]["lr"] == pytest.approx(3e-4)


@pytest.mark.learns
def test_the_gaussian_climbs_the_weighted_density_of_its_data(learner, generator):
    """Actions 0.5 and -0.5 with weights 3 : 1: the Gaussian has their moments."""
    torch.manual_seed(0)
    algo = learner("iql_gaussian", 1, 1)
    action = torch.tensor([0.5, -0.5]).repeat(32)[:, None, None]
    weight = torch.tensor([3.0, 1.0]).repeat(32)
    opt = adam(algo.policy.parameters(), 1e-2)
    for _ in range(200):
        loss = algo.policy_loss(torch.zeros(64, 1), action, weight)
        step(opt, loss)
    raw, log_std = (value.item() for value in algo.policy(torch.zeros(1, 1)))
    assert raw == pytest.approx(0.25, abs=0.02)
    assert math.exp(log_std) == pytest.approx(0.5 * math.sqrt(0.75), rel=0.05)
