"""Behaviour cloning recovers the demonstrations' distribution."""

import pytest
import torch

from rheo.algos.bc import BC
from rheo.algos.optim import cosine
from rheo.envs.datasets import Windows


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
        algo.update(Windows(torch.zeros(512, 1), action))
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
    data = Windows(torch.zeros(16, 2), torch.zeros(16, 1, 1))
    seeded = [algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] for _ in range(2)]
    assert seeded[0] == seeded[1]
    for parameter in algo.policy.parameters():
        torch.nn.init.ones_(parameter)
    assert algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] == seeded[0]
