"""One of several samples of a policy, by what a critic says of them.

N observations, M candidates, T chunk, Da action dimension. A critic is
Q(obs [..., O], action [..., T, Da]) -> [members, ...], of which the smallest counts.
"""

from typing import Any

import torch
from torch import Tensor

from . import draw


def candidate_noise(policy: Any, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Noises [N, M, Tp, Da] for M candidate actions per observation."""
    return policy.noise(len(obs) * count, generator).unflatten(0, (len(obs), count))


def choose(
    critic: Any,
    obs: Tensor,
    action: Tensor,
    temperature: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
    waiting: Tensor | None = None,
) -> Tensor:
    """One of the M candidates action [N, M, Tp, Da] per observation, by its minimum Q over members.

    temperature 0 takes the largest (best-of-M); above 0 draws one from softmax(Q / temperature),
    as arXiv:2208.06193 does, by adding Gumbel noise to Q / temperature. [N, Tp, Da]
    waiting [N, M]: exponential numbers that decide the draw, where they were drawn ahead; with
    them the temperature, then above 0, may be a tensor [].
    """
    if action.shape[1] == 1:
        return action[:, 0]
    choice = selected(critic, obs, action, temperature, generator, waiting)
    return action.gather(1, choice[:, None, None, None].expand(-1, 1, *action.shape[2:]))[:, 0]


def selected(
    critic: Any,
    obs: Tensor,
    action: Tensor,
    temperature: float | Tensor = 0.0,
    generator: torch.Generator | None = None,
    waiting: Tensor | None = None,
) -> Tensor:
    """Which of the M candidates `choose` takes, [N]."""
    score = critic(obs[:, None], action).amin(0)
    if waiting is not None:
        return raced(score, temperature, waiting)
    return drawn(score, float(temperature), generator)


@torch.no_grad()
def sample(
    policy: Any,
    critic: Any,
    obs: Tensor,
    generator: torch.Generator,
    candidates: int = 1,
    temperature: float = 0.0,
    eta: float = 0.0,
) -> Tensor:
    """An action per observation, chosen from `candidates` samples of the policy: [N, Tp, Da].

    eta: share of DDPM's noise in their transitions, for a policy that acts by `FlowPolicy.drawn`.
    """
    start = policy.start(len(obs) * candidates, generator)
    start = start if candidates == 1 else start.unflatten(0, (len(obs), candidates))
    noisy = eta > 0
    action = policy.drawn(obs, start, generator, eta) if noisy else policy.act(obs, start)
    return action if candidates == 1 else choose(critic, obs, action, temperature, generator)


def drawn(score: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Index [...] of a draw from softmax(score [..., P] / temperature); 0: of the largest."""
    if temperature > 0:
        return raced(score, temperature, draw.exponential(score, generator))
    return score.argmax(-1)


def raced(score: Tensor, temperature: float | Tensor, waiting: Tensor) -> Tensor:
    """Index [...] of a draw from softmax(score / temperature): the first of P that wait, each
    waiting [..., P], exponential with mean 1, divided by its weight.
    """
    return (score / temperature - waiting.clamp_min(1e-30).log()).argmax(-1)
