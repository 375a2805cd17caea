"""Soft actor-critic of a policy that tells the density of what it samples."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..ranges import Count, Positive
from .offpolicy import OffPolicy
from .optim import frozen, step
from .temperature import Temperature


@dataclass(eq=False)
class Soft(OffPolicy):
    """Soft actor-critic with a learned temperature (arXiv:1812.05905).

    Critic target y = r + discount (min Q'(s', a') - alpha log pi(a'|s')); the actor minimises alpha
    log pi(a|s) - min Q(s, a). Densities and entropy are of the executed steps of T alone: a step of
    the plan that is never executed has no reward to weigh against its entropy, and would use up the
    target for all.

    Over several decisions (`source.n_step`) the target counts one entropy bonus, that of the state
    it bootstraps from; those of the decisions in between are left out, which off-policy data do not
    tell, so alpha weighs about n times less in the values than in the actor.

    Args:
        alpha_lr: Adam learning rate of the temperature.
        alpha: First value of the temperature, which weighs the entropy of actions against Q.
        entropy_per_dim: Entropy that the temperature holds, in nats per executed action element:
            higher explores more.
        policy_every: Critic updates between two rounds of as many policy updates: larger delays the
            policy without fewer updates.
    """

    pure = ("critic_loss", "policy_loss")
    learned = {"temperature": "alpha"}

    executed: int | None = None
    _: KW_ONLY
    alpha_lr: Positive
    alpha: Positive
    entropy_per_dim: float
    policy_every: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        size = (self.executed or self.policy.horizon) * self.policy.action_dim
        parts = self.alpha, self.entropy_per_dim * size, self.alpha_lr
        self.temperature = Temperature(*parts, self.generator.device)

    def kicks(self, rows: int) -> Tensor:
        """The randomness of so many samples, standard normal: of one pass, [rows, T, Da]."""
        return self.policy.noise(rows, self.generator)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [..., T, Da] of that noise and its log density [...], differentiable."""
        return self.policy.sample(obs, noise, self.executed)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.sample(obs, self.kicks(len(obs)))[0]

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, as many actor and temperature steps."""
        noise = self.kicks(len(batch.obs))
        loss, metrics = self.critic_loss(batch, noise, self.temperature.value)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            for _ in range(self.policy_every):
                metrics |= self.update_policy(batch.obs)
        return metrics

    def update_policy(self, obs: Tensor) -> dict[str, Tensor]:
        """One actor step and one temperature step."""
        noise = self.kicks(len(obs))
        with frozen(self.critic):
            loss, entropy = self.policy_loss(obs, noise, self.temperature.value)
            self.step_policy(loss)
        self.temperature.update(entropy)
        return {
            "policy/loss": loss.detach(),
            "policy/entropy": entropy,
            "policy/temperature": self.temperature.value,
        }

    def step_policy(self, loss: Tensor) -> None:
        """One step on the actor's loss []."""
        step(self.policy_opt, loss)

    def critic_loss(
        self, batch: Batch, noise: Tensor, alpha: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft TD loss of the ensemble."""
        with torch.no_grad():
            action, logp = self.sample(batch.next_obs, noise)
            value = self.target(batch.next_obs, action).amin(0) - alpha * logp
        return self.td(batch, value)

    def policy_loss(self, obs: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Actor loss [] and the policy's entropy estimate [] without gradient."""
        action, logp = self.sample(obs, noise)
        q = self.critic(obs, action).amin(0)
        return (alpha * logp - q).mean(), -logp.detach().mean()
