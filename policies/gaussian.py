"""Tanh-Gaussian policy over action chunks: the actor of SAC, residual and noise-space heads."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .flow import TANH_EDGE
from .nets import Stack, expand_lead
from .normalize import Normalizer


class TanhGaussian(nn.Module):
    """a = tanh(mean(obs) + std(obs) noise) in [-1, 1] (SAC, arXiv:1812.05905).

    The log standard deviation is squashed smoothly into [log_std_min, log_std_max]. obs [..., O],
    noise and actions [..., T, Da], log densities [...] summed over T * Da. obs_norm: statistics of
    the observations, the identity when there are none.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: int,
        depth: int,
        activation: str,
        log_std_min: float,
        log_std_max: float,
    ):
        super().__init__()
        if log_std_min >= log_std_max:
            raise ValueError(f"log_std_min={log_std_min} must be below log_std_max={log_std_max}")
        self.obs_norm = Normalizer(obs_dim, kind="none") if obs_norm is None else obs_norm
        self.obs_dim, self.action_dim, self.horizon = obs_dim, action_dim, horizon
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.net = Stack([obs_dim] + [width] * depth + [2 * horizon * action_dim], activation)

    def noise(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal noise [*lead, T, Da] for `sample`."""
        shape = (lead,) if isinstance(lead, int) else tuple(lead)
        where = next(self.parameters())
        size = (*shape, self.horizon, self.action_dim)
        return torch.randn(size, generator=generator, device=where.device, dtype=where.dtype)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, each [..., T, Da]."""
        shape = (2, self.horizon, self.action_dim)
        mean, raw = self.net(self.obs_norm(obs)).unflatten(-1, shape).unbind(-3)
        half = 0.5 * (self.log_std_max - self.log_std_min)
        return mean, self.log_std_min + half * (raw.tanh() + 1)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action of that noise and its log density; differentiable in the network."""
        mean, log_std = self(expand_lead(obs, noise.ndim - 2, 1))
        raw = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return raw.tanh(), (normal - log_tanh_slope(raw)).sum((-1, -2))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Log density [...] of given actions, differentiable in the network.

        Recorded actions often lie on the border, where the tanh has no inverse: they are moved to
        +-TANH_EDGE, as a flow with squash "tanh" does.
        """
        mean, log_std = self(expand_lead(obs, action.ndim - 2, 1))
        raw = action.clamp(-TANH_EDGE, TANH_EDGE).atanh()
        gap = (raw - mean) * (-log_std).exp()
        normal = -0.5 * gap.square() - log_std - 0.5 * math.log(2 * math.pi)
        return (normal - log_tanh_slope(raw)).sum((-1, -2))

    def mean(self, obs: Tensor) -> Tensor:
        """The deterministic action tanh(mean) [..., T, Da]."""
        return self(obs)[0].tanh()


def log_tanh_slope(raw: Tensor) -> Tensor:
    """log(1 - tanh(raw)^2) = 2 (log 2 - raw - softplus(-2 raw)): finite for every raw."""
    return 2 * (math.log(2) - raw - F.softplus(-2 * raw))
