"""Densities of a flow's samples: the change of variables through its deterministic steps.

[...] leading dimensions, T chunk, Da action dimension, D = E * Da dimensions of the E steps that
are executed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flow import log_normal
from .heads import log_tanh_slope
from .nets import expand_lead


def pushed(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """A function's value, and its derivative in a direction by forward mode, of its shape."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
        value, slope, *_ = torch.func.jvp(function, at, along)
    return value, slope


@torch.no_grad()
def sampled(
    policy: Any, obs: Tensor, noise: Tensor, executed: int | None = None
) -> tuple[Tensor, Tensor]:
    """The actions of noises [..., T, Da], clipped, and their log densities [...], exact.

    log pi(a) = log N(z) - log|det dx/dz| of the map x = z + u(z, 0, 1) of one step, or of all steps
    of the policy, in D forward-mode products of one batched call; then the factor of the action's
    units, and of a tanh. With a clip it is the density of what is clipped: the actions themselves
    have mass on the walls.

    The determinant, not the trace that is often taken for its logarithm: for x = m + s z that is
    s - 1 instead of log s, off by 0.2 nats at s = 0.5 and by 1.4 at s = 0.1.

    executed: E, of whose steps the density is, given the noise of the others (None: T). Where the
    executed steps do not follow that noise it is theirs alone; else their entropy is a little more.
    """
    feat = policy.features(expand_lead(obs, noise.ndim - 2, 1))[None]
    part = noise[..., :executed, :]
    lead, size = noise.ndim - 2, part.shape[-2] * part.shape[-1]
    units = torch.eye(size, dtype=noise.dtype, device=noise.device)
    units = units.view(size, *[1] * lead, *part.shape[-2:])
    along = torch.zeros_like(noise).expand(size, *noise.shape).clone()
    along[..., :executed, :] += units
    many = noise.expand(size, *noise.shape).clone()
    points, columns = pushed(lambda z: policy.integrate(feat, z), (many,), (along,))
    columns = columns[..., :executed, :].flatten(-2).movedim(0, -1)  # [..., D, D]
    x = points[0]
    own = log_normal(part, torch.zeros_like(part), torch.ones_like(part)).sum((-2, -1))
    logp = own - torch.linalg.slogdet(columns).logabsdet
    return policy.to_action(x), logp - log_slope(policy, x[..., :executed, :])


def log_slope(policy: Any, x: Tensor) -> Tensor:
    """Log of how much longer an action's elements are than those of x [..., E, Da], summed, [...].

    Without the final clip.
    """
    slope = torch.zeros_like(x)
    if policy.action_norm.kind != "none":
        slope = slope + policy.action_norm.scale.log()
    if policy.squash == "tanh":
        slope = slope + log_tanh_slope(x)
    return slope.sum((-2, -1))
