"""TD3+BC: a deterministic actor that climbs Q and stays close to recorded actions."""

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.critics import QEnsemble
from ..policies.deterministic import Deterministic
from ..policies.nets import clone, lerp_
from .optim import adam, frozen, step
from .returns import smoothed, td_loss, td_target


class TD3BC:
    """TD3+BC (arXiv:2106.06860).

    Critics learn r + discount min Q'(s', clip(pi'(s') + clipped noise)); the actor minimises
    -lambda mean Q_1(s, pi(s)) + |pi(s) - a|^2 with lambda = alpha / mean|Q_1|, the mean over the
    batch and without gradient, so that alpha has no unit. B batch, T chunk, Da action dimension.

    target_noise, noise_clip: standard deviation and limit of the smoothing noise. policy_every:
    critic updates per update of actor and targets. target_rate: Polyak rate of all targets.
    explore_noise: added while exploring (online use). Learning rates: Adam.
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: Deterministic,
        critic: QEnsemble,
        generator: torch.Generator,
        *,
        alpha: float,
        target_noise: float,
        noise_clip: float,
        policy_every: int,
        target_rate: float,
        explore_noise: float,
        policy_lr: float,
        critic_lr: float,
    ) -> None:
        self.policy, self.slow = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        self.updates = 0
        self.alpha, self.policy_every, self.target_rate = alpha, policy_every, target_rate
        self.target_noise, self.noise_clip = target_noise, noise_clip
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
                loss, more = self.policy_loss(batch.obs, batch.action)
                step(self.policy_opt, loss)
            lerp_(self.slow, self.policy, self.target_rate)
            lerp_(self.target, self.critic, self.target_rate)
            metrics |= more
        return metrics

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared distance of the policy to held-out actions."""
        return {"val/loss": (self.policy(batch.obs) - batch.action).square().mean()}

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

    def policy_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss [] and metrics."""
        own = self.policy(obs)
        q = self.critic(obs, own)[0]
        scale = self.alpha / q.detach().abs().mean().clamp_min(1e-8)
        cloning = (own - action).square().mean()
        loss = -scale * q.mean() + cloning
        return loss, {
            "policy/loss": loss.detach(),
            "policy/bc": cloning.detach(),
            "policy/lambda": scale,
        }
