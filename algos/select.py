"""Choosing among several action samples of a policy by their value: best-of-N and soft-of-N."""

from typing import Any

import torch
from torch import Tensor


def candidate_noise(policy: Any, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Noises [N, M, Tp, Da] for M candidate actions per observation."""
    return policy.noise(len(obs) * count, generator).unflatten(0, (len(obs), count))


def choose(
    critic: Any,
    obs: Tensor,
    action: Tensor,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One of the M candidates action [N, M, Tp, Da] per observation, by its minimum Q over members.

    temperature 0 takes the largest (best-of-M); above 0 draws one from softmax(Q / temperature),
    as arXiv:2208.06193 does, by adding Gumbel noise to Q / temperature. [N, Tp, Da]
    """
    if action.shape[1] == 1:
        return action[:, 0]
    score = critic(obs[:, None], action).amin(0)
    if temperature > 0:
        waiting = torch.empty_like(score).exponential_(generator=generator)
        score = score / temperature - waiting.clamp_min(1e-30).log()
    choice = score.argmax(1)
    return action.gather(1, choice[:, None, None, None].expand(-1, 1, *action.shape[2:]))[:, 0]


def best(policy: Any, critic: Any, obs: Tensor, noise: Tensor) -> Tensor:
    """The policy's action with the largest minimum Q among noise [N, M, Tp, Da]: [N, Tp, Da]."""
    return choose(critic, obs, policy.act(obs, noise))


@torch.no_grad()
def sample(
    policy: Any,
    critic: Any,
    obs: Tensor,
    generator: torch.Generator,
    candidates: int = 1,
    temperature: float = 0.0,
) -> Tensor:
    """An action per observation, chosen from `candidates` samples of the policy: [N, Tp, Da]."""
    if candidates == 1:
        return policy.act(obs, policy.start(len(obs), generator))
    start = policy.start(len(obs) * candidates, generator)
    action = policy.act(obs, start.unflatten(0, (len(obs), candidates)))
    return choose(critic, obs, action, temperature, generator)
