"""Shortcut models: a flow that learns to jump by halving its own jumps."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..policies.fewstep import FewStepPolicy
from ..ranges import Count, Share
from . import jumping
from .cloning import JumpCloning


@dataclass(eq=False)
class Shortcut(JumpCloning):
    """Flow matching with self-consistent jumps (arXiv:2410.12557).

    A jump of length d from t is regressed on two of half the length by the same network, without
    gradient:

        u(x, t, t + d) = (u(x, t, m) + u(x', m, t + d)) / 2,  m = t + d/2, x' = x + d/2 u(x, t, m)

    x = x_t of a demonstration; x' is where the network's own half step leads, not a point of the
    demonstration's path. d = 2^-j with the level j uniform on 0 .. M - 2 and t = i d uniform on the
    grid of d. M = floor(log2(max_steps)) + 2 levels of lengths: the longest is 1, the smallest jump
    that is learnt is one step of max_steps. Half of that one is no jump but asked as the velocity,
    s = t: this is where the chain of halvings rests on data.

    Raises ValueError for a share outside [0, 1) and max_steps below 1.

    Args:
        consistency_share: Share of a batch's rows, below 1, that learn jumps from two half jumps;
            the others learn the velocity.
        max_steps: Largest number of steps that jumps are learned for, rounded down to a power of
            two.
    """

    _: KW_ONLY
    consistency_share: Share
    max_steps: Count

    def __post_init__(self) -> None:
        jumping.refuse_share("consistency_share", self.consistency_share, low=True, high=False)
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: at least one step is needed")
        jumping.refuse_late(self.policy)
        super().__post_init__()
        self.levels = jumping.levels(self.max_steps)

    def jumps(self, rows: int) -> int:
        """How many of a batch's rows learn jumps."""
        return round(self.consistency_share * rows)

    def spans(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts t = i / 2^j and ends t + 2^-j of jumps, [rows] each, exact in binary."""
        return jumping.halving_times(rows, generator, self.levels)

    def target(
        self, policy: FewStepPolicy, x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor
    ) -> Tensor:
        """The mean of two half steps of the network, [J, T, Da]; v is not used."""
        return jumping.halves(policy, x, t, s, feat, self.levels)
