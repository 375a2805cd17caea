"""Advantage weighted matching on policy; FPO, FPO++ and DiffusionNFT are settings of it."""

import logging
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from ..envs.batch import Choice, Rollout
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative, Positive, Share
from . import losses
from .anchors import Pull, held
from .losses import Reduction, Surrogate, TimeWeight
from .onpolicy import Rows, ratio_metrics
from .tuning import PulledOnPolicy

log = logging.getLogger("rheo")
T_MIN, T_MAX = 0.02, 0.98
NOISY = (
    "algo.weighting=%s: this policy predicts the noise, and as an error of velocity or action its "
    "error is divided by the little of the action that x holds at early times: gradients grow by "
    "orders of magnitude and may end the run; algo.weighting=data2 weighs the error of the noise"
)


@dataclass(eq=False)
class AWMGAE(PulledOnPolicy):
    """Weighted matching of own actions with generalised advantages (arXiv:2509.25050).

    For every action J pairs (t, noise) are drawn when it is taken, and its surrogate L = -psi(|v -
    u|^2) w(t) at those pairs is kept. The same pairs are met again in the update, so exp(L - L_old)
    is 1 at first.

    Ratios are one per pair in FPO++ (arXiv:2602.02481), and one per action, from the mean of its L,
    in FPO (arXiv:2507.21053). Without them the pull must match the repulsion of negative
    advantages: trust_coef + anchor_coef >= advantage_max, else ValueError. Penalty "spo" is A r -
    |A| (r - 1)^2 / (2 clip); "nft" replaces the objective by DiffusionNFT's (arXiv:2509.16117):
    mirrored velocities v_old +- nft_beta (v - v_old), matched with weights r = 1/2 + A / 2 and 1 -
    r, each over its own mean absolute error, and w(t). Its code takes both errors of the predicted
    action, which is weighting "noise".

    Weighting "noise2", the error of the predicted action, leaves the least noise in the gradient:
    at late times x shows the action already, and what little an advantage could tell is divided by
    a small 1 - t (`rheo bench variance` has the shares in closed form). reduction "root" and
    error_max are FPO++'s.

    The released code of arXiv:2509.25050 lets the copy follow faster, ema <- d ema + (1 - d) theta
    with d <= 0.3: a trust_rate of 0.7 or more. That is no brake here: in the bandit of the tests
    (ratio "none", best action 0.7) the policy is at 0.71 +- 0.01 after 150 rollouts with 0.3, and
    has run away with 0.7, with "square" and "ghuber" alike.

    Args:
        pairs: Random (time, noise) pairs at which the matching error of each action is measured;
            more of them lower the noise of its ratio.
        ratio: What is clipped as PPO's ratio: pair, one for each (time, noise) pair; mean, one per
            action from its mean error; none, plain weighted matching.
        penalty: What bounds the push away from bad actions: clip (PPO's), spo (a quadratic penalty
            on the ratio), or nft (DiffusionNFT's loss instead).
        nft_beta: Factor by which penalty=nft mirrors the policy's change of velocity around the old
            one; without effect otherwise.
        advantage_clip: Standard deviations at which advantages are cut off in either direction.
        advantage_max: Weight of an action whose advantage reaches advantage_clip; smaller
            advantages weigh in proportion.
        psi: Surrogate of the matching error: square takes it as it is, huber its root, ghuber four
            times its fourth root; these push far actions less.
        weighting: Weight of velocity errors over time t (1 is data): uniform 1, noise 1 - t, noise2
            (1 - t)^2, data2 t^2, likelihood t / (1 - t).
        reduction: How errors of d action elements become one: their mean, or root, their sum over
            sqrt(d), which makes log ratios sqrt(d) times larger.
        error_max: Matching error at which it is cut off and gives no gradient; null: nowhere.
        trust_coef: Weight of the squared velocity distance to a copy that trails the policy; 0: no
            copy.
        trust_rate: Share by which the copy of trust_coef follows the policy after a rollout, once 1
            / (1 + rollouts) has fallen to it; smaller brakes more.
        anchor_coef: Weight of the squared velocity distance to the policy at the start of the run;
            0: no anchor.
        action_noise: Standard deviation of the Gaussian noise added to actions while training, in
            action units (the box is -1 to 1).
    """

    anchors = ("base",)
    holds = {"velocity": ("const", "scaled", "dual"), "data": ("const", "dual")}
    policy: FlowPolicy
    executed: int | None = None
    _: KW_ONLY
    pairs: Count
    ratio: Literal["pair", "mean", "none"]
    penalty: Literal["clip", "spo", "nft"]
    nft_beta: Positive
    advantage_clip: Positive
    advantage_max: Positive
    psi: Surrogate
    weighting: TimeWeight
    reduction: Reduction
    error_max: Positive | None
    trust_coef: NonNegative
    trust_rate: Share
    anchor_coef: NonNegative
    action_noise: NonNegative

    def __post_init__(self) -> None:
        losses.refuse_jumps(self.policy)
        held = self.anchor_coef > 0 or self.to_start
        self.fast = clone(self.policy) if self.trust_coef > 0 else None
        self.base = clone(self.policy) if held else None
        super().__post_init__()
        if self.ratio == "none" and self.penalty != "nft":
            losses.refuse_unbounded(
                self.advantage_max,
                self.trust_coef + self.anchor_coef + self.firm,
                f"algo.trust_coef={self.trust_coef} + algo.anchor_coef={self.anchor_coef} below "
                "algo.advantage_max with algo.ratio=none",
            )
        if self.policy.prediction == "eps" and self.weighting != "data2":
            log.warning(NOISY, self.weighting)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Choice:
        """Actions of the flow, with their pairs and what the policy makes of them now."""
        policy, generator = self.policy, self.generator
        action = policy.act(obs, policy.noise(len(obs), generator))
        if self.action_noise:
            action = action + self.action_noise * policy.noise(len(obs), generator)
        action = action.clamp(-1, 1)
        t = losses.stratified((len(obs), self.pairs), generator, T_MIN, T_MAX)
        noise = policy.noise((len(obs), self.pairs), generator)
        met = losses.pairs(policy, obs, action, noise, t, self.executed)
        kept = {"t": t, "noise": noise, "old": self.surrogates(met, t)}
        if self.penalty == "nft":
            kept["velocity"] = met.velocity
        return Choice(action, kept)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The flow's action, [N, T, Da]."""
        return self.policy.act(obs, self.policy.start(len(obs), generator))

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """As `OnPolicy.update`; the trailing copy follows once per rollout."""
        metrics = super().update(rollout)
        if self.fast is not None:
            lerp_(self.fast, self.policy, max(self.trust_rate, 1 / (1 + self.rollouts)))
        return metrics

    def surrogates(self, met: losses.Pairs, t: Tensor) -> Tensor:
        """L = -psi(squared error) w(t), [B, J]."""
        error = met.error(self.reduction)
        if self.error_max is not None:
            error = error.clamp(max=self.error_max)
        return -losses.psi(error, self.psi) * losses.time_weight(t, self.weighting)

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The chosen surrogate with its trust terms, []."""
        t, noise = rows.kept["t"], rows.kept["noise"]
        met = losses.pairs(self.policy, rows.obs, rows.action, noise, t, self.executed)
        clip = self.advantage_clip
        advantage = rows.advantage.clamp(-clip, clip) * (self.advantage_max / clip)
        gap = self.surrogates(met, t) - rows.kept["old"]
        if self.ratio == "mean":
            gap = gap.mean(1, keepdim=True)
        if self.penalty == "nft":
            share, old = advantage / self.advantage_max, rows.kept["velocity"]
            loss = self.nft(met.velocity, old, met.goal, share, t)
            metrics = ratio_metrics(gap.detach(), self.learn.clip)
        else:
            loss, metrics = self.weighted(gap, advantage[:, None])
        part = self.anchor("velocity")
        among = None if part is None else part.rows(advantage / self.advantage_max, None)
        pulls = [
            Pull("trust", self.trust_coef, self.fast),
            self.drift(self.anchor_coef, self.base, among),
        ]
        pull, distances = held(met, rows.obs, t, pulls)
        cloning, more = self.beside(rows, draws)
        return loss + pull + cloning, metrics | distances | more

    def weighted(self, gap: Tensor, advantage: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of log ratios [B, J or 1] and advantages [B, 1], []."""
        limit, clip = self.learn.ratio_limit, self.learn.clip
        if self.ratio == "none":  # the ratio's value is taken as 1: only its gradient counts
            fresh = (gap - gap.detach()).exp()
            loss = -(advantage * fresh).mean()
            return loss, ratio_metrics(gap.detach(), clip)
        loss, metrics = self.surrogate(gap, advantage, clip)
        if self.penalty == "spo":
            ratio = gap.clamp(-limit, limit).exp()
            pushed = advantage * ratio - advantage.abs() * (ratio - 1).square() / (2 * clip)
            held = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
            loss = -torch.where(advantage < 0, pushed, held).mean()
        return loss, metrics

    def nft(
        self, velocity: Tensor, old: Tensor, goal: Tensor, advantage: Tensor, t: Tensor
    ) -> Tensor:
        """DiffusionNFT's loss, [] (arXiv:2509.16117); advantage [B] in [-1, 1], t [B, J]."""
        share = (0.5 + 0.5 * advantage).clamp(0, 1)[:, None]
        step = self.nft_beta * (velocity - old)
        parts = []
        for mirrored in (old + step, old - step):
            error = mirrored - goal
            scale = error.detach().abs().mean((-1, -2)).clamp_min(1e-5)
            parts.append(error.square().mean((-1, -2)) / scale)
        weight = losses.time_weight(t, self.weighting)
        loss = (share * parts[0] + (1 - share) * parts[1]) * weight
        return loss.mean() / self.nft_beta
