"""A critic whose best action is known."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Hill(nn.Module):
    """Q = -sharp (a - peak)^2, summed over the chunk, of one member, `gap` more of the other.

    peak: of all states, or a function of obs [..., O] that broadcasts to actions.
    """

    members = 2

    def __init__(
        self, peak: float | Callable[[Tensor], Tensor], sharp: float = 1.0, gap: float = 0.0
    ) -> None:
        super().__init__()
        self.peak, self.sharp, self.gap = peak, sharp, gap
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        peak = self.peak(obs) if callable(self.peak) else self.peak
        value = -self.sharp * (action - peak).square().sum((-2, -1))
        return torch.stack([value, value + self.gap]) + 0 * self.unused
