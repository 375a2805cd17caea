"""Pieces of weighted matching: weights, surrogates of a matching error, times. Pure functions.

A policy is matched to actions by its squared error l at points x_t = A(t) a + B(t) eps; t = 0 is
noise. B batch, K actions per state, J (time, noise) pairs.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Surrogate = Literal["square", "huber", "ghuber"]
TimeWeight = Literal["uniform", "noise", "noise2", "data2", "likelihood"]
Reduction = Literal["mean", "root"]
Deviation = Literal["batch", "state"]
GHUBER_POWER = 0.25
LIKELIHOOD_MAX = 10.0
FLAT_GROUP = 1e-6


def exp_weight(advantage: Tensor, beta: float, limit: float) -> Tensor:
    """min(exp(beta A), limit), the positive weight of arXiv:1910.00177 and arXiv:2110.06169.

    Matching data with weights w(s, a) learns the density mu(a|s) w(s, a) / Z(s).
    """
    return (beta * advantage).clamp(max=math.log(limit)).exp()


def group_advantage(
    q: Tensor,
    clip: float,
    limit: float,
    deviation: Deviation = "batch",
    baseline: Tensor | None = None,
) -> Tensor:
    """Signed advantage of K actions of a state among themselves, q [B, K] -> [B, K].

    A = (q - mean_K q) / (std + 1e-4), the deviation of the centred values over the whole batch
    (arXiv:2509.25050), or over each state alone, which then weigh alike however much their actions
    differ; clipped to +-clip and scaled to +-limit. A state whose actions are all worth the same
    has no signal but rounding: its advantages are 0. baseline [B]: what stands for mean_K q.
    """
    centred = q - (q.mean(1, keepdim=True) if baseline is None else baseline[:, None])
    own = centred.std(1, correction=0, keepdim=True)
    scaled = centred / ((centred.std(correction=0) if deviation == "batch" else own) + 1e-4)
    flat = own < FLAT_GROUP
    return (scaled.clamp(-clip, clip) * (limit / clip)).masked_fill(flat, 0.0)


def psi(error: Tensor, kind: Surrogate) -> Tensor:
    """Surrogate of a matching error l >= 0, elementwise and 0 at 0 (arXiv:2509.25050).

    "square" is l itself, "huber" sqrt(l), "ghuber" l^p / p with p = 1/4. The last two push an
    action away the less the farther it is: their slope in the velocity falls with distance.
    """
    if kind == "square":
        return error
    if kind == "huber":
        return (error + 1e-10).sqrt() - 1e-5
    return ((error + 1e-10).pow(GHUBER_POWER) - 1e-10**GHUBER_POWER) / GHUBER_POWER


def time_weight(t: Tensor, kind: TimeWeight) -> Tensor:
    """Weight of a squared velocity error at the times t, the linear path's: 1, (1 - t), (1 - t)^2.

    "data2" is t^2, the weight that makes it the squared error of the predicted noise (the default
    of the code of arXiv:2507.21053), as "noise2" makes it that of the predicted action.
    "likelihood" is t / (1 - t), the weight that makes the error a bound of log density, at most
    LIKELIHOOD_MAX.
    """
    if kind == "uniform":
        return torch.ones_like(t)
    if kind == "noise":
        return 1 - t
    if kind == "noise2":
        return (1 - t).square()
    if kind == "data2":
        return t.square()
    return (t / (1 - t).clamp_min(1e-6)).clamp(max=LIKELIHOOD_MAX)


class Pairs(NamedTuple):
    """Where a policy's velocity meets its goal for actions [..., T, Da] and J pairs each.

    Of the T steps of a plan the first E are executed, and only those are compared.
    """

    velocity: Tensor  # [..., J, E, Da] with the policy's gradient
    goal: Tensor  # [..., J, E, Da]
    x: Tensor  # [..., J, T, Da]

    def error(self, reduction: Reduction = "mean") -> Tensor:
        """Squared error [..., J], the mean over d = E * Da, or ("root") the sum over sqrt(d)."""
        square = (self.velocity - self.goal).square()
        if reduction == "root":
            return square.sum((-1, -2)) / math.sqrt(math.prod(square.shape[-2:]))
        return square.mean((-1, -2))


def pairs(
    policy: Any,
    obs: Tensor,
    action: Tensor,
    noise: Tensor,
    t: Tensor,
    executed: int | None = None,
) -> Pairs:
    """A flow policy's velocities at x = A(t) a + B(t) noise.

    obs [B, O], action [B, ..., T, Da] in environment units, noise [B, ..., J, T, Da], t
    [B, ..., J]; leading axes of noise and t may be 1. executed: E; None: T.
    """
    a = policy.to_latent(action)[..., None, :, :]
    c = policy.path.coefficients(t).over_chunk()
    x, goal = c.a * a + c.b * noise, c.da * a + c.db * noise
    velocity = policy.velocity(x, t, policy.features(obs))
    return Pairs(velocity[..., :executed, :], goal[..., :executed, :], x)


def clipped(log_ratio: Tensor, advantage: Tensor, clip: Tensor | float, limit: float) -> Tensor:
    """PPO's clipped objective to minimise, elementwise (arXiv:1707.06347, eq. 7).

    The log ratio is bounded by +-limit before the exponential, against overflow only; a log density
    never is, which would silence the gradient of every sample beyond the bound.
    """
    ratio = log_ratio.clamp(-limit, limit).exp()
    held: Tensor = ratio.clamp(1 - clip, 1 + clip)  # type: ignore[arg-type]  # both kinds serve
    return -torch.minimum(advantage * ratio, advantage * held)


def stratified(
    lead: tuple[int, ...],
    generator: torch.Generator,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Times in [low, high], one in each equal part along the last axis of `lead`, in order.

    The last axis is that of the pairs of one action, whose order means nothing. For one time per
    row of a batch see `row_times`.
    """
    jitter = torch.rand(lead, generator=generator, device=generator.device)
    part = torch.arange(lead[-1], device=generator.device)
    return low + (high - low) * (part + jitter) / lead[-1]


def row_times(rows: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A time in [low, high] for every row of a batch, [rows]: one in each equal part, shuffled.

    What stands where in a batch (replayed and recorded rows, episodes of a validation) must not
    decide at which times it is learned or judged: the flow of a mixture would never be seen whole.
    """
    jitter = torch.rand(rows, generator=generator, device=generator.device)
    part = torch.randperm(rows, generator=generator, device=generator.device)
    return low + (high - low) * ((part + jitter) / max(rows, 1))


class Draws(NamedTuple):
    """The randomness of a matching step."""

    noise: Tensor  # [B, T, Da]
    t: Tensor  # [B]


def matching_draws(policy: Any, rows: int, generator: torch.Generator) -> Draws:
    """Noises of a policy, and times in [0, 1] as `row_times` gives them."""
    return Draws(policy.noise(rows, generator), row_times(rows, generator))


def matching_times(path: Any, rows: int, generator: torch.Generator) -> Tensor:
    """As `row_times` in [0, 1), at the levels of a path that is a table: where its chain asks."""
    t, levels = row_times(rows, generator), getattr(path, "levels", None)
    return t if levels is None else (t * levels).floor().clamp(max=levels - 1) / levels


def refuse_jumps(policy: Any) -> None:
    """Raises ValueError for a policy that acts by jumps where only its velocity would be trained.

    A loss of matched velocities moves u(x, t, t); a few-step policy acts by u(x, t, s), s > t,
    which follows only as far as the weights are shared: the policy that is judged would not be the
    one that is trained.
    """
    if getattr(policy, "jumps", False):
        raise ValueError(
            f"policy: a {type(policy).__name__} acts by jumps and this algorithm learns by "
            "matching velocities, which does not train them; take an algorithm that scores them "
            "(algo=reinflow), trains them (algo=shortcut, meanflow, ofql, tdm or flame) or leaves "
            "the base as it is (algo=dsrl_na, algo=resip, algo=expo algo.base_lr=0), or "
            "policy=flow with a base of algo=bc"
        )


def refuse_unbounded(repulsion: float, pull: float, keys: str) -> None:
    """Raises ValueError where signed weights have no minimum: a pull below the repulsion.

    At a point x the loss E[A |v - u|^2] + b |v - v_ref|^2 has its only stationary point at
    v = (b v_ref + E[A u]) / (b + E[A]), a minimum if b + E[A] > 0; E[A] may reach -repulsion.
    `keys` names the settings.
    """
    if pull < repulsion:
        raise ValueError(
            f"{keys}: signed weights down to -{repulsion:g} against a pull of {pull:g} push the "
            "velocity away without bound; raise the pull or lower the weights"
        )
