"""Adjoint matching on the straight path: walks with noise, and what a gradient at their ends says
about every step. Pure functions.

A walk has K steps x+ = keep x + gain v(x, t) + std xi from noise to an action. Its law by a field v
is that of a base field v_b tilted by exp(-G(x_K)) where v = v_b - shift g, with g the gradient of G
carried back along the walk by the Jacobians of the base alone (arXiv:2409.08861). B batch, T chunk,
Da action dimension; a field is v(x [..., T, Da], t [...]) -> [..., T, Da].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FieldFn = Callable[[Tensor, Tensor], Tensor]


class Kernel(NamedTuple):
    """The steps of a walk; every column [K, 1, 1, 1], to multiply points [K, B, T, Da]."""

    t: Tensor  # where a step starts
    seen: Tensor  # the time at which the base's Jacobian is asked
    keep: Tensor
    gain: Tensor
    std: Tensor
    shift: Tensor  # what a gradient of 1 moves the velocity by
    weight: Tensor  # of a squared velocity error: twice the divergence of the step's two normals
    behind: bool  # whether a step is moved by the gradient before it, else by that after it


def memoryless(times: Tensor) -> Kernel:
    """The published walk (arXiv:2409.08861, arXiv:2601.14234 and its code), times [K + 1].

    A step from t to u = t + h: x+ = x + h (2 v - x / u) + sqrt(h) sigma xi with
    sigma^2 = 2 (1 - t + h) / u; the Jacobian is that of v_b(x_t, u). The last step of a walk is the
    base's own, x + h v_b, and counts as one with noise all the same.
    """
    t, u = _columns(times)
    h = u - t
    variance = 2 * (1 - t + h) / u
    weight = 4 * h / variance
    return Kernel(t, u, 1 - h / u, 2 * h, (h * variance).sqrt(), variance / 2, weight, True)


def posterior(times: Tensor) -> Kernel:
    """The walk by DDPM's transitions (eta = 1), whose tilt is exact for any K where G is linear.

    A step from t to u has the mean keep x + gain v, with gain = (u - t) (u + t - 2 u t) / (u (1 -
    t)) and keep = u + t (1 - u)^2 / (u (1 - t)), and the variance gain (1 - u)^2 / (u (1 - t)). The
    last one has no noise and is not moved: its weight, which would be infinite, is that of the one
    before. times [K + 1], K at least 2.
    """
    t, u = _columns(times)
    across = u * (1 - t)
    shift = (1 - u).square() / across
    gain = (u - t) * (u + t - 2 * u * t) / across
    keep, variance = u + t * shift, gain * shift
    weight = gain[:-1] / shift[:-1]
    weight = torch.cat([weight, weight[-1:]])
    return Kernel(t, t, keep, gain, variance.sqrt(), shift, weight, False)


KERNELS = {"memoryless": memoryless, "posterior": posterior}


def _columns(times: Tensor) -> tuple[Tensor, Tensor]:
    """Where steps start and where they end, [K, 1, 1, 1] each."""
    return times[:-1, None, None, None], times[1:, None, None, None]


@torch.no_grad()
def walk(kernel: Kernel, field: FieldFn, base: FieldFn, noise: Tensor, kicks: Tensor) -> Tensor:
    """Points [K + 1, B, T, Da] of a walk of the field from noise [B, T, Da].

    kicks [K - 1, B, T, Da] are standard normal; the last step is the base's, without noise.
    """
    x, points = noise, [noise]
    for k, kick in enumerate(kicks):
        velocity = field(x, kernel.t[k, 0, 0])
        x = kernel.keep[k] * x + kernel.gain[k] * velocity + kernel.std[k] * kick
        points.append(x)
    t = kernel.t[-1]
    points.append(x + (1 - t) * base(x, t[0, 0]))
    return torch.stack(points)


def back(kernel: Kernel, base: FieldFn, points: Tensor, gradient: Tensor) -> Tensor:
    """What every step is moved by, [K, B, T, Da], from dG [B, T, Da] at the end of the walk.

    The lean adjoint: g <- keep g + gain J^T g with J = dv_b/dx at the points [K + 1, B, T, Da], and
    no term of the tuned field.
    """
    g, moved = gradient, []
    for k in reversed(range(len(kernel.t))):
        with torch.enable_grad():
            x = points[k].detach().requires_grad_()
            velocity = base(x, kernel.seen[k, 0, 0])
            (pulled,) = torch.autograd.grad(velocity, x, kernel.gain[k] * g)
        before = kernel.keep[k] * g + pulled
        moved.append(before if kernel.behind else g)
        g = before
    return torch.stack(moved[::-1])
