"""What every way of learning plans shares: recorded windows of states and actions are matched."""

from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Windows
from ..errors import RheoError
from ..policies.drafting import DraftedPolicy
from ..policies.plan import PlanPolicy
from ..ranges import NonNegative, Share
from .cloning import Cloning
from .losses import matching_draws


@dataclass(eq=False)
class Planning(Cloning):
    """Plans, recorded windows of states and actions, are matched as actions are in `bc`.

    Each label of a window is told of a share 1 - drop of the windows and kept from the others, each
    by itself, so that any of them can be asked for where the policy acts (`PlanPolicy`). The first
    state is put in where a plan is drawn, so its error does not count. With `policy=drafted` a
    recurrent network learns to foretell the same plans (its squared error), from which they are
    refined (Trajectory Diffuser, arXiv:2407.16142). B batch, T horizon, Do and Da dimensions of a
    state and an action, D = Do + Da, C labels.

    Raises ValueError for a drop of 0 or 1 where there are labels: one side of guidance would not be
    learned.

    Args:
        drop: Share of the windows that are not told a label, for the side of guidance that asks
            nothing; of each label by itself.
        action_weight: Weight of an error of the actions that are executed, beside 1 for all other
            entries of a plan.
    """

    pure = ("loss",)

    policy: PlanPolicy
    executed: InitVar[int | None] = None  # of a plan's actions; all of them are learned
    _: KW_ONLY
    drop: Share
    action_weight: NonNegative

    def __post_init__(self, executed: int | None) -> None:
        self.labels = len(self.policy.net.want)
        if self.labels and not 0 < self.drop < 1:
            raise ValueError(
                f"algo.drop={self.drop}: guidance goes from plans of which nothing is asked to "
                "those that are told their labels; a share between 0 and 1, 0.1 for example"
            )
        super().__post_init__()
        weight = (~self.policy.known).float()
        weight[:executed, self.policy.state_dim :] = self.action_weight
        self.weight = weight  # [T, D] of the errors of a plan

    def read(self, source: Any) -> None:
        """Raises RheoError where batches tell no states."""
        if not hasattr(source, "pair_batches"):
            raise RheoError(
                f"source: {type(self).__name__} learns from windows of states; leave the "
                "algorithm's own (source=plans)"
            )

    def learn_from(self, batch: Windows) -> dict[str, Tensor]:  # type: ignore[override]
        """One step of matching; metrics are 0-d tensors."""
        obs, plan, inside = self.planned(batch)
        strength = self.strengths(batch)
        told = self.drawn(strength, self.generator)
        draws = matching_draws(self.policy, len(obs), self.generator)
        loss = self.loss(self.policy, obs, plan, inside, strength, told, *draws)
        metrics = {"policy/loss": loss.detach()}
        if isinstance(self.policy, DraftedPolicy):
            draft = self.draft_loss(self.policy, obs, plan, inside, strength, told)
            loss = loss + draft
            metrics["policy/draft_loss"] = draft.detach()
        self.descend(loss)
        return metrics

    def strengths(self, batch: Windows) -> Tensor:
        """How strong the labels of a batch's windows are, [B, C] in [0, 1]."""
        assert batch.strength is not None
        return batch.strength

    def planned(self, batch: Windows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Observations, plans [B, T, Do + Da], and which of their steps count (None: all)."""
        obs, action, inside = self.example(batch)
        assert batch.state is not None
        return obs, torch.cat([batch.state, action], -1), inside

    def drawn(self, strength: Tensor, generator: torch.Generator) -> Tensor:
        """Which labels are told, [B, C] of 1 and 0."""
        chance = torch.rand(strength.shape, generator=generator, device=strength.device)
        return (chance >= self.drop).to(strength.dtype)

    def loss(
        self,
        policy: Any,
        obs: Tensor,
        plan: Tensor,
        inside: Tensor | None,
        strength: Tensor,
        told: Tensor,
        noise: Tensor,
        t: Tensor,
    ) -> Tensor:
        """Matching of plans under what is told, []."""
        feat = policy.told(obs, strength, told)
        return self.mean(policy.errors(feat, plan, noise, t, policy.prediction), inside)

    def draft_loss(
        self,
        policy: Any,
        obs: Tensor,
        plan: Tensor,
        inside: Tensor | None,
        strength: Tensor,
        told: Tensor,
    ) -> Tensor:
        """Squared errors of drafts in normalised units, []."""
        draft = policy.drafted(obs, strength, told)
        return self.mean((draft - policy.to_latent(plan)).square(), inside)

    def mean(self, error: Tensor, inside: Tensor | None) -> Tensor:
        """Weighted mean of the errors [B, T, D] of steps that count, []."""
        weight = self.weight.expand_as(error)
        if inside is not None:
            weight = weight * inside[..., None]
        return (error * weight).sum() / weight.sum().clamp_min(1.0)

    @torch.no_grad()
    def validate(self, batch: Windows, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy on held-out windows."""
        obs, plan, inside = self.planned(batch)
        strength = self.strengths(batch)
        told = self.drawn(strength, generator)
        draws = matching_draws(self.average, len(obs), generator)
        return {"val/loss": self.loss(self.average, obs, plan, inside, strength, told, *draws)}
