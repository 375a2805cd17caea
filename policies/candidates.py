"""One of several samples of a policy by what a critic says: acting, TD targets, deployment.

N observations, M candidates, T chunk, Da action dimension. A critic is
Q(obs [..., O], action [..., T, Da]) -> [members, ...], of which the smallest counts. The best is
taken, or one is drawn from softmax(Q / heat) (arXiv:2208.06193): the first of M that wait, each an
exponential time divided by its weight. Who wants a temperature relative to something multiplies.
"""

from typing import Any

import torch
from torch import Tensor

from . import draw


def candidate_noise(policy: Any, rows: int, count: int, generator: torch.Generator) -> Tensor:
    """Noises [N, M, T, Da] for M candidate actions per observation."""
    return policy.noise(rows * count, generator).unflatten(0, (rows, count))


def race(chunks: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor | None:
    """Exponential times [..., M] that draw one of M chunks [..., M, T, Da].

    None: the best is taken, or the only one. They may be drawn ahead of the values, so that a loss
    is a pure function.
    """
    several = temperature > 0 and chunks.shape[-3] > 1
    return draw.exponential(chunks[..., 0, 0], generator) if several else None


def choose(
    critic: Any,
    obs: Tensor,
    action: Tensor,
    heat: float | Tensor = 1.0,
    waiting: Tensor | None = None,
    of: Tensor | None = None,
) -> Tensor:
    """One of the M candidates action [N, M, T, Da] per observation, by its minimum Q over members.

    waiting [N, M]: what `race` gave; heat: above 0, in units of Q, a tensor [] perhaps. of: what is
    handed back in place of the action, in its order. [N, T, Da]
    """
    of = action if of is None else of
    if action.shape[1] == 1:
        return of[:, 0]
    return chosen(critic(obs[:, None], action).amin(0), of, heat, waiting)


def chosen(
    value: Tensor, action: Tensor, heat: float | Tensor = 1.0, waiting: Tensor | None = None
) -> Tensor:
    """The one of action [..., M, T, Da] that its value [..., M] chooses, as in `choose`."""
    if waiting is not None:
        value = value / heat - waiting.clamp_min(1e-30).log()
    index = value.argmax(-1)
    lead, several = index.shape, action.flatten(0, -4) if action.ndim > 3 else action[None]
    rows = torch.arange(len(several), device=action.device)
    return several[rows, index.flatten()].reshape(*lead, *action.shape[-2:])


@torch.no_grad()
def sample(
    policy: Any,
    critic: Any,
    obs: Tensor,
    generator: torch.Generator,
    candidates: int = 1,
    heat: float = 0.0,
    eta: float = 0.0,
) -> Tensor:
    """An action per observation, chosen from `candidates` samples of the policy: [N, T, Da].

    heat 0 takes the best. eta: share of DDPM's noise in their transitions, for a policy that acts
    by `FlowPolicy.drawn`.
    """
    start = policy.start(len(obs) * candidates, generator)
    start = start if candidates == 1 else start.unflatten(0, (len(obs), candidates))
    noisy = eta > 0
    action = policy.drawn(obs, start, generator, eta) if noisy else policy.act(obs, start)
    if candidates == 1:
        return action
    return choose(critic, obs, action, heat, race(action, heat, generator))
