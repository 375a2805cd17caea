"""Anchors: what a policy is held to while something else pushes it, and how strongly.

B batch, K actions of a state, J (time, noise) pairs, S denoising steps, T chunk, Da action
dimension.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .losses import Pairs


class Pull(NamedTuple):
    """A policy that another is held to: coef times the squared distance of their velocities."""

    name: str
    coef: float | Tensor
    policy: Any  # None: no such pull


def held(
    points: Pairs, obs: Tensor, t: Tensor, pulls: Sequence[Pull], weight: Tensor | float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the pulls at the points, [], and each distance by name ("policy/NAME").

    Distances are of the steps that the points compare: where errors push, pulls hold. t [..., J] as
    in `losses.pairs`; weight broadcasts over [..., J].
    """
    total, metrics = points.velocity.new_zeros(()), {}
    for name, coef, policy in pulls:
        if policy is not None:
            distance = (apart(points, obs, t, policy) * weight).mean()
            total = total + coef * distance
            metrics[f"policy/{name}"] = distance.detach()
    return total, metrics


def apart(points: Pairs, obs: Tensor, t: Tensor, policy: Any) -> Tensor:
    """Squared distance [..., J] of the velocities at the points from another policy's there."""
    with torch.no_grad():
        there = policy.velocity(points.x, t, policy.features(obs))
        there = there[..., : points.velocity.shape[-2], :]
    return (points.velocity - there).square().mean((-1, -2))


def strayed(policy: Any, base: Any, obs: Tensor, noise: Tensor, executed: int | None) -> Tensor:
    """Mean squared distance [] of two policies' actions from the same noise [B, T, Da].

    Of the executed steps, before the box cuts them: beyond it a gradient has to lead back.
    """
    own = policy.act(obs, noise, clip=False)
    with torch.no_grad():
        theirs = base.act(obs, noise, clip=False)
    return (own - theirs)[:, :executed].square().mean()


def scaled(advantage: Tensor, limit: float) -> Tensor:
    """(1 + A / limit) / 2, of the shape of the advantages A in [-limit, limit].

    Good actions are held, the worst not at all: what is unlearned need not be kept.
    """
    return (1 + advantage / limit) / 2
