"""Proximal policy optimisation with a Gaussian policy: the baseline of the baselines."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Choice
from ..policies.heads import Gaussian
from ..ranges import NonNegative
from .onpolicy import OnPolicy, Rows


@dataclass(eq=False)
class PPO(OnPolicy):
    """PPO (arXiv:1707.06347), the Gaussian's ratio clipped and an entropy bonus; the mean is
    deployed.

    Args:
        entropy_coef: Weight of the entropy bonus, in nats per action element; 0: none.
    """

    policy: Gaussian
    executed: int | None = None
    _: KW_ONLY
    entropy_coef: NonNegative

    @torch.no_grad()
    def act(self, obs: Tensor) -> Choice:
        """A raw sample and its log density."""
        noise = self.policy.noise(len(obs), self.generator)
        action, logp = self.policy.sample(obs, noise, self.executed)
        return Choice(action, {"logp": logp})

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mean, [N, T, Da]."""
        return self.policy.mean(obs)

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped objective less the entropy bonus, []."""
        logp = self.policy.log_prob(rows.obs, rows.action, self.executed)
        log_ratio = logp - rows.kept["logp"]
        loss, metrics = self.surrogate(log_ratio, rows.advantage, self.learn.clip)
        log_std = self.policy.log_std[: self.executed]  # the entropy up to a constant
        metrics["policy/std"] = log_std.detach().exp().mean()
        return loss - self.entropy_coef * log_std.mean(), metrics
