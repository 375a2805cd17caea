"""Branches of a policy's denoising chains: which step they part at, and what they come to.

R states, K denoising steps, M branches of a chain, T chunk, Da action dimension. Points are in a
policy's normalised units, at times from 0 (noise) to 1. Pure functions, which ask a device nothing.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ..policies.flow import FlowPolicy

EXPLORED = 0.1  # of the draws of `active` steps are uniform: what is never drawn is never measured


def points(policy: FlowPolicy, feat: Tensor, noise: Tensor) -> Tensor:
    """Where the deterministic chains from noise [R, T, Da] begin their steps, [R, K, T, Da]."""
    x, times = [noise], policy.times()
    for t, s in pairwise(times[:-1]):
        x.append(policy.step(x[-1], t, s, feat)[0])
    return torch.stack(x, 1)


def completed(
    policy: FlowPolicy, feat: Tensor, x: Tensor, since: Tensor, steps: int | None = None
) -> Tensor:
    """Where chains end that go on from x [R, M, T, Da] at the times since [R], x's shape.

    Deterministic, on what is left of the grid of `steps` (None: the policy's own), so that 1 goes
    straight to the end. feat [R, W].
    """
    times = policy.times(steps)
    own = steps is None or steps == policy.steps
    for t, s in pairwise(times[1 if own else 0 :]):  # at the end of a step that is first, at least
        t, s = torch.maximum(since, t), torch.maximum(since, s)
        moved = policy.step(x, t, s, feat)[0]
        x = torch.where((s > t)[:, None, None, None], moved, x)
    return x


def drawn(weight: Tensor, share: Tensor) -> Tensor:
    """The steps [R] at which a share [R] in [0, 1] of all the weight [K] has gone by."""
    gone = weight.cumsum(0)
    return torch.searchsorted(gone, share * gone[-1], right=True).clamp(max=len(weight) - 1)


def active(tally: Tensor) -> Tensor:
    """Weights [K] of the steps in proportion to the variance that they made, and never 0.

    tally [2, K]: sums of variances, and how many they were of. A step that was not met yet counts
    as the most active one.
    """
    met = tally[1] > 0
    spread = torch.where(met, tally[0] / tally[1].clamp_min(1e-12), 0.0)
    spread = torch.where(met, spread, spread.amax())
    share = spread / spread.sum().clamp_min(1e-12)
    return (1 - EXPLORED) * share + EXPLORED / len(share)


def measured(which: Tensor, variance: Tensor, steps: int) -> Tensor:
    """What a batch adds to the tally of `active`, [2, K]: variances [R] at the steps which [R]."""
    here = (which[:, None] == torch.arange(steps, device=which.device)).to(variance.dtype)
    return torch.stack([(variance[:, None] * here).sum(0), here.sum(0)])


def kept(value: Tensor, count: int, ends: bool) -> Tensor:
    """Which `count` of M branches go on by their values [R, M]: indices [R, count], in their order.

    The best; with ends the best half and the worst half.
    """
    order = value.argsort(dim=1, stable=True)
    worst = count // 2 if ends else 0
    order = torch.cat([order[:, :worst], order[:, value.shape[1] - (count - worst) :]], 1)
    return order.sort(1).values


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of two values [R, M] of each branch, the mean over states, []."""
    ranks = [v.argsort(dim=1, stable=True).argsort(1).to(one.dtype) for v in (one, other)]
    a, b = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    return ((a * b).sum(1) / a.square().sum(1)).mean()
