"""Real-time chunking: a new plan goes on from the one that is being executed (arXiv:2506.07339).

While a plan is made, the robot executes the last one: what it will have executed by then is known,
and what stood behind it should not be contradicted. N observations, L actions left of the last
plan, T chunk, Da action dimension.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .flow import FlowPolicy
from .nets import expand_lead

LIMIT = 5.0  # of the guidance, beta of the paper
TINY = 1e-12


def weights(steps: int, frozen: int, left: int) -> Tensor:
    """How much each of a plan's steps is held to what was planned before, [steps].

    1 for the first `frozen`; c (e^c - 1) / (e - 1) with c = (left - i) / (left - frozen + 1) for
    the others of the `left` that are known; 0 behind them, which nothing was planned for.
    """
    place = torch.arange(steps, dtype=torch.float64)
    c = ((left - place) / (left - frozen + 1)).clamp(0, 1)
    soft = c * torch.expm1(c) / math.expm1(1)
    return torch.where(place < frozen, torch.ones_like(soft), soft)


@torch.no_grad()
def continued(
    policy: FlowPolicy, obs: Tensor, noise: Tensor, left: Tensor, frozen: int, limit: float = LIMIT
) -> Tensor:
    """Actions [N, ..., T, Da]: the first `frozen` are those of left [N, L, Da], the rest in accord.

    With a(x) = E[a | x], which the field tells, J = da/dx, y the actions left, W their `weights`,
    the velocity where a transition starts is moved by

        min(limit, |D| (A^2 + B^2) / (A B)) J^T W (y - a(x)),    D = A B' - A' B,

    which on the linear path is the paper's min(beta, (1 - t) / (t r^2)), r^2 = (1 - t)^2 /
    (t^2 + (1 - t)^2): the gradient of log N(y; a(x), r^2) as a velocity. Of Euler's transitions
    (DDIM's on curved paths), whatever the sampler. noise [N, ..., T, Da]; obs [N, O].
    """
    lead, steps, length = noise.ndim - 2, noise.shape[-2], left.shape[-2]
    pull = weights(steps, frozen, length).to(noise)[:, None]
    planned = functional.pad(policy.to_latent(left), (0, 0, 0, steps - length))
    planned = expand_lead(planned, lead, 2)
    feat = policy.features(expand_lead(obs, lead, 1))
    times, x = policy.times(), noise
    for t, s in zip(times[:-1], times[1:], strict=True):
        here, there = (policy.path.coefficients(end).over_chunk() for end in (t, s))
        turn = there.a * here.b - here.a * there.b  # s - t on the linear path
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = policy.step(x, t, s, feat)[0]
            action = (here.b * mean - there.b * x) / turn  # what this transition leads to
            error = (pull * (planned - action)).detach()
            slope = torch.autograd.grad((action * error).sum(), x)[0]
        sides = (here.a * here.b).clamp(min=TINY)
        size = (here.det.abs() * (here.a**2 + here.b**2) / sides).clamp(max=limit)
        x = mean.detach() + turn / here.det.abs() * size * slope
    action = policy.to_action(x)
    known = expand_lead(left[..., :frozen, :], lead, 2).expand(*action.shape[:-2], -1, -1)
    return torch.cat([known.clamp(-1, 1), action[..., frozen:, :]], -2)


def can_continue(policy: Any) -> bool:
    """Whether a policy's field tells E[a | x]: not that of one that jumps over its path."""
    return isinstance(policy, FlowPolicy) and not policy.jumps


@contextmanager
def continuing(policy: FlowPolicy, left: Tensor, frozen: int) -> Iterator[list[int]]:
    """While this lasts, `policy.act` is `continued`: whatever an algorithm makes of samples, choice
    among several or an edit, it makes of continued ones. Yields the number of samples of each call.
    """
    calls: list[int] = []
    quick = vars(policy).get("act")

    def act(obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True) -> Tensor:
        calls.append(noise.shape[:-2].numel())
        return continued(policy, obs, noise, left, frozen)

    policy.act = act
    try:
        yield calls
    finally:
        del policy.act
        if quick is not None:
            policy.act = quick
