"""Advantage weighted matching against a Q-critic, off policy."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies import draw
from ..policies.nets import clone, lerp_
from ..policies.steer import Chain, Settings
from ..ranges import Count, NonNegative, Positive, Share
from . import losses
from .anchors import Pull, Shown, held, varied
from .losses import Deviation, Surrogate, TimeWeight
from .matching import Averaged
from .optim import step
from .pulled import Pulled
from .recall import Looking

T_MIN, T_MAX = 0.02, 0.98
LOG_RATIO_MAX = 10.0


class Met(NamedTuple):
    """What a policy step holds fixed over its inner steps."""

    action: Tensor  # [R, K, T, Da] the policy's own
    advantage: Tensor  # [R, K, 1]
    noise: Tensor  # [R, 1, J, T, Da] shared by the K actions of a state
    t: Tensor  # [R, 1, J]
    old: Tensor  # [R, K, J] surrogate of the policy that acted
    among: Tensor | None  # [R, K] how strongly each action is held; None: alike
    shown: Shown | None  # recorded actions that hold the policy too


@dataclass(eq=False)
class AWMQ(Pulled, Averaged, Looking):
    """Signed weighted matching of own samples, judged by an ensemble (arXiv:2509.25050).

    At states of the replay the policy draws K actions; their advantages among themselves
    (`losses.group_advantage`, by the smallest Q of the target ensemble) weigh the matching of the
    policy to each of them at J (time, noise) pairs, so the loss is that of pretraining. Negative
    weights fall on own samples only, never on replayed actions.

    Their repulsion is held by trust_coef |v - v_fast|^2 on the same points, v_fast a copy that
    trails the policy, and by anchor_coef |v - v_base|^2 to the policy of the run's start: with
    ratio "none" trust_coef + anchor_coef >= advantage_max, else ValueError. TD targets use the
    actions that are deployed: those of the chain `steer` on the averaged policy, for targets by the
    target ensemble. A relative critic (`policies.relative`) sees actions from where the policy of
    the start of the run in which it began would put them. Matching errors and pulls count the
    executed steps of a plan: which action Q prefers says nothing about the others. B batch, R
    policy_batch, K particles, J pairs, T chunk.

    The released code's copy trails with a rate of 0.7 or more, once per epoch of its on-policy
    samples; this one follows after each of thousands of small policy steps. A copy so close is no
    brake: with 0.7 and the best action on the edge of the box the policy leaves it on both sides.

    Args:
        particles: Actions that the policy draws at each state, weighed by their advantages among
            each other; at least 2.
        pairs: Random (time, noise) pairs per state at which the policy is matched to its actions;
            more of them lower the gradient's noise.
        policy_batch: States of a batch that a policy update uses, at most.
        ratio: Objective of the matching: none is plain weighted matching, pair clips the ratio of
            each (time, noise) pair as PPO does.
        clip: Limit of ratios with ratio=pair, to 1 - clip and 1 + clip; without effect otherwise.
        inner_steps: Gradient steps on each set of drawn actions; ratios leave 1 from the second on.
        advantage_clip: Standard deviations at which advantages are cut off in either direction.
        advantage_max: Weight of an action whose advantage reaches advantage_clip; with ratio=none
            at most trust_coef + anchor_coef.
        deviation: What advantages are divided by: the standard deviation over the whole batch, or
            over each state alone, which makes all states count alike.
        diversity: Whether positive advantages are multiplied by how far the action lies from the
            nearest other one of its state, over the mean of these distances (arXiv:2512.24138).
        psi: Surrogate of the matching error: square takes it as it is, huber its root, ghuber four
            times its fourth root; these push far actions less.
        weighting: Weight of velocity errors over time t (1 is data): uniform 1, noise 1 - t, noise2
            (1 - t)^2, data2 t^2, likelihood t / (1 - t).
        trust_coef: Weight of the squared velocity distance to a copy that trails the policy; 0: no
            copy.
        trust_rate: Share by which the copy of trust_coef moves towards the policy per policy
            update; smaller brakes more.
        anchor_coef: Weight of the squared velocity distance to the policy at the start of the run;
            0: no anchor.
        relative: Whether the critic sees actions as offsets from what the policy at the start of
            the run would do; needs anchor_coef above 0.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
        policy_every: Critic updates per policy update.
    """

    pure = ("backup", "policy_loss")
    anchors = ("base",)
    holds = {"velocity": ("const", "scaled", "dual", "gated"), "data": ("const", "dual")}

    steer: Settings
    executed: int | None = None
    _: KW_ONLY
    particles: Count
    pairs: Count
    policy_batch: Count
    ratio: Literal["none", "pair"]
    clip: NonNegative
    inner_steps: Count
    advantage_clip: Positive
    advantage_max: Positive
    deviation: Deviation
    diversity: bool
    psi: Surrogate
    weighting: TimeWeight
    trust_coef: NonNegative
    trust_rate: Share
    anchor_coef: NonNegative
    relative: bool
    explore_noise: NonNegative
    policy_every: Count

    def __post_init__(self) -> None:
        policy = self.policy
        self.hold(self.generator.device)
        self.refuse()
        self.base = clone(policy) if self.anchor_coef > 0 or self.to_start else None
        self.fast = clone(policy) if self.trust_coef > 0 else None
        self.look()
        super().__post_init__()
        self.chain(self.critic)  # raises for words that do not go together

    def refuse(self) -> None:
        """Raises ValueError for words that are unknown and for values that do not go together."""
        if self.ratio not in ("none", "pair"):
            raise ValueError(f"algo.ratio={self.ratio!r}: choose none or pair")
        if self.deviation not in ("batch", "state"):
            raise ValueError(f"algo.deviation={self.deviation!r}: choose batch or state")
        if self.particles < 2:
            raise ValueError(
                f"algo.particles={self.particles}: an advantage needs at least 2 actions"
            )
        if self.ratio == "none":
            losses.refuse_unbounded(
                self.advantage_max,
                self.trust_coef + self.anchor_coef + self.firm,
                f"algo.trust_coef={self.trust_coef} + algo.anchor_coef={self.anchor_coef} below "
                "algo.advantage_max with algo.ratio=none",
            )
        if self.relative and self.anchor_coef == 0 and self.anchor("velocity") is None:
            raise ValueError(
                "algo.relative=true: the critic looks from where the policy of the run's start "
                "stood, near which an anchor has to keep it; set algo.anchor_coef above 0, 1 "
                "for example, or leave it false"
            )
        if self.relative and self.renewing:
            raise ValueError(
                "algo.relative=true with an entry of algo.pulls that renews the start: the critic "
                "goes on looking from where the run began; leave out limit and every, or set "
                "algo.relative=false"
            )

    @staticmethod
    def upgrade(state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state with the origin, which was the anchor's policy before it was kept apart."""
        relative = "base" in state and "spread" in state["critic"] and "origin" not in state
        return {**state, "origin": state["base"]} if relative else state

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy with exploration noise, [N, T, Da]."""
        action = self.policy.act(obs, self.policy.noise(len(obs), self.generator))
        return draw.jittered(action, self.explore_noise, self.generator)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The chain's choice among samples of the averaged policy, [N, T, Da]."""
        return self.chain(self.critic)(obs, generator)

    @property
    def climbs(self) -> bool:
        """Whether its chain climbs Q."""
        return "climb" in self.steer.words

    def chain(self, critic: nn.Module) -> Chain:
        """How the averaged policy is deployed when `critic` judges."""
        return Chain(self.average, critic, self.base, self.steer)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every policy_every, one policy step; metrics are 0-d."""
        told = self.told(batch)
        next_action = self.chain(self.target)(batch.next_obs, self.generator)
        loss, metrics = self.backup(batch, next_action, *told)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            shown = self.shown(self.policy, batch, self.policy_batch, self.generator)
            metrics |= self.update_policy(batch.obs[: self.policy_batch], shown)
        return metrics

    def update_policy(self, obs: Tensor, shown: Shown | None = None) -> dict[str, Tensor]:
        """Inner steps on one set of own samples at states [R, O], and of recorded actions."""
        met, metrics = self.meet(obs, shown)
        for _ in range(self.inner_steps):
            loss, more = self.policy_loss(obs, met)
            norm = step(self.policy_opt, loss, self.max_norm)
            metrics |= more | {"policy/loss": loss.detach(), "policy/gradient_norm": norm}
            if self.anchoring is not None:
                metrics |= self.anchoring.learn(more)
        if self.anchoring is not None:
            metrics |= self.anchoring.renew(metrics, self.base, self.policy)
        lerp_(self.average, self.policy, self.ema_rate)
        if self.fast is not None:
            lerp_(self.fast, self.policy, self.trust_rate)
        return metrics

    @torch.no_grad()
    def meet(self, obs: Tensor, shown: Shown | None = None) -> tuple[Met, dict[str, Tensor]]:
        """Own actions, their advantages, pairs and surrogates; and metrics."""
        policy, generator, rows = self.policy, self.generator, len(obs)
        action = policy.act(obs, policy.noise((rows, self.particles), generator))
        members = self.target(obs[:, None], action)
        q = members.amin(0)
        advantage = losses.group_advantage(
            q, self.advantage_clip, self.advantage_max, self.deviation
        )
        among = self.among(members, advantage / self.advantage_max)
        if self.diversity:
            advantage = varied(advantage, action[..., : self.executed, :])
        noise = policy.noise((rows, 1, self.pairs), generator)
        t = losses.stratified((rows, 1, self.pairs), generator, T_MIN, T_MAX)
        old = self.surrogate(losses.pairs(policy, obs, action, noise, t, self.executed), t)
        spread = action.std(1, correction=0).mean()
        metrics = {"policy/spread": spread, "critic/q_std": q.std(1, correction=0).mean()}
        return Met(action, advantage[..., None], noise, t, old, among, shown), metrics

    def surrogate(self, met: losses.Pairs, t: Tensor) -> Tensor:
        """L = -psi(mean squared error) w(t), [R, K, J]."""
        return -losses.psi(met.error(), self.psi) * losses.time_weight(t, self.weighting)

    def policy_loss(self, obs: Tensor, met: Met) -> tuple[Tensor, dict[str, Tensor]]:
        """Signed matching with its trust terms, []."""
        points = losses.pairs(self.policy, obs, met.action, met.noise, met.t, self.executed)
        gap = self.surrogate(points, met.t) - met.old
        if self.ratio == "pair":
            loss = losses.clipped(gap, met.advantage, self.clip, LOG_RATIO_MAX).mean()
        else:
            loss = -(met.advantage * gap).mean()
        metrics = {"policy/surrogate": loss.detach()}
        weight = losses.time_weight(met.t, self.weighting)
        pulls = [
            Pull("trust", self.trust_coef, self.fast),
            self.drift(self.anchor_coef, self.base, met.among),
        ]
        pull, distances = held(points, obs, met.t, pulls, weight)
        cloning, more = self.to_data(met.shown, self.policy)
        return loss + pull + cloning, metrics | distances | more
