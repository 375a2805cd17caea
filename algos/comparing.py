"""Losses over the log ratios of several actions at one state, whoever judged these actions."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..policies.candidates import candidate_noise
from ..policies.flow import FlowPolicy
from ..ranges import Count, NonNegative, Positive
from . import losses, preferences
from .anchors import Pull, Shown, held, scaled
from .contract import Algorithm
from .losses import TimeWeight
from .preferences import Labels

Loss = Literal["centred", "listwise", "pairs", "kto", "mapo"]
T_MIN, T_MAX = 0.02, 0.98
STD_FLOOR = 0.05  # of a chain's transitions, in normalised action units


class Group(NamedTuple):
    """K actions of every state, and what a policy step holds fixed."""

    action: Tensor  # [R, K, T, Da]
    score: Tensor  # [R, K] in deviations, of mean 0
    sign: Tensor  # [R, K, K] which of two is the better one
    noise: Tensor  # [R, 1, J, T, Da] shared by the actions of a state
    t: Tensor  # [R, 1, J]
    chain: Tensor | None  # [R, K, S + 1, T, Da] of actions that were drawn with noise
    among: Tensor | None = None  # [R, K] how strongly each action is held; None: alike
    shown: Shown | None = None  # recorded actions that hold the policy too


@dataclass(eq=False)
class Comparing(Algorithm):
    """Losses over groups of K actions at the same state, with scores r and log ratios l.

    Scores are centred in each group and in units of their deviation over the batch; log ratios are
    to a reference policy. The losses:

    - `centred`: (beta (l - mean l) - (r - mean r))^2, CRD's, and of all pairs PRDP's
      (arXiv:2402.08714)
    - `listwise`: softmax(beta l) fitted to softmax(r), GDRO's
    - `pairs`: -log sigmoid(beta (l_w - l_l)): Diffusion-DPO (arXiv:2311.12908), with ratio chain
      D3PO (arXiv:2311.13231), a step of a chain at a time
    - `kto`: good against bad actions (arXiv:2402.01306)
    - `mapo`: the winner's matching with a margin, without a reference (arXiv:2406.06424)

    ratio `match` is l = -mean_J w(t) (|v - y|^2 - |v_ref - y|^2) on J shared (time, noise) pairs:
    no exact log ratio, so that beta is a knob there and the weighting sets what it means. `chain`
    is the sum of the log densities of a chain's transitions, exact, for policies whose chain is
    memoryless (policy.eta=1); a part of an action that its first noise fixes is nothing that a
    transition could move.

    Errors, ratios and pulls count the executed steps of a plan. R states, K actions of a group, J
    pairs, S denoising steps, T chunk, Da action dimension.

    Args:
        loss: What the scores of a group ask of its log ratios: centred, listwise, pairs, kto or
            mapo.
        ratio: How a log ratio is measured: match, by matching errors, or chain, by the densities of
            a noisy chain.
        labels: Which of two actions is preferred with loss pairs or mapo: hard, the one of higher
            score, or drawn, by the probability of Bradley and Terry.
        beta: Weight of a log ratio against a score; larger keeps the policy nearer its reference.
        ratio_limit: Size of a log ratio beyond which it gives no gradient; null: none.
        loser_limit: Matching error per element of a losing action beyond which it is pushed away no
            further; null: none.
        pairs: Random (time, noise) pairs per state at which errors are compared.
        weighting: Weight of velocity errors over time t (1 is data): uniform 1, noise 1 - t, noise2
            (1 - t)^2, data2 t^2, likelihood t / (1 - t).
        score_clip: Deviations at which scores are cut off in either direction.
        anchor_coef: Weight of the squared velocity distance to the policy of the run's start; 0:
            none.
        anchor_scaled: Whether the anchor holds good actions more than bad ones, by (1 + r /
            score_clip) / 2.
    """

    pure = ("policy_loss",)
    anchors = ("base",)
    noisy_steps = True  # what is deployed has noise in its transitions, where policy.eta > 0

    policy: FlowPolicy
    generator: torch.Generator
    executed: int | None = None
    base: FlowPolicy = field(init=False)  # of the run's start
    _: KW_ONLY
    loss: Loss
    ratio: Literal["match", "chain"]
    labels: Labels
    beta: Positive
    ratio_limit: Positive | None
    loser_limit: Positive | None
    pairs: Count
    weighting: TimeWeight
    score_clip: Positive
    anchor_coef: NonNegative
    anchor_scaled: bool

    @property
    def firm(self) -> float:
        """A coefficient of what holds the policy for good, beside anchor_coef."""
        return 0.0

    def refuse(self) -> None:
        """Raises ValueError for words that are unknown and for values that do not go together."""
        self.refuse_words(
            loss=("centred", "listwise", "pairs", "kto", "mapo"),
            ratio=("match", "chain"),
            labels=("hard", "drawn"),
        )
        if self.loss == "kto" and self.anchor_coef == 0 and self.firm == 0:
            raise ValueError(
                "algo.anchor_coef=0 with algo.loss=kto: it saturates, so that an anchor has to "
                "keep the policy; set algo.anchor_coef above 0, 1 for example"
            )
        if self.anchor_scaled and self.anchor_coef == 0:
            raise ValueError(
                "algo.anchor_scaled=true with algo.anchor_coef=0: there is no anchor to scale; "
                "set algo.anchor_coef above 0, or leave it false"
            )
        if self.loss == "mapo" and (self.ratio == "chain" or self.ratio_limit is not None):
            raise ValueError(
                "algo.loss=mapo has no log ratio; set algo.ratio=match algo.ratio_limit=null"
            )
        if self.loser_limit is not None and (self.ratio == "chain" or self.loss == "centred"):
            raise ValueError(
                f"algo.loser_limit={self.loser_limit:g}: of matching errors of losers; set it to "
                "null with algo.ratio=chain and with algo.loss=centred"
            )
        if self.ratio == "chain" and self.policy.eta < 1:
            raise ValueError(
                f"policy.eta={self.policy.eta:g} with algo.ratio=chain: a part of every action "
                "is fixed by the first noise, which no transition moves; set policy.eta=1, or "
                "algo.ratio=match"
            )

    def refuse_words(self, **known: tuple[str, ...]) -> None:
        """Raises ValueError for a key whose value is none of the words that it knows."""
        for key, words in known.items():
            if getattr(self, key) not in words:
                raise ValueError(f"algo.{key}={getattr(self, key)!r}: choose {', '.join(words)}")

    def reference_policy(self) -> FlowPolicy:
        """What log ratios refer to."""
        return self.base

    @torch.no_grad()
    def own(
        self, policy: FlowPolicy, obs: Tensor, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Actions [N, count, T, Da] of a policy's noisy chain; with ratio chain their chains."""
        if self.ratio == "chain":
            noise = policy.noise((len(obs), count), generator)
            drawn = policy.rollout(obs, noise, STD_FLOOR, generator)
            return drawn.action, drawn.x
        noise = candidate_noise(policy, len(obs), count, generator)
        return policy.drawn(obs, noise, generator, policy.eta), None

    def grouped(
        self, action: Tensor, score: Tensor, chain: Tensor | None, generator: torch.Generator
    ) -> Group:
        """Groups of actions [R, K, T, Da] with scores [R, K] in any unit, and what is drawn."""
        rows = (len(action), 1, self.pairs)
        score = losses.group_advantage(score, self.score_clip, self.score_clip)
        sign = preferences.preferred(score, self.labels, generator)
        noise = self.policy.noise(rows, generator)
        t = losses.stratified(rows, generator, T_MIN, T_MAX)
        return Group(action, score, sign, noise, t, chain)

    def policy_loss(self, obs: Tensor, group: Group) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the groups with its anchor, []; and metrics."""
        loss, _, metrics = self.compare(self.policy, obs, group)
        return loss, metrics

    def compare(
        self, policy: FlowPolicy, obs: Tensor, group: Group
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """`policy_loss` of a policy; its log ratios [R, K], of loss mapo its errors below 0."""
        points = losses.pairs(policy, obs, group.action, group.noise, group.t, self.executed)
        weight = losses.time_weight(group.t, self.weighting)
        error = self.capped((points.error() * weight).mean(-1), group.score)
        if self.loss == "mapo":
            loss, whole, metrics = preferences.mapo(error, group.sign), -error, {}
        else:
            log_ratio = self.log_ratio(obs, group, error, weight, policy)
            loss = self.of_ratios(log_ratio, group)
            whole = log_ratio if log_ratio.ndim == 2 else log_ratio.sum(-1)
            agree = (whole.detach() * group.score).mean()
            metrics = {"policy/log_ratio": whole.detach().abs().mean(), "policy/agreement": agree}
        if self.anchor_scaled:
            weight = weight * scaled(group.score, self.score_clip)[..., None]
        pull, distances = self.pull(points, obs, group, weight)
        return loss + pull, whole.detach(), metrics | distances

    def pull(
        self, points: losses.Pairs, obs: Tensor, group: Group, weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What holds the policy to that of the start, [], with weights [R, K, J]; and metrics."""
        base = self.base if self.anchor_coef else None
        return held(points, obs, group.t, [Pull("drift", self.anchor_coef, base)], weight)

    def capped(self, error: Tensor, score: Tensor) -> Tensor:
        """Errors [R, K], those of actions below their group's mean at most loser_limit."""
        if self.loser_limit is None:
            return error
        return torch.where(score < 0, error.clamp(max=self.loser_limit), error)

    def log_ratio(
        self,
        obs: Tensor,
        group: Group,
        error: Tensor,
        weight: Tensor,
        policy: FlowPolicy | None = None,
    ) -> Tensor:
        """Log ratios of a policy, that which learns, to the reference.

        error [R, K], weight [R, 1, J]: its own at the group's points. [R, K], or of a chain's steps
        [R, K, S].
        """
        policy, reference = policy or self.policy, self.reference_policy()
        if group.chain is not None:
            own, _ = policy.chain_logp(group.chain, obs, STD_FLOOR, executed=self.executed)
            with torch.no_grad():
                theirs, _ = reference.chain_logp(
                    group.chain, obs, STD_FLOOR, executed=self.executed
                )
            ratio = (own - theirs).sum((-1, -2))
        else:
            with torch.no_grad():
                points = losses.pairs(
                    reference, obs, group.action, group.noise, group.t, self.executed
                )
                theirs = self.capped((points.error() * weight).mean(-1), group.score)
            ratio = theirs - error
        limit = self.ratio_limit
        return ratio if limit is None else ratio.clamp(-limit, limit)

    def of_ratios(self, log_ratio: Tensor, group: Group) -> Tensor:
        """The loss of log ratios, []."""
        if self.loss == "pairs":
            return preferences.bradley_terry(log_ratio, group.sign, self.beta)
        whole = log_ratio if log_ratio.ndim == 2 else log_ratio.sum(-1)
        losses_of = {
            "centred": preferences.centred,
            "listwise": preferences.listwise,
            "kto": preferences.kto,
        }
        return losses_of[self.loss](whole, group.score, self.beta)
