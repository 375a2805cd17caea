"""Policies of one pass: SAC's Gaussian, squashed by a tanh, the plain one of PPO, TD3's actor."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import Count, Positive
from . import draw
from .field import TANH_EDGE
from .nets import Stack, expand_lead
from .normalize import Normalizer, statistics


class OnePass(nn.Module):
    """What answers with chunks [..., T, Da] in one pass from an observation [..., O].

    obs_norm: statistics of the observations, the identity when there are none.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, horizon: int, obs_norm: Normalizer | None
    ) -> None:
        super().__init__()
        self.obs_norm = statistics(obs_dim, obs_norm)
        self.action_dim, self.horizon = action_dim, horizon

    def noise(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal noise [*lead, T, Da]."""
        return draw.chunks(self, lead, generator)


class TanhGaussian(OnePass):
    """a = tanh(mean(obs) + std(obs) noise) in [-1, 1] (SAC, arXiv:1812.05905).

    The log standard deviation is squashed smoothly into [log_std_min, log_std_max]. obs [..., O],
    noise and actions [..., T, Da], log densities [...] summed over T * Da, or over the first
    `executed` steps of T alone.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        activation: str,
        log_std_min: float,
        log_std_max: float,
    ):
        super().__init__(obs_dim, action_dim, horizon, obs_norm)
        if log_std_min >= log_std_max:
            raise ValueError(f"log_std_min={log_std_min} must be below log_std_max={log_std_max}")
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.net = Stack([obs_dim] + [width] * depth + [2 * horizon * action_dim], activation)

    @torch.no_grad()
    def begin(self, log_std: float) -> None:
        """Starts near mean 0 and this log standard deviation everywhere, before the tanh."""
        self.net.scale_outlet(0.01)
        half = 0.5 * (self.log_std_max - self.log_std_min)
        share = torch.tensor((log_std - self.log_std_min) / half - 1.0)
        last = self.net.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.view(2, -1)[1] = share.atanh()

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, each [..., T, Da]."""
        shape = (2, self.horizon, self.action_dim)
        mean, raw = self.net(self.obs_norm(obs)).unflatten(-1, shape).unbind(-3)
        half = 0.5 * (self.log_std_max - self.log_std_min)
        return mean, self.log_std_min + half * (raw.tanh() + 1)

    def sample(
        self, obs: Tensor, noise: Tensor, executed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The action of that noise and its log density; differentiable in the network."""
        action, logp = self.draw(obs, noise)
        return action, logp[..., :executed, :].sum((-1, -2))

    def draw(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `sample`, with the log density of every element, [..., T, Da]."""
        mean, log_std = self(expand_lead(obs, noise.ndim - 2, 1))
        raw = mean + log_std.exp() * noise
        normal = log_density(noise, log_std)
        return raw.tanh(), normal - log_tanh_slope(raw)

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Log density [...] of given actions, differentiable in the network.

        Recorded actions often lie on the border, where the tanh has no inverse: they are moved to
        +-TANH_EDGE, as a flow with squash "tanh" does.
        """
        mean, log_std = self(expand_lead(obs, action.ndim - 2, 1))
        raw = action.clamp(-TANH_EDGE, TANH_EDGE).atanh()
        normal = log_density((raw - mean) * (-log_std).exp(), log_std)
        return (normal - log_tanh_slope(raw)).sum((-1, -2))

    def mean(self, obs: Tensor) -> Tensor:
        """The deterministic action tanh(mean) [..., T, Da]."""
        return self(obs)[0].tanh()


class Gaussian(OnePass):
    """a ~ N(mean(obs), std^2) with one learned std per action dimension (PPO, arXiv:1707.06347).

    The density is that of the raw action; whoever acts clips it to [-1, 1], so recorded actions on
    the border have a density like all others. obs [..., O], noise and actions [..., T, Da], log
    densities [...] summed over T * Da, or over the first `executed` steps of T alone.

    Args:
        std: First standard deviation of every action element, in action units (the box is -1 to 1);
            it is learned from there.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        activation: str,
        std: Positive,
    ):
        super().__init__(obs_dim, action_dim, horizon, obs_norm)
        if std <= 0:
            raise ValueError(f"std={std} must be positive")
        self.net = Stack([obs_dim] + [width] * depth + [horizon * action_dim], activation)
        self.net.scale_outlet(0.01)  # starts near the middle of the box
        self.log_std = nn.Parameter(torch.full((horizon, action_dim), math.log(std)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the raw action, each [..., T, Da]."""
        raw = self.net(self.obs_norm(obs))
        mean = raw.unflatten(-1, (self.horizon, self.action_dim))
        return mean, self.log_std.expand_as(mean)

    def sample(
        self, obs: Tensor, noise: Tensor, executed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The raw action of that noise, not clipped, and its log density; differentiable."""
        mean, log_std = self(expand_lead(obs, noise.ndim - 2, 1))
        logp = log_density(noise, log_std)[..., :executed, :]
        return mean + log_std.exp() * noise, logp.sum((-1, -2))

    def log_prob(self, obs: Tensor, action: Tensor, executed: int | None = None) -> Tensor:
        """Log density [...] of given raw actions, differentiable in the network."""
        mean, log_std = self(expand_lead(obs, action.ndim - 2, 1))
        logp = log_density((action - mean) * (-log_std).exp(), log_std)
        return logp[..., :executed, :].sum((-1, -2))

    def mean(self, obs: Tensor) -> Tensor:
        """The deterministic action [..., T, Da], clipped to [-1, 1]."""
        return self(obs)[0].clamp(-1, 1)


class Deterministic(OnePass):
    """a = tanh(net(obs)) in [-1, 1] (arXiv:1802.09477): forward(obs [..., O]) -> [..., T, Da]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        activation: str,
    ):
        super().__init__(obs_dim, action_dim, horizon, obs_norm)
        self.net = Stack([obs_dim] + [width] * depth + [horizon * action_dim], activation)

    def forward(self, obs: Tensor) -> Tensor:
        raw = self.net(self.obs_norm(obs))
        return raw.unflatten(-1, (self.horizon, self.action_dim)).tanh()


def log_density(noise: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, std^2) per element, at x = mean + std noise."""
    return -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)


def log_tanh_slope(raw: Tensor) -> Tensor:
    """log(1 - tanh(raw)^2) = 2 (log 2 - raw - softplus(-2 raw)): finite for every raw."""
    return 2 * (math.log(2) - raw - F.softplus(-2 * raw))
