"""Variance of two policy gradients on a Gaussian: a chain's likelihood against clean matching.

The policy N(mu, c^2) is exact, the advantage is A = (a - mu) / c, the gradient is with respect to
mu. tau = 1 - t is 1 at noise; y = a + sigma eps with sigma = tau / (1 - tau) are the path's points
in units of the action. A chain's step matches the noisy target of its two ends, weighted matching
the clean action: the same mean, and the noisy one's excess variance grows as the step shrinks. If
every step of the chain is taken, though, the excess cancels in the sum, for parameters that all
times share: what remains is a gain where steps are subsampled (arXiv:2509.25050 claims it for every
case).

How errors are weighted over time decides how much of a gradient is signal. For a parameter that
shifts the predicted action alike at all times the shares are known in closed form: late times tell
next to nothing of an action that the point x shows already, and divide its error by (1 - t).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rheo.algos.awm_gae import T_MAX, T_MIN
from rheo.algos.losses import TimeWeight, time_weight
from rheo.scripts.paired import Goal, Plan, Row, with_ratio

STD = 0.5  # c of the policy; mu is 0, on which nothing depends
STEPS = [(levels, tau) for levels in (10, 40) for tau in (0.2, 0.5, 0.8, 0.9)]
CHAINS = [(2, 2), (4, 4), (10, 10), (50, 50), (10, 1), (10, 2), (10, 5), (50, 1), (50, 5), (50, 10)]
WEIGHTS: tuple[TimeWeight, ...] = ("uniform", "noise", "noise2", "data2", "likelihood")
WIDTH = 0.2  # of the policy that is shifted
NEAR = (Goal("ratio", ">=", 0.97), Goal("ratio", "<=", 1.03))


def measure(plan: Plan) -> Iterator[Row]:
    """Excess of single steps beside its closed form; variances of whole and subsampled chains."""
    rows = 20_000 if plan.quick else 400_000
    generator = torch.Generator().manual_seed(0)
    for levels, tau in STEPS:
        found, known = step_ratio(levels, tau, rows, generator), closed_ratio(levels, tau)
        name = f"variance of one step, K={levels}, tau={tau:g}"
        row = Row(name, "DDPO/AWM", found, "closed form", known, goals=NEAR)
        yield with_ratio(row, np.array([found / known]))
    for levels, taken in CHAINS:
        chain = chain_gradient(levels, taken, rows // 2, generator).var().item()
        matched = matching_gradient(taken, rows // 2, generator).var().item()
        name = f"variance, {taken} of {levels} steps"
        row = Row(name, "AWM", matched, f"DDPO {taken} of {levels}", chain)
        yield with_ratio(row, np.array([matched / chain]))
    for kind in WEIGHTS:
        found, known = shift_share(kind, max(rows, 200_000), generator), closed_share(kind)
        row = Row(
            f"signal over noise, weighting={kind}", "", found, "closed form", known, goals=NEAR
        )
        yield with_ratio(row, np.array([found / known]))


def sigma(tau: Tensor | float) -> Tensor:
    """Noise scale of a time."""
    tau = torch.as_tensor(tau, dtype=torch.float64)
    return tau / (1 - tau)


def closed_ratio(levels: int, tau: float) -> float:
    """Variance of a step's gradient over that of matching at its noisier end, 1 + excess / P."""
    high, low = sigma(tau).item() ** 2, sigma(tau - 1 / levels).item() ** 2
    posterior = STD**2 * high / (STD**2 + high)
    return 1 + high * low / (high - low) / (posterior + posterior**2 / STD**2)


def step_ratio(levels: int, tau: float, rows: int, generator: torch.Generator) -> float:
    """The same, measured."""
    high, low = sigma(tau), sigma(tau - 1 / levels)
    a, first, second = torch.randn((3, rows), generator=generator, dtype=torch.float64)
    a = STD * a
    before = a + low * first
    now = before + (high**2 - low**2).sqrt() * second
    denoised = STD**2 / (STD**2 + high**2) * now
    noisy = now - high**2 * (now - before) / (high**2 - low**2)
    clean, chained = (a / STD * (target - denoised) for target in (a, noisy))
    return (chained.var() / clean.var()).item()


def chain_gradient(levels: int, taken: int, rows: int, generator: torch.Generator) -> Tensor:
    """A times the score of `taken` random steps of a chain, scaled to all, [rows].

    The chain runs from the action to noise, x_b = r x_a + noise with r = (1 - b) / (1 - a), whose
    exact reversal is Gaussian with gain G = r V_a / V_b, V_tau = (1 - tau)^2 c^2 + tau^2.
    """
    x = STD * torch.randn(rows, generator=generator, dtype=torch.float64)
    advantage, scores = x / STD, []
    for k in range(levels):
        start, end = k / levels, (k + 1) / levels
        shrink = (1 - end) / (1 - start)
        kick = torch.randn(rows, generator=generator, dtype=torch.float64)
        after = shrink * x + math.sqrt(end**2 - (shrink * start) ** 2) * kick
        here, there = ((1 - tau) ** 2 * STD**2 + tau**2 for tau in (start, end))
        gain = shrink * here / there
        slope = (1 - start) - gain * (1 - end)  # of the reversal's mean in mu
        scores.append((x - gain * after) * slope / (here - gain**2 * there))
        x = after
    order = torch.rand((levels, rows), generator=generator).argsort(0)[:taken]
    return advantage * torch.stack(scores).gather(0, order).sum(0) * levels / taken


def matching_gradient(pairs: int, rows: int, generator: torch.Generator) -> Tensor:
    """A times the likelihood-weighted matching gradient at stratified times, [rows].

    log p = -int sigma^-3 E|a - denoised|^2 dsigma up to a constant; sigma = c tan(pi u / 2) spreads
    the strata of u evenly over it.
    """
    a = STD * torch.randn(rows, generator=generator, dtype=torch.float64)
    total = torch.zeros_like(a)
    for k in range(pairs):
        jitter = torch.rand(rows, generator=generator, dtype=torch.float64)
        scale = STD * torch.tan(math.pi / 2 * (k + jitter) / pairs)
        seen = a + scale * torch.randn(rows, generator=generator, dtype=torch.float64)
        denoised = STD**2 / (STD**2 + scale**2) * seen
        density = 2 * STD / (math.pi * (STD**2 + scale**2))
        slope = scale**2 / (STD**2 + scale**2)
        total += 2 * scale**-3 * (a - denoised) * slope / density / pairs
    return a / STD * total


def shift_share(kind: TimeWeight, rows: int, generator: torch.Generator) -> float:
    """Mean over deviation of A times the weighted matching gradient, by the predicted action.

    Policy N(0, c^2), A = a / c, x = t a + (1 - t) eps; velocities err by (action error) / (1 - t).
    """
    t = T_MIN + (T_MAX - T_MIN) * torch.rand(rows, generator=generator, dtype=torch.float64)
    a, eps = torch.randn((2, rows), generator=generator, dtype=torch.float64)
    a = WIDTH * a
    x = t * a + (1 - t) * eps
    told = t * WIDTH**2 / (t.square() * WIDTH**2 + (1 - t).square()) * x
    gradient = a / WIDTH * time_weight(t, kind) * (a - told) / (1 - t).square()
    return (gradient.mean() / gradient.std()).item()


def closed_share(kind: TimeWeight) -> float:
    """The same by quadrature over t: with V the variance of a given x, E[(a - told) a] = V and
    E[(a - told)^2 a^2] = V c^2 + 2 V^2.
    """
    t = T_MIN + (T_MAX - T_MIN) * (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    var = WIDTH**2 * (1 - t).square() / (t.square() * WIDTH**2 + (1 - t).square())
    weight = time_weight(t, kind) / (1 - t).square()
    mean = (weight * var).mean() / WIDTH
    square = (weight.square() * (var * WIDTH**2 + 2 * var.square())).mean() / WIDTH**2
    return (mean / (square - mean.square()).sqrt()).item()
