"""Targets and duals shared by the algorithms: pure functions of tensors."""

import math
from typing import Literal

import torch
from torch import Tensor

from .. import ranks

BOUND = 4 * math.log(10)
COEF_MIN, COEF_MAX = 1e-3, 100.0  # of what holds a distance below its threshold
Join = Literal["min", "mean", "lcb"]


def td_target(reward: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """One-decision bootstrap y = r + discount * V(s'); all [B].

    `discount` is gamma^n (1 - terminated) (see `envs.batch.Batch`), so a truncated episode keeps
    its bootstrap and a terminated one has none.
    """
    return reward + discount * value


def pessimistic(q: Tensor, how: Join, rho: float = 0.0) -> Tensor:
    """One value of the members' [E, ...]: [...].

    "min" is the smallest (arXiv:1802.09477), "mean" their mean, "lcb" the mean less rho times the
    deviation over the E members (arXiv:2110.01548, arXiv:2405.20555). Raises ValueError.
    """
    if how == "min":
        return q.amin(0)
    if how == "mean":
        return q.mean(0)
    if how == "lcb":
        return q.mean(0) - rho * q.std(0, correction=0)
    raise ValueError(f"algo.join={how!r}: choose min, mean or lcb")


def smoothed(action: Tensor, noise: Tensor, std: float, limit: float) -> Tensor:
    """A target action with clipped noise, inside the box (TD3, arXiv:1802.09477, eq. 14).

    clip(a + clip(std noise, -limit, limit), -1, 1); action and standard normal noise [B, T, Da].
    """
    return (action + (std * noise).clamp(-limit, limit)).clamp(-1.0, 1.0)


def dual_step(log_coef: Tensor, measured: Tensor, target: float, rate: float) -> None:
    """Moves a log coefficient in place until `measured` meets `target`; both positive, [].

    A step in log space, `log c <- log c + rate (log target - log measured)`, clamped to one unit
    of log ratio so that one bad measurement cannot throw the coefficient away, and kept inside
    [1e-4, 1e4]: a target out of reach must not drive it to zero or infinity. Of several ranks what
    counts is the mean of their measurements.
    """
    measured = ranks.mean(measured)[0]
    gap = (target / measured.clamp_min(1e-8)).log().clamp(-1.0, 1.0)
    log_coef.add_(rate * gap).clamp_(-BOUND, BOUND)


def constrain(coef: Tensor, measured: Tensor, threshold: float, rate: float) -> None:
    """Moves the coefficient [] of a constrained distance, in place: up while it is too far.

    c <- c + rate (measured - threshold), the excess at most one unit in either direction, inside
    [COEF_MIN, COEF_MAX] (arXiv:2405.20555, whose public code has these bounds). It rests where
    `measured` meets the threshold. Of several ranks the mean of their measurements counts.
    """
    excess = (ranks.mean(measured)[0] - threshold).clamp(-1.0, 1.0)
    coef.add_(rate * excess).clamp_(COEF_MIN, COEF_MAX)


def follow(scale: Tensor, measured: Tensor, rate: float) -> None:
    """Moves a running scale [], in place, by the share `rate` towards what was measured.

    One that has measured nothing, 1, starts with the first measurement: units that are made of it
    mean the same from the first step.
    """
    scale.lerp_(measured, torch.where(scale == 1, 1.0, rate))


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared TD error of every ensemble member, summed over members, mean over B, [].

    q [E, B]; target [B], which must carry no gradient.
    """
    return 0.5 * (q - target).square().mean(-1).sum(0)
