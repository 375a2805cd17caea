"""SAC through a noisy flow: the density of its chain, the gradient along it, its width."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from rheo.algos.sac_flow import SACFlow
from rheo.envs.batch import Batch
from rheo.policies.noise import NoiseNet

STEPS, HORIZON = 4, 3


class Hill(nn.Module):
    """Q = -(a - 0.4)^2 / (2 0.2^2) summed over executed steps; a member is worth more."""

    members = 2

    def __init__(self, executed=None):
        super().__init__()
        self.executed, self.unused = executed, nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        gap = (action - 0.4)[..., : self.executed, :].square().sum((-1, -2))
        value = -gap / (2 * 0.2**2) + 0 * self.unused
        return torch.stack([value, value + 1])


@pytest.fixture
def made(flow, settings):
    """Makes a small SAC Flow: `made(horizon, executed, **changes)`."""

    def make(horizon=1, executed=None, squash="tanh", noise=None, **changes: Any) -> Any:
        torch.manual_seed(0)
        policy = flow(2, 1, horizon, width=32, squash=squash, steps=STEPS, deploy_scale=0.0)
        nn.init.normal_(policy.net.outlet.weight, std=0.3)
        values = settings("sac_flow", **changes)
        kept = {k: v for k, v in values.pop("noise").items() if k not in ("_target_", "obs_norm")}
        net = NoiseNet(2, 1, horizon, **{**kept, "width": 16, "depth": 1, **(noise or {})})
        last: Any = net.net.layers[-1]
        nn.init.normal_(last.weight, std=0.2)
        generator = torch.Generator().manual_seed(0)
        critic: Any = Hill(executed)
        return SACFlow(policy, critic, generator, executed, noise=net, **values)

    return make


def batch_of(rows=64, horizon=1):
    generator = torch.Generator().manual_seed(1)
    obs, ahead = torch.randn((2, rows, 2), generator=generator)
    action = torch.rand((rows, horizon, 1), generator=generator) - 0.5
    return Batch(obs, action, torch.ones(rows), torch.full((rows,), 0.9), ahead)


@pytest.mark.parametrize("executed", [None, 2])
@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_a_density_is_that_of_start_and_kicks_and_of_the_way_into_the_box(made, executed, squash):
    algo, obs = made(HORIZON, executed, squash=squash), torch.randn(10, 2)
    draws = algo.kicks(10)
    with torch.no_grad():
        action, logp = algo.sample(obs, draws)
        x, time = draws[:, 0], torch.linspace(0, 1, STEPS + 1)
        expected = Normal(0.0, 1.0).log_prob(x)
        for k in range(STEPS):
            std = algo.noise(obs, time[k : k + 1])[:, 0]
            mean = (
                x + algo.policy.velocity(x, time[k].expand(10), algo.policy.features(obs)) / STEPS
            )
            x = mean + std * draws[:, k + 1]
            expected = expected + Normal(mean, std).log_prob(x)
        if squash == "tanh":
            expected = expected - (1 - x.tanh().square()).log()
    end = x.tanh() if squash == "tanh" else x.clamp(-1, 1)
    torch.testing.assert_close(action, end, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logp, expected[:, :executed].sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_the_actors_gradient_is_that_along_the_whole_chain(made):
    """Against differences of the loss in float64, of a weight of the field and of the noise."""
    algo, obs = made(), torch.randn(16, 2, dtype=torch.float64)
    parts: tuple[nn.Module, ...] = (algo.policy, algo.noise, algo.critic)
    for part in parts:
        part.double()
    draws, alpha = algo.kicks(16), torch.tensor(0.3, dtype=torch.float64)
    loss, _ = algo.policy_loss(obs, draws, alpha)
    loss.backward()
    for weight in (algo.policy.net.inlet.weight, algo.noise.net.layers[-1].bias):
        ends = []
        for move in (1e-5, -1e-5):
            with torch.no_grad():
                weight.view(-1)[0] += move
                ends.append(algo.policy_loss(obs, draws, alpha)[0])
                weight.view(-1)[0] -= move
        slope = (ends[0] - ends[1]) / 2e-5
        assert slope.abs() > 1e-4
        torch.testing.assert_close(weight.grad.view(-1)[0], slope, rtol=1e-5, atol=1e-8)


def test_a_target_weighs_the_chain_against_the_smallest_value(made):
    algo, batch = made(alpha=0.3), batch_of()
    state = algo.generator.get_state()
    found, _ = algo.critic_loss(batch, algo.kicks(64), torch.tensor(0.3))
    algo.generator.set_state(state)
    with torch.no_grad():
        action, logp = algo.sample(batch.next_obs, algo.kicks(64))
        goal = batch.reward + 0.9 * (Hill()(None, action)[0] - 0.3 * logp)
        expected = 0.5 * (Hill()(None, batch.action) - goal).square().mean(1).sum()
    torch.testing.assert_close(found, expected)


def test_the_target_entropy_is_of_executed_elements_and_what_is_deployed_has_no_noise(made):
    assert made(HORIZON, 2, entropy_per_dim=-1.5).temperature.target == pytest.approx(-3.0)
    algo, obs = made(), torch.randn(10, 2)
    found = algo.deploy(obs, torch.Generator().manual_seed(0))
    assert torch.equal(found, algo.deploy(obs, torch.Generator().manual_seed(9)))
    torch.testing.assert_close(found, algo.policy.act(obs, torch.zeros(10, 1, 1)))


@pytest.mark.learns
def test_the_temperature_holds_the_chains_entropy_while_actions_climb(made):
    """Its entropy is known: 5 log sqrt(2 pi e), the log deviations, the slope of the tanh."""
    algo = made(policy_lr=1e-2, alpha_lr=3e-2, alpha=0.1, entropy_per_dim=2.5, policy_every=1)
    entropies = []
    for _ in range(160):
        entropies.append(algo.update_policy(batch_of(128).obs)["policy/entropy"])
    entropy = torch.stack(entropies[-40:]).mean().item()
    assert entropy == pytest.approx(2.5, abs=0.5)
    obs = batch_of(500).obs
    times = algo.policy.times()[:-1]
    draws = algo.kicks(500)
    with torch.no_grad():
        action, _ = algo.sample(obs, draws)
        widths = algo.noise(obs, times).log().sum((1, 2, 3)).mean().item()
        known = (STEPS + 1) * 0.5 * math.log(2 * math.pi * math.e) + widths
        known += (1 - action.square()).log().sum((1, 2)).mean().item()
    assert entropy == pytest.approx(known, abs=0.4)
    assert action.mean().item() == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize(
    ("noise", "message"),
    [({"schedule": "learn_decay"}, "choose learn or const"), ({"tuned_steps": 9}, "choose 1 to 4")],
)
def test_noise_that_cannot_be_held_is_refused(made, noise, message):
    with pytest.raises(ValueError, match=message):
        made(noise=noise)
