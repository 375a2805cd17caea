"""RL-100's offline stage: iterations of a policy on recorded states, let through or dropped."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from .branched import Branched
from .expectile import Implicit
from .gate import Gated, Phase
from .matching import held_out


@dataclass(eq=False)
class RL100(Branched, Gated, Implicit):
    """The offline stage of RL-100 (arXiv:2510.14830), for a policy of init=RUN.

    Critics are those of implicit Q-learning (`Implicit`), which never ask about an action that was
    not recorded. At recorded states the denoising chain is tuned by PPO's clipped objective, one
    noisy step at a time (`Branched`), held to the accepted policy by `pulls`. An iteration of it is
    deployed only if fitted Q evaluation says that it is worth more (`Gated`). R policy_batch.
    """

    pure = ("critic_loss", "policy_loss")

    executed: int | None = None

    def refuse(self) -> None:
        """As `Branched.refuse`; for a base that would be replaced by another than the accepted."""
        super().refuse()
        if self.renewing:
            raise ValueError(
                "algo.pulls: limit and every replace the policy that is held to, which here is the "
                "accepted one; leave them out"
            )

    def learn_from(self, batch: Batch, phase: Phase = "first") -> dict[str, Tensor]:
        """One step of V and Q, and what it is the turn of; metrics are 0-d."""
        loss, _, metrics = self.critic_loss(batch)
        self.learn_critic(loss)
        if phase != "tune":
            return metrics | self.learn_judges(batch, phase)
        if self.updates % self.policy_every == 0:
            shown = self.shown(self.policy, batch, self.policy_batch, self.generator)
            metrics |= self.update_policy(batch.obs[: self.policy_batch], shown)
        return metrics

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The critics' loss on held-out data, and the matching loss of the accepted policy."""
        told = super().validate(batch, generator)
        return told | held_out(self.accepted, batch, generator)
