"""Behaviour cloning: the matching loss of a flow or diffusion field, or a Gaussian's density."""

from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch, Windows
from ..policies.flow import FlowPolicy
from ..policies.gaussian import Gaussian, log_density
from ..policies.nets import clone, lerp_
from .losses import stratified
from .optim import adam, cosine, step


class BC:
    """Conditional flow matching on demonstrations (arXiv:2210.02747, eq. 23; arXiv:2303.04137).

    Minimises E |v_theta(x_t, t, obs) - v|^2 with x_t = A(t) a + B(t) eps, in the space that the
    policy predicts. B batch, O observation history, T chunk, Da action dimension.

    lr, weight_decay: AdamW; lr_warmup is a share of the run, lr_floor the last factor of a cosine.
    ema_rate: per-update rate of the averaged copy that is deployed; 1 deploys the raw weights.
    learn_padding: whether the actions repeated past an episode's end are cloned too.
    max_norm: gradient-norm limit. run_updates: length of the run, for the schedule.
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
        self.policy = policy
        self.average = clone(policy)
        self.generator = generator
        self.optimizer = adam(policy.parameters(), lr, weight_decay)
        self.updates = 0
        self.run_updates = run_updates
        self.lr, self.lr_warmup, self.lr_floor = lr, lr_warmup, lr_floor
        self.ema_rate, self.max_norm = ema_rate, max_norm
        self.learn_padding = learn_padding

    def act(self, obs: Tensor) -> Tensor:
        """Action chunk [N, T, Da] for obs [N, O]."""
        return self.deploy(obs, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the averaged policy, [N, T, Da]."""
        return self.average.act(obs, self.average.start(len(obs), generator))

    def update(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """One step of matching; metrics are 0-d tensors."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * cosine(share, self.lr_warmup, self.lr_floor)
        loss = self.loss(self.policy, *self.example(batch), *self.draw(batch, self.generator))
        step(self.optimizer, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        return {"policy/loss": loss.detach()}

    @torch.no_grad()
    def validate(self, batch: Batch | Windows, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy on held-out data."""
        draws = self.draw(batch, generator)
        return {"val/loss": self.loss(self.average, *self.example(batch), *draws)}

    def example(self, batch: Batch | Windows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Observations, actions, and which of those count (None: all)."""
        if self.learn_padding or not isinstance(batch, Windows):
            return batch.obs, batch.action, None
        return batch.obs, batch.action, batch.inside

    def draw(self, batch: Batch | Windows, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noise [B, T, Da] and stratified times [B] of a matching step."""
        rows = len(batch.obs)
        return self.policy.noise(rows, generator), stratified((rows,), generator)

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
        average: Any = self.average
        return average.mean(obs)

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
        if inside is None:
            return error.mean()
        return ((error * inside).sum(-1) / inside.sum(-1).clamp_min(1)).mean()
