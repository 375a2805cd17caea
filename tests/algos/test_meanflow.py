"""Mean flow against the exact average velocity, and what it learns."""

import pytest
import torch

from rheo.algos.bc import BC
from rheo.algos.meanflow import MeanFlow
from rheo.envs.batch import Windows

F64 = torch.float64


@pytest.fixture
def meanflow(settings):
    """Makes learners: `meanflow(policy, run_updates, **changes)`."""

    def make(policy, run_updates=100, **changes):
        generator = torch.Generator().manual_seed(0)
        return MeanFlow(policy, generator, run_updates, **settings("meanflow", **changes))

    return make


def test_the_identity_holds_for_exact_average_velocities_and_not_for_others(exact_jumps, meanflow):
    """u = v + (s - t) (du/dt + v . grad_x u), with v the exact velocity."""
    gaps = []
    for slip in (0.0, 0.05):
        policy = exact_jumps(mu=0.3, spread=0.25, slip=slip)
        algo = meanflow(policy)
        generator = torch.Generator().manual_seed(1)
        t, s = (value.double() for value in algo.spans(64, generator))
        x = torch.randn((64, 1, 1), generator=generator, dtype=F64)
        feat = torch.zeros(64, 1, dtype=F64)
        v = policy.velocity(x, t, feat)
        gap = algo.target(policy, x, v, t, s, feat) - policy.average_velocity(x, t, s, feat)
        gaps.append(gap.abs().max().item())
    assert gaps[0] < 1e-9 and gaps[1] > 1e-2


def test_the_target_is_the_derivative_along_the_demonstrations_path(few_step, meanflow):
    """Forward mode against central differences on a network in double precision."""
    policy = few_step(2, 2, 3, width=16).double()
    torch.nn.init.normal_(policy.net.outlet.weight, std=0.2)
    torch.nn.init.normal_(policy.jump.net.layers[-1].weight, std=0.5)
    generator, h = torch.Generator().manual_seed(1), 1e-5
    x, v = (torch.randn((8, 3, 2), generator=generator, dtype=F64) for _ in range(2))
    feat = policy.features(torch.randn((8, 2), generator=generator, dtype=F64))
    t = torch.linspace(0.1, 0.5, 8, dtype=F64)
    s = t + 0.4
    ahead, behind = (
        policy.average_velocity(x + way * h * v, t + way * h, s, feat) for way in (1, -1)
    )
    expected = v + 0.4 * (ahead - behind) / (2 * h)
    torch.testing.assert_close(
        meanflow(policy).target(policy, x, v, t, s, feat), expected, rtol=0, atol=1e-7
    )


def test_jumps_are_sorted_times_beside_the_given_share_of_velocities(few_step, meanflow):
    algo = meanflow(few_step(1, 1), flow_share=0.75)
    noise, t, s = algo.draw(4000, torch.Generator().manual_seed(1))
    jumps, ends = t[:1000], s[:1000]
    assert noise.shape == (4000, 1, 1) and (t[1000:] == s[1000:]).all()
    assert (jumps >= 0).all() and (jumps < ends).all() and (ends <= 1).all()
    assert jumps.mean().item() == pytest.approx(1 / 3, abs=0.03)  # the lesser of two uniforms
    assert ends.mean().item() == pytest.approx(2 / 3, abs=0.03)
    assert t[1000:].mean().item() == pytest.approx(1 / 2, abs=0.01)


def test_without_jumps_it_is_flow_matching(exact_jumps, meanflow):
    policy = exact_jumps(slip=0.3)
    algo = meanflow(policy, flow_share=1.0)
    action = torch.rand((16, 1, 1), generator=algo.generator, dtype=F64)
    obs, inside = torch.zeros(16, 1, dtype=F64), torch.ones((16, 1), dtype=torch.bool)
    losses = algo.losses(policy, Windows(obs, action, inside), torch.Generator().manual_seed(3))
    noise, t, _ = algo.draw(16, torch.Generator().manual_seed(3))
    cloned = BC.loss(policy, obs, action, None, noise, t)
    gradients = [torch.autograd.grad(loss, policy.net.mu)[0] for loss in (losses["loss"], cloned)]
    torch.testing.assert_close(losses["loss"], cloned)
    torch.testing.assert_close(*gradients)


def test_the_target_has_no_gradient_and_the_weight_neither(few_step, meanflow):
    policy = few_step(2, 2, 3)
    torch.nn.init.normal_(policy.net.outlet.weight, std=0.2)
    algo = meanflow(policy, flow_share=0.5, weight_power=0.5, weight_floor=0.01)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((16, 2), generator=generator)
    action = torch.rand((16, 3, 2), generator=generator)
    inside = torch.ones((16, 3), dtype=torch.bool)
    losses = algo.losses(policy, Windows(obs, action, inside), torch.Generator().manual_seed(3))
    noise, t, s = algo.draw(16, torch.Generator().manual_seed(3))
    x = t[:, None, None] * action + (1 - t)[:, None, None] * noise
    feat, v = policy.features(obs), action - noise
    target = algo.target(policy, x[:8], v[:8], t[:8], s[:8], feat[:8]).detach()
    error = policy.average_velocity(x, t, s, feat) - torch.cat([target, v[8:]])
    error = error.square().mean((1, 2))
    expected = (error / (error.detach() + 0.01).sqrt()).mean()
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["jump_loss"], error[:8].mean().detach())
    weight = policy.net.layers[0].weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (losses["loss"], expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.learns
def test_one_step_clones_a_gaussian_and_the_flows_own_single_step_does_not(few_step, meanflow):
    torch.manual_seed(0)
    generator, updates = torch.Generator().manual_seed(0), 200
    algo = meanflow(few_step(1, 1, width=32), updates, lr=1e-2, ema_rate=0.04)
    obs, inside = torch.zeros(128, 1), torch.ones((128, 1), dtype=torch.bool)
    metrics = {}
    for _ in range(updates):
        action = 0.3 + 0.5 * torch.randn((128, 1, 1), generator=generator)
        metrics = algo.update(Windows(obs, action, inside))
    assert set(metrics) == {"policy/loss", "policy/flow_loss", "policy/jump_loss"}
    policy, obs = algo.average, torch.zeros(4000, 1)
    noise = policy.noise(4000, generator)
    with torch.no_grad():
        one, many = (policy.act(obs, noise, steps, clip=False).flatten() for steps in (1, 50))
        flat = torch.zeros(4000)
        single = (noise + policy.velocity(noise, flat, policy.features(obs))).flatten()
    # of three seeds the worst: means 0.03 apart, 0.18 too narrow, 0.112 against 0.247
    assert one.mean().item() == pytest.approx(0.3, abs=0.08)
    assert one.std().item() == pytest.approx(many.std().item(), abs=0.28)
    assert transport(one, many) < 0.65 * transport(single, many)


def transport(x, y):
    """Wasserstein-1 distance of two samples of equal size."""
    return (x.sort().values - y.sort().values).abs().mean().item()


@pytest.mark.parametrize(
    "changes", [{"flow_share": 0.0}, {"weight_power": -1.0}, {"weight_floor": 0.0}], ids=str
)
def test_impossible_settings_are_refused_by_their_key(exact_jumps, meanflow, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        meanflow(exact_jumps(), **changes)
