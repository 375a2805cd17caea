"""Reverse flow matching from recorded data: towards exp(Q / T) where the data allow it."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose, race
from ..ranges import Count, NonNegative, Positive, Share
from . import estimation
from .expectile import Implicit
from .losses import matching_draws
from .matching import Matching
from .returns import follow
from .reverse import Draws, Measured, Reverse


@dataclass(eq=False)
class RFMOffline(Implicit, Matching):
    """Reverse flow matching (arXiv:2601.08136) against an expectile critic, anchored to the data.

    The velocity is regressed on that of exp(Q / T) (`algos.reverse.Reverse`, the node `reverse`)
    plus anchor_coef times the matching of recorded actions. At a point x the optimum is (w v_rfm +
    c v_data) / (w + c) with the time weight w and c = anchor_coef: the anchor decides how far the
    policy leaves the data, T how sharply it climbs. The critic is implicit Q-learning's, so no
    target ever asks for the value of an unseen action; the policy step does. B batch, R
    policy_batch, T chunk, Da action dimension.

    Args:
        temperature: Temperature T of the target density exp(Q / T), in the unit of
            temperature_rule: lower is greedier.
        temperature_rule: Unit of temperature: fixed, Q's standard deviation within states, or
            absolute, Q itself.
        scale_rate: Share by which the running deviations of Q and of the policy's actions move per
            update.
        anchor_coef: Weight of cloning the recorded actions against following Q: larger stays closer
            to the data, 0 has no anchor.
        policy_batch: Rows of a batch that estimate the velocity and clone in an update, at most.
        act_candidates: Samples of the policy per action while acting online, of which
            reverse.choice_temperature chooses one by Q; 1: no choice.
        explore_noise: Standard deviation of the Gaussian noise added to actions while acting
            online, in action units (the box is -1 to 1).
    """

    pure = ("critic_loss", "policy_loss")
    learned = {"q_scale": None, "spread": None}

    reverse: Reverse
    _: KW_ONLY
    temperature: Positive
    temperature_rule: Literal["fixed", "absolute"]
    scale_rate: Share
    anchor_coef: NonNegative
    policy_batch: Count
    act_candidates: Count
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        estimation.refuse(self.reverse, self.policy, "algo.reverse")
        device, size = self.generator.device, self.policy.horizon * self.policy.action_dim
        self.q_scale = torch.ones((), device=device)
        self.spread = torch.full((size,), 0.6, device=device)

    @staticmethod
    def upgrade(state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state without the temperature, which is a setting."""
        return {name: part for name, part in state.items() if name != "base_temperature"}

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """One chosen of M samples of the policy, then Gaussian noise, [N, T, Da]."""
        rule = self.reverse.choice_temperature
        noise = candidate_noise(self.policy, len(obs), self.act_candidates, self.generator)
        waiting = race(noise, rule, self.generator)
        heat = 1.0 if waiting is None else rule * self.T()
        action = choose(self.critic, obs, self.policy.act(obs, noise), heat, waiting)
        return draw.jittered(action, self.explore_noise, self.generator)

    def T(self) -> Tensor:
        """The temperature in units of Q, []."""
        absolute = self.temperature_rule == "absolute"
        return self.temperature * (torch.ones_like(self.q_scale) if absolute else self.q_scale)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        loss, _, metrics = self.critic_loss(batch)
        self.learn_critic(loss)
        rows = min(self.policy_batch, len(batch.obs))
        loss, more, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], *self.draw(rows), self.T()
        )
        self.learn_policy(loss)
        q_std, spread = ranks.mean(*measured)
        follow(self.q_scale, q_std, self.scale_rate)
        self.spread.lerp_(spread, self.scale_rate)
        return metrics | more

    def draw(self, rows: int) -> tuple[Draws, Tensor, Tensor]:
        """Randomness of the regression, and noises and times of the anchor's matching."""
        draws = self.reverse.draw(self.policy, rows, self.generator)
        noise, t = matching_draws(self.policy, rows, self.generator)
        return draws, noise, t

    def policy_loss(
        self,
        obs: Tensor,
        action: Tensor,
        draws: Draws,
        noise: Tensor,
        t: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression on the reverse velocity plus the anchor, [], metrics and measurements."""
        loss, metrics, measured = self.reverse.loss(
            self.policy, self.target, obs, action, draws, temperature, self.spread
        )
        anchor = self.policy.match(obs, action, noise, t, space=self.policy.prediction).mean()
        metrics["policy/bc"] = anchor.detach()
        return loss + self.anchor_coef * anchor, metrics, measured
