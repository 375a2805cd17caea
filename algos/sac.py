"""Soft actor-critic: the Gaussian baseline."""

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.critics import QEnsemble
from ..policies.gaussian import TanhGaussian
from ..policies.nets import clone, lerp_
from .optim import adam, frozen, step
from .returns import td_loss, td_target
from .temperature import Temperature


class SAC:
    """Soft actor-critic with a learned temperature (arXiv:1812.05905).

    Critic target y = r + discount (min Q'(s', a') - alpha log pi(a'|s')); the actor minimises
    alpha log pi(a|s) - min Q(s, a); alpha keeps the entropy at `entropy_per_dim` times the
    executed steps of T times Da. Densities and entropy are of those steps alone: a step of the
    plan that is never executed has no reward to weigh against its entropy, and would use up the
    target for all.

    Over several decisions (`source.n_step`) the target counts one entropy bonus, that of the state
    it bootstraps from; those of the decisions in between are left out, which off-policy data do not
    tell, so alpha weighs about n times less in the values than in the actor.

    policy_lr, critic_lr, alpha_lr: Adam. alpha: first temperature. target_rate: Polyak rate.
    policy_every: critic updates per round of as many actor updates.
    deploy_mean: deploy the mode (tanh of the mean) rather than a sample.
    """

    pure = ("critic_loss", "policy_loss")
    learned = {"temperature": "alpha"}

    def __init__(
        self,
        policy: TanhGaussian,
        critic: QEnsemble,
        generator: torch.Generator,
        executed: int | None = None,
        *,
        policy_lr: float,
        critic_lr: float,
        alpha_lr: float,
        alpha: float,
        entropy_per_dim: float,
        target_rate: float,
        policy_every: int,
        deploy_mean: bool,
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.target = clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        self.executed = executed  # of the steps of a plan; None: all
        entropy = entropy_per_dim * (executed or policy.horizon) * policy.action_dim
        self.temperature = Temperature(alpha, entropy, alpha_lr, generator.device)
        self.updates = 0
        self.target_rate, self.policy_every = target_rate, policy_every
        self.deploy_mean = deploy_mean

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.sample(obs, self.policy.noise(len(obs), self.generator))[0]

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mode of the policy, or a sample, [N, T, Da]."""
        if self.deploy_mean:
            return self.policy.mean(obs)
        return self.policy.sample(obs, self.policy.noise(len(obs), generator))[0]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, as many actor and temperature steps."""
        self.updates += 1
        noise = self.policy.noise(len(batch.obs), self.generator)
        loss, metrics = self.critic_loss(batch, noise, self.temperature.value)
        step(self.critic_opt, loss)
        if self.updates % self.policy_every == 0:
            for _ in range(self.policy_every):
                metrics |= self.update_policy(batch.obs)
        lerp_(self.target, self.critic, self.target_rate)
        return metrics

    def update_policy(self, obs: Tensor) -> dict[str, Tensor]:
        """One actor step and one temperature step."""
        noise = self.policy.noise(len(obs), self.generator)
        with frozen(self.critic):
            loss, entropy = self.policy_loss(obs, noise, self.temperature.value)
            step(self.policy_opt, loss)
        self.temperature.update(entropy)
        return {
            "policy/loss": loss.detach(),
            "policy/entropy": entropy,
            "policy/temperature": self.temperature.value,
        }

    def critic_loss(
        self, batch: Batch, noise: Tensor, alpha: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft TD loss of the ensemble."""
        with torch.no_grad():
            action, logp = self.policy.sample(batch.next_obs, noise, self.executed)
            value = self.target(batch.next_obs, action).amin(0) - alpha * logp
            target = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action)
        loss = td_loss(q, target)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

    def policy_loss(self, obs: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Actor loss [] and the policy's entropy estimate [] without gradient."""
        action, logp = self.policy.sample(obs, noise, self.executed)
        q = self.critic(obs, action).amin(0)
        return (alpha * logp - q).mean(), -logp.detach().mean()
