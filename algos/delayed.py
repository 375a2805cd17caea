"""What TD3 and its descendants share: a deterministic actor, smoothed targets, delayed steps."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.heads import Deterministic
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative
from .offpolicy import OffPolicy
from .optim import frozen, step
from .returns import smoothed


@dataclass(eq=False)
class Delayed(OffPolicy):
    """Critics learn y = r + discount min Q'(s', clip(pi'(s') + clipped noise)); every policy_every
    updates the actor takes one step, and all targets follow (TD3, arXiv:1802.09477).

    Explored actions have Gaussian noise added, deployed ones are pi(s). Nothing here counts the
    steps of a plan (no density, no entropy), so those that are not executed need no rule: Q tells
    them apart by nothing. B batch, T chunk, Da action dimension.

    Args:
        target_noise: Standard deviation of the Gaussian noise that smooths the target policy's
            action, in action units; 0: none.
        noise_clip: Limit of the smoothing noise on target actions in either direction, in action
            units.
        policy_every: Critic updates per update of the policy and of all targets.
        target_rate: Share by which target policy and target critic move towards their originals,
            every policy_every updates (Polyak averaging); 1 copies them.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("critic_loss", "policy_loss")

    policy: Deterministic
    _: KW_ONLY
    target_noise: NonNegative
    noise_clip: NonNegative
    policy_every: Count
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.slow = clone(self.policy)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The policy's action with exploration noise, [N, T, Da]."""
        return draw.jittered(self.policy(obs), self.explore_noise, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The policy's action, [N, T, Da]."""
        return self.policy(obs)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one of the actor and all targets."""
        noise = draw.normal(batch.action.shape, self.generator, device=batch.action.device)
        loss, metrics = self.critic_loss(batch, noise)
        step(self.critic_opt, loss)
        if self.updates % self.policy_every == 0:
            with frozen(self.critic):
                loss, more = self.policy_loss(batch.obs, batch.action)
                step(self.policy_opt, loss)
            lerp_(self.slow, self.policy, self.target_rate)
            lerp_(self.target, self.critic, self.target_rate)
            metrics |= {"policy/loss": loss.detach()} | more
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble with a smoothed target action; noise [B, T, Da] is standard."""
        with torch.no_grad():
            action = self.slow(batch.next_obs)
            action = smoothed(action, noise, self.target_noise, self.noise_clip)
            value = self.target(batch.next_obs, action).amin(0)
        return self.td(batch, value)

    def policy_loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's loss [], and metrics beside it."""
        raise NotImplementedError
