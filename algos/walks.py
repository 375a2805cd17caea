"""Adjoint matching of a policy: walks of it from noise to actions, and what they teach its field.

`adjoint` has the steps; here they are a policy's. What is climbed is a height of actions, and the
law that is tilted by exp(height) is that of a base field. B batch, K steps, T chunk, Da action
dimension.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..policies import draw
from ..policies.flow import FlowPolicy
from . import adjoint
from .losses import refuse_jumps

Height = Callable[[Tensor], Tensor]  # actions [B, T, Da] -> [B]


class Met(NamedTuple):
    """What the tuned field is matched to, at the K points of walks."""

    x: Tensor  # [K, B, T, Da]
    velocity: Tensor  # [K, B, T, Da] of the base
    moved: Tensor  # [K, B, T, Da] by which the height moves it


class Sides(NamedTuple):
    """The two fields of a walk, and what an action is in their units."""

    policy: FlowPolicy
    field: adjoint.FieldFn  # that walks, of `policy`
    base: adjoint.FieldFn
    kernel: adjoint.Kernel


def at(policy: FlowPolicy, feat: Tensor) -> adjoint.FieldFn:
    """A policy's velocities at encoded observations [B, W] as a function of points and times.

    Points [B, T, Da] with t [1], or [K, B, T, Da] with t [K, 1].
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return policy.velocity(x, t, feat if x.ndim == feat.ndim + 1 else feat[None])

    return velocity


@torch.no_grad()
def meet(
    sides: Sides, rows: int, generator: torch.Generator, pull: Callable[[Tensor], Tensor]
) -> Met:
    """What the policy is matched to, by walks from `rows` noises.

    pull: of the points where walks end [B, T, Da], the gradient there of what is to fall.
    """
    policy, field, base, kernel = sides
    noise = policy.noise(rows, generator)
    shape = (len(kernel.t) - 1, *noise.shape)
    kicks = draw.normal(shape, generator, device=noise.device, dtype=noise.dtype)
    points = adjoint.walk(kernel, field, base, noise, kicks)
    moved = adjoint.back(kernel, base, points, pull(points[-1]))
    x = points[:-1]
    return Met(x, base(x, kernel.t[..., 0, 0]), -kernel.shift * moved)


def slope(
    policy: FlowPolicy, x: Tensor, height: Height, clip: bool, executed: int | None
) -> Tensor:
    """The height's gradient [B, T, Da] at the actions of the points x.

    clip: whether there is none outside the box; else it is that of the box's edge. Steps of a plan
    that are not executed have none of their own: the height tells nothing about them.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        action = policy.to_action(x, clip=clip)
        if not clip:  # the height is asked inside the box; the way is not cut
            action = action + (action.clamp(-1.0, 1.0) - action).detach()
        (found,) = torch.autograd.grad(height(action).sum(), x)
    if executed is not None:
        found[..., executed:, :].zero_()
    return found


def matched(kernel: adjoint.Kernel, field: adjoint.FieldFn, met: Met) -> tuple[Tensor, Tensor]:
    """Matching of the tuned field, [], summed over steps; its distance to the base [].

    Steps are weighed as in the divergence of the two walks.
    """
    gap = field(met.x, kernel.t[..., 0, 0]) - met.velocity
    loss = (kernel.weight * (gap - met.moved).square()).sum(0).mean()
    return loss, gap.detach().square().mean()


def refuse(policy: FlowPolicy, kernel: str) -> None:
    """Raises ValueError for policies without these walks."""
    refuse_jumps(policy)
    if not policy.is_flow:
        raise ValueError(
            "policy: adjoint matching walks on the straight path by velocities; set "
            "policy.path=linear policy.levels=null policy.prediction=v"
        )
    if policy.clip_x or policy.clip_a:
        key = "clip_x" if policy.clip_x else "clip_a"
        raise ValueError(
            f"policy.{key}=true: a step that is clipped has no adjoint; set policy.{key}=false"
        )
    if policy.eta > 0 and policy.sampler != "euler":
        raise ValueError(
            f"policy.eta={policy.eta:g} with policy.sampler={policy.sampler}: noisy steps are "
            "Euler's; set policy.sampler=euler, or policy.eta=0"
        )
    if kernel == "posterior" and policy.steps < 2:
        raise ValueError(
            f"policy.steps={policy.steps} with algo.kernel=posterior: the last step has no noise "
            "and is not moved; set policy.steps to 2 or more, or algo.kernel=memoryless"
        )
