"""Reverse flow matching: a flow policy trained towards exp(Q / T) without samples from it."""

from typing import Literal

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw, steer
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from .losses import refuse_jumps
from .optim import adam, step
from .returns import dual_step, td_loss, td_target
from .velocity import Draws, Measured, Reverse


class RFM:
    """Reverse flow matching with a Q-critic (arXiv:2601.08136).

    The policy's target is p(a|s) ~ exp(Q(s, a) / T) on the box [-1, 1]^D; the velocity towards it
    is estimated and regressed on by `algos.velocity.Reverse`, whose values are the keys from
    `particles` to `weighting`, with x starting from replayed actions in `replay_share` of the rows.
    B batch, R policy rows, N particles, D = Tp * Da, M candidates.

    temperature: T in units of an EMA of the within-state standard deviation of Q over near-uniform
    actions. temperature_rule: "fixed"; "absolute": T is in units of Q, as published; or "spread":
    from `temperature` on, T follows the standard deviation per dimension of the policy's actions,
    measured with the deployed sampler, to `spread_target` at `spread_rate`. It should begin far
    above 1: a Q that has learned nothing hardly deviates, and at a T in proportion to that the
    policy follows it as sharply as it ever will. Spread and regression count the executed steps of
    a plan: the rest, which Q does not tell apart, would hold the mean spread up however narrow the
    executed actions become.
    policy_batch: R. policy_every: critic updates per policy update. scale_rate: rate of both EMAs.

    One rule chooses among M samples of the policy by the smallest Q of the critic: the best, or
    with `choice_temperature` c > 0 one drawn from softmax(min Q / (c T)), as the authors' code does
    with c = 1. M is act_candidates while exploring, start_candidates where x starts,
    target_candidates in the TD target and deploy_candidates in deployment, where the best is taken
    unless deploy_temperature, in units of T too, is above 0. In a TD target the critic chooses and
    the target critic evaluates: where one does both, its errors are chosen.
    target_noise: scale of the noise that the TD target's action flows from; 0 evaluates the one
    action that the centre of the noise flows to. explore_noise: Gaussian noise added while
    exploring (action units).
    target_rate: Polyak rate of the target critic. ema_rate: of the deployed policy; 1 = raw.
    Learning rates `policy_lr`, `critic_lr`; `max_norm`: gradient-norm limit of the policy.
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        executed: int | None = None,
        *,
        particles: int,
        estimator: Literal["noise", "gradient", "combined"],
        support: Literal["box", "tanh"],
        proposal: Literal["truncated", "self"],
        self_share: float,
        self_scale: float,
        spread_floor: float,
        ridge: float,
        replay_share: float,
        weighting: Literal["ramp", "data", "noise", "uniform"],
        control: Literal["ridge", "published"],
        walls: float,
        temperature: float,
        temperature_rule: Literal["fixed", "spread", "absolute"],
        spread_target: float,
        spread_rate: float,
        scale_rate: float,
        policy_batch: int,
        policy_every: int,
        act_candidates: int,
        deploy_candidates: int,
        start_candidates: int,
        target_candidates: int,
        choice_temperature: float,
        deploy_temperature: float,
        target_noise: float,
        explore_noise: float,
        target_rate: float,
        ema_rate: float,
        policy_lr: float,
        critic_lr: float,
        max_norm: float,
    ) -> None:
        refuse_jumps(policy)
        if target_noise == 0 and target_candidates > 1:
            raise ValueError(
                f"algo.target_candidates={target_candidates} with algo.target_noise=0: all would "
                "be the same action; set algo.target_candidates=1 or algo.target_noise=1"
            )
        if choice_temperature > 0 and max(act_candidates, start_candidates, target_candidates) == 1:
            raise ValueError(
                f"algo.choice_temperature={choice_temperature}: there is nothing to choose from; "
                "set algo.act_candidates, algo.start_candidates or algo.target_candidates above 1"
            )
        self.reverse = Reverse(
            particles=particles,
            estimator=estimator,
            support=support,
            proposal=proposal,
            self_share=self_share,
            self_scale=self_scale,
            spread_floor=spread_floor,
            ridge=ridge,
            replay_share=replay_share,
            weighting=weighting,
            control=control,
            walls=walls,
            start_candidates=start_candidates,
            choice_temperature=choice_temperature,
        )
        self.reverse.refuse(policy, "algo")
        self.policy = policy
        self.average = clone(policy)
        self.critic = critic
        self.target = clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        device = generator.device
        self.log_temperature = torch.tensor(temperature, device=device).log()
        self.q_scale = torch.ones((), device=device)
        self.spread = torch.full((policy.horizon * policy.action_dim,), 0.6, device=device)
        self.updates = 0
        self.executed = executed  # of the steps of a plan; None: all
        self.scale_rate, self.temperature_rule = scale_rate, temperature_rule
        self.spread_target, self.spread_rate = spread_target, spread_rate
        self.policy_batch, self.policy_every = policy_batch, policy_every
        self.act_candidates, self.deploy_candidates = act_candidates, deploy_candidates
        self.target_candidates, self.explore_noise = target_candidates, explore_noise
        self.choice_temperature, self.target_noise = choice_temperature, target_noise
        self.deploy_temperature = deploy_temperature
        self.target_rate, self.ema_rate, self.max_norm = target_rate, ema_rate, max_norm

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Exploring action chunk [N, Tp, Da]: one chosen of M, then Gaussian noise."""
        noise, waiting = self.options(len(obs), self.act_candidates)
        action = self.choose(obs, self.policy.act(obs, noise), waiting)
        return draw.jittered(action, self.explore_noise, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Deployed action chunk [N, Tp, Da]: one of M of the averaged policy, no noise added."""
        drawing = self.deploy_candidates > 1 and self.deploy_temperature > 0
        temperature = self.deploy_temperature * float(self.temperature()) if drawing else 0.0
        parts = self.average, self.critic, obs, generator
        return steer.sample(*parts, self.deploy_candidates, temperature)

    def options(self, rows: int, count: int) -> tuple[Tensor, Tensor | None]:
        """What `count` candidates per row are made and chosen with: noise [N, M, Tp, Da], and
        exponential numbers [N, M] where one is drawn.
        """
        noise = self.policy.noise(rows * count, self.generator).unflatten(0, (rows, count))
        race = count > 1 and self.choice_temperature > 0
        return noise, draw.exponential(noise[..., 0, 0], self.generator) if race else None

    def choose(self, obs: Tensor, action: Tensor, waiting: Tensor | None) -> Tensor:
        """The chosen one of the candidates action [N, M, Tp, Da]: [N, Tp, Da]."""
        T = 0.0 if waiting is None else self.choice_temperature * self.temperature()
        return steer.choose(self.critic, obs, action, T, waiting=waiting)

    # ---------------------------------------------------------------- learning
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        self.updates += 1
        loss, metrics = self.critic_loss(batch, *self.options(
            len(batch.obs), self.target_candidates
        ))
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        if self.updates % self.policy_every == 0:
            metrics |= self.update_policy(batch)
        return metrics

    def update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """One regression step towards the reverse-flow-matching velocity."""
        rows = min(self.policy_batch, len(batch.obs))
        loss, metrics, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], self.draw(rows), self.temperature()
        )
        step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        q_std, spread = measured
        # an average that has measured nothing, 1, starts with the first measurement: T means the
        # same from the first step
        self.q_scale.lerp_(q_std, torch.where(self.q_scale == 1, 1.0, self.scale_rate))
        self.spread.lerp_(spread, self.scale_rate)
        if self.temperature_rule == "spread":
            acted = metrics["policy/spread"]
            dual_step(self.log_temperature, acted, self.spread_target, self.spread_rate)
        metrics["policy/temperature"] = self.temperature().detach()
        return metrics

    @property
    def learned(self) -> dict[str, str | None]:
        """What belongs to the networks; the temperature only where a rule has learned it."""
        dual = {"log_temperature": "temperature"} if self.temperature_rule == "spread" else {}
        return {"q_scale": None, "spread": None, **dual}

    def temperature(self) -> Tensor:
        """T in units of Q, []."""
        T = self.log_temperature.exp()
        return T if self.temperature_rule == "absolute" else T * self.q_scale

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step on `rows` states."""
        return self.reverse.draw(self.policy, rows, self.generator)

    def critic_loss(
        self, batch: Batch, noise: Tensor, waiting: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Twin TD loss with the target y = r + discount * min Q'(s', a'), a' the policy's.

        noise [B, M, Tp, Da] of M candidates for a', waiting as in `choose`.
        """
        with torch.no_grad():
            action = self.policy.act(batch.next_obs, self.target_noise * noise)
            action = self.choose(batch.next_obs, action, waiting)
            value = self.target(batch.next_obs, action).amin(0)
            target = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action)
        loss = td_loss(q, target)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

    def policy_loss(
        self, obs: Tensor, replay_action: Tensor, draws: Draws, temperature: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression onto the estimated velocity, and what the duals measure."""
        return self.reverse.loss(
            self.policy, self.critic, obs, replay_action, draws, temperature, self.spread,
            self.executed,
        )  # fmt: skip

    def velocity_target(
        self, obs: Tensor, x: Tensor, t: Tensor, velocity: Tensor, uniform: Tensor, T: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """v = A' E[a|x] + B' E[eps|x] [R, Tp, Da], metrics, and Q's within-state deviation []."""
        return self.reverse.target(
            self.policy, self.critic, obs, x, t, velocity, uniform, T, self.spread
        )

    def own_draws(self) -> int:
        """Number of particles that the self-proposal draws, leading in N."""
        return self.reverse.own_draws()
