"""Reachability of what is unsafe: how bad the worst of an episode becomes (arXiv:2401.10700).

h > 0 where a step is unsafe. The value of a state is the h that its best action cannot keep it
from, discounted: at most 0 where it can stay safe for ever. Pure functions; B batch.
"""

import torch
from torch import Tensor

from .losses import exp_weight

SAFE = -1.0  # h of a step that is safe


def violation(cost: Tensor, margin: float, unsafe: float) -> Tensor:
    """h [B] of the largest cost [B] of a decision: `unsafe` above the margin, else SAFE."""
    return torch.where(cost > margin, unsafe, SAFE)


def reach_target(h: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """(1 - d) h + d max(h, V(s')), all [B] (arXiv:2401.10700, eq. 8; arXiv:1807.03362).

    d is gamma^n (1 - terminated) (`envs.batch.Batch`), h the largest of the n steps: an end by the
    task is h alone, and of equal h n steps are n times one.
    """
    return (1 - discount) * h + discount * torch.maximum(h, value)


def feasible_weight(
    advantage: Tensor,
    risk: Tensor,
    value: Tensor,
    reward: tuple[float, float],
    cost: tuple[float, float],
) -> Tensor:
    """Weights [B] of recorded actions (arXiv:2401.10700, eqs. 15 to 17).

    At a state that can stay safe (value <= 0): min(exp(beta A), limit) of an action that keeps it
    so (risk <= 0), 0 of another; at one that cannot: min(exp(beta (value - risk)), limit). reward
    and cost: beta and limit of either.
    """
    escape = exp_weight(value - risk, *cost)
    return torch.where(value > 0, escape, exp_weight(advantage, *reward) * (risk <= 0))
