"""Preferences and regression of log ratios within groups of actions at one state."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative, Positive
from . import losses, preferences
from .anchors import Shown, held, scaled
from .losses import TimeWeight
from .matching import Averaged, BestOf
from .preferences import Labels
from .pulled import Pulled
from .returns import pessimistic

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
class Prefer(Pulled, BestOf, Averaged):
    """Losses over groups of K actions at the same state, scored by the critics.

    At states of the replay `particles` actions of an old copy of the policy, and the replayed one
    with recorded, are scored by the smallest Q of the target ensemble; scores are centred in each
    group and in units of their deviation over the batch. With log ratios l to a reference policy:

    - `centred`: (beta (l - mean l) - (r - mean r))^2, CRD's, and of all pairs PRDP's
      (arXiv:2402.08714)
    - `listwise`: softmax(beta l) fitted to softmax(r), GDRO's
    - `pairs`: -log sigmoid(beta (l_w - l_l)): Diffusion-DPO (arXiv:2311.12908), with ratio chain
      D3PO (arXiv:2311.13231), a step of a chain at a time; against the replayed action SePPO
      (arXiv:2410.05255), whose gate is the critics' choice of the winner
    - `kto`: good against bad actions (arXiv:2402.01306)
    - `mapo`: the winner's matching with a margin, without a reference (arXiv:2406.06424)

    ratio `match` is l = -mean_J w(t) (|v - y|^2 - |v_ref - y|^2) on J shared (time, noise) pairs:
    no exact log ratio, so that beta is a knob there and the weighting sets what it means. `chain`
    is the sum of the log densities of a chain's transitions, exact, for policies whose chain is
    memoryless (policy.eta=1); a part of an action that its first noise fixes is nothing that a
    transition could move.

    Errors, ratios and pulls count the executed steps of a plan. The TD target is the smaller of the
    target critics at an action of the averaged policy. B batch, R policy_batch, K actions of a
    group, J pairs, S denoising steps, T chunk, Da action dimension.

    Args:
        loss: What the scores of a group ask of its log ratios: centred, listwise, pairs, kto or
            mapo.
        ratio: How a log ratio is measured: match, by matching errors, or chain, by the densities of
            a noisy chain.
        reference: What log ratios refer to: base, the policy of the run's start, or old, the copy
            that drew the actions.
        labels: Which of two actions is preferred with loss pairs or mapo: hard, the one of higher
            score, or drawn, by the probability of Bradley and Terry.
        beta: Weight of a log ratio against a score; larger keeps the policy nearer its reference.
        ratio_limit: Size of a log ratio beyond which it gives no gradient; null: none.
        loser_limit: Matching error per element of a losing action beyond which it is pushed away no
            further; null: none.
        particles: Own actions per state.
        recorded: Whether the replayed action of a state is in its group.
        pairs: Random (time, noise) pairs per state at which errors are compared.
        weighting: Weight of velocity errors over time t (1 is data): uniform 1, noise 1 - t, noise2
            (1 - t)^2, data2 t^2, likelihood t / (1 - t).
        score_clip: Deviations at which scores are cut off in either direction.
        anchor_coef: Weight of the squared velocity distance to the policy of the run's start; 0:
            none.
        anchor_scaled: Whether the anchor holds good actions more than bad ones, by (1 + r /
            score_clip) / 2.
        old_every: Updates after which the copy that draws the actions is replaced by the policy.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
        target_candidates: Samples of the averaged policy in the TD target, of which the one with
            the highest Q counts; 1: no choice.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("backup", "policy_loss")
    anchors = ("base",)
    holds = {"velocity": ("const", "scaled", "dual", "gated"), "data": ("const", "dual")}
    noisy_steps = True  # what is deployed has noise in its transitions, where policy.eta > 0

    executed: int | None = None
    _: KW_ONLY
    loss: Loss
    ratio: Literal["match", "chain"]
    reference: Literal["base", "old"]
    labels: Labels
    beta: Positive
    ratio_limit: Positive | None
    loser_limit: Positive | None
    particles: Count
    recorded: bool
    pairs: Count
    weighting: TimeWeight
    score_clip: Positive
    anchor_coef: NonNegative
    anchor_scaled: bool
    old_every: Count
    policy_batch: Count
    policy_every: Count
    target_candidates: Count
    deploy_temperature: float = field(default=0.0, init=False)
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hold(self.generator.device)
        self.refuse()
        self.base = clone(self.policy)
        self.old = clone(self.policy)

    def refuse(self) -> None:
        """Raises ValueError for words that are unknown and for values that do not go together."""
        known = {
            "loss": ("centred", "listwise", "pairs", "kto", "mapo"),
            "ratio": ("match", "chain"),
            "reference": ("base", "old"),
            "labels": ("hard", "drawn"),
        }
        for key, words in known.items():
            if getattr(self, key) not in words:
                raise ValueError(f"algo.{key}={getattr(self, key)!r}: choose {', '.join(words)}")
        if self.particles + self.recorded < 2:
            raise ValueError(
                "algo.particles=1 with algo.recorded=false: a group has at least 2 actions"
            )
        if self.loss == "kto" and self.anchor_coef == 0 and self.firm == 0:
            raise ValueError(
                "algo.anchor_coef=0 with algo.loss=kto: it saturates, so that an anchor has to "
                "keep the policy; set algo.anchor_coef above 0, 1 for example"
            )
        if self.reference == "base" and self.renewing:
            raise ValueError(
                "algo.reference=base with an entry of algo.pulls that renews the start: log ratios "
                "would refer to another policy from then on; leave out limit and every, or set "
                "algo.reference=old"
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
        self.refuse_chain()

    def refuse_chain(self) -> None:
        """Raises ValueError where the densities of a chain are asked for and there are none."""
        if self.ratio == "match":
            return
        if self.recorded:
            raise ValueError(
                "algo.recorded=true with algo.ratio=chain: a replayed action has no chain; leave "
                "it false"
            )
        if self.policy.eta < 1:
            raise ValueError(
                f"policy.eta={self.policy.eta:g} with algo.ratio=chain: a part of every action "
                "is fixed by the first noise, which no transition moves; set policy.eta=1, or "
                "algo.ratio=match"
            )

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy with exploration noise, [N, T, Da]."""
        action = self.sampled(self.policy, obs, 1)[:, 0]
        return draw.jittered(action, self.explore_noise, self.generator)

    @torch.no_grad()
    def sampled(self, policy: FlowPolicy, obs: Tensor, count: int) -> Tensor:
        """Actions of the noisy chain, [N, count, T, Da]."""
        noise = candidate_noise(policy, len(obs), count, self.generator)
        return policy.drawn(obs, noise, self.generator, policy.eta)

    # ---------------------------------------------------------------- learning
    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        next_action = self.sampled(self.average, batch.next_obs, self.target_candidates)
        next_action = choose(self.critic, batch.next_obs, next_action)
        loss, metrics = self.backup(batch, next_action)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            rows = slice(self.policy_batch)
            shown = self.shown(self.policy, batch, self.policy_batch, self.generator)
            metrics |= self.update_policy(batch.obs[rows], batch.action[rows], shown)
        if self.updates % self.old_every == 0:
            lerp_(self.old, self.policy, 1.0)
        return metrics

    def update_policy(
        self, obs: Tensor, replayed: Tensor, shown: Shown | None = None
    ) -> dict[str, Tensor]:
        """One step of the policy at states [R, O] with their replayed actions [R, T, Da]."""
        group, metrics = self.meet(obs, replayed)
        loss, more = self.policy_loss(obs, group._replace(shown=shown))
        self.learn_policy(loss)
        if self.anchoring is not None:
            more |= self.anchoring.learn(more)
            more |= self.anchoring.renew(more, self.base, self.policy)
        return metrics | more | {"policy/loss": loss.detach()}

    @torch.no_grad()
    def meet(self, obs: Tensor, replayed: Tensor) -> tuple[Group, dict[str, Tensor]]:
        """The groups of states [R, O] with their scores, and metrics."""
        rows, chain = len(obs), None
        if self.ratio == "chain":
            noise = self.old.noise((rows, self.particles), self.generator)
            drawn = self.old.rollout(obs, noise, STD_FLOOR, self.generator)
            action, chain = drawn.action, drawn.x
        else:
            action = self.sampled(self.old, obs, self.particles)
        if self.recorded:
            action = torch.cat([action, replayed[:, None]], 1)
        members = self.target(obs[:, None], action)
        q = pessimistic(members, "min")
        score = losses.group_advantage(q, self.score_clip, self.score_clip)
        sign = preferences.preferred(score, self.labels, self.generator)
        noise = self.policy.noise((rows, 1, self.pairs), self.generator)
        t = losses.stratified((rows, 1, self.pairs), self.generator, T_MIN, T_MAX)
        spread = action[..., : self.executed, :].std(1, correction=0).mean()
        metrics = {"policy/spread": spread, "critic/q_std": q.std(1, correction=0).mean()}
        among = self.among(members, score / self.score_clip)
        return Group(action, score, sign, noise, t, chain, among), metrics

    def policy_loss(self, obs: Tensor, group: Group) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the groups with its anchor, []; and metrics."""
        points = losses.pairs(self.policy, obs, group.action, group.noise, group.t, self.executed)
        weight = losses.time_weight(group.t, self.weighting)
        error = self.capped((points.error() * weight).mean(-1), group.score)
        if self.loss == "mapo":
            loss, metrics = preferences.mapo(error, group.sign), {}
        else:
            log_ratio = self.log_ratio(obs, group, error, weight)
            loss = self.of_ratios(log_ratio, group)
            whole = log_ratio if log_ratio.ndim == 2 else log_ratio.sum(-1)
            agree = (whole.detach() * group.score).mean()
            metrics = {"policy/log_ratio": whole.detach().abs().mean(), "policy/agreement": agree}
        if self.anchor_scaled:
            weight = weight * scaled(group.score, self.score_clip)[..., None]
        pulls = [self.drift(self.anchor_coef, self.base, group.among)]
        pull, distances = held(points, obs, group.t, pulls, weight)
        cloning, more = self.to_data(group.shown, self.policy)
        return loss + pull + cloning, metrics | distances | more

    def capped(self, error: Tensor, score: Tensor) -> Tensor:
        """Errors [R, K], those of actions below their group's mean at most loser_limit."""
        if self.loser_limit is None:
            return error
        return torch.where(score < 0, error.clamp(max=self.loser_limit), error)

    def log_ratio(self, obs: Tensor, group: Group, error: Tensor, weight: Tensor) -> Tensor:
        """Log ratios to the reference, [R, K], or of a chain's steps [R, K, S]."""
        reference = self.base if self.reference == "base" else self.old
        if group.chain is not None:
            own, _ = self.policy.chain_logp(group.chain, obs, STD_FLOOR, executed=self.executed)
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
