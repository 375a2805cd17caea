"""Diffusion steering: reinforcement learning of the noise that a frozen policy starts from."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..envs.batch import Batch, Coded
from ..policies import draw
from ..policies.coded import NoiseMap
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.gaussian import TanhGaussian
from ..policies.nets import clone, lerp_
from ..policies.relative import Relative
from .optim import adam, frozen, step
from .recall import centres, pick, refuse_small, told
from .returns import td_loss, td_target
from .temperature import Temperature

log = logging.getLogger("rheo")
EDGE = 1e-4  # of an action beyond its box that is rounding


def tell_outside(action: Tensor) -> None:
    """Says how many of a base's actions lie outside [-1, 1]; ValueError where most do."""
    share = float((action.abs() > 1 + EDGE).float().mean())
    if share == 0:
        return
    worst = float(action.flatten()[action.abs().argmax()])
    text = f"policy: {share:.0%} of its actions lie outside [-1, 1] (the farthest is {worst:.4g})"
    if share > 0.5:
        raise ValueError(
            f"{text}, so they are in other units: let it return 2 (a - low) / (high - low) - 1 for "
            "the environment's bounds; they are mapped back there"
        )
    log.warning("%s; they are clipped there: let it return actions inside", text)


class DSRL:
    """Soft actor-critic over the noise of a frozen policy (arXiv:2506.15799), both forms.

    The base is a deterministic map a = policy.act(obs, w) from noise to actions, called as a black
    box; the actor chooses codes u [R, Da] in [-1, 1], of which `noise_map` makes the noise, its
    bound included: acting, targets and distillation all decode alike, and once.

    With a noise_critic (DSRL-NA) the replay keeps executed actions, so recorded data serve too:
    Q(s, a) learns r + discount (min Q'(s', a') - alpha log pi(u'|s')), a' decoded from u', and the
    noise critic is regressed on Q', member by member, every distill_every updates. All that the
    actor asks it is which noise of a state is the better one. So a state is shown under
    distill_noises of them, the actor's (for which the targets have the base's answer already) and
    the base's own, and only the differences among them are regressed: levels of hundreds that move
    with every target hide differences of a few. distill_noises 1 is the published regression,
    levels included: prior_share of the states under the base's own noise, the others under the
    actor's.
    prior_share: codes of the base's own noise per row of a batch; distill_noises - 1 shows every
    state, 1 as many as cost one call of the base a row. Without a noise_critic (DSRL-SAC) the
    replay keeps codes, `critic` is Q(s, u) and no update calls the base.
    latent_gradient: the actor follows Q(s, base.act(s, w)) through the base instead of the noise
    critic, which then rests; only through a FlowPolicy. relative: the critic of actions sees them
    from where the base would put them (`policies.relative`).

    The actor starts with zero mean and log std 0: with bound 1.5 its noise deviates by 0.94, about
    the base's own 1. Until the first update the base acts from its own noise. spread: what the
    temperature holds at target_per_dim per element of the code, "entropy" of the code, or "prior",
    minus the KL divergence of bound * u to the base's N(0, I). Target and values count the rows
    that make noise of executed steps: the others are worth the same whatever they are, and would
    take no part in the divergence that is to be used up. They follow the same temperature
    uncounted, which holds them at the prior (or wide): through the base's network they still move
    what is executed a little, and a row that nothing holds ends at the edge of the box.

    With transitions over n decisions (`source.n_step`) a target has the bonus of its last state
    alone; those of the decisions in between are not known off policy, so that the temperature
    weighs about n times less in the values than in the actor's loss.

    base_cache: 0, or how many noises of the base's own, with its answers, the replay keeps for each
    transition, 4 (R + T) Da bytes each: the distillation draws from them instead of asking the base
    in every update; a relative critic's centres are kept with them. Where a batch comes without
    them (recorded data) they are fresh.

    policy_lr, critic_lr, alpha_lr: Adam. alpha: first temperature. target_rate: Polyak rate.
    ema_rate: of the averaged actor, which is deployed while the latest one explores; 1: none, the
    latest is deployed. deploy_mean: deploy the actor's mode rather than a sample. gate: the base is
    evaluated before any training, from its own noise and through the map; below this share of its
    return (success) through the map the run is refused. 0: never. B batch, N environments, T chunk,
    R rows.
    """

    learned = {"temperature": "alpha"}
    beyond = "its base from the noise that its actor chooses"

    def __init__(
        self,
        policy: Any,
        critic: QEnsemble,
        generator: torch.Generator,
        actor: TanhGaussian,
        noise_map: NoiseMap,
        noise_critic: QEnsemble | None = None,
        executed: int | None = None,
        *,
        latent_gradient: bool,
        relative: bool,
        prior_share: float,
        distill_every: int,
        distill_noises: int,
        base_cache: int,
        spread: Literal["entropy", "prior"],
        target_per_dim: float,
        policy_lr: float,
        critic_lr: float,
        alpha_lr: float,
        alpha: float,
        target_rate: float,
        ema_rate: float,
        deploy_mean: bool,
        gate: float,
    ) -> None:
        if spread not in ("entropy", "prior"):
            raise ValueError(f"algo.spread={spread!r}: choose entropy or prior")
        if distill_noises > 1 and prior_share == 0:
            raise ValueError(
                f"algo.prior_share=0 leaves the base's own noise out of algo.distill_noises="
                f"{distill_noises} noises per state; raise it, or take one noise"
            )
        if latent_gradient and (noise_critic is None or not isinstance(policy, FlowPolicy)):
            raise ValueError(
                "algo.latent_gradient=true: gradients go through the base only if it is a "
                "FlowPolicy and the critic judges actions; leave it false"
            )
        if relative and noise_critic is None:
            raise ValueError(
                "algo.relative=true: this critic judges codes, which are relative to the base as "
                "they are; leave it false"
            )
        device = generator.device
        self.policy = policy.requires_grad_(False)
        self.noise_map, self.actor = noise_map.to(device), actor.to(device)
        self.actor.begin(log_std=0.0)
        shape = len(noise_map.matrix), actor.action_dim
        self.critic = Relative(critic, policy, *shape).to(device) if relative else critic
        self.target = clone(self.critic)
        self.noise_critic = None if noise_critic is None else noise_critic.to(device)
        self.generator = generator
        self.policy_opt = adam(actor.parameters(), policy_lr)
        self.slow = clone(actor) if ema_rate < 1 else None
        self.ema_rate = ema_rate
        self.critic_opt = adam(critic.parameters(), critic_lr)
        if self.noise_critic is not None:
            self.distill_opt = adam(self.noise_critic.parameters(), critic_lr)
        self.executed = executed  # of the steps of a plan; None: all
        size = noise_map.reach(executed) * actor.action_dim
        self.temperature = Temperature(alpha, target_per_dim * size, alpha_lr, device)
        self.updates = 0
        self.latent_gradient, self.prior_share = latent_gradient, prior_share
        self.distill_every, self.distill_noises = distill_every, distill_noises
        self.spread, self.target_rate = spread, target_rate
        self.deploy_mean, self.gate = deploy_mean, gate
        if not 0 <= prior_share <= self.base_noises:
            raise ValueError(
                f"algo.prior_share={prior_share}: codes of the base's own noise per row, in "
                f"[0, {self.base_noises}] with algo.distill_noises={distill_noises}"
            )
        refuse_small(base_cache, self.base_noises, f"algo.distill_noises={distill_noises}")
        asked = noise_critic is not None and not latent_gradient
        self.base_cache = base_cache if asked else 0

    @property
    def pure(self) -> tuple[str, ...]:
        """What may be compiled; nothing that calls a base of which nothing is known."""
        ours = isinstance(self.policy, FlowPolicy) or self.noise_critic is None
        losses = ("critic_loss", "policy_loss", "distill_loss")
        return (*losses, "next_step") if ours else losses

    # ---- acting ----------------------------------------------------------------------------

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The frozen policy's action [..., T, Da] of codes [..., R, Da], as it is executed."""
        return self.policy.act(obs, self.noise_map(code)).clamp(-1, 1)

    def sampled(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes [N, R, Da] of the actor and their log density [N]."""
        return self.actor.sample(obs, self.actor.noise(len(obs), generator))

    def prior(self, rows: int, generator: torch.Generator) -> Tensor:
        """Codes [rows, R, Da] of the base's own noise."""
        return self.noise_map.prior((rows,), self.actor.action_dim, generator)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Coded:
        """An exploring action and what the replay keeps of it."""
        if self.updates > 0:
            code = self.sampled(obs, self.generator)[0]
        else:
            code = self.prior(len(obs), self.generator)
            code = code.clamp(-1, 1) if self.noise_critic is None else code
        action = self.decode(obs, code)
        return Coded(action, code if self.noise_critic is None else action)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The action of the actor's mode, or of a sample, [N, T, Da]."""
        actor = self.actor if self.slow is None else self.slow
        noise = actor.noise(len(obs), generator)
        code = actor.mean(obs) if self.deploy_mean else actor.sample(obs, noise)[0]
        return self.decode(obs, code)

    @torch.no_grad()
    def unsteered(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The base's action from its own noise, [N, T, Da]."""
        return self.policy.act(obs, self.full_noise(len(obs), generator)).clamp(-1, 1)

    @torch.no_grad()
    def mapped(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The base's action from its own noise through the map, [N, T, Da]."""
        return self.decode(obs, self.prior(len(obs), generator))

    def full_noise(self, rows: int, generator: torch.Generator) -> Tensor:
        """Noise of the base itself, [rows, T, Da]."""
        shape = (rows, len(self.noise_map.matrix), self.actor.action_dim)
        return draw.normal(shape, generator, device=generator.device)

    @torch.no_grad()
    def probe(self, obs: Tensor) -> None:
        """Raises ValueError for a base that cannot be steered, found out at observations [N, O].

        Actions outside the box, where the environment's bounds do not reach, are told.
        """
        generator = torch.Generator(self.generator.device).manual_seed(0)
        one, two = (self.full_noise(len(obs), generator) for _ in range(2))
        first, again, other = (self.policy.act(obs, noise) for noise in (one, one, two))
        if not isinstance(first, Tensor) or first.shape != one.shape:
            found = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(
                f"policy: its act(obs, noise) returned {found} for noise {list(one.shape)}; an "
                "action has the shape of its noise"
            )
        if not bool(first.isfinite().all()):
            raise ValueError("policy: its act(obs, noise) returned numbers that are not finite")
        if not torch.equal(first, again):
            raise ValueError(
                "policy: its act gives two actions for one noise; steering needs a deterministic "
                "map, so let all randomness come from the noise that is passed (DDIM with eta=0, "
                "or an ordinary differential equation)"
            )
        if torch.equal(first, other):
            raise ValueError("policy: its act ignores the noise, so there is nothing to steer")
        tell_outside(first)

    # ---- learning --------------------------------------------------------------------------

    @property
    def base_noises(self) -> int:
        """Noises of the base's own that a state is shown under, C."""
        return max(1, self.distill_noises - 1)

    @property
    def memo_rows(self) -> int:
        """Rows of actions that the replay keeps for `remember`: codes, answers and centres."""
        relative = self.base_cache > 0 and isinstance(self.critic, Relative)
        chunks = 2 if relative else 0
        return self.base_cache * self.pair_rows + chunks * len(self.noise_map.matrix)

    @property
    def pair_rows(self) -> int:
        """Rows of a code and of the base's answer to it, R + T."""
        return self.actor.horizon + len(self.noise_map.matrix)

    @torch.no_grad()
    def remember(self, batch: Batch) -> Tensor:
        """`base_cache` of the base's own codes with its answers at next_obs, [N, memo_rows, Da].

        Behind them the centres of a relative critic at obs and next_obs.
        """
        pairs = self.asked(batch.next_obs, self.base_cache).flatten(1, 2)
        return torch.cat([pairs, *centres(self.critic, batch, 0)], 1)

    def asked(self, obs: Tensor, count: int) -> Tensor:
        """`count` codes of the base's own noise, below each its answer, [N, count, R + T, Da]."""
        code = self.prior(len(obs) * count, self.generator)
        action = self.decode(obs.repeat_interleave(count, 0), code)
        return torch.cat([code, action], 1).unflatten(0, (len(obs), count))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critic, of the noise critic when it is due, of actor and temperature."""
        self.updates += 1
        rows = len(batch.obs)
        distill = self.noise_critic is not None and self.updates % self.distill_every == 0
        distill = distill and not self.latent_gradient  # else nothing asks the noise critic
        noise = self.actor.noise(rows, self.generator)
        code, bonus, action = self.next_step(batch.next_obs, noise, self.temperature.value)
        here, ahead = self.told(batch)
        loss, metrics = self.critic_loss(batch, action, bonus, here, ahead)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        if distill:
            prior, answers = self.recalled(batch)
            loss, more = self.distill_loss(
                batch.next_obs, self.groups(prior, code), self.groups(answers, action), ahead
            )
            step(self.distill_opt, loss)
            metrics |= more
        judge = self.critic if self.latent_gradient else self.noise_critic or self.critic
        noise = self.actor.noise(rows, self.generator)
        with frozen(judge):
            loss, spread, code = self.policy_loss(batch.obs, noise, self.temperature.value, here)
            step(self.policy_opt, loss)
        self.temperature.update(spread)
        if self.slow is not None:
            lerp_(self.slow, self.actor, self.ema_rate)
        return metrics | {
            "policy/loss": loss.detach(),
            "policy/spread": spread,
            "policy/temperature": self.temperature.value,
            "policy/code_saturated": (code.abs() > 0.9).float().mean(),
        }

    @torch.no_grad()
    def next_step(self, obs: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The actor's codes [B, R, Da] at next_obs, alpha times their spread [B], and what the
        critic judges: the base's actions [B, T, Da], or the codes.
        """
        code, logp = self.actor.draw(obs, noise)
        action = code if self.noise_critic is None else self.decode(obs, code)
        return code, alpha * self.spreads(code, logp)[0], action

    @torch.no_grad()
    def told(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the critic of actions is told beside obs and beside next_obs (`recall.told`)."""
        kept = self.base_cache * self.pair_rows
        return told(
            *(self.critic, self.target, batch, kept),
            lambda: self.mapped(batch.next_obs, self.generator)[:, None],
        )

    @torch.no_grad()
    def recalled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Codes [S, C, R, Da] of the base's own noise and its answers [S, C, T, Da] to them.

        At the first S of next_obs, those that a distillation shows: kept ones, or fresh.
        """
        states = round(self.prior_share * len(batch.obs)) // self.base_noises
        some = max(1, states)  # a black box is not called for nothing
        states = some if self.distill_noises > 1 else states
        if batch.memo is None:
            pairs = self.asked(batch.next_obs[:some], self.base_noises)
        else:
            kept = batch.memo[:some, : self.base_cache * self.pair_rows]
            kept = kept.unflatten(1, (self.base_cache, self.pair_rows))
            pairs = pick(kept, self.base_noises, self.generator)
        code, answer = pairs[:states].split([self.actor.horizon, len(self.noise_map.matrix)], 2)
        return code, answer

    def groups(self, prior: Tensor, own: Tensor) -> Tensor:
        """[S, M, ..] of prior [S, C, ..] and the actor's own [B, ..], M noises a state.

        M = 1: the prior's at the first S states, the actor's at the others.
        """
        own = own[:, None]
        if self.distill_noises == 1:
            return torch.cat([prior, own[len(prior) :]])
        return torch.cat([own[: len(prior)], prior], 1)

    def spreads(self, code: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
        """Spreads [B] of the rows that reach executed steps, and of all; logp [B, R, Da]."""
        rows = self.noise_map.reach(self.executed)
        counted = self.measure(code[:, :rows], logp[:, :rows].sum((-1, -2)))
        if rows == code.shape[1]:
            return counted, counted
        return counted, counted + self.measure(code[:, rows:], logp[:, rows:].sum((-1, -2)))

    def measure(self, code: Tensor, logp: Tensor) -> Tensor:
        """The spread [B] of codes [B, R, Da] with log density [B]: one sample's estimate."""
        if self.spread == "entropy":
            return -logp
        bound = self.noise_map.bound
        constant = math.log(2 * math.pi) - 2 * math.log(bound)  # of N(0, I) and of w = bound u
        return -logp - 0.5 * ((bound * code).square() + constant).sum((-1, -2))

    def critic_loss(
        self,
        batch: Batch,
        next_action: Tensor,
        bonus: Tensor,
        here: Sequence[Tensor] = (),
        ahead: Sequence[Tensor] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft TD loss [] of the ensemble, over actions or codes; bonus [B] of the next state.

        here, ahead: what `told` gives.
        """
        with torch.no_grad():
            value = self.target(batch.next_obs, next_action, *ahead).amin(0) + bonus
            goal = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action, *here)
        loss = td_loss(q, goal)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

    def distill_loss(
        self, obs: Tensor, code: Tensor, action: Tensor, ahead: Sequence[Tensor] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Regression of the noise critic's members on the target critic's at the same actions, [].

        code [S, M, R, Da] and action [S, M, T, Da] at the first S of obs. "critic/distill_left":
        share of the variance that the noise critic does not explain (1: it knows nothing).
        """
        assert self.noise_critic is not None
        obs, ahead = obs[: len(code), None], [each[: len(code), None] for each in ahead]
        with torch.no_grad():
            goal = self.among(self.target(obs, action, *ahead)).flatten(1)
        loss = td_loss(self.among(self.noise_critic(obs, code)).flatten(1), goal)
        spread = 0.5 * goal.var(1, correction=0).sum()
        return loss, {"critic/distill_left": loss.detach() / spread.clamp_min(1e-12)}

    def among(self, value: Tensor) -> Tensor:
        """Values [E, S, M] less their mean over the noises of a state, where there are several."""
        return value if self.distill_noises == 1 else value - value.mean(-1, keepdim=True)

    def policy_loss(
        self, obs: Tensor, noise: Tensor, alpha: Tensor, here: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [], and without gradient the spread [] and the codes [B, R, Da]."""
        code, logp = self.actor.draw(obs, noise)
        spread, held = self.spreads(code, logp)
        if self.latent_gradient:
            worth = self.critic(obs, self.decode(obs, code), *here).amin(0)
        elif self.noise_critic is not None and self.distill_noises > 1:
            worth = self.noise_critic(obs, code).mean(0)  # its levels mean nothing
        else:
            worth = (self.noise_critic or self.critic)(obs, code).amin(0)
        return -(alpha * held + worth).mean(), spread.detach().mean(), code.detach()
