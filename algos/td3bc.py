"""TD3+BC: a deterministic actor that climbs Q and stays close to recorded actions."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..ranges import NonNegative
from .delayed import Delayed


@dataclass(eq=False)
class TD3BC(Delayed):
    """TD3+BC (arXiv:2106.06860).

    TD3 (`Delayed`) with the actor minimising -lambda mean Q_1(s, pi(s)) + |pi(s) - a|^2, lambda =
    alpha / mean|Q_1|, the mean over the batch and without gradient, so that alpha has no unit.

    Args:
        alpha: Weight of Q, divided by its mean size, against the squared distance to recorded
            actions: larger leaves the data further.
    """

    _: KW_ONLY
    alpha: NonNegative

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared distance of the policy to held-out actions."""
        return {"val/loss": (self.policy(batch.obs) - batch.action).square().mean()}

    def policy_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss [] and its parts."""
        own = self.policy(obs)
        q = self.critic(obs, own)[0]
        scale = self.alpha / q.detach().abs().mean().clamp_min(1e-8)
        cloning = (own - action).square().mean()
        loss = -scale * q.mean() + cloning
        return loss, {"policy/bc": cloning.detach(), "policy/lambda": scale}
