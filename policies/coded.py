"""Codes of a chunk's noise, which steering a frozen policy chooses: their map, actor and critic."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..ranges import Count, Positive
from . import draw
from .critics import QEnsemble
from .heads import TanhGaussian
from .normalize import Normalizer


class NoiseMap(nn.Module):
    """w = bound M u: codes u [..., R, Da] in [-1, 1] to noises w [..., T, Da] (arXiv:2506.15799).

    kind "interpolated": M is linear interpolation between R knots spread over the chunk. "lowrank":
    the R slowest cosines of the chunk. Rows of M ("interpolated") or M as a whole ("lowrank") are
    scaled such that codes of independent N(0, 1 / bound^2) give noises of variance 1 (on average
    over the steps for "lowrank"), the prior's. Of two methods that steer the same policy both are
    held to one bound. Raises ValueError for a bound that is not positive and rows outside 1 .. T.

    Args:
        kind: How a code becomes the noise of a chunk: interpolated between knots along it, or
            lowrank, a sum of its slowest cosines.
        rows: Rows of a code, 1 to horizon: horizon gives every step its own noise, 1 repeats one
            noise over the chunk.
        bound: Largest noise that an element of a code makes, in standard deviations of the base's
            noise.
    """

    matrix: Tensor
    settings = ("matrix",)  # of the buffers: what the configuration says, not what was learned

    def __init__(
        self,
        horizon: int,
        *,
        kind: Literal["interpolated", "lowrank"],
        rows: Count,
        bound: Positive,
    ) -> None:
        super().__init__()
        if not 1 <= rows <= horizon:
            raise ValueError(
                f"algo.noise_map.rows={rows}: a chunk of horizon={horizon} has 1 to {horizon} rows "
                "of noise"
            )
        if not bound > 0:
            raise ValueError(f"algo.noise_map.bound={bound}: must be positive; start with 1.5")
        if kind not in ("interpolated", "lowrank"):
            raise ValueError(f"algo.noise_map.kind={kind!r}: choose interpolated or lowrank")
        self.horizon, self.kind, self.rows, self.bound = horizon, kind, rows, bound
        make = interpolation if kind == "interpolated" else cosines
        self.register_buffer("matrix", make(horizon, rows))

    def forward(self, code: Tensor) -> Tensor:
        return self.bound * torch.einsum("tr,...rd->...td", self.matrix, code)

    def code(self, noise: Tensor) -> Tensor:
        """The codes [..., R, Da] of noises [..., T, Da]: the nearest, held to the bound."""
        inverse = torch.linalg.pinv(self.matrix)
        return (torch.einsum("rt,...td->...rd", inverse, noise) / self.bound).clamp(-1, 1)

    def reach(self, executed: int | None) -> int:
        """How many rows of a code, from the first, make the noise of the first `executed` steps."""
        last = (self.horizon if executed is None else executed) - 1
        if self.kind == "lowrank" or self.horizon == 1:
            return self.rows
        return 1 - (-last * (self.rows - 1) // (self.horizon - 1))  # the knot at or behind it

    def prior(self, lead: tuple[int, ...], action_dim: int, generator: torch.Generator) -> Tensor:
        """Codes [*lead, R, Da] of the frozen policy's own noise; not held to the bound."""
        shape = (*lead, self.rows, action_dim)
        noise = draw.normal(shape, generator, device=generator.device)
        return noise.to(self.matrix.dtype) / self.bound


def interpolation(horizon: int, rows: int) -> Tensor:
    """Weights [T, R] of the knots at each step, each row of length 1."""
    if rows == 1:
        return torch.ones(horizon, 1)
    place = torch.arange(horizon) * (rows - 1) / (horizon - 1)
    weight = (1 - (place[:, None] - torch.arange(rows)).abs()).clamp_min(0)
    return weight / weight.norm(dim=1, keepdim=True)


def cosines(horizon: int, rows: int) -> Tensor:
    """The slowest orthonormal cosines [T, R], scaled to a mean squared row length of 1."""
    t, r = torch.arange(horizon)[:, None] + 0.5, torch.arange(rows)
    basis = torch.cos(math.pi * t * r / horizon)
    return basis / basis.norm(dim=0) * math.sqrt(horizon / rows)


def coded_gaussian(
    obs_dim: int,
    action_dim: int,
    obs_norm: Normalizer | None = None,
    *,
    rows: Count,
    width: Count,
    depth: Count,
    activation: str,
    log_std_min: float,
    log_std_max: float,
) -> TanhGaussian:
    """A `TanhGaussian` over codes of `rows` rows instead of chunks.

    Args:
        rows: Rows of the codes that the actor chooses; the same as algo.noise_map.rows.
    """
    return TanhGaussian(
        obs_dim, action_dim, rows, obs_norm, width=width, depth=depth, activation=activation,
        log_std_min=log_std_min, log_std_max=log_std_max,
    )  # fmt: skip


def coded_critic(
    obs_dim: int,
    action_dim: int,
    obs_norm: Normalizer | None = None,
    *,
    rows: Count,
    members: Count,
    width: Count,
    depth: Count,
    layer_norm: bool,
    activation: str,
) -> QEnsemble:
    """A `QEnsemble` over codes of `rows` rows instead of chunks.

    Args:
        rows: Rows of the codes that the critic judges; the same as algo.noise_map.rows.
    """
    return QEnsemble(
        obs_dim, action_dim, rows, obs_norm, members=members, width=width, depth=depth,
        layer_norm=layer_norm, activation=activation,
    )  # fmt: skip
