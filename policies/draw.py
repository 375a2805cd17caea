"""Random numbers from a generator, or from one that gives every row its own."""

from typing import Any

import torch
from torch import Tensor


def normal(
    shape: tuple[int, ...] | torch.Size,
    generator: torch.Generator | None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal numbers.

    A generator with a method `normal` of its own is asked for them: in evaluations every episode's
    noise is its own (`rheo.envs.noise`).
    """
    own = getattr(generator, "normal", None)
    if own is not None:
        return own(tuple(shape)).to(device=device, dtype=dtype or torch.get_default_dtype())
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def chunks(policy: Any, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal noise [*lead, T, Da] on a policy's device and in its precision."""
    shape = (lead,) if isinstance(lead, int) else tuple(lead)
    where, size = next(policy.parameters()), (policy.horizon, policy.action_dim)
    return normal((*shape, *size), generator, device=where.device, dtype=where.dtype)


def exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers of the exponential distribution with mean 1, of a tensor's shape and kind."""
    own = getattr(generator, "exponential", None)
    if own is not None:
        return own(tuple(like.shape)).to(like)
    return torch.empty_like(like).exponential_(generator=generator)


def jittered(action: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """An action [..., T, Da] with Gaussian noise of that deviation, inside the box."""
    kick = normal(action.shape, generator, device=action.device, dtype=action.dtype)
    return (action + std * kick).clamp(-1.0, 1.0)
