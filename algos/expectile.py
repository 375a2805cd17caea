"""The critic of implicit Q-learning: values of recorded actions only (arXiv:2110.06169)."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies.critics import Value
from ..ranges import Quantile
from .offpolicy import Scheduled


def expectile_loss(gap: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| u^2 over gaps u = Q - V (arXiv:2110.06169, eq. 5), [].

    Its minimiser V is the mean of Q for 0.5 and tends to the largest Q for 1.
    """
    return ((expectile - (gap < 0).to(gap.dtype)).abs() * gap.square()).mean()


@dataclass(eq=False)
class Implicit(Scheduled):
    """V is the expectile of min Q' over recorded actions, and Q learns r + discount V(s').

    No action that is not in the data is ever evaluated.

    Args:
        critic_lr: Adam learning rate of the critics and the state value.
        expectile: Expectile of Q over recorded actions that the state value learns: 0.5 is their
            mean, towards 1 it nears their largest Q.
    """

    value: Value
    _: KW_ONLY
    expectile: Quantile

    def __post_init__(self) -> None:
        self.value.to(self.generator.device)
        super().__post_init__()

    def judging(self) -> Iterable[nn.Parameter]:
        """Parameters of Q and V."""
        return [*self.critic.parameters(), *self.value.parameters()]

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of V and Q [], min Q'(s, a) - V(s) of the recorded actions [B], metrics."""
        with torch.no_grad():
            best = self.target(batch.obs, batch.action).amin(0)
            ahead = self.value(batch.next_obs)
        gap = best - self.value(batch.obs)
        value_loss = expectile_loss(gap, self.expectile)
        loss, metrics = self.td(batch, ahead)
        metrics |= {
            "critic/value_loss": value_loss.detach(),
            "critic/advantage": gap.detach().mean(),
        }
        return loss + value_loss, gap.detach(), metrics

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The critics' loss on held-out data, beside what the policy's is."""
        return super().validate(batch, generator) | {"val/critic_loss": self.critic_loss(batch)[0]}
