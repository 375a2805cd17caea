"""Preferences and regression of log ratios within groups of own actions that critics score."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative
from .anchors import Shown, held
from .comparing import Comparing, Group
from .losses import Pairs
from .matching import Averaged, BestOf
from .pulled import Pulled
from .returns import pessimistic


@dataclass(eq=False)
class Prefer(Pulled, Comparing, BestOf, Averaged):
    """Losses over groups of K actions at the same state, scored by the critics (`Comparing`).

    At states of the replay `particles` actions of an old copy of the policy, and the replayed one
    with recorded, are scored by the smallest Q of the target ensemble. So CRD, PRDP
    (arXiv:2402.08714), GDRO, Diffusion-DPO (arXiv:2311.12908), D3PO (arXiv:2311.13231), KTO
    (arXiv:2402.01306) and MaPO (arXiv:2406.06424) compare actions; against the replayed one with
    loss `pairs` it is SePPO (arXiv:2410.05255), whose gate is the critics' choice of the winner.
    The TD target is the smaller of the target critics at an action of the averaged policy.
    B batch, R policy_batch, K actions of a group, T chunk, Da action dimension.

    Args:
        reference: What log ratios refer to: base, the policy of the run's start, or old, the copy
            that drew the actions.
        particles: Own actions per state.
        recorded: Whether the replayed action of a state is in its group.
        old_every: Updates after which the copy that draws the actions is replaced by the policy.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
        target_candidates: Samples of the averaged policy in the TD target, of which the one with
            the highest Q counts; 1: no choice.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("backup", "policy_loss")
    holds = {"velocity": ("const", "scaled", "dual", "gated"), "data": ("const", "dual")}

    _: KW_ONLY
    reference: Literal["base", "old"]
    particles: Count
    recorded: bool
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
        super().refuse()
        self.refuse_words(reference=("base", "old"))
        if self.particles + self.recorded < 2:
            raise ValueError(
                "algo.particles=1 with algo.recorded=false: a group has at least 2 actions"
            )
        if self.reference == "base" and self.renewing:
            raise ValueError(
                "algo.reference=base with an entry of algo.pulls that renews the start: log ratios "
                "would refer to another policy from then on; leave out limit and every, or set "
                "algo.reference=old"
            )
        if self.ratio == "chain" and self.recorded:
            raise ValueError(
                "algo.recorded=true with algo.ratio=chain: a replayed action has no chain; leave "
                "it false"
            )

    def reference_policy(self) -> FlowPolicy:
        """What log ratios refer to."""
        return self.base if self.reference == "base" else self.old

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
        action, chain = self.own(self.old, obs, self.particles, self.generator)
        if self.recorded:
            action = torch.cat([action, replayed[:, None]], 1)
        members = self.target(obs[:, None], action)
        q = pessimistic(members, "min")
        group = self.grouped(action, q, chain, self.generator)
        spread = action[..., : self.executed, :].std(1, correction=0).mean()
        metrics = {"policy/spread": spread, "critic/q_std": q.std(1, correction=0).mean()}
        among = self.among(members, group.score / self.score_clip)
        return group._replace(among=among), metrics

    def pull(
        self, points: Pairs, obs: Tensor, group: Group, weight: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As entries of `pulls` say."""
        pulls = [self.drift(self.anchor_coef, self.base, group.among)]
        pull, distances = held(points, obs, group.t, pulls, weight)
        cloning, more = self.to_data(group.shown, self.policy)
        return pull + cloning, distances | more
