"""DACER: entropy from neighbours, noise that holds it, a chain that climbs."""

import math
from typing import Any

import pytest
import torch
from hills import Hill
from torch import nn

from rheo.algos.dacer import neighbour_entropy
from rheo.envs.batch import Batch

PEAK = 0.3


@pytest.fixture
def agent(learner, flow):
    """DACER as it ships, small: `agent(action_dim, **changes)`."""

    def make(action_dim=1, horizon=1, executed=None, eta=0.0, **changes: Any):
        kind = {"path": "cosine", "prediction": "eps", "clip_a": True, "steps": 5, "eta": eta}
        policy = flow(2, action_dim, horizon, **kind)
        nn.init.normal_(policy.net.outlet.weight, std=0.1)
        parts: Any = {"policy": policy, "critic": Hill(PEAK, gap=1.0), "executed": executed}
        return learner("dacer", 2, action_dim, **parts, **changes)

    return make


def batch_of(rows=64):
    generator = torch.Generator().manual_seed(1)
    obs, ahead = torch.randn((2, rows, 2), generator=generator)
    action = torch.rand((rows, 1, 1), generator=generator) - 0.5
    return Batch(obs, action, torch.ones(rows), torch.full((rows,), 0.9), ahead)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_entropy_of_a_gaussian_is_told_by_200_points(size, generator):
    std = torch.linspace(0.2, 0.4, size) if size > 1 else torch.tensor([0.3])
    points = std * torch.randn((64, 200, size), generator=generator)
    exact = float(std.log().sum()) + size / 2 * math.log(2 * math.pi * math.e)
    found = neighbour_entropy(points)
    assert found.shape == (64,) and float(found.mean()) == pytest.approx(exact, abs=0.06)


def test_the_entropy_of_a_box_and_of_two_far_modes_is_the_log_of_their_size(generator):
    """Two modes take twice the room of one: a single Gaussian's entropy would be far above."""
    box = torch.rand((64, 200, 2), generator=generator)
    assert float(neighbour_entropy(box).mean()) == pytest.approx(0.0, abs=0.1)  # its rim
    side = torch.randint(2, (64, 200, 1), generator=generator).float()
    far = 0.01 * torch.rand((64, 200, 1), generator=generator) + 50 * side
    assert float(neighbour_entropy(far).mean()) == pytest.approx(math.log(0.02), abs=0.06)
    apart = neighbour_entropy(3 * box) - neighbour_entropy(box)
    torch.testing.assert_close(apart, torch.full((64,), 2 * math.log(3.0)))


def test_targets_and_the_actor_s_loss_are_of_noisy_actions_by_the_smaller_critic(agent):
    algo, batch, alpha = agent(), batch_of(), torch.tensor(2.0)
    kicks = algo.kicks(64)
    with torch.no_grad():
        clean = algo.policy.act(batch.next_obs, kicks[:, 0])
        noisy = (clean + 0.1 * 2.0 * kicks[:, 1]).clamp(-1, 1)
        goal = 1 + 0.9 * -(noisy - PEAK).square().sum((-2, -1))
        here = -(batch.action - PEAK).square().sum((-2, -1))
    loss, metrics = algo.critic_loss(batch, kicks, alpha)
    errors = torch.stack([here - goal, here + 1 - goal]).square()
    torch.testing.assert_close(loss.detach(), errors.mean(-1).sum() / 2, rtol=1e-5, atol=1e-6)
    value = algo.policy_loss(batch.next_obs, kicks, alpha)
    torch.testing.assert_close(value.detach(), (noisy - PEAK).square().sum((-2, -1)).mean())
    value.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in algo.policy.net.parameters())


def test_what_is_deployed_has_no_noise_and_what_explores_has(agent, generator):
    algo, obs = agent(), torch.randn(512, 2)
    twin = torch.Generator().manual_seed(0)
    kept = algo.policy.act(obs, algo.policy.start(512, twin))
    torch.testing.assert_close(algo.deploy(obs, generator), kept)
    state = algo.generator.get_state()
    acted = algo.act(obs)
    algo.generator.set_state(state)
    start, kick = algo.kicks(512).unbind(1)
    torch.testing.assert_close(acted, (algo.policy.act(obs, start) + 0.3 * kick).clamp(-1, 1))


@pytest.mark.learns
def test_the_chain_climbs_and_the_noise_comes_to_the_entropy_asked_for(agent):
    """A chain without spread leaves all entropy to the noise, of which the deviation is known."""
    quick = {"entropy_every": 1, "entropy_states": 8, "entropy_samples": 64, "alpha_lr": 0.05}
    algo, batch = agent(policy_lr=3e-3, policy_every=1, **quick), batch_of()
    for _ in range(300):
        algo.update(batch)
    deployed = algo.deploy(batch.obs, torch.Generator().manual_seed(3))
    assert float((deployed - PEAK).abs().mean()) < 0.03
    wanted = math.exp(-0.9) / math.sqrt(2 * math.pi * math.e)
    spread = algo.sample(batch.obs, algo.kicks(64), algo.temperature.value).detach() - PEAK
    assert float(spread.square().mean().sqrt()) == pytest.approx(wanted, rel=0.25)


def test_only_executed_steps_have_entropy_and_temperature_waits_for_its_time(agent):
    algo = agent(horizon=3, executed=2)
    assert algo.temperature.target == pytest.approx(-0.9 * 2)
    obs, noise = torch.randn(4, 2), algo.policy.noise((4, 200, 2), algo.generator)
    changed = noise.clone()
    changed[..., 1, 2, :] += 1.0  # the noise of the step that is never executed
    alpha = torch.tensor(1.0)
    torch.testing.assert_close(algo.entropy(obs, noise, alpha), algo.entropy(obs, changed, alpha))
    algo, batch = agent(entropy_every=3), batch_of()
    told = [set(algo.update(batch)) for _ in range(6)]
    assert ["policy/entropy" in names for names in told] == [False, False, True] * 2
    assert ["policy/loss" in names for names in told] == [False, True] * 3
    first = algo.temperature.value.clone()
    algo.update(batch)
    assert algo.temperature.value == first != agent().temperature.value


def test_actions_of_too_many_elements_and_too_few_samples_are_refused(agent):
    with pytest.raises(ValueError, match="9 executed action elements.*8 at most.*algo=sac"):
        agent(action_dim=3, horizon=3)
    assert agent(action_dim=3, horizon=4, executed=2).temperature.target == pytest.approx(-5.4)
    with pytest.raises(ValueError, match="algo.entropy_samples=3: choose more than 3"):
        agent(entropy_samples=3)
    with pytest.raises(ValueError, match="policy.eta=1: DACER's chain.*set policy.eta=0"):
        agent(eta=1.0)
