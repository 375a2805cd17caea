"""Variance of two policy gradients on a Gaussian: a chain's likelihood against clean matching.

The policy N(mu, c^2) is exact, the advantage is A = (a - mu) / c, the gradient is with respect to
mu. tau = 1 - t is 1 at noise; y = a + sigma eps with sigma = tau / (1 - tau) are the path's points
in units of the action. A chain's step matches the noisy target of its two ends, weighted matching
the clean action: the same mean, and the noisy one's excess variance grows as the step shrinks. If
every step of the chain is taken, though, the excess cancels in the sum, for parameters that all
times share: what remains is a gain where steps are subsampled (arXiv:2509.25050 claims it for every
case).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .bench_measure import Goal, Plan, Row, with_ratio

STD = 0.5  # c of the policy; mu is 0, on which nothing depends
STEPS = [(levels, tau) for levels in (10, 40) for tau in (0.2, 0.5, 0.8, 0.9)]
CHAINS = [(2, 2), (4, 4), (10, 10), (50, 50), (10, 1), (10, 2), (10, 5), (50, 1), (50, 5), (50, 10)]
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
