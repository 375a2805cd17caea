"""The critic of implicit Q-learning: values of recorded actions only (arXiv:2110.06169)."""

from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from .returns import td_loss, td_target


def expectile_loss(gap: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| u^2 over gaps u = Q - V (arXiv:2110.06169, eq. 5), [].

    Its minimiser V is the mean of Q for 0.5 and tends to the largest Q for 1.
    """
    return ((expectile - (gap < 0).to(gap.dtype)).abs() * gap.square()).mean()


def critic_loss(
    critic: Any, target: Any, value: Any, batch: Batch, expectile: float
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """V towards the expectile of min Q'(s, a), Q towards r + discount V(s'): loss [] and metrics.

    Also the advantage min Q'(s, a) - V(s) of the recorded actions, [B], without gradient.
    """
    with torch.no_grad():
        goal = td_target(batch.reward, batch.discount, value(batch.next_obs))
        q_target = target(batch.obs, batch.action).amin(0)
    gap = q_target - value(batch.obs)
    value_loss = expectile_loss(gap, expectile)
    q = critic(batch.obs, batch.action)
    loss = td_loss(q, goal)
    metrics = {
        "critic/loss": loss.detach(),
        "critic/value_loss": value_loss.detach(),
        "critic/q": q.detach().mean(),
        "critic/advantage": gap.detach().mean(),
    }
    return loss + value_loss, gap.detach(), metrics
