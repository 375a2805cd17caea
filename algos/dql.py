"""Diffusion Q-learning: gradients of Q through the whole sampling chain, anchored by matching."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.candidates import candidate_noise
from ..ranges import Count, NonNegative
from .losses import matching_draws
from .matching import Matching
from .optim import anneal, frozen


class Draws(NamedTuple):
    """The randomness of a policy step."""

    noise: Tensor  # [B, T, Da] of the matching loss
    t: Tensor  # [B]
    start: Tensor  # [B, T, Da] where the chain starts
    member: Tensor  # [1] the critic that is climbed


@dataclass(eq=False)
class DQL(Matching):
    """Diffusion Q-learning (arXiv:2208.06193) with any flow or diffusion field.

    The policy minimises match(data) - eta mean Q_i(s, a) / mean|Q_j(s, a)|, with a the sample of
    the policy's K deterministic steps, differentiated through all of them, i a random critic and j
    the next one, whose mean carries no gradient, so that eta has no unit. Critics learn r +
    discount min Q'(s', a') with a' from the averaged policy; several target_candidates are the
    published setting for sparse rewards. The published field is policy.path=cosine
    policy.prediction=eps policy.clip_a=true. B batch, T chunk, Da action dimension.

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

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step."""
        generator, device = self.generator, self.generator.device
        noise, t = matching_draws(self.policy, rows, generator)
        start = self.policy.noise(rows, generator)
        member = torch.randint(self.critic.members, (1,), generator=generator, device=device)
        return Draws(noise, t, start, member)

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; noise [B, M, T, Da] of the next actions."""
        with torch.no_grad():
            action = self.average.act(batch.next_obs, noise)
            value = self.target(batch.next_obs[:, None], action).amax(-1).amin(0)
        return self.td(batch, value)

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Matching plus the normalised Q term, [], and metrics."""
        policy = self.policy
        error = policy.match(obs, action, draws.noise, draws.t, space=policy.prediction)
        loss = cloning = error.mean()
        if self.eta != 0:
            loss = cloning + self.eta * self.q_loss(obs, draws)
        return loss, {"policy/loss": loss.detach(), "policy/bc": cloning.detach()}

    def q_loss(self, obs: Tensor, draws: Draws) -> Tensor:
        """-mean Q_i / mean|Q_j| of the policy's own actions, []."""
        q = self.critic(obs, self.policy.act(obs, draws.start))  # [E, B]
        climbed = q.index_select(0, draws.member)
        other = q.detach().index_select(0, (draws.member + 1) % len(q))
        return -climbed.mean() / other.abs().mean().clamp_min(1e-8)
