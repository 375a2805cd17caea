"""Learned noise of a denoising chain: how far each transition of a flow may stray."""

import math
from typing import Literal

import torch
from torch import Tensor

from ..ranges import Count, NonNegative, Positive
from .heads import OnePass
from .nets import Stack, TimeEmbedding, zero_
from .normalize import Normalizer

HELD, KEPT = 0.35, 0.3  # learn_decay: share of the run at full width, and how much of min stays


class NoiseNet(OnePass):
    """std(obs, t) within bounds, for the transitions of `FlowPolicy.rollout` (arXiv:2505.22094).

    log var = lv_min + (lv_max - lv_min) (tanh z + 1) / 2 with z from a tanh network on the
    normalised observation and the features of t; z starts at 0, where the std is the geometric mean
    of the bounds. obs [..., O], t [K] -> [..., K, T, Da], in normalised action units.

    Schedule "learn_decay" holds std_max for 35 % of the run and brings it down to 0.3 std_min + 0.7
    std_max on a cosine; "early" is std_min + (std_max - std_min) (1 - t)^std_power, so that chains
    part at their beginning and go on nearly undisturbed (as in HiCoGen). The noise is for
    learning: it is not deployed.

    Args:
        std_min: Least standard deviation of a denoising step's noise, in normalised action units.
        std_max: Largest standard deviation of a denoising step's noise, in normalised action units.
        schedule: How the noise goes: learn keeps both bounds, learn_decay lowers std_max during the
            run, const is always the bounds' geometric mean, early falls from std_max to std_min
            along the chain.
        std_power: Power of 1 - t by which the noise of schedule=early falls along the chain,
            without effect with the others; 0 keeps std_max.
        tuned_steps: Denoising steps with learned noise, the last ones; those before have std_min;
            null: all.
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
        std_min: Positive,
        std_max: Positive,
        schedule: Literal["const", "learn", "learn_decay", "early"],
        std_power: NonNegative,
        tuned_steps: Count | None,
    ):
        super().__init__(obs_dim, action_dim, horizon, obs_norm)
        if not 0 < std_min <= std_max:
            raise ValueError(f"std_min={std_min} must be positive and at most std_max={std_max}")
        if schedule not in ("const", "learn", "learn_decay", "early"):
            raise ValueError(f"schedule={schedule!r}: choose const, learn, learn_decay or early")
        self.std_min, self.std_max, self.std_power = std_min, std_max, std_power
        self.schedule, self.tuned_steps = schedule, tuned_steps
        self.times = TimeEmbedding(width)
        self.net = Stack([obs_dim + width] + [width] * depth + [horizon * action_dim], "tanh")
        zero_(self.net.layers[-1])
        self.register_buffer("top", torch.tensor(std_max))

    top: Tensor
    settings = ("top",)  # of the buffers: what the configuration says, not what was learned

    def refuse(self, steps: int) -> None:
        """Raises ValueError for more transitions with learned noise than a policy has."""
        tuned = self.tuned_steps
        if tuned is not None and not 1 <= tuned <= steps:
            raise ValueError(
                f"algo.noise.tuned_steps={tuned}: the policy has policy.steps={steps} transitions; "
                f"choose 1 to {steps}"
            )

    @torch.no_grad()
    def settle(self, share: float) -> None:
        """Sets the upper bound for a share of the run in [0, 1]."""
        if self.schedule == "learn_decay":
            part = min(max((share - HELD) / (1 - HELD), 0.0), 1.0)
            low = KEPT * self.std_min + (1 - KEPT) * self.std_max
            self.top.fill_(low + (self.std_max - low) * 0.5 * (1 + math.cos(math.pi * part)))

    def forward(self, obs: Tensor, t: Tensor) -> Tensor:
        std = self.early(obs, t) if self.schedule == "early" else self.seen(obs, t)
        if self.tuned_steps is None or self.tuned_steps >= len(t):
            return std
        fixed = len(t) - self.tuned_steps
        return torch.cat(
            [torch.full_like(std[..., :fixed, :, :], self.std_min), std[..., fixed:, :, :]], -3
        )

    def early(self, obs: Tensor, t: Tensor) -> Tensor:
        """Deviations that fall along the chain, whatever is observed."""
        std = self.std_min + (self.top - self.std_min) * (1 - t) ** self.std_power
        return std[:, None, None].expand(*obs.shape[:-1], -1, self.horizon, self.action_dim)

    def seen(self, obs: Tensor, t: Tensor) -> Tensor:
        """Deviations by what is observed and when, within the bounds."""
        seen = self.obs_norm(obs)[..., None, :]
        when = self.times(t).expand(*obs.shape[:-1], -1, -1)
        seen = seen.expand(*when.shape[:-1], -1)
        z = self.net(torch.cat([seen, when], -1)).unflatten(-1, (self.horizon, self.action_dim))
        if self.schedule == "const":
            z = torch.zeros_like(z)
        low, high = math.log(self.std_min), self.top.log()
        return (low + (high - low) * (z.tanh() + 1) / 2).exp()
