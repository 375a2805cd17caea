"""A Gaussian that edits actions of another policy."""

import torch
from torch import Tensor

from ..ranges import Count, NonNegative
from .heads import OnePass, TanhGaussian
from .nets import expand_lead
from .normalize import Normalizer


class Editor(OnePass):
    """a -> clip(a + scale delta), delta ~ tanh-Gaussian of (obs, a) (EXPO, arXiv:2507.07986).

    obs [..., O], actions and noise [..., T, Da], log densities [...] of delta, summed over T * Da,
    or over the first `executed` steps of T alone. The last layer starts near zero, so the first
    edits are small and centred. Raises ValueError for a negative scale.

    Args:
        scale: Largest change that an edit makes to an action element, in action units (the box is
            -1 to 1); 0 never edits.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        scale: NonNegative,
        width: Count,
        depth: Count,
        activation: str,
        log_std_min: float,
        log_std_max: float,
    ):
        super().__init__(obs_dim, action_dim, horizon, obs_norm)
        if scale < 0:
            raise ValueError(f"scale={scale}: the largest edit in action units, at least 0")
        self.scale = scale
        self.delta = TanhGaussian(
            obs_dim + horizon * action_dim, action_dim, horizon, width=width, depth=depth,
            activation=activation, log_std_min=log_std_min, log_std_max=log_std_max,
        )  # fmt: skip
        self.delta.begin(log_std=-1.0)

    def edit(
        self, obs: Tensor, action: Tensor, noise: Tensor, executed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Edited actions and the log density of their deltas; differentiable in the network."""
        delta, logp = self.delta.sample(self.seen(obs, action), noise, executed)
        return (action + self.scale * delta).clamp(-1, 1), logp

    def mean(self, obs: Tensor, action: Tensor) -> Tensor:
        """Actions with the mode of their deltas, [..., T, Da]."""
        delta = self.delta.mean(self.seen(obs, action))
        return (action + self.scale * delta).clamp(-1, 1)

    def seen(self, obs: Tensor, action: Tensor) -> Tensor:
        """What the network sees, [..., O + T * Da]."""
        lead = action.ndim - 2
        seen = self.obs_norm(expand_lead(obs, lead, 1)).expand(*action.shape[:lead], -1)
        return torch.cat([seen, action.flatten(-2)], -1)
