"""Reverse flow matching with an anchor on recorded actions."""

import pytest
import torch
from torch import nn

from rheo.algos.optim import step
from rheo.envs.batch import Batch
from rheo.errors import RheoError


class Hill(nn.Module):
    """Q = -(a - 0.5)^2 / (2 0.2^2), any observation."""

    members = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        value = -(action - 0.5).square().sum((-2, -1)) / (2 * 0.2**2) + 0 * self.unused
        return torch.stack([value, value])


@pytest.mark.parametrize(("anchor", "low", "high"), [(0.0, 0.4, 0.6), (1e3, -0.6, -0.4)])
def test_the_anchor_decides_between_the_tilted_density_and_the_data(learner, anchor, low, high):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    algo = learner("rfm_offline", 1, 1, critic=Hill(), anchor_coef=anchor)
    obs, one = torch.zeros(128, 1), torch.ones(())
    for k in range(160):
        for group in algo.policy_opt.param_groups:
            group["lr"] = 5e-3 if k < 100 else 1e-3
        action = -0.5 + 0.05 * torch.randn((128, 1, 1), generator=generator)
        loss, _, measured = algo.policy_loss(obs, action, *algo.draw(128), one)
        step(algo.policy_opt, loss, 10.0)
        algo.spread.lerp_(measured.spread, 0.05)
    sample = algo.policy.act(torch.zeros(4000, 1), algo.policy.noise(4000, generator))
    assert low < sample.mean().item() < high


def test_the_temperature_is_counted_in_deviations_of_q(learner):
    """The first measurement replaces the unit of q_scale, later ones are averaged."""
    algo = learner("rfm_offline", 1, 1, critic=Hill(), critic_lr=1e-30)
    obs = torch.zeros(64, 1)
    batch = Batch(obs, torch.zeros(64, 1, 1), torch.zeros(64), torch.zeros(64), obs)
    algo.update(batch)
    first = algo.q_scale.clone()
    assert first > 2.0  # uniform actions of [-1, 1]: Q ranges over 28 units
    algo.update(batch)
    assert abs(algo.q_scale - first) < 0.1 * first


def test_a_policy_with_other_ends_is_refused(flow, learner):
    with pytest.raises(RheoError, match=r"algo\.reverse\.support=box.*squash"):
        learner("rfm_offline", 1, 1, policy=flow(1, 1, squash="tanh"))
