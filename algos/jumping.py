"""Regression of average velocities: which rows learn jumps, where these go, and what they aim at.

The first J rows of a batch of B learn u(x_t, t, s) for s > t, the others the velocity, s = t and
the target v = a - eps (arXiv:2210.02747). T chunk, Da action dimension. Batches come shuffled, so
which rows are first does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..policies.density import pushed
from ..policies.field import chunk_mean
from ..ranges import NonNegative, Positive, Rate
from .losses import row_times

Spans = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # rows -> t, s [rows] each
# x, v [J, T, Da], t, s [J], feat [J, W] -> what u(x, t, s) is regressed on [J, T, Da]
Target = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Draws(NamedTuple):
    """The randomness of a regression of average velocities."""

    noise: Tensor  # [B, T, Da]
    t: Tensor  # [B] where jumps start
    s: Tensor  # [B] where they end, s = t in the rows of velocities


@dataclass(eq=False, kw_only=True)
class JumpRows:
    """How a batch is shared out, and how its errors count.

    A row's squared error e (a mean over T * Da, normalised units) counts with the detached weight 1
    / (e + weight_floor)^weight_power. Power 0 has the mean velocity, which is wanted, as its
    minimum. With powers towards 1 the minimum moves to the mode of a - eps, far from the mean for
    actions of few dimensions: the p = 1 of arXiv:2505.13447 is for images.

    Args:
        flow_share: Share of a batch's rows that learn the velocity alone, above 0; the others learn
            jumps.
        weight_power: Power of the weight 1 / (error + weight_floor)^power on each row's squared
            error; 0 is plain least squares.
        weight_floor: Constant added to a row's squared error (normalised units) in its weight;
            without effect when weight_power is 0.
    """

    flow_share: Rate
    weight_power: NonNegative
    weight_floor: Positive

    def refuse_shares(self) -> None:
        """Raises ValueError for a share outside (0, 1], a negative power, a floor not above 0."""
        refuse_share("flow_share", self.flow_share, low=False, high=True)
        if self.weight_power < 0 or self.weight_floor <= 0:
            raise ValueError(
                f"weight_power={self.weight_power}, weight_floor={self.weight_floor}: choose a "
                "power of at least 0 and a floor above 0"
            )

    def jumps(self, rows: int) -> int:
        """How many of a batch's rows learn jumps."""
        return rows - round(self.flow_share * rows)

    def weighted(self, error: Tensor) -> Tensor:
        """Errors [B] with the adaptive weight, which carries no gradient."""
        return error / (error.detach() + self.weight_floor) ** self.weight_power


def refuse_share(name: str, share: float, low: bool, high: bool) -> None:
    """Raises ValueError for a share outside [0, 1]; `low` and `high`: whether an end is allowed."""
    if not (0 <= share <= 1) or (share == 0 and not low) or (share == 1 and not high):
        ends = f"{'[' if low else '('}0, 1{']' if high else ')'}"
        raise ValueError(f"{name}={share}: choose a share of the rows in {ends}")


def refuse_late(policy: Any) -> None:
    """Raises ValueError for steps that are not the jumps that halving teaches."""
    if policy.grid != "uniform":
        raise ValueError(
            f"policy.grid={policy.grid}: shortcuts are learnt for steps of 1 / 2^j from "
            "multiples of their length; use policy.grid=uniform"
        )


def sorted_times(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Starts and ends of jumps, [rows] each: two uniform times, sorted."""
    times = torch.rand((2, rows), generator=generator, device=generator.device)
    return times.amin(0), times.amax(0)


def levels(max_steps: int) -> int:
    """Lengths 1, 1/2, 1/4 ... and the velocity: floor(log2(max_steps)) + 2, without rounding."""
    return max_steps.bit_length() + 1


def halving_times(rows: int, generator: torch.Generator, levels: int) -> tuple[Tensor, Tensor]:
    """Starts t = i / 2^j and ends t + 2^-j of jumps, [rows] each, exact in binary.

    The level j is uniform on 0 .. levels - 2, t uniform on the grid of its length.
    """
    device = generator.device
    level = torch.randint(levels - 1, (rows,), generator=generator, device=device)
    steps = torch.exp2(level)
    place = torch.rand(rows, generator=generator, device=device).mul(steps).floor()
    return place / steps, (place + 1) / steps


def derivative(policy: Any, x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor) -> Tensor:
    """v + (s - t) (du/dt + v . grad_x u), [J, T, Da] (arXiv:2505.13447), by forward mode.

    One product along (v, 1), of the order of two forward passes. It is linear in v: of several v
    with weights that add up to 1 the mean of the targets is the target of the mean.
    """

    def average(x: Tensor, t: Tensor) -> Tensor:
        return policy.average_velocity(x, t, s, feat)

    _, slope = pushed(average, (x, t), (v, torch.ones_like(t)))
    return v + (s - t)[:, None, None] * slope


def halves(policy: Any, x: Tensor, t: Tensor, s: Tensor, feat: Tensor, levels: int) -> Tensor:
    """The mean of two half jumps of a policy, [J, T, Da] (arXiv:2410.12557).

    (u(x, t, m) + u(x', m, s)) / 2 with m the middle of t and s and x' = x + (m - t) u(x, t, m),
    where the first half leads. Half of the shortest jump of `levels` is asked as the velocity.
    """
    middle = (t + s) / 2
    finest = s - t < 1.5 * 2.0 ** (2 - levels)
    first = policy.average_velocity(x, t, torch.where(finest, t, middle), feat)
    x = x + (middle - t)[:, None, None] * first
    second = policy.average_velocity(x, middle, torch.where(finest, middle, s), feat)
    return (first + second) / 2


def draws(policy: Any, rows: int, count: int, spans: Spans, generator: torch.Generator) -> Draws:
    """Noise and times of B rows, the first `count` of which jump from and to what `spans` gives."""
    noise = policy.noise(rows, generator)
    start, end = spans(count, generator)
    if count < rows:
        t = row_times(rows - count, generator)
        start, end = torch.cat([start, t]), torch.cat([end, t])
    return Draws(noise, start, end)


def errors(
    policy: Any,
    obs: Tensor,
    action: Tensor,
    inside: Tensor | None,
    drawn: Draws,
    count: int,
    target: Target,
) -> Tensor:
    """|u(x_t, t, s) - target|^2 of every row [B], the mean over T * Da.

    obs [B, O], action [B, T, Da] in environment units; inside [B, T] bool: which steps count, None:
    all. `target` is asked for the first `count` rows and gives no gradient.
    """
    noise, t, s = drawn
    a = policy.to_latent(action)
    place = t[:, None, None]
    x = place * a + (1 - place) * noise
    feat, goal = policy.features(obs), a - noise
    if count:
        rows = (value[:count] for value in (x, goal, t, s, feat.detach()))
        with torch.no_grad():
            goal = torch.cat([target(*rows), goal[count:]])
    error = (policy.average_velocity(x, t, s, feat) - goal).square().mean(-1)
    return chunk_mean(error, inside)
