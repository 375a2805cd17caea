"""Behaviour cloning recovers the demonstrations' distribution."""

import pytest
import torch

from rheo.algos.bc import BC
from rheo.algos.optim import cosine
from rheo.envs.batch import Windows


def windows(obs, action):
    """Windows that lie inside their episodes."""
    return Windows(obs, action, torch.ones(action.shape[:2], dtype=torch.bool))


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_two_modes_are_cloned_with_their_shares(flow, settings, path):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy = flow(1, 1, path=path, steps=20)
    updates = 1200
    algo = BC(policy, None, generator, updates, **settings("bc", lr=3e-3, ema_rate=0.01))
    for _ in range(updates):
        side = (torch.rand((512, 1, 1), generator=generator) < 0.25).float()
        action = 0.6 - 1.2 * side + 0.05 * torch.randn((512, 1, 1), generator=generator)
        algo.update(windows(torch.zeros(512, 1), action))
    sample = algo.deploy(torch.zeros(20_000, 1), generator).flatten()
    assert (sample < 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert sample[sample > 0].mean().item() == pytest.approx(0.6, abs=0.03)
    assert sample[sample > 0.3].std().item() < 0.12


def test_the_schedule_warms_up_and_falls_to_its_floor():
    assert cosine(0.01, 0.02, 0.1) == pytest.approx(0.5)
    assert cosine(0.02, 0.02, 0.1) == pytest.approx(1.0)
    assert cosine(1.0, 0.02, 0.1) == pytest.approx(0.1)
    assert cosine(0.51, 0.02, 0.1) == pytest.approx(0.55)


def test_validation_uses_the_averaged_policy_and_no_global_randomness(flow, settings, generator):
    algo = BC(flow(2, 1), None, generator, 10, **settings("bc"))
    data = windows(torch.zeros(16, 2), torch.zeros(16, 1, 1))
    seeded = [algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] for _ in range(2)]
    assert seeded[0] == seeded[1]
    for parameter in algo.policy.parameters():
        torch.nn.init.ones_(parameter)
    assert algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] == seeded[0]


@pytest.mark.parametrize("learn", [True, False])
def test_actions_past_an_episodes_end_count_only_when_asked(flow, settings, generator, learn):
    algo = BC(flow(2, 1, 4), None, generator, 10, **settings("bc", learn_padding=learn))
    obs, action = torch.randn(8, 2), torch.rand(8, 4, 1)
    inside = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 1, 2, 3])[:, None]
    changed = torch.where(inside[..., None], action, -action)
    losses = [
        algo.validate(Windows(obs, a, inside), torch.Generator().manual_seed(3))["val/loss"]
        for a in (action, changed)
    ]
    noise, t = algo.draw(Windows(obs, action, inside), torch.Generator().manual_seed(3))
    t = t[:, None, None]
    x = t * action + (1 - t) * noise
    velocity = algo.average.velocity(x, t[:, 0, 0], algo.average.features(obs))
    error = (velocity - (action - noise)).square().mean(-1)
    rows = [error[i].mean() if learn else error[i][inside[i]].mean() for i in range(8)]
    assert losses[0].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)
    assert (losses[0] == losses[1]) == (not learn)
