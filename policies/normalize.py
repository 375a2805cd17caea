"""Statistics of observations and actions as buffers, so that they live in the checkpoint."""

import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

logger = logging.getLogger("rheo")
CONSTANT = 1e-6  # spread, against the size of the numbers (at least 1), that is rounding
NEARLY = 1e-3  # spread, against the size of the numbers, below which a dimension hardly moves
REACH = 10.0  # scales from the centre beyond which an observation says no more than "far out"


class Normalizer(nn.Module):
    """Per-dimension affine map `(x - shift) / scale` of the last axis, fitted once on data.

    A constant dimension has no scale of its own: it is only shifted (unit scale), so it becomes 0,
    and `fit` reports it.

    A dimension that hardly moves has a scale of at least NEARLY of its largest magnitude: noise of
    1e-5 around 0.5 is no unit to measure a later 0.6 by. The rule looks at a dimension's own
    numbers only, so it is the same in every unit: 1e-4 m around 0 beside others of 100 keep their
    scale, and what varies by less than NEARLY of its offset is damped, not lost.

    A network does not extrapolate without end, so what lies beyond the reach counts as lying there.
    An arm that turns where no demonstration was is hundreds of deviations away, where what a policy
    makes of it, and the gradient of that, are of no size that can be learned from. `scaled` has the
    distance itself.

    Using it before `fit` raises RuntimeError; data of another size raises ValueError.

    Args:
        kind: Normalisation of each dimension: minmax maps the data's range to [-1, 1], gaussian to
            mean 0 and deviation 1, none leaves numbers alone.
        feature: Name of the normalised quantity in messages.
        reach: Distance from the centre, in scales, beyond which a number counts as lying there;
            infinite unless set.
    """

    shift: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(
        self,
        dim: int,
        *,
        kind: Literal["none", "minmax", "gaussian"],
        feature: str = "input",
        reach: float = math.inf,
    ):
        super().__init__()
        if kind not in ("none", "minmax", "gaussian"):
            raise ValueError(f"normalizer kind={kind!r}: choose none, minmax or gaussian")
        self.dim, self.kind, self.feature, self.reach = dim, kind, feature, reach
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(kind == "none"))
        # The buffer travels with the checkpoint; this copy is what the hot path may read, since
        # reading a tensor there would wait for the device.
        self.ready = kind == "none"
        self.register_load_state_dict_post_hook(_read_ready)

    @torch.no_grad()
    def fit(self, data: Tensor) -> list[int]:
        """Fit to `data` [..., dim] and return the indices of its constant dimensions.

        The half range (minmax) or standard deviation (gaussian) is the scale. Up to CONSTANT of
        the dimension's magnitude, or of 1, it counts as constant; below NEARLY of the magnitude it
        becomes that. Dimensions of both kinds are logged, and those that go beyond the reach.
        Raises ValueError for no rows, another size, or NaN and infinities.
        """
        self._check(data)
        rows = data.reshape(-1, self.dim).to(torch.float64)
        if not len(rows) or not bool(rows.isfinite().all()):
            raise ValueError(f"{self.feature}: cannot fit statistics to {_trouble(rows)}")
        if self.kind == "none":
            return []
        low, high = rows.amin(0), rows.amax(0)
        if self.kind == "minmax":
            shift, scale = (low + high) / 2, (high - low) / 2
        else:
            shift, scale = rows.mean(0), rows.std(0, correction=0)
        size = rows.abs().amax(0)
        constant = scale <= CONSTANT * size.clamp(min=1.0)
        nearly = ~constant & (scale < NEARLY * size)
        scale = torch.where(nearly, NEARLY * size, scale)
        self.shift.copy_(shift)
        self.scale.copy_(torch.where(constant, torch.ones_like(scale), scale))
        self.fitted.fill_(True)
        self.ready = True
        dims, near = (which.nonzero().flatten().tolist() for which in (constant, nearly))
        if dims:
            logger.warning("%s: constant dimensions %s keep unit scale", self.feature, dims)
        if near:
            text = "%s: dimensions %s vary by less than %g of their size, which becomes their scale"
            logger.warning(text, self.feature, near, NEARLY)
        ends = torch.maximum(self.scaled(low).abs(), self.scaled(high).abs())
        far = (ends > self.reach).nonzero().flatten().tolist()
        if far:
            text = "%s: dimensions %s go further than %g scales, and count as that there"
            logger.warning(text, self.feature, far, self.reach)
        return dims

    def forward(self, x: Tensor) -> Tensor:
        far = self.kind == "none" or self.reach == math.inf
        return self.scaled(x) if far else self.scaled(x).clamp(-self.reach, self.reach)

    def scaled(self, x: Tensor) -> Tensor:
        """The map without its ends, [..., dim]."""
        if self.kind == "none":
            return x
        self._check(x)
        self._check_ready()
        return (x - self.shift) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        self._check(x)
        self._check_ready()
        return x * self.scale + self.shift

    def own(self, x: Tensor) -> Tensor:
        """The numbers that the statistics are of: the first ones, where more are shown."""
        return x[..., : self.dim]

    def walls(self) -> tuple[Tensor, Tensor]:
        """Where -1 and 1, the ends of an action's box, lie in normalised units, [dim] each."""
        one = torch.ones_like(self.shift)
        return self(-one), self(one)

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"{self.feature} has {x.shape[-1]} dimensions, its normalizer has {self.dim}"
            )

    def _check_ready(self) -> None:
        if not self.ready:
            raise RuntimeError(
                f"{self.feature}: the {self.kind} normalizer has no statistics; "
                "call fit(data) or load a checkpoint first, or use kind=none"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, kind={self.kind}, feature={self.feature}"


def statistics(dim: int, given: Normalizer | None) -> Normalizer:
    """The given statistics, or the identity where there are none."""
    return Normalizer(dim, kind="none") if given is None else given


def affine(norm: Any) -> Any:
    """The statistics of a network's `obs_norm`: itself, or what an eye has for its numbers."""
    return getattr(norm, "affine", norm)


def _read_ready(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, Normalizer)
    module.ready = bool(module.fitted)


def _trouble(rows: Tensor) -> str:
    if not len(rows):
        return "no rows"
    bad = (~rows.isfinite()).any(0).nonzero().flatten().tolist()
    return f"NaN or infinite values (dimensions {bad})"
