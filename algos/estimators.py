"""Reverse flow matching estimators: E[eps | x_t = x] under a target known only by its energy.

On a path x = A(t) a + B(t) eps with eps ~ N(0, I) and target p(a) ~ exp(E(a)), fixing x and
inferring the noise gives log p(eps | x) = -|eps|^2/2 + E((x - B eps)/A) + const (arXiv:2601.08136).
Its mean m fixes the marginal velocity, v = A' (x - B m)/A + B' m. Every function here works on

    N particles, R rows (one x, one t, one state each), D flattened action dimensions:
    eps, a, grad [N, R, D];  energy, log weights [N, R];  x, low, high, mean [R, D];  A, B [R, 1].

The box of actions is [-1, 1]^D. Where theirs is another, a = c + h u with u in [-1, 1], the same
functions work on u: x - A c = (A h) u + B eps, so A h [R, D] stands for A and h grad for grad.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import erfc, log_ndtr, ndtri

CONTROL_POWERS = (2, 8, 32)  # psi(a) = 1 - a^p: zero at the walls of the box, so no boundary flux


class Proposal(NamedTuple):
    """Noises drawn for importance sampling and the log density they were drawn from, [N, R]."""

    eps: Tensor
    log_density: Tensor


def truncated_normal(uniform: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Standard normal restricted to [low, high] by its inverse distribution function.

    `uniform` in (0, 1) broadcasts with the bounds, which may be infinite. Works in float64 and in
    the left tail (an interval right of zero is reflected), and falls back to a uniform draw where
    the interval holds no representable mass, so it never returns a value outside the interval.
    """
    low, high = low.double(), high.double()
    flip = low > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    below, above = left_tail(left), left_tail(right)
    mass = above - below
    z = ndtri(below + uniform.double() * mass)
    flat = (mass < 1e-290) | ~torch.isfinite(z)
    z = torch.where(flat, left + (right - left) * uniform, z)
    z = torch.minimum(torch.maximum(z, left), right)
    return torch.where(flip, -z, z).to(uniform.dtype)


def left_tail(z: Tensor) -> Tensor:
    """Phi(z), accurate down to z = -37; torch's ndtr goes through erf and is 0 below -8.3."""
    return 0.5 * erfc(-z * math.sqrt(0.5))


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) without cancellation in either tail, float64."""
    low, high = low.double(), high.double()
    flip = low > 0
    left, right = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top, bottom = log_ndtr(right), log_ndtr(left)
    return top + torch.log1p(-(bottom - top).clamp(max=-1e-16).exp())


def log_normal(z: Tensor) -> Tensor:
    """log N(z; 0, 1), elementwise."""
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def box_noise(x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Interval of noises that x could hide when the action lies in [-1, 1]: [R, D] each."""
    return (x - A) / B, (x + A) / B


def propose_free(
    uniform: Tensor, mean: Tensor | None = None, std: Tensor | None = None, share: float = 0.0
) -> Proposal:
    """`propose_self` without a box, and with no mean `propose_prior`: nothing is restricted."""
    z = ndtri(uniform)
    if mean is None or std is None:
        return Proposal(z, prior_density(z, None))
    count = uniform.shape[0]
    own = min(max(round(share * count), 1), count - 1)
    eps = torch.cat([mean + std * z[:own], z[own:]])
    own_density = (log_normal((eps - mean) / std) - std.log()).sum(-1)
    return Proposal(eps, mixed(own_density, prior_density(eps, None), own / count))


def mixed(own: Tensor, prior: Tensor, share: float) -> Tensor:
    """Log density of a mixture of two with the share of the first."""
    return torch.logaddexp(own + math.log(share), prior + math.log1p(-share))


def propose_prior(uniform: Tensor, low: Tensor, high: Tensor) -> Proposal:
    """The prior N(0, I) restricted to the box; with it the weights are softmax(E) alone."""
    eps = truncated_normal(uniform, low, high)
    return Proposal(eps, prior_density(eps, (low, high)))


def prior_density(eps: Tensor, bounds: tuple[Tensor, Tensor] | None) -> Tensor:
    """Log density of noises [..., R, D] under the prior, restricted to the box if there is one."""
    density = log_normal(eps).sum(-1)
    return density if bounds is None else density - log_mass(*bounds).sum(-1).to(eps.dtype)


def propose_self(
    uniform: Tensor, low: Tensor, high: Tensor, mean: Tensor, std: Tensor, share: float
) -> Proposal:
    """The policy's own posterior guess, defended by a share of the prior.

    Draws round(share N) noises from N(mean, std^2) and the rest from N(0, I), both restricted to
    the box, and returns the density of the whole mixture for every draw (the balance heuristic),
    which keeps every weight below exp(E) / (1 - share).
    """
    count = uniform.shape[0]
    own = min(max(round(share * count), 1), count - 1)
    mean = torch.minimum(torch.maximum(mean, low), high)
    inner_low, inner_high = (low - mean) / std, (high - mean) / std
    eps_own = mean + std * truncated_normal(uniform[:own], inner_low, inner_high)
    eps_prior = truncated_normal(uniform[own:], low, high)
    eps = torch.minimum(torch.maximum(torch.cat([eps_own, eps_prior]), low), high)
    own_density = (log_normal((eps - mean) / std) - std.log()).sum(-1)
    own_density = own_density - log_mass(inner_low, inner_high).sum(-1).to(eps.dtype)
    return Proposal(eps, mixed(own_density, prior_density(eps, (low, high)), own / count))


def weights(proposal: Proposal, energy: Tensor) -> Tensor:
    """Self-normalised importance weights of p(eps | x) over N, [N, R]."""
    log_prior = log_normal(proposal.eps).sum(-1)
    return torch.softmax(energy + log_prior - proposal.log_density, dim=0)


def effective_share(weight: Tensor) -> Tensor:
    """Effective sample size over N, 1 / (N sum w^2), in (0, 1], [R]."""
    return 1.0 / (weight.shape[0] * weight.square().sum(0))


def noise_mean(weight: Tensor, eps: Tensor) -> Tensor:
    """Noise expectation sum_i w_i eps_i; needs the energy alone. [R, D]"""
    return (weight[..., None] * eps).sum(0)


def gradient_mean(weight: Tensor, grad: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """Gradient expectation -(B/A) sum_i w_i grad E(a_i). [R, D]

    Right only where the target has no boundary: with a box the constant Stein field has a flux
    through the walls and this mean is wrong by several units.
    """
    return -(B / A) * (weight[..., None] * grad).sum(0)


def controls(eps: Tensor, a: Tensor, grad: Tensor, A: Tensor, B: Tensor, box: bool) -> Tensor:
    """Zero-mean Stein controls psi_j(a) (-eps - (B/A) grad E) - (B/A) psi_j'(a), [N, R, D, J].

    psi_j = 1 - a^p for p in `CONTROL_POWERS` on a box, the single constant psi = 1 without one.
    """
    slope = B / A
    stein = -eps - slope * grad
    if not box:
        return stein[..., None]
    rows = []
    for power in CONTROL_POWERS:
        edge = a.pow(power - 1)
        rows.append((1.0 - edge * a) * stein + slope * power * edge)
    return torch.stack(rows, -1)


def combined_mean(
    weight: Tensor, eps: Tensor, control: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Noise expectation with its Stein controls regressed out per row and dimension.

    c = -(H + ridge I)^-1 E[h (eps - m)], H the weighted second moments of the controls scaled to
    unit diagonal; returns the mean [R, D] and Var(eps + c h) / Var(eps) averaged over D, [R].
    """
    w = weight[..., None]
    plain = (w * eps).sum(0)
    centred = eps - plain
    scale = (w[..., None] * control.square()).sum(0).clamp_min(1e-12).rsqrt()  # [R, D, J]
    unit = control * scale
    gram = torch.einsum("nr,nrdi,nrdj->rdij", weight, unit, unit)
    moment = torch.einsum("nr,nrdj,nrd->rdj", weight, unit, centred)
    eye = torch.eye(control.shape[-1], dtype=gram.dtype, device=gram.device)
    coef = -torch.linalg.solve_ex(gram + ridge * eye, moment).result  # `solve` asks the device
    shift = torch.einsum("nr,nrdj,rdj->rd", weight, unit, coef)
    residual = centred + torch.einsum("nrdj,rdj->nrd", unit, coef) - shift
    before = (w * centred.square()).sum(0).clamp_min(1e-12)
    ratio = (w * residual.square()).sum(0) / before
    return plain + shift, ratio.mean(-1)


def published_mean(
    weight: Tensor, eps: Tensor, stein: Tensor, A: Tensor, B: Tensor, ridge: float, limit: float
) -> tuple[Tensor, Tensor]:
    """The control variate of the authors' code: one coefficient per dimension, moments by w^2.

    There the mean of the action is corrected, a + c s with s = -(A / B) stein the score of its
    posterior and c = -sum w^2 (a - abar) (s - sbar) / (sum w^2 (s - sbar)^2 + ridge), held within
    `limit`; here the same correction is written for the noise, eps = (x - A a) / B. For a target
    without walls. stein [N, R, D] as `controls` gives it; returns as `combined_mean`.
    """
    w = weight[..., None]
    plain, level = (w * eps).sum(0), (w * stein).sum(0)
    slope, moved, pull = (A / B), eps - plain, stein - level
    squared = w.square()
    bottom = slope.square() * (squared * pull.square()).sum(0) + ridge
    coef = (-(squared * moved * pull).sum(0) / bottom).clamp(-limit, limit) * slope.square()
    before = (w * moved.square()).sum(0).clamp_min(1e-12)
    ratio = (w * (moved + coef * pull).square()).sum(0) / before
    return plain + coef * level, ratio.mean(-1)
