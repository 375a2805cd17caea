"""The estimators of reverse flow matching beside each other, on the bandit of `bench_actor`.

Its Q is a sum over the actions, so the velocity that an estimator aims at is known: the posterior
mean of every action alone, by quadrature. Every cell has the same temperature, the policy's own
guess of that mean and of its width is exact, and x is drawn from the target's own path. The error
is the root mean square of the estimated velocity's, in three ranges of time; 1 is as large as the
noise itself. Regret is that of `bench_actor` after as many policy steps, at this temperature.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from bench_actor import PLACES, STEPS, Known, learned
from torch import Tensor

from rheo.scripts.assemble import make_algo
from rheo.scripts.config.compose import compose
from rheo.scripts.limits import SIZES
from rheo.scripts.paired import Plan, Row

TEMPERATURE = 0.05
PARTICLES = (4, 16, 64)
RANGES = ((0.02, 0.3), (0.3, 0.7), (0.7, 0.98))  # of t
ROWS = 2000
EDGE = 6.0  # of latents before a tanh, which has saturated long before
POINTS = 1501  # of a quadrature
CELLS = {  # name -> words; `gradient` is biased between walls and refuses them
    "noise, box": ("algo=rfm_box", "algo.walls=1"),
    "noise, walls at 1.3": ("algo=rfm_box", "algo.walls=1.3"),
    "noise, tanh": ("algo=rfm", "algo.estimator=noise"),
    "noise, box, annealed": ("algo=rfm_box", "algo.walls=1", "algo.proposal=annealed"),
    "noise, tanh, annealed": ("algo=rfm", "algo.estimator=noise", "algo.proposal=annealed"),
    "gradient, tanh": ("algo=rfm",),
    "combined, box": ("algo=rfm_box", "algo.walls=1", "algo.estimator=combined"),
    "combined, walls at 1.3": ("algo=rfm_box", "algo.walls=1.3", "algo.estimator=combined"),
    "combined, tanh": ("algo=rfm", "algo.estimator=combined"),
}
ALIKE = (
    f"algo.temperature={TEMPERATURE}", "algo.temperature_rule=fixed", "algo.policy_batch=128",
    "env=halfcheetah",
)  # fmt: skip


class Exact(NamedTuple):
    """The target density of every row and action on a grid of latents."""

    grid: Tensor  # [G]
    density: Tensor  # [R, D, G], sums to 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, [R, D] each."""
        mean = (self.density * self.grid).sum(-1)
        square = (self.density * self.grid.square()).sum(-1)
        return mean, (square - mean.square()).clamp_min(1e-12).sqrt()

    def sample(self, uniform: Tensor) -> Tensor:
        """Latents of quantiles [R, D]."""
        place = (self.density.cumsum(-1) < uniform[..., None]).sum(-1)
        return self.grid[place.clamp(max=len(self.grid) - 1)]

    def posterior(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """E[a | x] of x = A a + B eps [R, D]; A, B [R, 1]."""
        gap = (x[..., None] - A[..., None] * self.grid) / B[..., None]
        weight = (self.density.clamp_min(1e-300).log() - 0.5 * gap.square()).softmax(-1)
        return (weight * self.grid).sum(-1)


def measure(plan: Plan) -> Iterator[Row]:
    """Error of the velocity by time, regret at either place, and the time of a policy step."""
    steps, rows = (STEPS // 20, ROWS // 10) if plan.quick else (STEPS, ROWS)
    for name, words in CELLS.items():
        for count in PARTICLES:
            cell = (*words, *ALIKE, f"algo.particles={count}")
            label = f"{name}, {count} particles"
            for (low, high), error in zip(RANGES, errors(cell, rows), strict=True):
                yield Row(f"{label}, velocity error, t {low:g} to {high:g}", "", error)
            seconds = []
            for place, reach in PLACES.items():
                regret = learned(cell, reach, steps)
                seconds.append(regret.seconds)
                yield Row(f"{label}, regret, optimum {place}", "std of Q", regret.deployed)
            yield Row(f"{label}, a policy step", "ms", 1e3 * min(seconds))


def errors(words: tuple[str, ...], rows: int) -> list[float]:
    """Root mean square error of the estimated velocity in each range of time."""
    algo: Any = make_algo(compose([*words]), SIZES, 1)
    known = Known(PLACES["at walls"])
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(rows, SIZES.obs_dim, generator=generator)
    exact = target_density(algo, known, obs)
    mean, std = exact.moments()
    found = []
    for low, high in RANGES:
        t = low + (high - low) * torch.rand(rows, generator=generator)
        A, B, dA, dB = (c[:, None] for c in algo.policy.path.coefficients(t))
        a = exact.sample(torch.rand(mean.shape, generator=generator).double())
        x = (A * a + B * torch.randn(mean.shape, generator=generator)).float()
        told = exact.posterior(x.double(), A.double(), B.double()).float()
        velocity = dA * told + dB * (x - A * told) / B
        draws = algo.draw(rows)
        shaped = [value.unflatten(1, (1, -1)) for value in (x, velocity)]
        guess, _, _ = algo.reverse.target(
            algo.policy, known, obs, shaped[0], t, shaped[1], draws.uniform,
            torch.tensor(TEMPERATURE), std.mean(0).float(), draws.moves,
        )  # fmt: skip
        found.append((guess.flatten(1) - velocity).square().mean().sqrt().item())
    return found


def target_density(algo: Any, known: Known, obs: Tensor) -> Exact:
    """exp(Q / T) of every row in the flow's own units, each action alone."""
    reverse = algo.reverse
    end = reverse.walls if reverse.box else EDGE
    grid = torch.linspace(-end, end, POINTS, dtype=torch.float64)
    action = grid.clamp(-1, 1) if reverse.box else grid.tanh()
    gap = action - known.best(obs).double()[..., None]
    energy = -known.curvature.double()[:, None] * gap.square() / known.unit / TEMPERATURE
    if not reverse.box:
        energy = energy + (1 - action.square()).clamp_min(1e-12).log()
    return Exact(grid, energy.softmax(-1))
