"""Advantage weighted matching from recorded data, with signed weights on own samples if wanted."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.flow import FlowPolicy
from ..policies.nets import clone
from ..ranges import Count, NonNegative, Positive
from . import anchors, losses
from .expectile import Implicit
from .losses import Surrogate, TimeWeight
from .matching import Matching
from .optim import adam, step

T_MIN, T_MAX = 0.02, 0.98


class Draws(NamedTuple):
    """The randomness of a policy step: B rows, R of them with K samples, J pairs."""

    noise: Tensor  # [B, T, Da] of matching recorded actions
    t: Tensor  # [B]
    start: Tensor  # [R, K, T, Da] noises of the policy's own actions
    pair_noise: Tensor  # [R, 1, J, T, Da] shared by the K actions of a state
    pair_t: Tensor  # [R, 1, J]


@dataclass(eq=False)
class AWM(Implicit, Matching):
    """Advantage weighted matching (arXiv:2509.25050), the form for recorded data.

    An expectile critic (`Implicit`) judges. Recorded actions are matched with the positive weights
    min(exp(beta A), weight_max) + bc_coef. With signed_coef > 0, K samples of the policy at
    signed_batch states are matched too, with signed weights: their advantages within the state
    (`losses.group_advantage`), on J stratified (t, noise) pairs that the K samples share,

        signed_coef mean A psi(|v - u|^2) w(t) + anchor_coef mean |v - v_behaviour|^2 w(t),

    v_behaviour a policy that only clones the data. Negative weights never fall on recorded actions:
    repulsion from where the policy does not go has no bound. The pull must be as strong as the
    repulsion (`losses.refuse_unbounded`), anchor_coef >= signed_coef * advantage_max, and bc_coef
    >= 1: ValueError otherwise. Signed errors and their anchor count the executed steps of a plan,
    the cloning of recorded actions all of it. B batch, R signed_batch, K particles, J pairs, T
    chunk.

    Args:
        beta: Inverse temperature of the weights exp(beta * advantage), per unit of Q: larger copies
            the better actions only, 0 clones all alike.
        weight_max: Limit of the weights exp(beta * advantage).
        bc_coef: Constant added to the weight of every recorded action, a share of plain cloning; at
            least 1 where signed_coef is above 0.
        signed_coef: Weight of the matching of own samples, which also pushes the worse of them
            away; 0: recorded actions only.
        anchor_coef: Weight of the squared velocity distance to a policy that only clones; with
            signed_coef, at least signed_coef * advantage_max.
        signed_batch: States of a batch at which own samples are matched, at most; without effect
            when signed_coef is 0.
        particles: Own actions drawn at each of the signed_batch states.
        pairs: Random (time, noise) pairs per state at which own actions are matched; more of them
            lower the gradient's noise.
        advantage_clip: Standard deviations at which the advantages of own samples are cut off in
            either direction.
        advantage_max: Weight of an own sample whose advantage reaches advantage_clip; smaller
            advantages weigh in proportion.
        psi: Surrogate of the matching error: square takes it as it is, huber its root, ghuber four
            times its fourth root; these push far actions less.
        weighting: Weight of own samples' velocity errors over time t (1 is data): uniform 1, noise
            1 - t, noise2 (1 - t)^2, data2 t^2, likelihood t / (1 - t).
        behaviour_lr: Adam learning rate of the cloning policy that anchor_coef refers to.
    """

    pure = ("critic_loss", "data_loss", "signed_loss")

    executed: int | None = None
    _: KW_ONLY
    beta: NonNegative
    weight_max: Positive
    bc_coef: NonNegative
    signed_coef: NonNegative
    anchor_coef: NonNegative
    signed_batch: Count
    particles: Count
    pairs: Count
    advantage_clip: Positive
    advantage_max: Positive
    psi: Surrogate
    weighting: TimeWeight
    behaviour_lr: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signed_coef < 0:
            raise ValueError(f"algo.signed_coef={self.signed_coef}: at least 0, which means off")
        signed = self.signed_coef > 0
        if signed:
            losses.refuse_unbounded(
                self.signed_coef * self.advantage_max,
                self.anchor_coef,
                f"algo.anchor_coef={self.anchor_coef} below algo.signed_coef * algo.advantage_max",
            )
            keys = f"algo.bc_coef={self.bc_coef} with signed_coef > 0"
            losses.refuse_unbounded(1.0, self.bc_coef, keys)
        self.behaviour = clone(self.policy, frozen=False) if signed else None
        if self.behaviour is not None:
            self.behaviour_opt = adam(self.behaviour.parameters(), self.behaviour_lr)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q, one of the policy and, if signed, one of the behaviour policy."""
        loss, advantage, metrics = self.critic_loss(batch)
        self.learn_critic(loss)
        draws = self.draw(len(batch.obs), self.generator)
        weight = losses.exp_weight(advantage, self.beta, self.weight_max)
        loss = self.data_loss(self.policy, batch.obs, batch.action, weight + self.bc_coef, draws)
        if self.behaviour is not None:
            metrics |= self.update_behaviour(self.behaviour, batch, draws)
            signed, more = self.signed_loss(batch.obs[: self.signed_batch], draws)
            loss, metrics = loss + signed, metrics | more
        self.learn_policy(loss)
        return metrics | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}

    def update_behaviour(
        self, behaviour: FlowPolicy, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        """One step of cloning by the behaviour policy."""
        one = torch.ones_like(batch.reward)
        loss = self.data_loss(behaviour, batch.obs, batch.action, one, draws)
        step(self.behaviour_opt, loss, self.max_norm)
        return {"policy/behaviour_loss": loss.detach()}

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Randomness of a policy step; all times are stratified."""
        policy = self.policy
        signed = min(self.signed_batch, rows) if self.signed_coef > 0 else 0
        noise, t = losses.matching_draws(policy, rows, generator)
        start = policy.noise((signed, self.particles), generator)
        pair_noise = policy.noise((signed, 1, self.pairs), generator)
        pair_t = losses.stratified((signed, 1, self.pairs), generator, T_MIN, T_MAX)
        return Draws(noise, t, start, pair_noise, pair_t)

    @staticmethod
    def data_loss(
        policy: FlowPolicy, obs: Tensor, action: Tensor, weight: Tensor, draws: Draws
    ) -> Tensor:
        """Matching of recorded actions with weights [B] that are never negative, []."""
        error = policy.match(obs, action, draws.noise, draws.t, space=policy.prediction)
        return (weight * error).mean()

    def signed_loss(self, obs: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Signed matching of own samples and the anchor to the behaviour policy, []."""
        policy, anchor = self.policy, self.behaviour
        assert anchor is not None
        with torch.no_grad():
            action = policy.act(obs, draws.start)  # [R, K, T, Da]
            q = self.target(obs[:, None], action).amin(0)  # [R, K]
            advantage = losses.group_advantage(q, self.advantage_clip, self.advantage_max)
        t = draws.pair_t
        noise = draws.pair_noise
        met = losses.pairs(policy, obs, action, noise, t, self.executed)  # [R, K, J, ...]
        weight = losses.time_weight(t, self.weighting)
        error = losses.psi(met.error(), self.psi)
        signed = (advantage[..., None] * error * weight).mean()
        pull = anchors.Pull("drift", self.anchor_coef, anchor)
        drift, distance = anchors.held(met, obs, t, [pull], weight)
        return self.signed_coef * signed + drift, {"policy/signed": signed.detach()} | distance
