"""Probability paths from noise (t = 0) to data (t = 1) and the algebra between predictions.

A path is `x_t = A(t) a + B(t) eps` with `eps ~ N(0, I)` and `a` the normalised action chunk. Given
`x`, `t` and any one of velocity, noise, data or score, the others follow in closed form:

    v = A' a + B' eps     Dt = A B' - A' B     a = (B' x - B v) / Dt     eps = (A v - A' x) / Dt

`times` of a path is the only source of time grids, for sampling and for likelihoods alike. A grid
is "uniform", t_k = k / K, or "late", t_k = 1 - (1 - k / K)^2: Euler's few steps narrow a sharp
policy, whose velocity bends most where the action is nearly told (K = 5: a true deviation of .1
becomes .036, and .067 on the late grid).
"""

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Prediction = Literal["v", "eps", "a"]
Grid = Literal["uniform", "late"]
Table = Literal["cosine", "vp"]


class Coefficients(NamedTuple):
    """`A`, `B` and their time derivatives, all of t's shape."""

    a: Tensor
    b: Tensor
    da: Tensor
    db: Tensor

    @property
    def det(self) -> Tensor:
        """`Dt = A B' - A' B`, negative and bounded away from zero on every path here."""
        return self.a * self.db - self.da * self.b

    def over_chunk(self) -> "Coefficients":
        """The same coefficients shaped [..., 1, 1], to multiply chunks [..., T, Da]."""
        return Coefficients(*(value[..., None, None] for value in self))


class Pred(NamedTuple):
    """One network output in its four equivalent forms, each [..., T, Da]."""

    v: Tensor
    a: Tensor
    eps: Tensor
    score: Tensor


class Path(Protocol):
    """What a policy asks of a path.

    `floor` is the smallest A or B that is ever divided by; `edges` the times between which a
    noise or data prediction can be converted (see `safe_time`).
    """

    floor: float
    edges: tuple[float, float]

    def coefficients(self, t: Tensor) -> Coefficients: ...

    def times(
        self, steps: int, device: torch.device | None = None, grid: Grid = "uniform"
    ) -> Tensor: ...


class Linear(nn.Module):
    """Rectified flow: A = t, B = 1 - t (arXiv:2209.03003)."""

    floor = 1e-3
    edges = (0.01, 0.999)

    def coefficients(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(t, 1 - t, one, -one)

    def times(
        self, steps: int, device: torch.device | None = None, grid: Grid = "uniform"
    ) -> Tensor:
        return _spaced(steps, device, grid)


class Cosine(nn.Module):
    """Variance preserving, by angle: A = sin(pi t / 2), B = cos(pi t / 2) (arXiv:2202.00512)."""

    floor = 1e-3
    edges = (0.01, 0.999)

    def coefficients(self, t: Tensor) -> Coefficients:
        angle = t * (math.pi / 2)
        a, b = angle.sin(), angle.cos()
        return Coefficients(a, b, b * (math.pi / 2), a * (-math.pi / 2))

    def times(
        self, steps: int, device: torch.device | None = None, grid: Grid = "uniform"
    ) -> Tensor:
        return _spaced(steps, device, grid)


class Betas(nn.Module):
    """Variance preserving, from a table of DDPM betas (arXiv:2006.11239), t = 1 - k / levels.

    Level k = 0 is data and k = levels is the noisiest one. At the levels A = sqrt(abar_k) and
    B = sqrt(1 - abar_k) with `abar = cumprod(1 - beta)`; between them the angle atan2(A, B) is
    interpolated linearly, which keeps A^2 + B^2 = 1, and its slope gives the derivatives. Grids
    contain levels only, so a checkpoint trained at discrete levels is never asked between them.
    """

    angle: Tensor

    def __init__(self, betas: Tensor):
        super().__init__()
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a 1-D table with every value in (0, 1)")
        abar = torch.cat([betas.new_ones(1).double(), torch.cumprod(1 - betas.double(), 0)])
        angle = torch.atan2(abar.sqrt(), (1 - abar).sqrt()).flip(0)  # by increasing t
        # float64 so that the posterior std, a difference of neighbours, survives rounding
        self.register_buffer("angle", angle)
        self.floor = min(1e-3, float(angle[0].sin()))
        self.edges = (0.0, 1 - 1 / len(betas))  # the noisiest and the least noisy level

    @property
    def levels(self) -> int:
        return len(self.angle) - 1

    def coefficients(self, t: Tensor) -> Coefficients:
        table = self.angle.double()
        place = (t.double() * self.levels).clamp(0, self.levels)
        # a level must be hit exactly although 1 - k / levels is rounded in t's type
        place = torch.where((place - place.round()).abs() < 1e-4, place.round(), place)
        left = place.floor().long().clamp(max=self.levels - 1)
        step = table[left + 1] - table[left]
        angle = table[left] + (place - left) * step
        a, b, slope = angle.sin(), angle.cos(), step * self.levels
        return Coefficients(*(value.to(t.dtype) for value in (a, b, b * slope, -a * slope)))

    def times(
        self, steps: int, device: torch.device | None = None, grid: Grid = "uniform"
    ) -> Tensor:
        if steps > self.levels:
            raise ValueError(f"{steps} steps asked of a table of {self.levels} noise levels")
        if grid == "late" and steps**2 > self.levels:
            raise ValueError(
                f"the late grid's last step is 1 / {steps}^2 long, shorter than the distance of "
                f"{self.levels} noise levels; use fewer steps or grid=uniform"
            )
        times = (_spaced(steps, device, grid).double() * self.levels).round() / self.levels
        return times.to(torch.get_default_dtype())


def cosine_betas(levels: int) -> Tensor:
    """The cosine table of DDPM-style checkpoints (arXiv:2102.09672), float64 [levels].

    `abar_k = cos^2((k / levels + 0.008) / 1.008 * pi / 2) / abar_0`, betas clipped at 0.999.
    """
    grid = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    abar = ((grid + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def vp_betas(levels: int, low: float = 0.1, high: float = 10.0) -> Tensor:
    """The table of the variance-preserving diffusion in few levels, float64 [levels].

    beta_k = 1 - exp(-low / T - (high - low) (2 k - 1) / (2 T^2)), k = 1..T (arXiv:2112.07804): the
    integral of a rate that grows from `low` to `high`, cut in T parts. At its noisiest level
    A = exp(-(low + high) / 4) = 0.080 for any T, where the cosine table has .010 (T = 5) and .002
    (T = 20), by which a noise prediction's data form is divided.
    """
    k = torch.arange(1, levels + 1, dtype=torch.float64)
    return 1 - (-low / levels - (high - low) * (2 * k - 1) / (2 * levels**2)).exp()


def make_path(
    name: Literal["linear", "cosine", "betas"],
    levels: int | None = None,
    betas: Table = "cosine",
) -> Path:
    """The path of that name; `levels` is the length of the table `betas` of path "betas".

    Raises ValueError for values that do not go together.
    """
    if (name == "betas") != (levels is not None):
        raise ValueError(f"path={name!r} with levels={levels}: levels belongs to path='betas' only")
    if betas not in ("cosine", "vp"):
        raise ValueError(f"betas={betas!r}: choose cosine or vp")
    if betas != "cosine" and name != "betas":
        raise ValueError(f"betas={betas!r} with path={name!r}: a table belongs to path='betas'")
    if name == "linear":
        return Linear()
    if name == "cosine":
        return Cosine()
    if name == "betas" and levels is not None:
        return Betas((vp_betas if betas == "vp" else cosine_betas)(levels))
    raise ValueError(f"path={name!r}: choose linear, cosine or betas")


def safe_time(kind: Prediction, t: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Where a prediction is asked for instead of t, and the factor on x: one rule for the ends.

    At t = 0 the noise says nothing about the action (A = 0), at t = 1 the action nothing about
    the noise (B = 0). So a noise prediction is asked for at t' >= edges[0] and a data prediction
    at t' <= edges[1], with x scaled by B(t') / B(t) or A(t') / A(t) to be a point of that time.
    Between the edges t' = t and the factor is 1; a velocity prediction has no singular end.
    """
    if kind == "v":
        return t, torch.ones_like(t)
    low, high = path.edges
    moved = t.clamp(min=low) if kind == "eps" else t.clamp(max=high)
    old, new = path.coefficients(t), path.coefficients(moved)
    factor = new.b / old.b if kind == "eps" else new.a / old.a
    return moved, torch.where(moved == t, torch.ones_like(t), factor)


def convert(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients, floor: float) -> Pred:
    """All four forms of a prediction. `c` is already shaped over the chunk (`over_chunk`).

    A divisor A or B is never smaller than `floor`: the results are finite at t = 0 and t = 1,
    and exact wherever A and B are at least `floor`. Nothing is divided by A or B for a velocity
    prediction, except in the score. Finite is not yet informative: see `safe_time`.
    """
    safe_b = c.b.clamp(min=floor)
    if kind == "v":
        det = c.det
        a, eps, v = (c.db * x - c.b * value) / det, (c.a * value - c.da * x) / det, value
    elif kind == "eps":
        safe_a = c.a.clamp(min=floor)
        a, eps = (x - c.b * value) / safe_a, value
        v = (c.da * x + c.det * value) / safe_a
    else:
        a, eps = value, (x - c.a * value) / safe_b
        v = (c.db * x - c.det * value) / safe_b
    return Pred(v, a, eps, -eps / safe_b)


def velocity(kind: Prediction, value: Tensor, x: Tensor, c: Coefficients, floor: float) -> Tensor:
    """The velocity alone, by the same rule as `convert`: no other form is computed."""
    if kind == "v":
        return value
    if kind == "eps":
        return (c.da * x + c.det * value) / c.a.clamp(min=floor)
    return (c.db * x - c.det * value) / c.b.clamp(min=floor)


def _spaced(steps: int, device: torch.device | None, grid: Grid) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one integration step is needed")
    times = torch.linspace(0, 1, steps + 1, device=device)
    return times if grid == "uniform" else 1 - (1 - times).square()


def spans(steps: int, grid: Grid) -> list[float]:
    """Lengths of the K transitions of a grid, for a path whose grid is not rounded to levels."""
    if grid == "uniform":
        return [1 / steps] * steps
    return [(2 * (steps - k) - 1) / steps**2 for k in range(steps)]
