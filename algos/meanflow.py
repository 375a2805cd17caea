"""Mean flow: average velocities from the derivative of their own definition."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policies.fewstep import FewStepPolicy
from . import jumping
from .cloning import JumpCloning
from .jumping import JumpRows


@dataclass(eq=False)
class MeanFlow(JumpRows, JumpCloning):
    """Regression on the mean-flow identity (arXiv:2505.13447).

    (s - t) u(x, t, s) is the integral of the velocity from t to s along the trajectory through x.
    Its derivative along that trajectory, with the end s held fixed, gives

        u = v + (s - t) (du/dt + v . grad_x u)

    in this project's direction of time (data at t = 1; the paper has them at 0 and so the opposite
    sign). The right side at x = x_t of a demonstration, with v = a - eps, is the target, detached.
    t < s are two sorted uniform times. The paper draws both from a logit-normal and gives jumps a
    quarter of the rows (flow_share 0.75), which it chose on images; with actions neither has been
    compared here. Raises ValueError for shares, powers and floors that `JumpRows` refuses.
    """

    def __post_init__(self) -> None:
        self.refuse_shares()
        super().__post_init__()

    def spans(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and ends of jumps, [rows] each: two uniform times, sorted."""
        return jumping.sorted_times(rows, generator)

    def target(
        self, policy: FewStepPolicy, x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor
    ) -> Tensor:
        """v + (s - t) (du/dt + v . grad_x u), [J, T, Da]."""
        return jumping.derivative(policy, x, v, t, s, feat)
