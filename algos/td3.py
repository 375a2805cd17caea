"""TD3: a deterministic actor that climbs Q, the other baseline beside SAC."""

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.critics import QEnsemble
from ..policies.deterministic import Deterministic
from ..policies.nets import clone, lerp_
from .optim import adam, frozen, step
from .returns import smoothed, td_loss, td_target


class TD3:
    """Twin delayed deterministic policy gradients (arXiv:1802.09477).

    Critics learn y = r + discount min Q'(s', clip(pi'(s') + clipped noise)); every `policy_every`
    updates the actor takes one step on -mean Q_1(s, pi(s)), and all targets follow. Explored
    actions have Gaussian noise added, deployed ones are pi(s). Nothing here counts the steps of a
    plan (no density, no entropy), so those that are not executed need no rule: Q tells them apart
    by nothing. B batch, T chunk, Da action dimension.

    target_noise, noise_clip: standard deviation and limit of the smoothing noise. policy_every:
    critic updates per update of actor and targets. target_rate: Polyak rate of all targets.
    explore_noise: standard deviation while exploring. Learning rates: Adam.
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: Deterministic,
        critic: QEnsemble,
        generator: torch.Generator,
        *,
        policy_lr: float,
        critic_lr: float,
        target_noise: float,
        noise_clip: float,
        policy_every: int,
        target_rate: float,
        explore_noise: float,
    ) -> None:
        self.policy, self.slow = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        self.updates = 0
        self.target_noise, self.noise_clip = target_noise, noise_clip
        self.policy_every, self.target_rate = policy_every, target_rate
        self.explore_noise = explore_noise

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The policy's action with exploration noise, [N, T, Da]."""
        return draw.jittered(self.policy(obs), self.explore_noise, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The policy's action, [N, T, Da]."""
        return self.policy(obs)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one of the actor and all targets."""
        self.updates += 1
        noise = draw.normal(batch.action.shape, self.generator, device=batch.action.device)
        loss, metrics = self.critic_loss(batch, noise)
        step(self.critic_opt, loss)
        if self.updates % self.policy_every == 0:
            with frozen(self.critic):
                loss = self.policy_loss(batch.obs)
                step(self.policy_opt, loss)
            lerp_(self.slow, self.policy, self.target_rate)
            lerp_(self.target, self.critic, self.target_rate)
            metrics["policy/loss"] = loss.detach()
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble with a smoothed target action; noise [B, T, Da] is standard."""
        with torch.no_grad():
            action = self.slow(batch.next_obs)
            action = smoothed(action, noise, self.target_noise, self.noise_clip)
            value = self.target(batch.next_obs, action).amin(0)
            target = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action)
        loss = td_loss(q, target)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

    def policy_loss(self, obs: Tensor) -> Tensor:
        """-mean Q_1(s, pi(s)), []."""
        return -self.critic(obs, self.policy(obs))[0].mean()
