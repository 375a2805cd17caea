"""FLAME: maximum entropy with a flow of one step, whose entropy is known."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies import density
from ..policies.fewstep import FewStepPolicy
from ..ranges import Count, NonNegative, Positive, Share
from . import estimation, jumping, reverse
from .estimation import Estimation
from .matching import Averaged, BestOf
from .reverse import Measured, Reverse
from .temperature import Temperature


class Draws(NamedTuple):
    """The randomness of a policy step."""

    aim: reverse.Draws
    rows: Tensor  # [J] the rows that learn jumps
    end: Tensor  # [J] where these end, as a share of what is left of the path


@dataclass(eq=False)
class FLAME(Estimation, BestOf, Averaged):
    """Maximum entropy with average velocities (arXiv:2602.01606).

    The policy's target is p(a|s) ~ exp(Q(s, a) / alpha), without samples from it: at x_t the
    velocity v towards it is estimated by `algos.reverse.Reverse`, whose keys (`Estimation`) are
    keys here. Rows of jumps learn u(x, t, s), s uniform on [t, 1], from v + (s - t) (du/dt + v .
    grad_x u); the others the velocity itself. The mean-flow identity is linear in v, so the one
    derivative along the estimate is the weighted mean of the derivatives along all particles, which
    the released code takes one by one.

    Critics learn r + discount (min Q'(s', a') - alpha log pi(a'|s')), a' one step of the policy and
    its density exact (`policies.density`, one forward-mode product per executed element). The
    released code has the other sign there, draws latents of half the deviation that its density
    has, and clips noisy actions before it weighs them: not so here. alpha is learned until the
    entropy of actions is entropy_per_dim; of a clipped action it is that of the point before. Over
    several decisions (`source.n_step`) a target counts one entropy bonus, as in `algo=sac`.

    B batch, R policy rows, J rows of jumps, T chunk, Da action dimension. Raises ValueError for
    what `Reverse` refuses, for a share that leaves no jumps or no velocities, and for a choice
    among one.

    Args:
        jump_share: Share of the policy's rows, between 0 and 1, that learn jumps; the others learn
            the velocity.
        alpha: First value of the temperature, which weighs the entropy of actions against Q: the
            density that is learned is exp(Q / alpha).
        alpha_lr: Adam learning rate of the temperature; 0 keeps it.
        entropy_per_dim: Entropy that the temperature holds, in nats per executed action element:
            higher explores more.
        scale_rate: Share by which the running deviation of the policy's actions moves per policy
            update.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
    """

    pure = ("critic_loss", "policy_loss")
    trains_jumps = True

    policy: FewStepPolicy  # pyright: ignore[reportIncompatibleVariableOverride]
    executed: int | None = None
    _: KW_ONLY
    jump_share: Share
    alpha: Positive
    alpha_lr: NonNegative
    entropy_per_dim: float
    scale_rate: Share
    policy_batch: Count
    policy_every: Count

    def __post_init__(self) -> None:
        jumping.refuse_share("algo.jump_share", self.jump_share, low=False, high=False)
        if self.choice_temperature > 0 and self.start_candidates == 1:
            raise ValueError(
                f"algo.choice_temperature={self.choice_temperature}: there is nothing to choose "
                "from; set algo.start_candidates above 1"
            )
        super().__post_init__()
        self.reverse = Reverse(**{each.name: getattr(self, each.name) for each in fields(Reverse)})
        estimation.refuse(self.reverse, self.policy, "algo")
        device, policy = self.generator.device, self.policy
        size = (self.executed or policy.horizon) * policy.action_dim
        parts = self.alpha, self.entropy_per_dim * size, self.alpha_lr
        self.temperature = Temperature(*parts, device)
        self.spread = torch.full((policy.horizon * policy.action_dim,), 0.6, device=device)

    @property
    def learned(self) -> Mapping[str, str | None]:
        """What belongs to the networks; the temperature only where it is learned."""
        dual = {"temperature": "alpha"} if self.alpha_lr > 0 else {}
        return {"spread": None, **dual}

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy and temperature step; 0-d."""
        alpha, noise = self.temperature.value, self.policy.noise(len(batch.obs), self.generator)
        loss, metrics = self.critic_loss(batch, noise, alpha)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            metrics |= self.update_policy(batch)
            if self.alpha_lr > 0:
                self.temperature.update(metrics["policy/entropy"])
            metrics["policy/temperature"] = self.temperature.value
        return metrics

    def update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """One regression step of velocities and jumps."""
        rows = min(self.policy_batch, len(batch.obs))
        loss, metrics, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], self.draw(rows), self.temperature.value
        )
        self.learn_policy(loss)
        (spread,) = ranks.mean(measured.spread)
        self.spread.lerp_(spread, self.scale_rate)
        return metrics

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step on `rows` states."""
        generator, device = self.generator, self.generator.device
        count = round(self.jump_share * rows)
        drawn = self.reverse.draw(self.policy, rows, generator)
        order = torch.randperm(rows, generator=generator, device=device)
        return Draws(drawn, order[:count], torch.rand(count, generator=generator, device=device))

    def critic_loss(
        self, batch: Batch, noise: Tensor, alpha: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft TD loss of the ensemble; noise [B, T, Da] of the next actions."""
        with torch.no_grad():
            action, logp = density.sampled(self.policy, batch.next_obs, noise, self.executed)
            value = self.target(batch.next_obs, action).amin(0) - alpha * logp
        loss, metrics = self.td(batch, value)
        return loss, metrics | {"policy/entropy": -logp.mean()}

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Draws, alpha: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression of velocities and jumps onto the estimated one, metrics, measurements."""
        policy, rows = self.policy, draws.rows
        aim = self.reverse.aim(
            policy, self.critic, obs, action, draws.aim, alpha, self.spread, self.executed
        )
        x, v, t, feat = (
            value.index_select(0, rows) for value in (aim.x, aim.target, draws.aim.t, aim.feat)
        )
        s = t + (1 - t) * draws.end
        with torch.no_grad():
            goal = jumping.derivative(policy, x, v, t, s, feat.detach())
        jumps = policy.average_velocity(x, t, s, feat)
        found = aim.velocity.index_copy(0, rows, jumps)
        error = (found - aim.target.index_copy(0, rows, goal))[:, : self.executed].square()
        error = aim.weight * error.mean((-2, -1))
        loss = error.mean()
        metrics = aim.metrics | {"policy/loss": loss.detach()}
        return loss, metrics, aim.measured
