"""Behaviour cloning: the matching loss of a flow or diffusion field, or a Gaussian's density."""

from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch, Windows
from ..policies.field import chunk_mean
from ..policies.flow import FlowPolicy
from ..policies.gaussian import Gaussian, log_density
from .cloning import Cloning
from .losses import refuse_jumps, row_times


class BC(Cloning):
    """Conditional flow matching on demonstrations (arXiv:2210.02747, eq. 23; arXiv:2303.04137).

    Minimises E |v_theta(x_t, t, obs) - v|^2 with x_t = A(t) a + B(t) eps, in the space that the
    policy predicts. B batch, O observation history, T chunk, Da action dimension.

    Arguments as `Cloning`.
    """

    pure = ("loss",)

    def __init__(
        self,
        policy: FlowPolicy,
        critic: Any,
        generator: torch.Generator,
        run_updates: int,
        *,
        lr: float,
        weight_decay: float,
        lr_warmup: float,
        lr_floor: float,
        ema_rate: float,
        learn_padding: bool,
        max_norm: float,
    ) -> None:
        refuse_jumps(policy)
        super().__init__(
            policy, generator, run_updates, lr=lr, weight_decay=weight_decay,
            lr_warmup=lr_warmup, lr_floor=lr_floor, ema_rate=ema_rate,
            learn_padding=learn_padding, max_norm=max_norm,
        )  # fmt: skip

    def update(self, batch: Batch | Windows) -> dict[str, Tensor]:
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
        """Noise [B, T, Da] and times [B] of a matching step."""
        rows = len(batch.obs)
        return self.policy.noise(rows, generator), row_times(rows, generator)

    @staticmethod
    def loss(
        policy: Any, obs: Tensor, action: Tensor, inside: Tensor | None, *draws: Tensor
    ) -> Tensor:
        """Mean matching error, []."""
        noise, t = draws
        return policy.match(obs, action, noise, t, space=policy.prediction, inside=inside).mean()


class BCGaussian(BC):
    """Cloning by the likelihood of a Gaussian with a learned constant std, deployed by its mean.

    The baseline of DAPG (arXiv:1709.10087): with one std for all states the mean is the weighted
    least-squares fit. Arguments as `BC`.
    """

    average: Any  # a Gaussian, where `BC` has a flow

    def __init__(
        self,
        policy: Gaussian,
        critic: Any,
        generator: torch.Generator,
        run_updates: int,
        *,
        lr: float,
        weight_decay: float,
        lr_warmup: float,
        lr_floor: float,
        ema_rate: float,
        learn_padding: bool,
        max_norm: float,
    ) -> None:
        super().__init__(
            policy,  # type: ignore[arg-type]
            critic, generator, run_updates, lr=lr, weight_decay=weight_decay,
            lr_warmup=lr_warmup, lr_floor=lr_floor, ema_rate=ema_rate,
            learn_padding=learn_padding, max_norm=max_norm,
        )  # fmt: skip

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
