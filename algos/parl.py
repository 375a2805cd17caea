"""Policy-agnostic reinforcement learning: actions are improved by Q, the policy clones them."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies.candidates import candidate_noise, choose, race
from ..policies.flow import FlowPolicy
from ..policies.steer import climbed, kept, stochastic, value_guided
from ..ranges import Count, Natural, NonNegative, Share
from .losses import Draws, matching_draws
from .matching import Averaged, held_out
from .returns import follow, pessimistic

CHOSEN = 2  # critics whose smaller value counts with join=subset


class Improved(NamedTuple):
    """Optimised actions, and what was seen on the way."""

    action: Tensor  # [N, T, Da]
    value: Tensor  # [N, M] of the policy's own samples
    spread: Tensor  # [] deviation of these samples


@dataclass(eq=False)
class PARL(Averaged):
    """Policy-agnostic RL, PA-RL (arXiv:2412.06685).

    No gradient of Q meets the policy: of `samples` actions of a state the `keep` best climb Q for
    `rounds` steps a <- clip(a + rate dQ/da), each stays at its best, and one of them is chosen. It
    acts, is deployed and backs up, and the policy clones it. Q is the mean of the online critics;
    the choice is the best in TD targets and where deployed, else one drawn from softmax(Q /
    choice_temperature). Critics learn r + discount Q'(s', a') of the averaged policy's a'. The
    published critics are those of Cal-QL, with values in bins; here they are plain.

    A clone of its own actions alone follows Q wherever it is wrong, to the walls of the box at
    last: recorded actions, or bc_coef, hold it. Of a plan whose first steps are executed these
    climb alone. With proposals=svdd, weight=gain and no rounds what a search gains over the policy
    is the weight of what it found, as of MVC-ZigAL (2025), whose constraint is bc_coef here, a
    constant. B batch, N environments, M samples, T chunk, Da action dimension.

    Raises ValueError for values that do not go together.

    Args:
        samples: Actions of the policy per state, of which the best are kept; published: 32.
        keep: Kept actions per state, which climb; published: 10.
        proposals: Which actions are kept: best, those of the samples with the largest Q, or svdd,
            sampled anew with `samples` points tried in every denoising step (arXiv:2408.08252).
        rounds: Gradient steps of kept actions on Q; 0: none.
        rate: Step size of climbing, in action units per unit of dQ/da.
        q_unit: Unit of Q in rate and choice_temperature: spread, its standard deviation among the
            samples of a state; q, its own, as published.
        scale_rate: Share by which the running spread of Q moves towards that of a policy update;
            without effect with q_unit=q.
        choice_temperature: Temperature of the softmax that draws one of the kept actions, to
            explore and to be cloned; 0 takes the best.
        consider_data: Whether the recorded action of a state takes the place of the worst kept one
            before they climb, in what the policy clones.
        weight: What cloning an optimised action weighs: even 1, gain what it is worth above the
            mean of the policy's own samples, in q_unit, and nothing where it is worth less.
        bc_coef: Weight of cloning the batch's own actions, beside 1 for the optimised ones.
        join: How the TD target joins the critics: subset, the smaller of two drawn anew; min, mean.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
    """

    pure = ("critic_loss", "policy_loss")

    executed: int | None = None
    _: KW_ONLY
    samples: Count
    keep: Count
    proposals: Literal["best", "svdd"]
    rounds: Natural
    rate: NonNegative
    q_unit: Literal["spread", "q"]
    scale_rate: Share
    choice_temperature: NonNegative
    consider_data: bool
    weight: Literal["even", "gain"]
    bc_coef: NonNegative
    join: Literal["subset", "min", "mean"]
    policy_batch: Count
    policy_every: Count

    def __post_init__(self) -> None:
        self.refuse()
        super().__post_init__()
        self.q_scale = torch.ones((), device=self.generator.device)

    def refuse(self) -> None:
        """Raises ValueError for values that do not go together."""
        if self.keep > self.samples:
            raise ValueError(f"algo.keep={self.keep}: of algo.samples={self.samples}, at most")
        if self.samples < 2 and self.q_unit == "spread":
            raise ValueError(
                f"algo.samples={self.samples} with algo.q_unit=spread: one action has no spread; "
                "set algo.samples to 2 or more, or algo.q_unit=q"
            )
        if self.keep < 2 and self.consider_data:
            raise ValueError(
                f"algo.keep={self.keep} with algo.consider_data=true: the recorded action would "
                "take the place of all others; set algo.keep to 2 or more, or "
                "algo.consider_data=false"
            )
        if self.proposals == "svdd" and not stochastic(self.policy):
            raise ValueError(
                "algo.proposals=svdd with policy.sampler="
                f"{self.policy.sampler}: its steps have no noise to choose among; set "
                "policy.sampler=euler, or algo.proposals=best"
            )
        if self.join == "subset" and self.critic.members < CHOSEN:
            raise ValueError(
                f"critic.members={self.critic.members} with algo.join=subset: two are drawn; set "
                "critic.members to 2 or more, or algo.join=min"
            )

    @property
    def learned(self) -> dict[str, None]:
        """What belongs to the networks: the spread of Q, where it is a unit."""
        return {"q_scale": None} if self.q_unit == "spread" else {}

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A drawn one of the optimised actions, [N, T, Da]."""
        noise = candidate_noise(self.policy, len(obs), self.samples, self.generator)
        heat = self.choice_temperature
        return self.optimised(self.policy, obs, noise, self.generator, heat).action

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The best optimised action of the averaged policy, [N, T, Da]."""
        start = self.average.start(len(obs) * self.samples, generator)
        noise = start.unflatten(0, (len(obs), self.samples))
        return self.optimised(self.average, obs, noise, generator, 0.0).action

    def deploy_one(self) -> int:
        """Deploys a sample of the averaged policy as it is from now on."""
        samples, self.samples, self.keep, self.rounds = self.samples, 1, 1, 0
        self.proposals = "best"
        return samples

    @property
    def climbs(self) -> bool:
        """Whether deployed actions climb Q."""
        return self.rounds > 0

    def optimised(
        self,
        policy: FlowPolicy,
        obs: Tensor,
        noise: Tensor,
        generator: torch.Generator,
        temperature: float,
        recorded: Tensor | None = None,
    ) -> Improved:
        """Actions of a policy, improved by Q: noise [N, M, T, Da] -> action [N, T, Da].

        recorded [N, T, Da] takes the place of the worst kept action.
        """
        own = policy.act(obs, noise)
        value = self.judge(obs[:, None], own).amin(0)
        unit = self.unit()
        if self.proposals == "svdd":
            heat = float(temperature * unit) if temperature > 0 else 0.0
            begin = noise[:, : self.keep]
            action = value_guided(policy, self.judge, obs, begin, generator, self.samples, heat)
        else:
            action = kept(value, own, self.keep)
        if recorded is not None:
            action = torch.cat([action[:, :-1], recorded[:, None]], 1)
        if self.rounds > 0:
            action = climbed(self.judge, obs[:, None], action, self.rounds, self.rate / unit)
        waiting = race(action, temperature, generator)
        chosen = choose(self.judge, obs, action, temperature * unit, waiting)
        return Improved(chosen, value, own[..., : self.executed, :].std(1, correction=0).mean())

    def judge(self, obs: Tensor, action: Tensor) -> Tensor:
        """The mean critic as an ensemble of one, [1, ...]; of executed steps alone a gradient."""
        if self.executed is not None and self.executed < action.shape[-2]:
            first, rest = action.tensor_split((self.executed,), -2)
            action = torch.cat([first, rest.detach()], -2)
        return self.critic(obs, action).mean(0, keepdim=True)

    def unit(self) -> Tensor | float:
        """What Q is measured in."""
        return self.q_scale.clamp_min(1e-8) if self.q_unit == "spread" else 1.0

    # ---------------------------------------------------------------- learning
    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every policy_every, one policy step; metrics are 0-d."""
        loss, metrics = self.critic_loss(batch, self.ahead(batch.next_obs), self.drawn())
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            rows = slice(self.policy_batch)
            metrics |= self.update_policy(batch.obs[rows], batch.action[rows])
        return metrics

    @torch.no_grad()
    def ahead(self, obs: Tensor) -> Tensor:
        """The next action of a TD target, [B, T, Da]."""
        noise = candidate_noise(self.average, len(obs), self.samples, self.generator)
        return self.optimised(self.average, obs, noise, self.generator, 0.0).action

    def drawn(self) -> Tensor | None:
        """Two different critics for a TD target, [2]; None where all count."""
        if self.join != "subset":
            return None
        generator = self.generator
        order = torch.randperm(self.critic.members, generator=generator, device=generator.device)
        return order[:CHOSEN]

    def critic_loss(
        self, batch: Batch, next_action: Tensor, members: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; next_action [B, T, Da], members as `drawn` gives them."""
        with torch.no_grad():
            values = self.target(batch.next_obs, next_action)
            if members is not None:
                values = values.index_select(0, members)
            value = pessimistic(values, "mean" if self.join == "mean" else "min")
        return self.td(batch, value)

    def update_policy(self, obs: Tensor, action: Tensor) -> dict[str, Tensor]:
        """One step of cloning at states [R, O] with recorded actions [R, T, Da]."""
        with torch.no_grad():
            noise = candidate_noise(self.policy, len(obs), self.samples, self.generator)
            recorded = action if self.consider_data else None
            heat = self.choice_temperature
            better = self.optimised(self.policy, obs, noise, self.generator, heat, recorded)
            spread = better.value.std(1, correction=0).mean()
            gain = self.judge(obs, better.action)[0] - better.value.mean(1)
            weight = (gain / self.unit()).clamp_min(0.0) if self.weight == "gain" else None
            follow(self.q_scale, ranks.mean(spread)[0], self.scale_rate)
        draws = matching_draws(self.policy, len(obs), self.generator)
        loss = self.policy_loss(obs, better.action, action, draws, weight)
        self.learn_policy(loss)
        told: dict[str, Any] = {"loss": loss.detach(), "gain": gain.mean()}
        told["spread"] = better.spread
        return {f"policy/{name}": value for name, value in told.items()} | {"critic/q_std": spread}

    def policy_loss(
        self,
        obs: Tensor,
        better: Tensor,
        action: Tensor,
        draws: Draws,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Matching of optimised actions with weights [R] and, by bc_coef, of the batch's."""
        policy = self.policy
        error = policy.match(obs, better, *draws, space=policy.prediction)
        loss = error.mean() if weight is None else (weight * error).mean()
        if self.bc_coef > 0:
            cloning = policy.match(obs, action, *draws, space=policy.prediction).mean()
            loss = loss + self.bc_coef * cloning
        return loss

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy on held-out data."""
        return held_out(self.average, batch, generator)
