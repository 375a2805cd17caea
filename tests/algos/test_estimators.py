"""The reverse-flow-matching estimators against closed forms and quadrature."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm, truncnorm

from rheo.algos import estimators
from rheo.algos.returns import dual_step
from rheo.policies import paths

MEAN, STD = 0.4, 0.5  # the Gaussian target
WEIGHT, CENTRE, WIDTH = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.15, 0.2])


def schedule(name, t):
    """A and B of a path at one time."""
    a, b, _, _ = paths.make_path(name, None).coefficients(torch.tensor(t, dtype=torch.float64))
    return float(a), float(b)


def column(values):
    """One row, one dimension, N particles: [N, 1, 1]."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)[:, None, None]


def gaussian_case(path, t, count=400_000, seed=0):
    """Exact posterior noises of the Gaussian target with all that the estimators take."""
    A, B = schedule(path, t)
    x = A * MEAN + 0.7 * math.sqrt(A**2 * STD**2 + B**2)
    r = B**2 / (A**2 * STD**2)
    mean = B * (x - A * MEAN) / (A**2 * STD**2 + B**2)
    eps = mean + np.random.default_rng(seed).standard_normal(count) / math.sqrt(1 + r)
    a = (x - B * eps) / A
    grad = -(a - MEAN) / STD**2
    shape = torch.tensor([[A]], dtype=torch.float64), torch.tensor([[B]], dtype=torch.float64)
    weight = torch.full((count, 1), 1 / count, dtype=torch.float64)
    return column(eps), column(a), column(grad), *shape, weight, mean, r


@pytest.mark.parametrize(
    ("path", "t", "m", "share"), [("linear", 0.5, 0.62610, 0.2), ("cosine", 0.8, 0.38143, 0.7031)]
)
def test_a_gaussian_target_gives_the_closed_form_mean_variance_and_coefficient(path, t, m, share):
    eps, a, grad, A, B, weight, mean, r = gaussian_case(path, t)
    assert mean == pytest.approx(m, abs=1e-5)
    noise = estimators.noise_mean(weight, eps).item()
    gradient = estimators.gradient_mean(weight, grad, A, B).item()
    control = estimators.controls(eps, a, grad, A, B, box=False)
    combined, ratio = estimators.combined_mean(weight, eps, control, ridge=0.0)
    error = 3 / math.sqrt(len(eps))
    assert noise == pytest.approx(mean, abs=error / math.sqrt(1 + r))
    assert gradient == pytest.approx(mean, abs=error * r / math.sqrt(1 + r))
    assert combined.item() == pytest.approx(mean, abs=1e-9)
    assert ratio.item() == pytest.approx(0, abs=1e-9)
    each = -(B / A) * grad
    assert eps.var().item() == pytest.approx(1 / (1 + r), rel=0.02)
    assert each.var().item() == pytest.approx(r**2 / (1 + r), rel=0.02)
    stein = control[..., 0]
    coefficient = -((eps - eps.mean()) * stein).mean() / stein.var()
    assert coefficient.item() == pytest.approx(share, abs=1e-3)


def mixture(a):
    """Energy and its gradient of a two-mode mixture."""
    parts = np.log(WEIGHT / WIDTH) - (a[..., None] - CENTRE) ** 2 / (2 * WIDTH**2)
    energy = np.asarray(logsumexp(parts, axis=-1))
    share = np.exp(parts - energy[..., None])
    return energy, (share * -(a[..., None] - CENTRE) / WIDTH**2).sum(-1)


def quadrature(x, A, B, low=-2.6, high=2.6, count=20001, energy=mixture):
    """The posterior over noises as a weighted grid in the estimators' shapes."""
    a = np.linspace(low, high, count)
    eps = (x - A * a) / B
    value, grad = energy(a)
    log_p = -(eps**2) / 2 + value
    p = np.exp(log_p - log_p.max())
    p[[0, -1]] *= 0.5
    p /= p.sum()
    shape = torch.tensor([[A]], dtype=torch.float64), torch.tensor([[B]], dtype=torch.float64)
    return column(eps), column(a), column(grad), *shape, torch.as_tensor(p)[:, None]


@pytest.mark.parametrize("t", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_the_combination_never_has_more_variance_than_either_estimator(t):
    A, B = schedule("linear", t)
    for z in (-1, 0, 1):
        for y in (-1.0, 0.0, 1.0):
            for centre, width in zip(CENTRE, WIDTH, strict=True):
                x = A * (centre + width * z) + B * y
                eps, a, grad, *ab, weight = quadrature(x, A, B)
                control = estimators.controls(eps, a, grad, *ab, box=False)
                mean, ratio = estimators.combined_mean(weight, eps, control, ridge=0.0)
                exact = estimators.noise_mean(weight, eps)
                assert estimators.gradient_mean(weight, grad, *ab).item() == pytest.approx(
                    exact.item(), abs=1e-5 * max(1, abs(exact.item()))
                )
                assert mean.item() == pytest.approx(exact.item(), abs=1e-5)
                w = weight[..., None]
                noise = (w * (eps - exact).square()).sum()
                gradient = (w * (-(ab[1] / ab[0]) * grad - exact).square()).sum()
                assert ratio * noise <= min(noise, gradient) * (1 + 1e-6)


def box_energy(a):
    """An energy that rises towards the wall a = 1."""
    return 1.5 * a - 0.6 * np.sin(3 * a), 1.5 - 1.8 * np.cos(3 * a)


def box_case(t):
    A, B = schedule("linear", t)
    return quadrature(0.8 * A + 0.3 * B, A, B, -1, 1, 200_001, box_energy)


@pytest.mark.parametrize(
    ("t", "share"), [(0.3, 0.124), (0.5, 0.055), (0.7, 0.0014), (0.9, 0.0003), (0.95, 0.0010)]
)
def test_safe_controls_have_mean_zero_on_a_box_and_reduce_the_variance_as_derived(t, share):
    eps, a, grad, A, B, weight = box_case(t)
    control = estimators.controls(eps, a, grad, A, B, box=True)
    mean = (weight[..., None, None] * control).sum(0)
    assert mean.abs().max().item() < 1e-6 * max(1.0, (B / A).item() * 100)
    combined, ratio = estimators.combined_mean(weight, eps, control, ridge=0.0)
    assert combined.item() == pytest.approx(estimators.noise_mean(weight, eps).item(), abs=1e-6)
    assert ratio.item() == pytest.approx(share, rel=0.15, abs=1e-4)


@pytest.mark.parametrize(
    ("t", "true", "naive"),
    [(0.3, 0.486, -4.017), (0.5, 0.5817, -1.9099), (0.7, 0.443, -1.052), (0.9, -0.092, -0.324)],
)
def test_the_plain_gradient_is_biased_on_a_box(t, true, naive):
    eps, _, grad, A, B, weight = box_case(t)
    assert estimators.noise_mean(weight, eps).item() == pytest.approx(true, abs=1e-3)
    assert estimators.gradient_mean(weight, grad, A, B).item() == pytest.approx(naive, abs=1e-3)


def test_the_truncated_proposal_is_right_at_the_noise_end():
    A, B = schedule("linear", 0.05)
    rows = 20_000
    x = torch.full((rows, 1), 0.8 * A + 0.3 * B, dtype=torch.float64)
    shape = torch.tensor([[A]], dtype=torch.float64), torch.tensor([[B]], dtype=torch.float64)
    low, high = estimators.box_noise(x, *shape)
    uniform = torch.rand(
        (64, rows, 1), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    draw = estimators.propose_prior(uniform, low, high)
    a = (x - B * draw.eps) / A
    assert a.abs().max() <= 1 + 1e-9
    energy = torch.as_tensor(box_energy(a.numpy())[0]).sum(-1)
    weight = estimators.weights(draw, energy)
    assert torch.allclose(weight, torch.softmax(energy, 0), atol=1e-12)
    assert estimators.noise_mean(weight, draw.eps).mean().item() == pytest.approx(0.3264, abs=5e-3)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_self_proposal_estimates_the_same_mean_from_a_wrong_guess(share):
    A, B = schedule("linear", 0.5)
    rows = 4000
    x = torch.full((rows, 1), 0.8 * A + 0.3 * B, dtype=torch.float64)
    shape = torch.tensor([[A]], dtype=torch.float64), torch.tensor([[B]], dtype=torch.float64)
    low, high = estimators.box_noise(x, *shape)
    uniform = torch.rand(
        (256, rows, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    guess, std = torch.full_like(x, 1.2), torch.full_like(x, 0.3)
    draw = estimators.propose_self(uniform, low, high, guess, std, share)
    energy = torch.as_tensor(box_energy(((x - B * draw.eps) / A).numpy())[0]).sum(-1)
    # all rows are one problem: pooled, the O(1 / N) bias of a single row's estimate vanishes
    pooled = estimators.Proposal(draw.eps.reshape(-1, 1, 1), draw.log_density.reshape(-1, 1))
    weight = estimators.weights(pooled, energy.reshape(-1, 1))
    assert estimators.noise_mean(weight, pooled.eps).item() == pytest.approx(0.5817, abs=5e-3)


def test_the_mixture_density_integrates_to_one_over_the_box():
    low, high = torch.tensor([[-0.7]]), torch.tensor([[1.9]])
    uniform = torch.rand((4000, 1, 1), generator=torch.Generator().manual_seed(2))
    draw = estimators.propose_self(
        uniform, low, high, torch.tensor([[3.0]]), torch.tensor([[0.4]]), 0.7
    )
    assert (draw.eps >= low).all() and (draw.eps <= high).all()
    # E_q[1 / q] is the length of the interval when q is a density on all of it
    assert (-draw.log_density).exp().mean().item() == pytest.approx(2.6, rel=0.05)


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 2.0), (5.0, 6.0), (-9.0, -8.5), (-40.0, -39.0), (30.0, 31.0), (-math.inf, 0.3)],
)
def test_the_truncated_normal_matches_an_independent_one_even_far_in_the_tails(low, high):
    uniform = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    bounds = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    mine = estimators.truncated_normal(uniform, *bounds)
    assert (mine >= low).all() and (mine <= high).all()
    mass = estimators.log_mass(*bounds).item()
    assert mass == pytest.approx(truncnorm_log_mass(low, high), rel=1e-6)
    if abs(low) < 20 or math.isinf(low):
        flip = low > 0
        quantile = 1 - uniform if flip else uniform
        assert np.allclose(mine, truncnorm(low, high).ppf(quantile), atol=1e-7)


def truncnorm_log_mass(low, high):
    if low > 0:
        low, high = -high, -low
    top, bottom = norm.logcdf(high), norm.logcdf(low)
    return top + math.log1p(-math.exp(bottom - top)) if math.isfinite(low) else top


def test_the_exact_posterior_mean_flows_to_the_target():
    steps, count = 100, 20_000
    x = np.random.default_rng(0).standard_normal(count)
    grid = np.linspace(-2.6, 2.6, 401)
    energy, _ = mixture(grid)
    for k in range(steps):
        t = (k + 0.5) / steps
        nodes = np.linspace(x.min() - 0.1, x.max() + 0.1, 200)
        eps = (nodes[:, None] - t * grid) / (1 - t)
        log_p = -(eps**2) / 2 + energy
        p = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
        velocity = (p * grid).sum(1) - (p * eps).sum(1)
        x = x + np.interp(x, nodes, velocity) / steps
    assert x.mean() == pytest.approx(0.1700, abs=0.015)
    assert x.std() == pytest.approx(0.5374, abs=0.01)
    assert (x < 0).mean() == pytest.approx(0.3043, abs=0.015)


def test_the_spread_rule_finds_the_temperature_of_a_quadratic_energy():
    curvature, target = 3.0, 0.2
    log_T = torch.tensor(0.5).log()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        samples = (log_T.exp() / curvature).sqrt() * torch.randn(2000, generator=generator)
        dual_step(log_T, samples.std(), target, rate=0.05)
    assert (log_T.exp() / curvature).sqrt().item() == pytest.approx(target, rel=0.02)
    assert log_T.exp().item() == pytest.approx(curvature * target**2, rel=0.04)


@pytest.mark.parametrize(("dim", "share"), [(1, 0.866), (3, 0.650), (6, 0.422)])
@pytest.mark.parametrize("T", [0.03, 0.3, 3.0])
def test_the_effective_share_on_own_samples_does_not_depend_on_the_temperature(dim, share, T):
    generator = torch.Generator().manual_seed(0)
    sample = math.sqrt(T) * torch.randn((400_000, dim), generator=generator)
    weight = torch.softmax(-0.5 * sample.square().sum(-1) / T, 0)[:, None]
    assert estimators.effective_share(weight).item() == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize(
    ("t", "share"), [(0.1, 0.0614), (0.3, 0.2306), (0.5, 0.4826), (0.8, 0.9030), (0.95, 0.9946)]
)
def test_the_effective_share_of_the_prior_meets_its_closed_form(t, share):
    A, B = schedule("linear", t)
    x = A * MEAN + 0.7 * math.sqrt(A**2 * STD**2 + B**2)
    eps = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy = -((x - B * eps) / A - MEAN).square() / (2 * STD**2)
    weight = torch.softmax(energy, 0)[:, None]
    assert estimators.effective_share(weight).item() == pytest.approx(share, rel=0.05)


def test_the_published_control_variate_corrects_the_action_as_the_authors_write_it():
    """Their formula for the action, term by term, against ours for the noise."""
    rng = np.random.default_rng(0)
    count, rows, dims, A, B, ridge, limit = 50, 3, 2, 0.6, 0.4, 1e-4, 0.3
    eps, gradient = rng.normal(size=(2, count, rows, dims))
    gradient *= np.array([0.1, 20.0])  # so that the limit holds in some places and not in others
    x = rng.normal(size=(rows, dims))
    w = rng.dirichlet(np.ones(count), size=rows).T[..., None]
    action = (x - B * eps) / A
    score = A / B * eps + gradient
    mean, level = (w * action).sum(0), (w * score).sum(0)
    top = (w**2 * (action - mean) * (score - level)).sum(0)
    plain = -top / ((w**2 * (score - level) ** 2).sum(0) + ridge)
    assert (np.abs(plain) > limit).any() and (np.abs(plain) < limit).any()
    action = mean + np.clip(plain, -limit, limit) * level
    shape = torch.full((rows, 1), A), torch.full((rows, 1), B)
    parts = (torch.as_tensor(part) for part in (eps, np.zeros_like(eps), gradient))
    eps_, a, grad = parts
    stein = estimators.controls(eps_, a, grad, *shape, box=False)[..., 0]
    weight = torch.as_tensor(w[..., 0])
    got, _ = estimators.published_mean(weight, eps_, stein, *shape, ridge, limit)
    torch.testing.assert_close(got, torch.as_tensor((x - A * action) / B), rtol=1e-6, atol=1e-6)


def posterior_errors(t, energy, draw, estimate, count=100, rows=1000):
    """Error of an estimate of E[eps | x] in posterior deviations, over x of the target itself."""
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.full((rows, 1), value, dtype=torch.float64) for value in (t, 1 - t))
    point = draw(torch.randn((rows, 1), generator=generator, dtype=torch.float64))
    x = A * point + B * torch.randn((rows, 1), generator=generator, dtype=torch.float64)
    grid = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    eps = (x - A * grid) / B
    mass = torch.softmax(energy(grid[:, None]) - eps.square() / 2, -1)
    exact = (mass * eps).sum(-1, keepdim=True)
    std = (mass * (eps - exact).square()).sum(-1, keepdim=True).sqrt()
    got = estimate(x, A, B, lambda *shape: torch.rand(
        (count, rows, 1, *shape), generator=generator, dtype=torch.float64
    ).clamp(1e-6, 1 - 1e-6))  # fmt: skip
    return [((each - exact) / std).square().mean().sqrt().item() for each in got]


@pytest.mark.parametrize(("t", "noise", "controlled"), [(0.1, 6.5, None), (0.9, 0.13, 0.007)])
def test_the_published_estimator_wins_where_the_action_is_nearly_told_and_only_there(
    t, noise, controlled
):
    """Actions N(.3, .1^2) before a tanh, 100 noises of the prior."""

    def energy(y):
        a = y.tanh()
        jacobian = (1 - a.square()).clamp_min(1e-12).log()
        return (jacobian - (a - 0.3).square() / (2 * 0.1**2)).sum(-1)

    def estimate(x, A, B, uniform):
        eps = torch.special.ndtri(uniform())
        y = ((x - B * eps) / A).requires_grad_()
        value = energy(y)
        grad = torch.autograd.grad(value.sum(), y)[0]
        stein = estimators.controls(eps, y.detach(), grad, A, B, box=False)[..., 0]
        weight = torch.softmax(value.detach(), 0)
        mean, _ = estimators.published_mean(weight, eps, stein, A, B, 1e-4, 2.0)
        return estimators.noise_mean(weight, eps), mean

    plain, better = posterior_errors(t, energy, lambda z: (0.3 + 0.1 * z).atanh(), estimate)
    assert plain == pytest.approx(noise, rel=0.25)
    if controlled is None:
        assert better > 0.7 * plain
    else:
        assert better == pytest.approx(controlled, rel=0.5)


@pytest.mark.parametrize(("t", "expected"), [(0.1, 0.18), (0.6, 0.19), (0.9, 0.15)])
def test_noises_inside_the_box_err_little_at_every_time(t, expected):
    """The same actions on the box, 100 noises of the prior between the walls."""

    def energy(a):
        inside = torch.where(a.abs() <= 1, 0.0, -torch.inf)
        return (inside - (a - 0.3).square() / (2 * 0.1**2)).sum(-1)

    def estimate(x, A, B, uniform):
        draws = estimators.propose_prior(uniform(), *estimators.box_noise(x, A, B))
        weight = estimators.weights(draws, energy(((x - B * draws.eps) / A).clamp(-1, 1)))
        return (estimators.noise_mean(weight, draws.eps),)

    (error,) = posterior_errors(t, energy, lambda z: 0.3 + 0.1 * z, estimate)
    assert error == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize("guessed", [False, True])
def test_proposals_without_a_box_are_those_between_infinite_walls(guessed):
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand((8, 5, 2), generator=generator, dtype=torch.float64)
    wall = torch.full((5, 2), torch.inf, dtype=torch.float64)
    guess: Any = ()
    if guessed:
        mean = torch.randn((5, 2), generator=generator, dtype=torch.float64)
        guess = mean, torch.full_like(mean, 0.3), 0.75
    free = estimators.propose_free(uniform, *guess)
    propose = estimators.propose_self if guessed else estimators.propose_prior
    boxed = propose(uniform, -wall, wall, *guess)
    torch.testing.assert_close(free.eps, boxed.eps)
    torch.testing.assert_close(free.log_density, boxed.log_density)
