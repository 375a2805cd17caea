"""Reverse flow matching from recorded data: towards exp(Q / T) where the data allow it."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw, steer
from ..policies.critics import QEnsemble, Value
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from . import expectile as expectiles
from .losses import refuse_jumps, row_times
from .optim import adam, anneal, step
from .velocity import Draws, Measured, Reverse


class RFMOffline:
    """Reverse flow matching (arXiv:2601.08136) against an expectile critic, anchored to the data.

    The velocity is regressed on that of exp(Q / T) (`algos.velocity.Reverse`, the node `reverse`)
    plus anchor_coef times the matching of recorded actions. At a point x the optimum is
    (w v_rfm + c v_data) / (w + c) with the time weight w and c = anchor_coef: the anchor decides
    how far the policy leaves the data, T how sharply it climbs. The critic is implicit
    Q-learning's, so no target ever asks for the value of an unseen action; the policy step does.
    B batch, R policy_batch, T chunk, Da action dimension.

    temperature: in units of an EMA (scale_rate) of the within-state standard deviation of Q, or,
    with temperature_rule "absolute", of Q. act_candidates, explore_noise: on line, as in `RFM`.
    expectile, lr_floor, target_rate, ema_rate, max_norm, deploy_candidates and
    deploy_temperature as in `IQL`.
    """

    pure = ("critic_loss", "policy_loss")
    learned: ClassVar[dict[str, str | None]] = {"q_scale": None, "spread": None}

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        run_updates: int,
        value: Value,
        reverse: Reverse,
        *,
        temperature: float,
        temperature_rule: Literal["fixed", "absolute"],
        scale_rate: float,
        anchor_coef: float,
        policy_batch: int,
        expectile: float,
        policy_lr: float,
        critic_lr: float,
        lr_floor: float,
        target_rate: float,
        ema_rate: float,
        max_norm: float,
        act_candidates: int,
        explore_noise: float,
        deploy_candidates: int,
        deploy_temperature: float,
    ) -> None:
        refuse_jumps(policy)
        reverse.refuse(policy, "algo.reverse")
        self.policy, self.average = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.value = value.to(generator.device)
        self.reverse, self.generator = reverse, generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam([*critic.parameters(), *value.parameters()], critic_lr)
        device, size = generator.device, policy.horizon * policy.action_dim
        self.q_scale = torch.ones((), device=device)
        self.spread = torch.full((size,), 0.6, device=device)
        self.updates, self.run_updates = 0, run_updates
        self.base_temperature = temperature
        self.absolute = temperature_rule == "absolute"
        self.scale_rate = scale_rate
        self.act_candidates, self.explore_noise = act_candidates, explore_noise
        self.anchor_coef, self.policy_batch, self.expectile = anchor_coef, policy_batch, expectile
        self.policy_lr, self.lr_floor, self.max_norm = policy_lr, lr_floor, max_norm
        self.target_rate, self.ema_rate = target_rate, ema_rate
        self.deploy_candidates = deploy_candidates
        self.deploy_temperature = deploy_temperature

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """One chosen of M samples of the policy, then Gaussian noise, [N, T, Da]."""
        noise = steer.candidate_noise(self.policy, obs, self.act_candidates, self.generator)
        race = self.act_candidates > 1 and self.reverse.choice_temperature > 0
        T = self.reverse.choice_temperature * float(self.temperature()) if race else 0.0
        action = self.policy.act(obs, noise)
        action = steer.choose(self.critic, obs, action, T, self.generator)
        return draw.jittered(action, self.explore_noise, self.generator)

    def temperature(self) -> Tensor:
        """T in units of Q, []."""
        unit = torch.ones_like(self.q_scale) if self.absolute else self.q_scale
        return self.base_temperature * unit

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the averaged policy, [N, T, Da]."""
        chosen = self.deploy_candidates, self.deploy_temperature
        return steer.sample(self.average, self.critic, obs, generator, *chosen)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        loss, _, metrics = self.critic_loss(batch)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        rows = min(self.policy_batch, len(batch.obs))
        loss, more, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], *self.draw(rows), self.temperature()
        )
        step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        # an average that has measured nothing, 1, starts with the first measurement: T means the
        # same from the first step
        self.q_scale.lerp_(measured.q_std, torch.where(self.q_scale == 1, 1.0, self.scale_rate))
        self.spread.lerp_(measured.spread, self.scale_rate)
        return metrics | more

    def draw(self, rows: int) -> tuple[Draws, Tensor, Tensor]:
        """Randomness of the regression, and noises and times of the anchor's matching."""
        draws = self.reverse.draw(self.policy, rows, self.generator)
        noise = self.policy.noise(rows, self.generator)
        return draws, noise, row_times(rows, self.generator)

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy, and the critics' loss."""
        rows, space = len(batch.obs), self.average.prediction
        noise, t = self.policy.noise(rows, generator), row_times(rows, generator)
        error = self.average.match(batch.obs, batch.action, noise, t, space=space)
        return {"val/loss": error.mean(), "val/critic_loss": self.critic_loss(batch)[0]}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of V and Q [], advantage [B], metrics."""
        parts = self.critic, self.target, self.value
        return expectiles.critic_loss(*parts, batch, self.expectile)

    def policy_loss(
        self,
        obs: Tensor,
        action: Tensor,
        draws: Draws,
        noise: Tensor,
        t: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression on the reverse velocity plus the anchor, [], metrics and measurements."""
        loss, metrics, measured = self.reverse.loss(
            self.policy, self.target, obs, action, draws, temperature, self.spread
        )
        anchor = self.policy.match(obs, action, noise, t, space=self.policy.prediction).mean()
        metrics["policy/bc"] = anchor.detach()
        return loss + self.anchor_coef * anchor, metrics, measured
