"""The tanh-Gaussian policy: its density, its limits, its gradients."""

import math

import pytest
import torch

from rheo.policies.heads import Gaussian, TanhGaussian, log_tanh_slope
from rheo.policies.normalize import Normalizer


def actor(obs_dim=3, action_dim=1, horizon=1, **changes):
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 2, "log_std_min": -5.0, "log_std_max": 2.0}
    return TanhGaussian(obs_dim, action_dim, horizon, activation="relu", **(settings | changes))


def test_the_log_density_integrates_to_one_and_matches_a_histogram():
    policy = actor().double()
    obs = torch.tensor([0.4, -0.2, 1.0], dtype=torch.float64)
    noise = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None, None]
    action, logp = policy.sample(obs.expand(len(noise), 3), noise)
    action = action.flatten()
    assert abs(torch.trapezoid(logp.exp(), action).item() - 1) < 1e-5
    draws = torch.randn(400_000, 1, 1, dtype=torch.float64, generator=torch.manual_seed(1))
    sample = policy.sample(obs.expand(len(draws), 3), draws)[0].flatten()
    for low, high in ((-0.9, -0.5), (-0.1, 0.2), (0.5, 0.9)):
        inside = (action >= low) & (action <= high)
        mass = torch.trapezoid(logp.exp()[inside], action[inside]).item()
        share = ((sample >= low) & (sample <= high)).double().mean().item()
        assert mass == pytest.approx(share, abs=4e-3)


def test_the_log_density_equals_that_of_torch_distributions_summed_over_the_chunk():
    policy = actor(action_dim=2, horizon=3).double()
    obs, noise = torch.randn(5, 3, dtype=torch.float64), policy.noise(5, torch.manual_seed(2))
    action, logp = policy.sample(obs, noise)
    mean, log_std = policy(obs)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(
        normal, torch.distributions.TanhTransform()
    )
    assert logp.shape == (5,)
    torch.testing.assert_close(logp, squashed.log_prob(action).sum((-1, -2)))


def test_the_slope_of_tanh_stays_finite_where_tanh_is_saturated():
    raw = torch.tensor([-60.0, -1.0, 0.0, 1.0, 60.0], requires_grad=True)
    slope = log_tanh_slope(raw)
    torch.testing.assert_close(slope[1:4], (1 - raw[1:4].tanh() ** 2).log())
    assert slope[0].item() == pytest.approx(2 * math.log(2) - 120, abs=1e-3)
    assert slope[4].item() == pytest.approx(2 * math.log(2) - 120, abs=1e-3)
    slope.sum().backward()
    assert raw.grad is not None and raw.grad.isfinite().all()


def test_the_standard_deviation_stays_between_its_bounds():
    policy = actor(log_std_min=-3.0, log_std_max=0.5)
    log_std = policy(1e4 * torch.randn(500, 3))[1]
    assert log_std.min() >= -3 - 1e-5 and log_std.max() <= 0.5 + 1e-5
    assert log_std.max() - log_std.min() > 3


def test_mean_is_the_sample_without_noise_and_gradients_reach_the_network():
    policy = actor(action_dim=2, horizon=3)
    obs = torch.randn(4, 3)
    action, logp = policy.sample(obs, torch.zeros(4, 3, 2))
    assert torch.equal(action, policy.mean(obs)) and action.shape == (4, 3, 2)
    (action.sum() + logp.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_several_noises_per_state_broadcast():
    policy, obs = actor(action_dim=2, horizon=3), torch.randn(4, 3)
    noise = policy.noise((4, 6), torch.manual_seed(0))
    action, logp = policy.sample(obs, noise)
    assert action.shape == (4, 6, 3, 2) and logp.shape == (4, 6)
    alone = policy.sample(obs[1:2], noise[1:2, 3])
    torch.testing.assert_close(action[1, 3], alone[0][0])
    torch.testing.assert_close(logp[1, 3], alone[1][0])


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="must be below"):
        actor(log_std_min=1.0, log_std_max=1.0)


def test_the_density_of_a_given_action_is_that_of_its_sample():
    policy = actor(action_dim=2, horizon=3).double()
    obs, noise = torch.randn(5, 3, dtype=torch.float64), policy.noise(5, torch.manual_seed(2))
    action, logp = policy.sample(obs, noise)
    assert action.abs().max() < 0.999
    torch.testing.assert_close(policy.log_prob(obs, action), logp)
    several = policy.log_prob(obs, action[:, None].expand(5, 4, 3, 2))
    torch.testing.assert_close(several, logp[:, None].expand(5, 4))


def test_actions_on_the_border_have_a_finite_density_and_gradient():
    policy = actor()
    border = torch.tensor([[[-1.0]], [[1.0]], [[0.999]]])
    logp = policy.log_prob(torch.zeros(3, 3), border)
    logp.sum().backward()
    assert logp.isfinite().all() and torch.allclose(logp[1], logp[2])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_observations_are_normalised_before_the_network():
    norm = Normalizer(3, kind="gaussian")
    norm.fit(torch.randn(100, 3, generator=torch.manual_seed(0)) * 4 + 2)
    plain, normed = actor(), actor(obs_norm=norm)
    obs = torch.randn(5, 3)
    torch.testing.assert_close(normed.mean(obs), plain.mean(norm(obs)))


def test_the_plain_gaussian_equals_that_of_torch_distributions_and_clips_only_its_mean():
    torch.manual_seed(0)
    policy = Gaussian(3, 2, 3, width=16, depth=2, activation="tanh", std=0.7).double()
    with torch.no_grad():
        list(policy.net.parameters())[-1].fill_(2.0)
        policy.log_std.add_(torch.randn(3, 2))
    obs = torch.randn(5, 3, dtype=torch.float64)
    noise = policy.noise((5, 4), torch.manual_seed(2))
    raw, logp = policy.sample(obs, noise)
    mean, log_std = policy(obs)
    normal = torch.distributions.Normal(mean[:, None], log_std.exp()[:, None])
    assert raw.shape == (5, 4, 3, 2) and raw.abs().max() > 1
    torch.testing.assert_close(logp, normal.log_prob(raw).sum((-1, -2)))
    torch.testing.assert_close(policy.log_prob(obs, raw), logp)
    assert bool((policy.mean(obs) == 1).all())


def test_the_plain_gaussian_refuses_a_std_that_is_not_positive():
    with pytest.raises(ValueError, match="std=0"):
        Gaussian(3, 2, 1, width=16, depth=2, activation="tanh", std=0.0)
