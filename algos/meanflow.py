"""Mean flow: average velocities from the derivative of their own definition."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..policies.fewstep import FewStepPolicy
from ..ranges import NonNegative, Positive, Rate
from .cloning import JumpCloning, refuse_share


@dataclass(eq=False)
class MeanFlow(JumpCloning):
    """Regression on the mean-flow identity (arXiv:2505.13447).

    (s - t) u(x, t, s) is the integral of the velocity from t to s along the trajectory through x.
    Its derivative along that trajectory, with the end s held fixed, gives

        u = v + (s - t) (du/dt + v . grad_x u)

    in this project's direction of time (data at t = 1; the paper has them at 0 and so the opposite
    sign). The right side at x = x_t of a demonstration, with v = a - eps, is the target, detached:
    one forward-mode product along (v, 1), of the order of two forward passes. t < s are two sorted
    uniform times. The paper draws both from a logit-normal and gives jumps a quarter of the rows
    (flow_share 0.75), which it chose on images; with actions neither has been compared here.

    A row's squared error e (a mean over T * Da, normalised units) counts with the detached weight 1
    / (e + weight_floor)^weight_power. Power 0 has the mean velocity, which is wanted, as its
    minimum. With powers towards 1 the minimum moves to the mode of a - eps, far from the mean for
    actions of few dimensions: the paper's p = 1 is for images. Raises ValueError for shares outside
    (0, 1], a negative power and a floor that is not positive.

    Args:
        flow_share: Share of a batch's rows that learn the velocity alone, above 0; the others learn
            jumps by the mean-flow identity.
        weight_power: Power of the weight 1 / (error + weight_floor)^power on each row's squared
            error; 0 is plain least squares.
        weight_floor: Constant added to a row's squared error (normalised units) in its weight;
            without effect when weight_power is 0.
    """

    _: KW_ONLY
    flow_share: Rate
    weight_power: NonNegative
    weight_floor: Positive

    def __post_init__(self) -> None:
        refuse_share("flow_share", self.flow_share, low=False, high=True)
        if self.weight_power < 0 or self.weight_floor <= 0:
            raise ValueError(
                f"weight_power={self.weight_power}, weight_floor={self.weight_floor}: choose a "
                "power of at least 0 and a floor above 0"
            )
        super().__post_init__()

    def jumps(self, rows: int) -> int:
        """How many of a batch's rows learn jumps."""
        return rows - round(self.flow_share * rows)

    def spans(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and ends of jumps, [rows] each: two uniform times, sorted."""
        times = torch.rand((2, rows), generator=generator, device=generator.device)
        return times.amin(0), times.amax(0)

    def target(
        self, policy: FewStepPolicy, x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor
    ) -> Tensor:
        """v + (s - t) (du/dt + v . grad_x u), [J, T, Da], the derivative by forward mode."""

        def average(x: Tensor, t: Tensor) -> Tensor:
            return policy.average_velocity(x, t, s, feat)

        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            slope = torch.func.jvp(average, (x, t), (v, torch.ones_like(t)))[1]
        return v + (s - t)[:, None, None] * slope

    def weighted(self, error: Tensor) -> Tensor:
        """Errors [B] with the adaptive weight, which carries no gradient."""
        return error / (error.detach() + self.weight_floor) ** self.weight_power
