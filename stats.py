"""What runs and their episodes say: the mean of the middle half, and 95 % intervals.

Bootstraps are of percentiles, with a fixed seed, so that they are functions of their values.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray


def iqm(values: NDArray) -> NDArray:
    """Interquartile mean of the last axis: the mean of the middle half."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a success rate p = successes / count (Wilson, JASA 22:209, 1927).

    (p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96 for n = count: the
    rates that a test at 5 % would not reject. It has a width also when none or all succeed.
    """
    rate, z = successes / count, NormalDist().inv_cdf(0.975)
    middle = rate + z**2 / (2 * count)
    half = z * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def of_means(means: NDArray) -> tuple[float, float]:
    """95 % interval of the mean of independent runs [S] by Student's t; S of at least 2.

    For few seeds the honest one: a bootstrap of three values is too narrow.
    """
    freedom = len(means) - 1
    if freedom < 1:
        raise ValueError("one run has no interval over runs")
    half = student(freedom) * float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return float(np.mean(means)) - half, float(np.mean(means)) + half


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t, whose density is integrated (Simpson) and inverted."""
    logarithm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(logarithm) / math.sqrt(freedom * math.pi)

    def below(point: float) -> float:
        t = np.linspace(0, point, 2001)
        density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        weights = np.full(2001, 2.0)
        weights[1::2], weights[[0, -1]] = 4.0, 1.0
        return 0.5 + float(density @ weights) * point / 6000

    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.975 else (low, middle)
    return (low + high) / 2


def improvement(better: NDArray, other: NDArray) -> float:
    """Probability that a run of one method is above a run of another, ties halved, over all pairs
    of seeds' means [S], [R] (arXiv:2108.13264).
    """
    apart = better[:, None] - other[None]
    return float((apart > 0).mean() + 0.5 * (apart == 0).mean())


def of_mean(values: NDArray, samples: int = 2000) -> tuple[float, float]:
    """Bootstrap interval of the mean of one run's episodes."""
    draws = np.random.default_rng(0).integers(len(values), size=(samples, len(values)))
    low, high = middle95(values[draws].mean(1))
    return float(low), float(high)


def of_runs(
    runs: list[NDArray], statistic: Callable[[NDArray], Any], samples: int = 4000
) -> tuple[float, float]:
    """Bootstrap interval of a statistic of all episodes, over seeds and their episodes."""
    rng, draws = np.random.default_rng(0), []
    for _ in range(samples):
        chosen = [runs[i] for i in rng.integers(len(runs), size=len(runs))]
        pooled = np.concatenate([run[rng.integers(len(run), size=len(run))] for run in chosen])
        draws.append(statistic(pooled))
    low, high = middle95(np.array(draws))
    return float(low), float(high)


def middle95(draws: NDArray) -> tuple[NDArray, NDArray]:
    """Where the middle 95 % of the first axis begin and end."""
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return low, high
