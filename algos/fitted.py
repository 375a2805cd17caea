"""Fitted Q evaluation: what policies that rest are worth, from recorded data (arXiv:1903.08738).

E members of an ensemble, B batch, K actions of a state, T chunk, Da action dimension. Pure
functions, but for the noise of a generator that is passed.
"""

from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from .returns import td_loss, td_target


@torch.no_grad()
def answers(
    policy: Any, obs: Tensor, noise: Tensor, generator: torch.Generator, eta: float = 0.0
) -> Tensor:
    """What a policy does at obs [B, O] from noise [B, K, T, Da], the same shape.

    As it is deployed, from points of the noise times `deploy_scale`; eta: share of DDPM's noise in
    its transitions.
    """
    return policy.drawn(obs[:, None], policy.deploy_scale * noise, generator, eta)


def fitted_loss(
    critic: Any, target: Any, batch: Batch, ahead: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error [] of every member's Q towards its own r + discount mean_k Q'(s', a_k).

    ahead: the policy's actions at next_obs, [B, K, T, Da]. Nothing is smallest or largest here:
    each member estimates the same mean by itself, so that their deviation tells how sure they are.
    """
    with torch.no_grad():
        value = target(batch.next_obs[:, None], ahead).mean(-1)  # [E, B]
    q = critic(batch.obs, batch.action)
    loss = td_loss(q, td_target(batch.reward, batch.discount, value))
    return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}


@torch.no_grad()
def start_values(critic: Any, obs: Tensor, action: Tensor) -> Tensor:
    """Each member's mean value [E] of a policy that does action [N, K, T, Da] at obs [N, O]."""
    return critic(obs[:, None], action).mean((-1, -2))
