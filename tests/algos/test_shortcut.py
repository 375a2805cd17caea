"""Shortcut models against the exact average velocity, and what they learn."""

import pytest
import torch

from rheo.algos.bc import BC
from rheo.algos.shortcut import Shortcut
from rheo.envs.batch import Windows

F64 = torch.float64


@pytest.fixture
def shortcut(settings):
    """Makes learners: `shortcut(policy, run_updates, **changes)`."""

    def make(policy, run_updates=100, **changes):
        generator = torch.Generator().manual_seed(0)
        return Shortcut(policy, generator, run_updates, **settings("shortcut", **changes))

    return make


@pytest.mark.parametrize("max_steps,levels", [(1, 2), (2, 3), (8, 5), (15, 5), (16, 6), (20, 6)])
def test_jumps_are_the_steps_of_every_power_of_two_up_to_the_most_steps(
    exact_jumps, shortcut, max_steps, levels
):
    """M = floor(log2 K) + 2: the smallest length that is learnt is 1 / K, not 2^-K."""
    algo = shortcut(exact_jumps(), max_steps=max_steps)
    t, s = algo.spans(20_000, torch.Generator().manual_seed(1))
    found = set(zip(t.tolist(), s.tolist(), strict=True))
    assert algo.levels == levels
    lengths = [2.0**-j for j in range(levels - 1)]
    assert lengths[-1] >= 1 / max_steps > lengths[-1] / 2
    assert found == {(i * d, (i + 1) * d) for d in lengths for i in range(round(1 / d))}
    for d in lengths:  # levels are uniform, and so is the place on each
        assert (s - t == d).float().mean().item() == pytest.approx(1 / len(lengths), abs=0.02)
    early = (t[s - t == lengths[-1]] < 0.5).float().mean().item()
    assert early == pytest.approx(1.0 if max_steps == 1 else 0.5, abs=0.04)


def test_exact_average_velocities_are_self_consistent_and_others_are_not(exact_jumps, shortcut):
    x = torch.randn((64, 1, 1), generator=torch.Generator().manual_seed(2), dtype=F64)
    feat = torch.zeros(64, 1, dtype=F64)
    gaps = []
    for slip in (0.0, 0.05):
        policy = exact_jumps(mu=0.3, spread=0.25, slip=slip)
        algo = shortcut(policy, max_steps=1024)
        t, s = (value.double() for value in algo.spans(64, torch.Generator().manual_seed(1)))
        jump = s - t > 2.0**-10  # the half steps of the finest are velocities: not exact
        assert jump.sum() > 48
        target = algo.target(policy, x, x, t, s, feat)
        gaps.append((target - policy.average_velocity(x, t, s, feat)).abs()[jump].max().item())
    assert gaps[0] < 1e-9 and gaps[1] > 1e-2


def test_the_finest_jump_is_learnt_from_two_euler_steps_of_the_velocity(exact_jumps, shortcut):
    policy = exact_jumps(mu=0.3, spread=0.25)
    algo = shortcut(policy, max_steps=4)
    x, feat = torch.randn(4, 1, 1, dtype=F64), torch.zeros(4, 1, dtype=F64)
    t = torch.arange(4, dtype=F64) / 4
    target = algo.target(policy, x, x, t, t + 0.25, feat)
    middle = x + policy.velocity(x, t, feat) / 8
    end = middle + policy.velocity(middle, t + 0.125, feat) / 8
    torch.testing.assert_close(target, (end - x) * 4)


def test_without_jumps_it_is_flow_matching(exact_jumps, shortcut):
    policy = exact_jumps(slip=0.3)
    algo = shortcut(policy, consistency_share=0.0)
    action = torch.rand((16, 1, 1), generator=algo.generator, dtype=F64)
    obs, inside = torch.zeros(16, 1, dtype=F64), torch.ones((16, 1), dtype=torch.bool)
    losses = algo.losses(policy, Windows(obs, action, inside), torch.Generator().manual_seed(3))
    noise, t, s = algo.draw(16, torch.Generator().manual_seed(3))
    cloned = BC.loss(policy, obs, action, None, noise, t)
    assert (t == s).all() and set(losses) == {"loss", "flow_loss"}
    gradients = [torch.autograd.grad(loss, policy.net.mu)[0] for loss in (losses["loss"], cloned)]
    torch.testing.assert_close(losses["loss"], cloned)
    torch.testing.assert_close(*gradients)


def test_the_loss_is_the_mean_of_both_kinds_of_rows_and_its_target_has_no_gradient(
    few_step, shortcut
):
    policy = few_step(1, 2, 3)
    algo = shortcut(policy, consistency_share=0.25, learn_padding=False)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((16, 1), generator=generator)
    action = torch.rand((16, 3, 2), generator=generator)
    inside = torch.arange(3) < torch.tensor([1, 2, 3, 3] * 4)[:, None]
    changed = torch.where(inside[..., None], action, -action)
    losses, other = (
        algo.losses(policy, Windows(obs, a, inside), torch.Generator().manual_seed(3))
        for a in (action, changed)
    )
    both = 0.25 * losses["jump_loss"] + 0.75 * losses["flow_loss"]
    torch.testing.assert_close(losses["loss"].detach(), both)
    torch.testing.assert_close(losses["flow_loss"], other["flow_loss"])
    noise, t, s = algo.draw(16, torch.Generator().manual_seed(3))
    x = t[:, None, None] * action + (1 - t)[:, None, None] * noise
    feat, v = policy.features(obs), action - noise
    target = algo.target(policy, x[:4], v[:4], t[:4], s[:4], feat[:4]).detach()
    error = policy.average_velocity(x, t, s, feat) - torch.cat([target, v[4:]])
    error = (error.square().mean(-1) * inside).sum(1) / inside.sum(1)
    torch.testing.assert_close(losses["loss"], error.mean())
    weight = policy.net.layers[0].weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (losses["loss"], error.mean())]
    torch.testing.assert_close(*gradients)


@pytest.mark.learns
def test_one_step_clones_two_modes_and_the_flows_own_single_step_does_not(few_step, shortcut):
    torch.manual_seed(0)
    generator, updates = torch.Generator().manual_seed(0), 400
    algo = shortcut(few_step(1, 1, width=32), updates, lr=5e-3, ema_rate=0.02)
    obs, inside = torch.zeros(256, 1), torch.ones((256, 1), dtype=torch.bool)
    metrics = {}
    for _ in range(updates):
        side = (torch.rand((256, 1, 1), generator=generator) < 0.25).float()
        metrics = algo.update(Windows(obs, 0.6 - 1.2 * side, inside))
    assert set(metrics) == {"policy/loss", "policy/flow_loss", "policy/jump_loss"}
    policy, obs = algo.average, torch.zeros(4000, 1)
    noise = policy.noise(4000, generator)
    with torch.no_grad():
        one, many = (policy.act(obs, noise, steps, clip=False).flatten() for steps in (1, 50))
        flat = torch.zeros(4000)
        single = (noise + policy.velocity(noise, flat, policy.features(obs))).flatten()
    assert (one < 0).float().mean().item() == pytest.approx(0.25, abs=0.08)
    assert one.std().item() == pytest.approx(many.std().item(), abs=0.15)
    # over seeds up to .14, and for the flow's own single step at least .39
    assert transport(one, many) < 0.22 < 0.3 < transport(single, many)


def transport(x, y):
    """Wasserstein-1 distance of two samples of equal size."""
    return (x.sort().values - y.sort().values).abs().mean().item()


@pytest.mark.parametrize("changes", [{"consistency_share": 1.0}, {"max_steps": 0}], ids=str)
def test_impossible_settings_are_refused_by_their_key(exact_jumps, shortcut, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        shortcut(exact_jumps(), **changes)
