"""A Gaussian correction of a base's actions, and its value; both see what the base plans."""

import torch
from torch import Tensor, nn

from ..ranges import Count, Positive
from .critics import Value
from .heads import Gaussian, OnePass
from .nets import zero_
from .normalize import Normalizer, statistics


class Head(OnePass):
    """delta ~ N(mean(obs, a_b, phase), std^2), one step at a time (ResiP, arXiv:2407.16677).

    seen [..., O + Da + 1] as `envs.residual_env.Residual` gives it; obs_norm acts on its first O
    numbers. The mean starts at 0, so deployed behaviour starts as the base's. Actions [..., 1, Da]
    are raw: whoever executes clips them to [-1, 1]; log densities [...] are of those.

    Args:
        std: First standard deviation of a correction's elements, as a share of algo.residual_scale;
            it is learned from there.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        activation: str,
        std: Positive,
    ):
        super().__init__(obs_dim, action_dim, 1, obs_norm)
        self.gaussian = Gaussian(
            obs_dim + action_dim + 1, action_dim, 1, width=width, depth=depth,
            activation=activation, std=std,
        )  # fmt: skip
        zero_(self.gaussian.net.layers[-1])

    def sample(self, seen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A correction of N observations and its log density."""
        return self.gaussian.sample(normal(self.obs_norm, seen), self.noise(len(seen), generator))

    def log_prob(self, seen: Tensor, delta: Tensor) -> Tensor:
        """Log density [...] of corrections, differentiable in the network."""
        return self.gaussian.log_prob(normal(self.obs_norm, seen), delta)

    def mean(self, seen: Tensor) -> Tensor:
        """The deployed correction, clipped to [-1, 1]."""
        return self.gaussian.mean(normal(self.obs_norm, seen))


class HeadValue(nn.Module):
    """State value of what a `Head` sees: forward(seen [..., O + Da + 1]) -> [...]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        layer_norm: bool,
        activation: str,
    ):
        super().__init__()
        self.obs_norm = statistics(obs_dim, obs_norm)
        self.value = Value(
            obs_dim + action_dim + 1, width=width, depth=depth, layer_norm=layer_norm,
            activation=activation,
        )  # fmt: skip

    def forward(self, seen: Tensor) -> Tensor:
        return self.value(normal(self.obs_norm, seen))


def normal(norm: Normalizer, seen: Tensor) -> Tensor:
    """The first numbers normalised, as many as the normaliser has, and the others as they are."""
    size = norm.dim
    return torch.cat([norm(seen[..., :size]), seen[..., size:]], -1)
