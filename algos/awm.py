"""Advantage weighted matching from recorded data, with signed weights on own samples if wanted."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import steer
from ..policies.critics import QEnsemble, Value
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from . import expectile as expectiles
from . import losses
from .optim import adam, anneal, step

T_MIN, T_MAX = 0.02, 0.98


class Draws(NamedTuple):
    """The randomness of a policy step: B rows, R of them with K samples, J pairs."""

    noise: Tensor  # [B, T, Da] of matching recorded actions
    t: Tensor  # [B]
    start: Tensor  # [R, K, T, Da] noises of the policy's own actions
    pair_noise: Tensor  # [R, 1, J, T, Da] shared by the K actions of a state
    pair_t: Tensor  # [R, 1, J]


class AWM:
    """Advantage weighted matching (arXiv:2509.25050), the form for recorded data.

    An expectile critic (`algos.expectile`) judges. Recorded actions are matched with the positive
    weights min(exp(beta A), weight_max) + bc_coef. With signed_coef > 0, K samples of the policy
    at signed_batch states are matched too, with signed weights: their advantages within the state
    (`losses.group_advantage`), on J stratified (t, noise) pairs that the K samples share,

        signed_coef mean A psi(|v - u|^2) w(t) + anchor_coef mean |v - v_behaviour|^2 w(t),

    v_behaviour a policy that only clones the data. Negative weights never fall on recorded
    actions: repulsion from where the policy does not go has no bound. The pull must be as strong
    as the repulsion (`losses.refuse_unbounded`), anchor_coef >= signed_coef * advantage_max, and
    bc_coef >= 1: ValueError otherwise. Signed errors and their anchor count the executed steps of
    a plan, the cloning of recorded actions all of it. B batch, R signed_batch, K particles, J
    pairs, T chunk.

    expectile, beta, weight_max, lr_floor, target_rate, ema_rate, max_norm, deploy_candidates and
    deploy_temperature as in `IQL`. advantage_clip: in standard deviations; advantage_max: what it
    is scaled to. psi: "square", "huber" or "ghuber". weighting: w(t) of `losses.time_weight`.
    behaviour_lr: Adam rate of the cloning policy.
    """

    pure = ("critic_loss", "data_loss", "signed_loss")

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        run_updates: int,
        value: Value,
        executed: int | None = None,
        *,
        expectile: float,
        beta: float,
        weight_max: float,
        bc_coef: float,
        signed_coef: float,
        anchor_coef: float,
        signed_batch: int,
        particles: int,
        pairs: int,
        advantage_clip: float,
        advantage_max: float,
        psi: Literal["square", "huber", "ghuber"],
        weighting: Literal["uniform", "noise", "noise2", "data2", "likelihood"],
        policy_lr: float,
        behaviour_lr: float,
        critic_lr: float,
        lr_floor: float,
        target_rate: float,
        ema_rate: float,
        max_norm: float,
        deploy_candidates: int,
        deploy_temperature: float,
    ) -> None:
        losses.refuse_jumps(policy)
        if signed_coef < 0:
            raise ValueError(f"algo.signed_coef={signed_coef}: at least 0, which means off")
        if signed_coef > 0:
            losses.refuse_unbounded(
                signed_coef * advantage_max,
                anchor_coef,
                f"algo.anchor_coef={anchor_coef} below algo.signed_coef * algo.advantage_max",
            )
            losses.refuse_unbounded(1.0, bc_coef, f"algo.bc_coef={bc_coef} with signed_coef > 0")
        self.policy, self.average = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.value = value.to(generator.device)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam([*critic.parameters(), *value.parameters()], critic_lr)
        self.behaviour = clone(policy, frozen=False) if signed_coef > 0 else None
        if self.behaviour is not None:
            self.behaviour_opt = adam(self.behaviour.parameters(), behaviour_lr)
        self.updates, self.run_updates = 0, run_updates
        self.executed = executed  # of the steps of a plan; None: all
        self.expectile, self.beta, self.weight_max = expectile, beta, weight_max
        self.bc_coef, self.signed_coef, self.anchor_coef = bc_coef, signed_coef, anchor_coef
        self.signed_batch, self.particles, self.pairs = signed_batch, particles, pairs
        self.advantage_clip, self.advantage_max = advantage_clip, advantage_max
        self.psi: losses.Surrogate = psi
        self.weighting: losses.TimeWeight = weighting
        self.policy_lr, self.lr_floor, self.max_norm = policy_lr, lr_floor, max_norm
        self.target_rate, self.ema_rate = target_rate, ema_rate
        self.deploy_candidates = deploy_candidates
        self.deploy_temperature = deploy_temperature

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.act(obs, self.policy.noise(len(obs), self.generator))

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the averaged policy, [N, T, Da]."""
        chosen = self.deploy_candidates, self.deploy_temperature
        return steer.sample(self.average, self.critic, obs, generator, *chosen)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q, one of the policy and, if signed, one of the behaviour policy."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        loss, advantage, metrics = self.critic_loss(batch)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        draws = self.draw(len(batch.obs), self.generator)
        weight = losses.exp_weight(advantage, self.beta, self.weight_max)
        loss = self.data_loss(self.policy, batch.obs, batch.action, weight + self.bc_coef, draws)
        if self.behaviour is not None:
            metrics |= self.update_behaviour(self.behaviour, batch, draws)
            signed, more = self.signed_loss(batch.obs[: self.signed_batch], draws)
            loss, metrics = loss + signed, metrics | more
        step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
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
        noise, t = policy.noise(rows, generator), losses.row_times(rows, generator)
        start = policy.noise((signed, self.particles), generator)
        pair_noise = policy.noise((signed, 1, self.pairs), generator)
        pair_t = losses.stratified((signed, 1, self.pairs), generator, T_MIN, T_MAX)
        return Draws(noise, t, start, pair_noise, pair_t)

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted matching loss of the averaged policy, and the critics' loss."""
        draws, one = self.draw(len(batch.obs), generator), torch.ones_like(batch.reward)
        loss = self.data_loss(self.average, batch.obs, batch.action, one, draws)
        return {"val/loss": loss, "val/critic_loss": self.critic_loss(batch)[0]}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of V and Q [], advantage [B], metrics."""
        parts = self.critic, self.target, self.value
        return expectiles.critic_loss(*parts, batch, self.expectile)

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
        pull = losses.Pull("drift", self.anchor_coef, anchor)
        drift, distance = losses.held(met, obs, t, [pull], weight)
        return self.signed_coef * signed + drift, {"policy/signed": signed.detach()} | distance
