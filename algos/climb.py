"""Climbing Q by gradients through a policy's own samples, beside cloning (arXiv:2208.06193).

B batch, M candidates, T chunk, Da action dimension.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.candidates import candidate_noise
from ..ranges import Count, NonNegative
from .matching import Matching
from .optim import anneal, frozen


@dataclass(eq=False)
class Climbing(Matching):
    """A policy that clones and climbs, loss = cloning - eta mean Q_i(s, a) / mean|Q_j(s, a)|.

    a is a sample of the policy, i a random critic and j the next one, whose mean carries no
    gradient, so that eta has no unit. Critics learn r + discount min Q'(s', a') with a' from the
    averaged policy; several target_candidates are the published setting for sparse rewards.

    The average follows from the first update and in every one (published: from the 1,000th, in
    every fifth, a mean rate of 0.001), since short runs would else deploy what they began with. The
    published evaluation draws one of 50 samples from softmax(Q).

    Args:
        eta: Weight of Q, divided by its mean size, against cloning the data: larger leaves the data
            further, 0 only clones.
        target_candidates: Next actions per state in the TD target, over which every critic takes
            its largest value before the smallest critic counts.
        lr_floor: Share of the policy's and the critics' learning rates that is left at the end of
            the run, reached along a cosine; 1 keeps them.
        max_norm: Largest gradient norm of a step of the policy or of the critics; a longer gradient
            is scaled down to it.
    """

    pure = ("critic_loss", "policy_loss")

    _: KW_ONLY
    eta: NonNegative
    target_candidates: Count

    def begin(self) -> float:
        share = super().begin()
        anneal(self.critic_opt, self.critic_lr, share, self.lr_floor)
        return share

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and one policy step; metrics are 0-d."""
        parts = self.average, len(batch.obs), self.target_candidates, self.generator
        loss, metrics = self.critic_loss(batch, candidate_noise(*parts))
        self.learn_critic(loss, self.max_norm)
        with frozen(self.critic):
            loss, more = self.policy_loss(batch.obs, batch.action, self.draw(len(batch.obs)))
            self.learn_policy(loss)
        return metrics | more

    def start(self, rows: int) -> tuple[Tensor, Tensor]:
        """Noise of the samples that climb, [B, T, Da], and the number of the critic, [1]."""
        generator, device = self.generator, self.generator.device
        start = self.policy.noise(rows, generator)
        member = torch.randint(self.critic.members, (1,), generator=generator, device=device)
        return start, member

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; noise [B, M, T, Da] of the next actions."""
        with torch.no_grad():
            action = self.average.act(batch.next_obs, noise)
            value = self.target(batch.next_obs[:, None], action).amax(-1).amin(0)
        return self.td(batch, value)

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cloning plus the normalised Q term, [], and metrics."""
        loss = cloning = self.cloning(obs, action, draws)
        if self.eta != 0:
            loss = cloning + self.eta * self.q_loss(obs, draws)
        return loss, {"policy/loss": loss.detach(), "policy/bc": cloning.detach()}

    def draw(self, rows: int) -> Any:
        """Randomness of a policy step."""
        raise NotImplementedError

    def cloning(self, obs: Tensor, action: Tensor, draws: Any) -> Tensor:
        """The loss of cloning recorded actions, []."""
        raise NotImplementedError

    def own(self, obs: Tensor, start: Tensor) -> Tensor:
        """The policy's actions from noise [B, T, Da] with the gradient that climbs, same shape."""
        raise NotImplementedError

    def q_loss(self, obs: Tensor, draws: Any) -> Tensor:
        """-mean Q_i / mean|Q_j| of the policy's own actions, []."""
        return self.climb(obs, self.own(obs, draws.start), draws.member)

    def climb(self, obs: Tensor, own: Tensor, member: Tensor) -> Tensor:
        """-mean Q_i / mean|Q_j| of actions [B, T, Da], [], i = member [1] and j the next critic."""
        q = self.critic(obs, own)  # [E, B]
        climbed = q.index_select(0, member)
        other = q.detach().index_select(0, (member + 1) % len(q))
        return -climbed.mean() / other.abs().mean().clamp_min(1e-8)
