"""Steering of a frozen policy: reinforcement learning of the noise that it starts from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..envs.batch import Batch, Coded
from ..policies.coded import NoiseMap
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.heads import TanhGaussian
from ..policies.nets import clone, lerp_
from ..policies.relative import Relative
from ..ranges import Count, Natural, NonNegative, Positive, Rate
from .contract import World
from .frozen import Frozen
from .offpolicy import OffPolicy
from .optim import adam, frozen, step
from .recall import centres, looking_from, pick, refuse_small, told
from .returns import td_loss
from .temperature import Temperature


@dataclass(eq=False)
class Steered(OffPolicy):
    """Soft actor-critic over the noise of a frozen policy (arXiv:2506.15799).

    The base is a deterministic map from noise to actions (`Frozen`); the actor chooses codes u [R,
    Da] in [-1, 1] of that noise.

    With a noise_critic (DSRL-NA) the replay keeps executed actions, so recorded data serve too:
    Q(s, a) learns r + discount (min Q'(s', a') - alpha log pi(u'|s')), a' decoded from u', and the
    noise critic is regressed on Q', member by member. All that the actor asks it is which noise of
    a state is the better one. So a state is shown under distill_noises of them, the actor's (for
    which the targets have the base's answer already) and the base's own, and only the differences
    among them are regressed: levels of hundreds that move with every target hide differences of a
    few. With one noise per state levels are regressed too, prior_share of the states under the
    base's own noise and the others under the actor's. Without a noise_critic (DSRL-SAC) the replay
    keeps codes, `critic` is Q(s, u) and no update calls the base.

    Beside a replay of codes recorded actions (source=mixed) become codes too: the base, a flow, is
    run backwards from them in every batch (`Frozen.recoded`).

    The actor starts with zero mean and log std 0: with bound 1.5 its noise deviates by 0.94, about
    the base's own 1. Until the first update the base acts from its own noise. Target and values
    count the rows that make noise of executed steps: the others are worth the same whatever they
    are, and would take no part in the divergence that is to be used up. They follow the same
    temperature uncounted, which holds them at the prior (or wide): through the base's network they
    still move what is executed a little, and a row that nothing holds ends at the edge of the box.

    With transitions over n decisions (`source.n_step`) a target has the bonus of its last state
    alone; those of the decisions in between are not known off policy, so that the temperature
    weighs about n times less in the values than in the actor's loss.

    base_cache takes 4 (R + T) Da bytes for each answer; a relative critic's centres are kept with
    them. Where a batch comes without them (recorded data) they are fresh. B batch, N environments,
    T chunk, R rows.

    Args:
        policy_lr: Adam learning rate of the actor that chooses the base's noise.
        critic_lr: Adam learning rate of the critics, the noise critic included.
        latent_gradient: Whether the actor's gradient goes through the base into the critic of
            actions, instead of a noise critic; needs a flow as base.
        relative: Whether the critic sees actions as offsets from what the base would do, in units
            of the base's spread (dsrl_na only).
        prior_share: Noises of the base's own per row of a batch that the noise critic is shown:
            distill_noises - 1 (or 1) covers every state.
        distill_every: Critic updates per update of the noise critic (dsrl_na only).
        distill_noises: Noises per state among which the noise critic learns the differences of Q; 1
            is the published regression on Q itself.
        base_cache: Answers of the base that the replay keeps with each transition, from which the
            noise critic learns; 0 asks the base in every update.
        spread: What the temperature holds at its target: entropy of the code, or prior, minus its
            KL divergence from the base's own noise.
        target_per_dim: Target of the actor's spread per element of the code, in nats: a lower one
            lets the actor concentrate further.
        alpha_lr: Adam learning rate of the temperature.
        alpha: First value of the temperature, which weighs the actor's spread against Q.
        ema_rate: Share by which the averaged actor, which is deployed, moves towards the actor per
            update; 1 deploys the latest actor.
        deploy_mean: Whether the actor's mode (tanh of the mean) is deployed instead of a sample.
        gate: Share of the base's return that must remain when its noise goes through noise_map,
            else the run is refused; 0: not asked.
    """

    learned = {"temperature": "alpha"}
    beyond = "its base from the noise that its actor chooses"

    actor: TanhGaussian
    noise_map: NoiseMap
    noise_critic: QEnsemble | None = None
    executed: int | None = None
    _: KW_ONLY
    latent_gradient: bool
    relative: bool
    prior_share: NonNegative
    distill_every: Count
    distill_noises: Count
    base_cache: Natural
    spread: Literal["entropy", "prior"]
    target_per_dim: float
    alpha_lr: Positive
    alpha: Positive
    ema_rate: Rate
    deploy_mean: bool
    gate: NonNegative

    def __post_init__(self) -> None:
        self.refuse()
        device, judge = self.generator.device, self.noise_critic
        actor = self.actor.to(device)
        self.policy.requires_grad_(False)
        self.base = Frozen(self.policy, self.noise_map.to(device), actor.action_dim)
        actor.begin(log_std=0.0)
        if self.relative:
            shape = self.base.horizon, actor.action_dim
            self.critic = looking_from(self.policy, self.critic, *shape)
        super().__post_init__()
        self.slow = clone(actor) if self.ema_rate < 1 else None
        if judge is not None:
            self.distill_opt = adam(judge.to(device).parameters(), self.critic_lr)
        size = self.noise_map.reach(self.executed) * actor.action_dim
        parts = self.alpha, self.target_per_dim * size, self.alpha_lr
        self.temperature = Temperature(*parts, device)
        self.distils = judge is not None and not self.latent_gradient  # else nothing asks for it
        self.base_cache = self.base_cache if self.distils else 0
        # what may be compiled; nothing that calls a base of which nothing is known
        self.pure = ("critic_loss", "policy_loss", "distill_loss")
        if judge is None or isinstance(self.policy, FlowPolicy):
            self.pure += ("next_step",)

    def refuse(self) -> None:
        """Raises ValueError for words that are unknown and for values that do not go together."""
        noises, coded = self.distill_noises, self.noise_critic is None
        if self.spread not in ("entropy", "prior"):
            raise ValueError(f"algo.spread={self.spread!r}: choose entropy or prior")
        if noises > 1 and self.prior_share == 0:
            raise ValueError(
                "algo.prior_share=0 leaves the base's own noise out of algo.distill_noises="
                f"{noises} noises per state; raise it, or take one noise"
            )
        if self.latent_gradient and (coded or not isinstance(self.policy, FlowPolicy)):
            raise ValueError(
                "algo.latent_gradient=true: gradients go through the base only if it is a "
                "FlowPolicy and the critic judges actions; leave it false"
            )
        if self.relative and coded:
            raise ValueError(
                "algo.relative=true: this critic judges codes, which are relative to the base as "
                "they are; leave it false"
            )
        if not 0 <= self.prior_share <= self.base_noises:
            raise ValueError(
                f"algo.prior_share={self.prior_share}: codes of the base's own noise per row, in "
                f"[0, {self.base_noises}] with algo.distill_noises={noises}"
            )
        refuse_small(self.base_cache, self.base_noises, f"algo.distill_noises={noises}")

    def before_training(self, world: World) -> dict[str, float]:
        """Whether the base can be steered, and what it is worth."""
        self.base.probe(world.obs)
        return self.base.gate(world, self.gate) if world.execute else {}

    def tuned(self) -> Iterable[nn.Parameter]:
        """The actor's parameters; the base is frozen."""
        return self.actor.parameters()

    def action_critic(self) -> Any:
        """The critic of actions; None where it judges codes."""
        return None if self.noise_critic is None else self.critic

    # ---- acting ----------------------------------------------------------------------------

    def sampled(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes [N, R, Da] of the actor and their log density [N]."""
        return self.actor.sample(obs, self.actor.noise(len(obs), generator))

    @torch.no_grad()
    def act(self, obs: Tensor) -> Coded:
        """An exploring action and what the replay keeps of it."""
        coded = self.noise_critic is None
        if self.updates > 0:
            code = self.sampled(obs, self.generator)[0]
        else:
            code = self.base.prior(len(obs), self.generator)
            code = code.clamp(-1, 1) if coded else code
        action = self.base.act(obs, code)
        return Coded(action, code if coded else action)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The action of the actor's mode, or of a sample, [N, T, Da]."""
        actor = self.actor if self.slow is None else self.slow
        noise = actor.noise(len(obs), generator)
        code = actor.mean(obs) if self.deploy_mean else actor.sample(obs, noise)[0]
        return self.base.act(obs, code)

    # ---- learning --------------------------------------------------------------------------

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critic, of the noise critic when it is due, of actor and temperature."""
        batch, recoded = self.base.recoded(batch) if self.noise_critic is None else (batch, {})
        noise = self.actor.noise(len(batch.obs), self.generator)
        code, bonus, base = self.next_step(batch.next_obs, noise, self.temperature.value)
        action, more = self.executes(batch.next_obs, base)
        bonus = bonus if more is None else bonus + more
        here, ahead = self.told(batch)
        loss, metrics = self.critic_loss(batch, action, bonus, here, ahead)
        self.learn_critic(loss)
        if self.distils and self.updates % self.distill_every == 0:
            prior, answers = self.recalled(batch)
            answers = self.executes(batch.next_obs[: len(answers), None], answers)[0]
            codes, actions = self.groups(prior, code), self.groups(answers, action)
            loss, told = self.distill_loss(batch.next_obs, codes, actions, ahead)
            step(self.distill_opt, loss)
            metrics |= told
        metrics |= recoded | self.update_actor(batch.obs, here)
        return metrics | self.update_beside(batch.next_obs, base, ahead)

    def executes(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is executed where the base answers action [..., T, Da], and a bonus [...] for it.

        The answer itself, and none.
        """
        return action, None

    def update_beside(
        self, obs: Tensor, action: Tensor, told: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Learns what is beside the noise, from the base's actions [B, T, Da] at obs: nothing."""
        return {}

    def update_actor(self, obs: Tensor, here: Sequence[Tensor]) -> dict[str, Tensor]:
        """One step of the actor and one of the temperature."""
        noise = self.actor.noise(len(obs), self.generator)
        asked = self.critic if self.latent_gradient else self.noise_critic or self.critic
        with frozen(asked):
            loss, spread, code = self.policy_loss(obs, noise, self.temperature.value, here)
            step(self.policy_opt, loss)
        self.temperature.update(spread)
        if self.slow is not None:
            lerp_(self.slow, self.actor, self.ema_rate)
        return {
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
        action = code if self.noise_critic is None else self.base.act(obs, code)
        return code, alpha * self.spreads(code, logp)[0], action

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
        return self.td(batch, value, here)

    def policy_loss(
        self, obs: Tensor, noise: Tensor, alpha: Tensor, here: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [], and without gradient the spread [] and the codes [B, R, Da]."""
        code, logp = self.actor.draw(obs, noise)
        spread, held = self.spreads(code, logp)
        if self.latent_gradient:
            worth = self.critic(obs, self.base.act(obs, code), *here).amin(0)
        elif self.noise_critic is not None and self.distill_noises > 1:
            worth = self.noise_critic(obs, code).mean(0)  # its levels mean nothing
        else:
            worth = (self.noise_critic or self.critic)(obs, code).amin(0)
        return -(alpha * held + worth).mean(), spread.detach().mean(), code.detach()

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

    # ---- distillation ----------------------------------------------------------------------

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

    def groups(self, prior: Tensor, own: Tensor) -> Tensor:
        """[S, M, ..] of prior [S, C, ..] and the actor's own [B, ..], M noises a state.

        M = 1: the prior's at the first S states, the actor's at the others.
        """
        own = own[:, None]
        if self.distill_noises == 1:
            return torch.cat([prior, own[len(prior) :]])
        return torch.cat([own[: len(prior)], prior], 1)

    # ---- the base's answers ----------------------------------------------------------------

    @property
    def base_noises(self) -> int:
        """Noises of the base's own that a state is shown under, C."""
        return max(1, self.distill_noises - 1)

    @property
    def pair_rows(self) -> int:
        """Rows of a code and of the base's answer to it, R + T."""
        return self.actor.horizon + self.base.horizon

    @property
    def memo_rows(self) -> int:
        """Rows of actions that the replay keeps for `remember`: codes, answers and centres."""
        chunks = 2 if self.base_cache > 0 and isinstance(self.critic, Relative) else 0
        return self.base_cache * self.pair_rows + chunks * self.base.horizon

    @torch.no_grad()
    def remember(self, batch: Batch) -> Tensor:
        """`base_cache` of the base's own codes with its answers at next_obs, [N, memo_rows, Da].

        Behind them the centres of a relative critic at obs and next_obs.
        """
        pairs = self.base.ask(batch.next_obs, self.base_cache, self.generator).flatten(1, 2)
        return torch.cat([pairs, *centres(self.critic, batch, 0)], 1)

    @torch.no_grad()
    def told(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the critic of actions is told beside obs and beside next_obs (`recall.told`)."""
        return told(
            *(self.critic, self.target, batch, self.base_cache * self.pair_rows),
            lambda: self.base.mapped(batch.next_obs, self.generator)[:, None],
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
            pairs = self.base.ask(batch.next_obs[:some], self.base_noises, self.generator)
        else:
            kept = batch.memo[:some, : self.base_cache * self.pair_rows]
            kept = kept.unflatten(1, (self.base_cache, self.pair_rows))
            pairs = pick(kept, self.base_noises, self.generator)
        code, answer = pairs[:states].split([self.actor.horizon, self.base.horizon], 2)
        return code, answer
