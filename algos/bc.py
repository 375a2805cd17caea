"""Behaviour cloning: the matching loss of a flow or diffusion field, or a Gaussian's density."""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch, Windows
from ..policies.field import chunk_mean
from ..policies.flow import FlowPolicy
from ..policies.heads import Gaussian, log_density
from ..ranges import Count
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
    """

    pure = ("loss",)

    policy: FlowPolicy
    _: KW_ONLY
    draws: Count

    def __post_init__(self) -> None:
        refuse_jumps(self.policy)
        super().__post_init__()

    def learn_from(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """One step of matching; metrics are 0-d tensors."""
        loss = self.loss(self.policy, *self.example(batch), *self.draw(batch, self.generator))
        self.descend(loss)
        return {"policy/loss": loss.detach()}

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

    @staticmethod
    def loss(
        policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Mean matching error, []."""
        noise, t = draws
        return policy.match(obs, action, noise, t, space=policy.prediction, inside=inside).mean()


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
    def loss(
        policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Mean negative log density of an action step (of the chunk's T), []."""
        mean, log_std = policy(obs)
        error = -log_density((action - mean) * (-log_std).exp(), log_std).sum(-1)
        return chunk_mean(error, inside).mean()
