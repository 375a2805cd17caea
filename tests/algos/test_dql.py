"""Diffusion Q-learning: the chain's gradient, and what is left without Q."""

import pytest
import torch
from torch import nn

from rheo.algos.bc import BC
from rheo.algos.optim import adam, step
from rheo.envs.batch import Batch
from rheo.policies.nets import clone


class Bowl(nn.Module):
    """Two critics with different optima, times `scale`."""

    members = 2

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, obs, action):
        near = [-(action - best).square().sum((-2, -1)) for best in (0.3, -0.2)]
        return self.scale * torch.stack(near)


def moved(policy, std=0.3):
    """The policy with an output layer that is not zero, as it starts."""
    torch.manual_seed(1)
    for parameter in policy.net.outlet.parameters():
        nn.init.normal_(parameter, std=std)
    return policy


def test_the_chains_gradient_equals_finite_differences(flow, learner):
    policy = moved(flow(1, 2, width=8, depth=1, steps=3), std=0.05).double()
    algo = learner("dql", 1, 2, policy=policy, critic=Bowl().double())
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((16, 1), generator=generator, dtype=torch.float64)
    start = 0.2 * torch.randn((16, 1, 2), generator=generator, dtype=torch.float64)
    draws = algo.draw(16)._replace(start=start, member=torch.tensor([0]))
    parameters = list(policy.parameters())
    assert policy.act(obs, start, clip=False).abs().max() < 1  # no kink of the clip in the way
    # the divisor carries no gradient: differences of the numerator over the fixed divisor
    divisor = algo.critic(obs, policy.act(obs, start))[1].abs().mean().detach()
    loss = algo.q_loss(obs, draws)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)

    def climbed():
        with torch.no_grad():
            return -algo.critic(obs, policy.act(obs, start))[0].mean() / divisor

    checked = 0
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            continue
        flat = parameter.data.view(-1)
        for index in range(0, len(flat), max(1, len(flat) // 3)):
            kept = flat[index].clone()
            flat[index] = kept + 1e-5
            up = climbed()
            flat[index] = kept - 1e-5
            slope = (up - climbed()) / 2e-5
            flat[index] = kept
            assert grad.view(-1)[index].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-8)
            checked += 1
    assert checked > 20


def test_without_the_q_term_it_is_cloning_bit_for_bit(flow, learner, generator):
    torch.manual_seed(0)
    policy = flow(2, 1)
    algo = learner("dql", 2, 1, policy=policy, eta=0.0, policy_lr=1e-3)
    twin = clone(policy, frozen=False)
    opt = adam(twin.parameters(), 1e-3)
    for _ in range(5):
        obs = torch.randn((32, 2), generator=generator)
        action = torch.rand((32, 1, 1), generator=generator)
        draws = algo.draw(32)
        step(algo.policy_opt, algo.policy_loss(obs, action, draws)[0])
        step(opt, BC.loss(twin, obs, action, None, draws.noise, draws.t))
    for mine, theirs in zip(policy.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_scaling_rewards_by_ten_leaves_the_actors_gradient_unchanged(flow, learner, generator):
    grads = []
    draws = None
    for scale in (1.0, 10.0):
        torch.manual_seed(0)
        algo = learner("dql", 1, 1, policy=moved(flow(1, 1)), critic=Bowl(scale))
        draws = algo.draw(64) if draws is None else draws
        loss, _ = algo.policy_loss(torch.zeros(64, 1), torch.zeros(64, 1, 1), draws)
        grads.append(torch.autograd.grad(loss, list(algo.policy.parameters()), allow_unused=True))
    for first, second in zip(*grads, strict=True):
        if first is not None and second is not None:
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.learns
def test_a_larger_eta_moves_the_policy_further_uphill(flow, learner):
    means = []
    for eta in (0.0, 0.3, 3.0):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        algo = learner("dql", 1, 1, critic=Bowl(), eta=eta, policy_lr=3e-3)
        for _ in range(100):
            action = -0.4 + 0.1 * torch.randn((128, 1, 1), generator=generator)
            draws = algo.draw(128)._replace(member=torch.tensor([0]))
            step(algo.policy_opt, algo.policy_loss(torch.zeros(128, 1), action, draws)[0])
        obs = torch.zeros(2000, 1)
        means.append(algo.policy.act(obs, algo.policy.noise(2000, generator)).mean().item())
    assert means[0] == pytest.approx(-0.4, abs=0.08)
    assert means[0] + 0.02 < means[1] < means[2] - 0.05


def test_the_target_takes_each_critics_largest_value_before_the_smallest(learner):
    algo = learner("dql", 1, 1, critic=Bowl(), target_candidates=5)
    obs = torch.zeros(4, 1)
    batch = Batch(obs, torch.zeros(4, 1, 1), torch.ones(4), torch.full((4,), 0.9), obs)
    noise = algo.average.noise((4, 5), algo.generator)
    loss, _ = algo.critic_loss(batch, noise)
    with torch.no_grad():
        action = noise.clamp(-1, 1)  # an output layer of zero: the action is the noise
        value = torch.stack(
            [(-(action - best).square().sum((-2, -1))).amax(1) for best in (0.3, -0.2)]
        ).amin(0)
    goal = 1 + 0.9 * value
    expected = 0.5 * sum(((-(best**2)) - goal).square().mean() for best in (0.3, -0.2))
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)


def test_either_critic_is_climbed_and_the_other_one_divides(learner):
    algo = learner("dql", 1, 1, critic=Bowl())
    obs = torch.zeros(32, 1)
    seen = {int(algo.draw(2).member) for _ in range(30)}
    assert seen == {0, 1}
    draws = algo.draw(32)
    q = algo.critic(obs, draws.start.clamp(-1, 1))
    for member in seen:
        got = algo.q_loss(obs, draws._replace(member=torch.tensor([member])))
        expected = -q[member].mean() / q[1 - member].abs().mean()
        assert got.item() == pytest.approx(expected.item(), rel=1e-4)
