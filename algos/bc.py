"""Behaviour cloning: the matching loss of a flow or diffusion field, or a Gaussian's density."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..envs.batch import Batch, Windows
from ..policies.field import chunk_mean
from ..policies.flow import FlowPolicy
from ..policies.heads import Gaussian, log_density
from ..ranges import Count, NonNegative, Positive
from .cloning import Cloning
from .losses import matching_draws, refuse_jumps, row_times


@dataclass(eq=False)
class BC(Cloning):
    """Conditional flow matching on demonstrations (arXiv:2210.02747, eq. 23; arXiv:2303.04137).

    Minimises E |v_theta(x_t, t, obs) - v|^2 with x_t = A(t) a + B(t) eps, in the space that the
    policy predicts. B batch, O observation history, T chunk, Da action dimension.

    Args:
        draws: Noises and times per row of a batch that an update matches; its observation is
            encoded once for all of them, which pays where that is dear (images; arXiv:2505.09430).
        condition: Columns of the observation, as the policy sees it, that name what is asked for (a
            goal, a task), for contrast_coef; empty: none.
        contrast_coef: Weight of -log sigmoid(contrast_beta (e' - e)) beside cloning: the error e'
            of an action under another row's condition should be above its own e, so that the
            policy listens to the condition; 0: none.
        contrast_beta: Weight of a difference of these errors; without effect with contrast_coef=0.
    """

    pure = ("loss",)

    policy: FlowPolicy
    _: KW_ONLY
    draws: Count
    condition: list[int]
    contrast_coef: NonNegative
    contrast_beta: Positive

    def __post_init__(self) -> None:
        refuse_jumps(self.policy)
        self.refuse()
        super().__post_init__()

    def refuse(self) -> None:
        """Raises ValueError for a contrast without a condition, one without use, and columns that
        are not there.
        """
        if bool(self.condition) != (self.contrast_coef > 0):
            raise ValueError(
                f"algo.condition={self.condition} with algo.contrast_coef={self.contrast_coef:g}: "
                "a contrast needs the columns of its condition, and these nothing else; set both "
                "or none"
            )
        most = self.policy.obs_norm.dim
        if any(not 0 <= column < most for column in self.condition):
            raise ValueError(
                f"algo.condition={self.condition}: an observation has columns 0 to {most - 1}"
            )

    def learn_from(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """One step of matching; metrics are 0-d tensors."""
        obs, action, inside = self.example(batch)
        draws = self.draw(batch, self.generator)
        loss = self.loss(self.policy, obs, action, inside, *draws)
        metrics = {"policy/loss": loss.detach()}
        if self.contrast_coef > 0:
            contrast, heard = self.contrast(obs, action, inside, *draws)
            loss = loss + self.contrast_coef * contrast
            metrics |= {"policy/contrast": contrast.detach(), "policy/heard": heard}
        self.descend(loss)
        return metrics

    def contrast(
        self, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-log sigmoid(beta (e' - e)) of errors under another row's condition and their own, [].

        The preference of TPO (2025), an action with what was asked for above the same action with
        something else, by errors with the same draws, without a reference policy. Rows whose
        neighbour has the same condition tell nothing. Also the share of rows in which e' > e.
        """
        other = obs.clone()
        other[:, self.condition] = obs[:, self.condition].roll(1, 0)
        differs = (other != obs).any(-1).to(obs.dtype)
        own, theirs = (
            self.errors(self.policy, seen, action, inside, *draws) for seen in (obs, other)
        )
        gap = (theirs - own).view(len(obs), -1).mean(1)
        count = differs.sum().clamp_min(1.0)
        loss = -(logsigmoid(self.contrast_beta * gap) * differs).sum() / count
        return loss, ((gap > 0) * differs).sum() / count

    @torch.no_grad()
    def validate(self, batch: Batch | Windows, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy on held-out data."""
        draws = self.draw(batch, generator)
        return {"val/loss": self.loss(self.average, *self.example(batch), *draws)}

    def draw(self, batch: Batch | Windows, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise [B, T, Da] and times [B] of a matching step; [B, draws, ..] of several."""
        rows = len(batch.obs)
        if self.draws == 1:
            return matching_draws(self.policy, rows, generator)
        noise = self.policy.noise((rows, self.draws), generator)
        return noise, row_times(rows * self.draws, generator).view(rows, self.draws)

    @classmethod
    def loss(
        cls, policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Mean of the errors, []."""
        return cls.errors(policy, obs, action, inside, *draws).mean()

    @staticmethod
    def errors(
        policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Matching errors, [B] or [B, draws]."""
        noise, t = draws
        return policy.match(obs, action, noise, t, space=policy.prediction, inside=inside)


@dataclass(eq=False)
class BCGaussian(BC):
    """Cloning by the likelihood of a Gaussian with a learned constant std, deployed by its mean.

    The baseline of DAPG (arXiv:1709.10087): with one std for all states the mean is the weighted
    least-squares fit.
    """

    policy: Gaussian  # type: ignore[assignment]  # where `BC` has a flow
    draws: int = field(default=1, init=False)  # a likelihood needs none

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mean of the averaged policy, [N, T, Da]."""
        return self.average.mean(obs)

    def draw(self, batch: Batch | Windows, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing: a likelihood needs no draws."""
        return ()

    @staticmethod
    def errors(
        policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Negative log densities of an action step (the mean of the chunk's T), [B]."""
        mean, log_std = policy(obs)
        error = -log_density((action - mean) * (-log_std).exp(), log_std).sum(-1)
        return chunk_mean(error, inside)
