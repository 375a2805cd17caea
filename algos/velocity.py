"""One regression step of a policy's velocity field towards the density exp(Q / T)."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import reverse
from .losses import row_times

TIME_BINS = (0.0, 0.3, 0.7, 1.0)
T_MIN, T_MAX = 0.015, 0.985  # the target velocity divides by A and B: never at the ends


class Draws(NamedTuple):
    """All randomness of one policy step, drawn ahead so that the loss is a pure function."""

    pair: Tensor  # [R, 2, Tp, Da] noises of two policy samples per state
    noise: Tensor  # [R, Tp, Da] noise that makes x
    t: Tensor  # [R]
    uniform: Tensor  # [N, R, D] quantiles of the proposals


class Measured(NamedTuple):
    """What the scales and duals of an algorithm follow."""

    q_std: Tensor  # [] within-state standard deviation of Q over near-uniform actions
    spread: Tensor  # [D] the policy's standard deviation per dimension, from two samples a state


@dataclass(frozen=True)
class Reverse:
    """How the velocity towards p(a|s) ~ exp(Q(s, a) / T) is estimated (arXiv:2601.08136).

    For x = A a + B eps the marginal velocity is v = A' E[a|x] + B' E[eps|x]; the posterior mean is
    estimated by self-normalised importance sampling over N noises (`algos.reverse`).
    R policy rows, N particles, D = Tp * Da.

    particles: N. estimator: "noise" needs Q, "combined" adds Stein controls from dQ/da that vanish
    on the box's walls, "gradient" (dQ/da alone) is only right without a box and refuses one.
    support: "box" clips actions, at the walls of [-1, 1] whatever their normalisation; "tanh"
    learns the flow before a tanh (the policy's `squash`).
    proposal: "truncated" draws from the prior inside the box; "self" adds `self_share` draws around
    the policy's own posterior mean, `self_scale` times its standard deviation wide, with
    `spread_floor` the least policy width (normalised units) assumed there.
    ridge: of the control regression. replay_share: rows whose x starts from a given action, the
    others start from the policy's. weighting: of the squared velocity error over time; "ramp" is
    min(1, (t / 0.2)^2), "data" makes it the squared error of the predicted action,
    (B / (A B' - A' B))^2.
    """

    particles: int
    estimator: Literal["noise", "gradient", "combined"]
    support: Literal["box", "tanh"]
    proposal: Literal["truncated", "self"]
    self_share: float
    self_scale: float
    spread_floor: float
    ridge: float
    replay_share: float
    weighting: Literal["ramp", "data"]

    @property
    def box(self) -> bool:
        """Whether actions end at the walls of [-1, 1]^D."""
        return self.support == "box"

    def refuse(self, policy: Any, key: str) -> None:
        """Raises ValueError for values that do not fit each other or the policy.

        `key` is where these values stand in the configuration.
        """
        squash, kind = policy.squash, policy.action_norm.kind
        if self.estimator == "gradient" and self.box:
            raise ValueError(
                f"{key}.estimator=gradient is biased on a box: the walls carry a flux that it "
                "ignores; use estimator=combined (safe controls), noise, or support=tanh"
            )
        if (self.support == "tanh") != (squash == "tanh"):
            raise ValueError(
                f"{key}.support={self.support} does not fit policy.squash={squash}: "
                "set policy.squash=tanh for support=tanh and policy.squash=clip for support=box"
            )
        if squash == "tanh" and kind != "none":
            raise ValueError(
                f"policy.action_norm.kind={kind} with {key}.support=tanh: the tanh ends at the "
                "range of the data, and no better action beyond it could be found; set "
                f"policy.action_norm.kind=none, or {key}.support=box policy.squash=clip"
            )
        if self.particles < 2:
            raise ValueError(
                f"{key}.particles={self.particles}: importance sampling needs at least 2"
            )

    def draw(self, policy: Any, rows: int, generator: torch.Generator) -> Draws:
        """Randomness of a policy step; times in [T_MIN, T_MAX]."""
        device = generator.device
        size = policy.horizon * policy.action_dim
        pair = policy.noise(2 * rows, generator).unflatten(0, (rows, 2))
        noise = policy.noise(rows, generator)
        t = row_times(rows, generator, T_MIN, T_MAX)
        half = torch.rand((-(-self.particles // 2), rows, size), generator=generator, device=device)
        half = half.clamp(1e-6, 1 - 1e-6)
        # mirrored pairs: near the data end all weights are alike and the pairs' errors cancel
        uniform = torch.stack([half, 1 - half], 1).flatten(0, 1)[: self.particles]
        return Draws(pair, noise, t, uniform)

    def loss(
        self,
        policy: Any,
        critic: Any,
        obs: Tensor,
        action: Tensor,
        draws: Draws,
        temperature: Tensor,
        spread: Tensor,
        executed: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Measured]:
        """Regression onto the estimated velocity, weighted over time, []; metrics; measurements.

        obs [R, O]; action [R, Tp, Da] given actions; spread [D] the policy's width so far.
        executed: how many of the Tp steps, from the first, error and metric of the width count.
        """
        t = draws.t
        with torch.no_grad():
            feat = policy.features(obs)
            latent = policy.integrate(feat, draws.pair)  # [R, 2, Tp, Da]
            if self.box:
                low, high = policy.action_norm.walls()
                latent = torch.minimum(torch.maximum(latent, low), high)
            width = (0.5 * (latent[:, 0] - latent[:, 1]).square()).mean(0).sqrt().flatten()
            given = int(self.replay_share * len(obs))
            start = torch.cat([policy.to_latent(action[:given]), latent[given:, 0]])
            A, B, _, _ = policy.path.coefficients(t[:, None, None])
            x = A * start + B * draws.noise
        velocity = policy.velocity(x, t, policy.features(obs))
        target, metrics, q_std = self.target(
            policy, critic, obs, x, t, velocity.detach(), draws.uniform, temperature, spread
        )
        weight = self.time_weight(policy.path, t)
        error = (velocity - target)[:, :executed].square()
        loss = (weight * error.mean((-2, -1))).mean()
        acted = width[: error[0].numel()]
        metrics |= {"policy/loss": loss.detach(), "policy/spread": acted.mean()}
        return loss, metrics, Measured(q_std, width)

    def time_weight(self, path: Any, t: Tensor) -> Tensor:
        """Weight of the squared velocity error at the times t, [R]."""
        if self.weighting == "ramp":
            return (t / 0.2).square().clamp(max=1.0)
        A, B, dA, dB = path.coefficients(t)
        return (B / (A * dB - dA * B)).square()

    @torch.no_grad()
    def target(
        self,
        policy: Any,
        critic: Any,
        obs: Tensor,
        x: Tensor,
        t: Tensor,
        velocity: Tensor,
        uniform: Tensor,
        T: Tensor,
        spread: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """v = A' E[a|x] + B' E[eps|x] [R, Tp, Da], metrics, and Q's within-state deviation []."""
        A, B, dA, dB = (c.view(-1, 1) for c in policy.path.coefficients(t))
        rows = x.flatten(1)
        centre, half = self.units(policy)
        a_unit = A * half
        low, high = reverse.box_noise(rows - A * centre, a_unit, B)
        if not self.box:
            low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
        if self.proposal == "truncated":
            draw = reverse.propose_prior(uniform, low, high)
        else:
            mean = (A * velocity.flatten(1) - dA * rows) / (A * dB - dA * B)
            ratio = B / (A * spread.clamp_min(self.spread_floor))
            std = self.self_scale / (1.0 + ratio.square()).sqrt()
            draw = reverse.propose_self(uniform, low, high, mean, std, self.self_share)
        u = (rows - A * centre - B * draw.eps) / a_unit
        u = u.clamp(-1.0, 1.0) if self.box else u
        a = (centre + half * u).unflatten(-1, x.shape[1:])
        energy, grad, q = self.energy(policy, critic, obs, a, T)
        weight = reverse.weights(draw, energy)
        grad = None if grad is None else half * grad
        mean, ratio = self.posterior_mean(weight, draw.eps, u, grad, a_unit, B)
        mean = torch.minimum(torch.maximum(mean, low), high)  # a posterior mean lies in the box
        target = dA * (rows - B * mean) / A + dB * mean
        metrics = self.diagnose(t, reverse.effective_share(weight), ratio)
        early = (t < TIME_BINS[1]).float()
        prior = q[-max(self.particles - self.own_draws(), 2) :]  # draws from the prior alone
        q_std = (prior.std(0) * early).sum() / early.sum().clamp_min(1.0)
        return target.unflatten(1, x.shape[1:]), metrics, q_std.clamp_min(1e-6)

    @staticmethod
    def units(policy: Any) -> tuple[Tensor, Tensor]:
        """Centre and half width of the box of actions in the policy's normalised units, [D] each.

        Before a tanh there is no box: its units are those of the policy, 0 and 1.
        """
        low, high = policy.action_norm.walls()
        centre, half = (high + low) / 2, (high - low) / 2
        return centre.repeat(policy.horizon), half.repeat(policy.horizon)

    def own_draws(self) -> int:
        """Number of particles that the self-proposal draws, leading in N."""
        if self.proposal == "truncated":
            return 0
        return min(max(round(self.self_share * self.particles), 1), self.particles - 1)

    def energy(
        self, policy: Any, critic: Any, obs: Tensor, a: Tensor, T: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """E(a) = min Q / T (+ the tanh Jacobian) [N, R], dE/da [N, R, D] if used, and Q [N, R]."""
        with_grad = self.estimator != "noise"
        with torch.set_grad_enabled(with_grad):
            a = a.detach().requires_grad_(with_grad)
            q = critic(obs[None], policy.to_action(a)).amin(0)
            energy = q / T
            if not self.box:
                energy = energy + (1.0 - a.tanh().square()).clamp_min(1e-12).log().sum((-2, -1))
            grad = torch.autograd.grad(energy.sum(), a)[0].flatten(2) if with_grad else None
        return energy.detach(), grad, q.detach()

    def posterior_mean(
        self, weight: Tensor, eps: Tensor, a: Tensor, grad: Tensor | None, A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """E[eps|x] [R, D] by the chosen estimator; variance ratio to the noise form [R] if any."""
        if grad is None:
            return reverse.noise_mean(weight, eps), None
        if self.estimator == "gradient":
            return reverse.gradient_mean(weight, grad, A, B), None
        control = reverse.controls(eps, a, grad, A, B, self.box)
        return reverse.combined_mean(weight, eps, control, self.ridge)

    @staticmethod
    def diagnose(t: Tensor, ess: Tensor, ratio: Tensor | None) -> dict[str, Tensor]:
        """ESS share and variance ratio averaged in each time bin."""
        metrics = {}
        for i, (low, high) in enumerate(zip(TIME_BINS, TIME_BINS[1:], strict=False)):
            inside = ((t >= low) & (t < high)).float()
            count = inside.sum().clamp_min(1.0)
            metrics[f"rfm/ess_{i}"] = (ess * inside).sum() / count
            if ratio is not None:
                metrics[f"rfm/variance_ratio_{i}"] = (ratio * inside).sum() / count
        return metrics
