"""Annealed importance sampling of the noises that a point may hide (arXiv:physics/9803008).

The posterior p(eps | x) ~ p(eps) exp(E) is reached from the prior p(eps) over p_j ~ prior^(1 - b_j)
posterior^(b_j), which is prior exp(b_j E), b_j = j / (L + 1); flows do so in arXiv:2208.01893.
Particles start at the prior and move j leaves p_j as it is. With E_j the energy after it, log w =
sum_j (b_j - b_(j - 1)) E_(j - 1) has E[w] = Z whatever the moves: what they decide is its variance.

N particles, R rows, D flattened action dimensions, L moves, as in `estimators`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from .estimators import Proposal, log_mass, log_normal, prior_density, truncated_normal

Bounds = tuple[Tensor, Tensor] | None


class Moves(NamedTuple):
    """The randomness of L moves."""

    kick: Tensor  # [L, N, R, D] of N(0, 1)
    chance: Tensor  # [L, N, R] uniform, of acceptance


class Particles(NamedTuple):
    """Noises and what is known of them."""

    eps: Tensor  # [N, R, D]
    point: Tensor  # [N, R, D] the action that each stands for, in units of the box
    energy: Tensor  # [N, R]
    grad: Tensor | None  # [N, R, D] of the energy by the point
    q: Tensor  # [N, R]


class Place(NamedTuple):
    """Where particles are for their moves."""

    score: Tensor  # [N, R, D] z, of N(0, 1) under the prior: no wall is met there, float64
    slope: Tensor  # [N, R, D] dE/dz
    found: Particles


class Annealing(NamedTuple):
    """How particles move: z' = z + (h / k) d log p_j + sqrt(h (2 - h) / k) n, h the step.

    That is a Langevin equation of a Gaussian of precision k = 1 + b_j excess, solved exactly over a
    while (arXiv:1202.0709, with a precision); Metropolis-Hastings accepts, so that p_j stays. Of
    such a posterior every move is accepted, however far.
    """

    ask: Callable[[Tensor], Particles]  # what is known of other noises
    bounds: Bounds  # of the noises, [R, D] each; None: no box
    shrink: Tensor  # [R, D] B / A: d point / d eps, its sign left out
    excess: Tensor  # [R, D] precision that the posterior is taken to have beyond the prior's
    step: float  # 1: an independent draw of such a Gaussian

    def run(
        self, uniform: Tensor, start: Particles, moves: Moves
    ) -> tuple[Proposal, Particles, Tensor]:
        """Particles that moved, their proposal, and the share of moves that were accepted [R].

        start: at the quantiles uniform [N, R, D] of the prior, with the gradient. The log density
        of the proposal is that of the prior plus sum_j b_j (E_j - E_(j - 1)): with it
        `estimators.weights` gives w.
        """
        count, gain, taken = len(moves.kick), 0.0, torch.zeros_like(start.energy)
        here = self.placed(ndtri(uniform.double()), start)
        for j in range(count):
            b, before = (j + 1) / (count + 1), here.found.energy
            here, accepted = self.moved(here, moves.kick[j], moves.chance[j], b)
            gain, taken = gain + b * (here.found.energy - before), taken + accepted
        density = prior_density(here.found.eps, self.bounds) + gain
        return Proposal(here.found.eps, density), here.found, taken.mean(0) / count

    def moved(self, here: Place, kick: Tensor, chance: Tensor, b: float) -> tuple[Place, Tensor]:
        """One move at b = b_j, and what was accepted [N, R]."""
        precision = 1.0 + b * self.excess.double()
        drift, width = self.step / precision, (self.step * (2.0 - self.step) / precision).sqrt()
        score = here.score + drift * force(here, b) + width * kick
        there = self.placed(score, self.ask(self.noise(score).to(here.found.eps.dtype)))
        back = (here.score - score - drift * force(there, b)) / width
        gained = level(there, b) - level(here, b) + 0.5 * (kick.square() - back.square()).sum(-1)
        accepted = chance.log() < gained
        found = [chosen(accepted, *pair) for pair in zip(there.found, here.found, strict=True)]
        score = chosen(accepted, score, here.score)
        slope = chosen(accepted, there.slope, here.slope)
        return Place(score, slope, Particles(*found)), accepted

    def placed(self, score: Tensor, found: Particles) -> Place:
        """Particles of which this is known."""
        assert found.grad is not None
        return Place(score, -self.shrink * self.stretch(score, found.eps) * found.grad, found)

    def noise(self, score: Tensor) -> Tensor:
        """The noises of normal scores [N, R, D]."""
        return score if self.bounds is None else truncated_normal(ndtr(score), *self.bounds)

    def stretch(self, score: Tensor, eps: Tensor) -> Tensor | float:
        """The derivative of `noise`; intervals right of zero are gone through backwards."""
        if self.bounds is None:
            return 1.0
        low, high = self.bounds
        size = log_normal(score) + log_mass(low, high) - log_normal(eps.double())
        return torch.where(low > 0, -1.0, 1.0) * size.exp()


def excess(shrink: Tensor, half: Tensor, spread: Tensor, box: bool) -> Tensor:
    """By how much the posterior of z is more precise than its prior, [R, D].

    For a policy of the width `spread` [D], whose target is taken to be a Gaussian of it; half [D]:
    of the box. shrink as in `Annealing`. An even density between walls is not more precise.
    """
    told = (half / spread).square()
    if not box:
        return shrink.square() * told
    even = 3.0  # of a box of half width 1
    return shrink.square() * (told - even).clamp_min(0.0) / (1.0 + even * shrink.square())


def force(place: Place, b: float) -> Tensor:
    """d log p_j / dz, [N, R, D]."""
    return b * place.slope - place.score


def level(place: Place, b: float) -> Tensor:
    """log p_j of z up to a constant, [N, R]."""
    return b * place.found.energy - 0.5 * place.score.square().sum(-1)


def chosen(which: Tensor, new: Any, old: Any) -> Tensor:
    """New values where `which` [N, R], else old ones, tensors [N, R, ...]."""
    return torch.where(which[..., None] if new.ndim > which.ndim else which, new, old)
