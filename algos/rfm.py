"""Reverse flow matching: a flow policy trained towards exp(Q / T) without samples from it."""

from dataclasses import KW_ONLY, dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose, race
from ..ranges import Count, NonNegative, Positive, Share
from . import estimation
from .estimation import Estimation
from .matching import Averaged, BestOf
from .returns import dual_step, follow
from .reverse import Draws, Measured, Reverse


@dataclass(eq=False)
class RFM(Estimation, BestOf, Averaged):
    """Reverse flow matching with a Q-critic (arXiv:2601.08136).

    The policy's target is p(a|s) ~ exp(Q(s, a) / T) on the box [-1, 1]^D; the velocity towards it
    is estimated and regressed on by `algos.reverse.Reverse`, whose keys (`Estimation`) are keys
    here, with x starting from replayed actions in `replay_share` of the rows. B batch, R policy
    rows, N particles, D = Tp * Da, M candidates.

    A temperature that follows the spread should begin far above 1: a Q that has learned nothing
    hardly deviates, and at a T in proportion to that the policy follows it as sharply as it ever
    will. Spread (measured with the deployed sampler) and regression count the executed steps of a
    plan: the rest, which Q does not tell apart, would hold the mean spread up however narrow the
    executed actions become.

    One rule chooses among M samples of the policy by the smallest Q of the critic: the best, or
    with `choice_temperature` c > 0 one drawn from softmax(min Q / (c T)), as the authors' code does
    with c = 1. M is act_candidates while exploring, start_candidates where x starts,
    target_candidates in the TD target and deploy_candidates in deployment, where the best is taken
    unless deploy_temperature is above 0. In a TD target the critic chooses and the target critic
    evaluates: where one does both, its errors are chosen.

    Args:
        temperature: Temperature T of the target density exp(Q / T), in the unit of
            temperature_rule: lower is greedier; its first value with temperature_rule=spread.
        temperature_rule: Unit of temperature: Q's standard deviation within states (fixed, spread)
            or Q itself (absolute); spread also adapts it until actions deviate by spread_target.
        spread_target: Mean standard deviation of a state's actions that temperature_rule=spread
            holds, in action units: larger explores more.
        spread_rate: Step of the temperature's logarithm towards spread_target, per policy update
            and unit of log error; 0 keeps it.
        scale_rate: Share by which the running deviations of Q and of the policy's actions move per
            policy update.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
        act_candidates: Samples of the policy per exploring action, of which choice_temperature
            chooses one by Q; 1: no choice.
        target_candidates: Samples of the policy in the TD target, of which choice_temperature
            chooses one by Q; 1: no choice.
        deploy_temperature: Temperature, as a multiple of the density's, of the softmax that draws
            one of deploy_candidates by their Q; 0 takes the highest.
        target_noise: Scale of the noise that the TD target's action flows from: 1 samples the
            policy, 0 takes the one action of the noise's centre.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("critic_loss", "policy_loss")

    executed: int | None = None
    _: KW_ONLY
    temperature: Positive
    temperature_rule: Literal["fixed", "spread", "absolute"]
    spread_target: Positive
    spread_rate: NonNegative
    scale_rate: Share
    policy_batch: Count
    policy_every: Count
    act_candidates: Count
    target_candidates: Count
    target_noise: NonNegative
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse()
        self.reverse = Reverse(**{each.name: getattr(self, each.name) for each in fields(Reverse)})
        estimation.refuse(self.reverse, self.policy, "algo")
        device = self.generator.device
        self.log_temperature = torch.tensor(self.temperature, device=device).log()
        self.q_scale = torch.ones((), device=device)
        self.spread = torch.full(
            (self.policy.horizon * self.policy.action_dim,), 0.6, device=device
        )

    def refuse(self) -> None:
        """Raises ValueError for candidates that are all alike, and for a choice among none."""
        if self.target_noise == 0 and self.target_candidates > 1:
            raise ValueError(
                f"algo.target_candidates={self.target_candidates} with algo.target_noise=0: all "
                "would be the same action; set algo.target_candidates=1 or algo.target_noise=1"
            )
        most = max(self.act_candidates, self.start_candidates, self.target_candidates)
        if self.choice_temperature > 0 and most == 1:
            raise ValueError(
                f"algo.choice_temperature={self.choice_temperature}: there is nothing to choose "
                "from; set algo.act_candidates, algo.start_candidates or algo.target_candidates "
                "above 1"
            )

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Exploring action chunk [N, Tp, Da]: one chosen of M, then Gaussian noise."""
        noise, waiting = self.options(len(obs), self.act_candidates)
        action = self.choose(obs, self.policy.act(obs, noise), waiting)
        return draw.jittered(action, self.explore_noise, self.generator)

    def unit(self) -> float:
        """deploy_temperature is in units of T."""
        return float(self.T())

    def options(self, rows: int, count: int) -> tuple[Tensor, Tensor | None]:
        """What `count` candidates per row are made and chosen with: noise [N, M, Tp, Da], and
        exponential numbers [N, M] where one is drawn.
        """
        noise = candidate_noise(self.policy, rows, count, self.generator)
        return noise, race(noise, self.choice_temperature, self.generator)

    def choose(self, obs: Tensor, action: Tensor, waiting: Tensor | None) -> Tensor:
        """The chosen one of the candidates action [N, M, Tp, Da]: [N, Tp, Da]."""
        heat = 1.0 if waiting is None else self.choice_temperature * self.T()
        return choose(self.critic, obs, action, heat, waiting)

    # ---------------------------------------------------------------- learning
    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        candidates = self.options(len(batch.obs), self.target_candidates)
        loss, metrics = self.critic_loss(batch, *candidates)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            metrics |= self.update_policy(batch)
        return metrics

    def update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """One regression step towards the reverse-flow-matching velocity."""
        rows = min(self.policy_batch, len(batch.obs))
        loss, metrics, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], self.draw(rows), self.T()
        )
        self.learn_policy(loss)
        q_std, spread = ranks.mean(*measured)
        follow(self.q_scale, q_std, self.scale_rate)
        self.spread.lerp_(spread, self.scale_rate)
        if self.temperature_rule == "spread":
            acted = metrics["policy/spread"]
            dual_step(self.log_temperature, acted, self.spread_target, self.spread_rate)
        metrics["policy/temperature"] = self.T().detach()
        return metrics

    @property
    def learned(self) -> dict[str, str | None]:
        """What belongs to the networks; the temperature only where a rule has learned it."""
        dual = {"log_temperature": "temperature"} if self.temperature_rule == "spread" else {}
        return {"q_scale": None, "spread": None, **dual}

    def T(self) -> Tensor:
        """The temperature in units of Q, []."""
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
        return self.backup(batch, action)

    def policy_loss(
        self, obs: Tensor, replay_action: Tensor, draws: Draws, temperature: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression onto the estimated velocity, and what the duals measure."""
        return self.reverse.loss(
            self.policy, self.critic, obs, replay_action, draws, temperature, self.spread,
            self.executed,
        )  # fmt: skip
