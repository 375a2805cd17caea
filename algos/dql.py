"""Diffusion Q-learning: gradients of Q through the whole sampling chain, anchored by matching."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import steer
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from .losses import refuse_jumps, row_times
from .optim import adam, anneal, frozen, step
from .returns import td_loss, td_target


class Draws(NamedTuple):
    """The randomness of a policy step."""

    noise: Tensor  # [B, T, Da] of the matching loss
    t: Tensor  # [B]
    start: Tensor  # [B, T, Da] where the chain starts
    member: Tensor  # [1] the critic that is climbed


class DQL:
    """Diffusion Q-learning (arXiv:2208.06193) with any flow or diffusion field.

    The policy minimises match(data) - eta mean Q_i(s, a) / mean|Q_j(s, a)|, with a the sample of
    the policy's K deterministic steps, differentiated through all of them, i a random critic and j
    the next one, whose mean carries no gradient, so that eta has no unit. Critics learn
    r + discount min Q'(s', a') with a' from the averaged policy; with target_candidates M > 1
    every critic takes its largest value over M actions before the minimum (the published setting
    for sparse rewards). The published field is policy.path=cosine policy.prediction=eps
    policy.clip_a=true. B batch, T chunk, Da action dimension.

    lr_floor: share of both learning rates that a cosine reaches at run_updates; 1 = constant.
    target_rate: Polyak rate of Q'. ema_rate: of the averaged policy, which is also deployed; it
    follows from the first update and in every one (published: from the 1,000th, in every fifth, a
    mean rate of 0.001), since short runs would else deploy what they began with.
    max_norm: gradient-norm limit. deploy_candidates, deploy_temperature: as in `IQL`; the
    published evaluation draws one of 50 from softmax(Q).
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        run_updates: int,
        *,
        eta: float,
        target_candidates: int,
        policy_lr: float,
        critic_lr: float,
        lr_floor: float,
        target_rate: float,
        ema_rate: float,
        max_norm: float,
        deploy_candidates: int,
        deploy_temperature: float,
    ) -> None:
        refuse_jumps(policy)
        self.policy, self.average = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        self.updates, self.run_updates = 0, run_updates
        self.eta, self.target_candidates = eta, target_candidates
        self.policy_lr, self.critic_lr, self.lr_floor = policy_lr, critic_lr, lr_floor
        self.target_rate, self.ema_rate, self.max_norm = target_rate, ema_rate, max_norm
        self.deploy_candidates = deploy_candidates
        self.deploy_temperature = deploy_temperature

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.act(obs, self.policy.noise(len(obs), self.generator))

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the averaged policy, [N, T, Da]."""
        chosen = self.deploy_candidates, self.deploy_temperature
        return steer.sample(self.average, self.critic, obs, generator, *chosen)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and one policy step; metrics are 0-d."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        anneal(self.critic_opt, self.critic_lr, share, self.lr_floor)
        noise = steer.candidate_noise(
            self.average, batch.next_obs, self.target_candidates, self.generator
        )
        loss, metrics = self.critic_loss(batch, noise)
        step(self.critic_opt, loss, self.max_norm)
        with frozen(self.critic):
            loss, more = self.policy_loss(batch.obs, batch.action, self.draw(len(batch.obs)))
            step(self.policy_opt, loss, self.max_norm)
        lerp_(self.target, self.critic, self.target_rate)
        lerp_(self.average, self.policy, self.ema_rate)
        return metrics | more

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step."""
        generator, device = self.generator, self.generator.device
        noise, t = self.policy.noise(rows, generator), row_times(rows, generator)
        start = self.policy.noise(rows, generator)
        member = torch.randint(self.critic.members, (1,), generator=generator, device=device)
        return Draws(noise, t, start, member)

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy on held-out data."""
        rows = len(batch.obs)
        noise, t = self.policy.noise(rows, generator), row_times(rows, generator)
        error = self.average.match(batch.obs, batch.action, noise, t, self.average.prediction)
        return {"val/loss": error.mean()}

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; noise [B, M, T, Da] of the next actions."""
        with torch.no_grad():
            action = self.average.act(batch.next_obs, noise)
            value = self.target(batch.next_obs[:, None], action).amax(-1).amin(0)
            target = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action)
        loss = td_loss(q, target)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

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
