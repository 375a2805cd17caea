"""One regression step of a policy's velocity field towards the density exp(Q / T)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..policies import draw
from ..policies.candidates import candidate_noise, choose, race
from . import annealing, estimators
from .annealing import Annealing, Moves, Particles
from .estimation import Estimation
from .losses import row_times

TIME_BINS = (0.0, 0.3, 0.7, 1.0)
T_MIN, T_MAX = 0.015, 0.985  # the target velocity divides by A and B: never at the ends
SPREAD_SHARE = 4  # every fourth row tells the policy's width
PUBLISHED = 1e-4, 2.0  # ridge and largest coefficient of the authors' control variate


class Draws(NamedTuple):
    """All randomness of one policy step, drawn ahead so that the loss is a pure function."""

    start: Tensor  # [R, M, Tp, Da] noises of the policy's samples that x may start from
    waiting: Tensor | None  # [R, M] exponential numbers that draw one; None: the best is taken
    second: Tensor  # [S, Tp, Da] noises of another sample in the last S states
    noise: Tensor  # [R, Tp, Da] noise that makes x
    t: Tensor  # [R]
    uniform: Tensor  # [N, R, D] quantiles of the proposals
    moves: Moves | None = None  # of the particles with proposal=annealed


class Measured(NamedTuple):
    """What the scales and duals of an algorithm follow."""

    q_std: Tensor  # [] within-state standard deviation of Q over near-uniform actions
    spread: Tensor  # [D] the policy's standard deviation per dimension, from two samples a state


class Aim(NamedTuple):
    """Points of R rows and what a policy's velocity is regressed on there."""

    x: Tensor  # [R, Tp, Da]
    feat: Tensor  # [R, W] with the policy's gradient
    velocity: Tensor  # [R, Tp, Da] of the policy, with its gradient
    target: Tensor  # [R, Tp, Da] the estimated one
    weight: Tensor  # [R] of the squared error
    metrics: dict[str, Tensor]
    measured: Measured


def deviation(one: Tensor, other: Tensor) -> Tensor:
    """Standard deviation [Tp, Da] within states, from two samples [S, Tp, Da] of each of S."""
    return (0.5 * (one - other).square()).mean(0).sqrt()


class Reverse(Estimation):
    """The velocity towards p(a|s) ~ exp(Q(s, a) / T), estimated (arXiv:2601.08136).

    For x = A a + B eps the marginal velocity is v = A' E[a|x] + B' E[eps|x]; the posterior mean is
    estimated by self-normalised importance sampling over N noises (`algos.estimators`). R policy
    rows, N particles, D = Tp * Da, M start candidates.
    """

    @property
    def box(self) -> bool:
        """Whether actions end at the walls of [-1, 1]^D."""
        return self.support == "box"

    @property
    def anneals(self) -> bool:
        """Whether particles move."""
        return self.proposal == "annealed" and self.anneal_moves > 0

    def draw(self, policy: Any, rows: int, generator: torch.Generator) -> Draws:
        """Randomness of a policy step; times in [T_MIN, T_MAX]."""
        device = generator.device
        size = policy.horizon * policy.action_dim
        start = candidate_noise(policy, rows, self.start_candidates, generator)
        waiting = race(start, self.choice_temperature, generator)
        second = policy.noise(-(-rows // SPREAD_SHARE), generator)
        noise = policy.noise(rows, generator)
        t = row_times(rows, generator, T_MIN, T_MAX)
        shape = (-(-self.particles // 2), rows, size)
        half = torch.rand(shape, generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
        # mirrored pairs: near the data end all weights are alike and the pairs' errors cancel
        uniform = torch.stack([half, 1 - half], 1).flatten(0, 1)[: self.particles]
        moves = self.moves(shape, generator) if self.anneals else None
        return Draws(start, waiting, second, noise, t, uniform, moves)

    def moves(self, shape: tuple[int, int, int], generator: torch.Generator) -> Moves:
        """Randomness of the moves of as many mirrored pairs [N / 2, R, D]."""
        count, device = self.anneal_moves, generator.device
        kick = draw.normal((count, *shape), generator, device=device)
        chance = torch.rand((count, *shape[:2]), generator=generator, device=device)
        pairs = torch.stack([kick, -kick], 2), torch.stack([chance, chance], 2)
        return Moves(*(pair.flatten(1, 2)[:, : self.particles] for pair in pairs))

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

        Arguments as in `aim`; the error counts the executed steps alone.
        """
        aim = self.aim(policy, critic, obs, action, draws, temperature, spread, executed)
        error = (aim.velocity - aim.target)[:, :executed].square()
        loss = (aim.weight * error.mean((-2, -1))).mean()
        return loss, aim.metrics | {"policy/loss": loss.detach()}, aim.measured

    def aim(
        self,
        policy: Any,
        critic: Any,
        obs: Tensor,
        action: Tensor,
        draws: Draws,
        temperature: Tensor,
        spread: Tensor,
        executed: int | None = None,
    ) -> Aim:
        """Where the policy's velocity is regressed, and on what.

        obs [R, O]; action [R, Tp, Da] given actions; spread [D] the policy's width so far.
        executed: how many of the Tp steps, from the first, the metric of the width counts; it is of
        actions, which saturate where the flow's own units go on.
        """
        t, feat = draws.t, policy.features(obs)
        with torch.no_grad():
            rows, some = len(obs), len(draws.second)
            given = int(self.replay_share * rows)
            first = min(given, rows - some)  # the rows before start elsewhere and measure nothing
            pair = self.samples(policy, feat[first:], draws.start[first:], draws.second)
            own, other = (self.inside(policy, latent) for latent in pair)
            width = deviation(own[-some:, 0], other).flatten()
            acted = deviation(policy.to_action(own[-some:, 0]), policy.to_action(other))
            own, waiting = own[given - first :], draws.waiting
            waiting = None if waiting is None else waiting[given:]
            mine = self.chosen(policy, critic, obs[given:], own, waiting, temperature)
            start = torch.cat([policy.to_latent(action[:given]), mine])
            A, B, _, _ = policy.path.coefficients(t[:, None, None])
            x = A * start + B * draws.noise
        velocity = policy.velocity(x, t, feat)
        target, metrics, q_std = self.target(
            policy, critic, obs, x, t, velocity.detach(), draws.uniform, temperature, spread,
            draws.moves,
        )  # fmt: skip
        metrics |= {"policy/spread": acted[:executed].mean()}
        weight = self.time_weight(policy.path, t)
        return Aim(x, feat, velocity, target, weight, metrics, Measured(q_std, width))

    @staticmethod
    def samples(policy: Any, feat: Tensor, start: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the noises start [R, M, Tp, Da], and of second [S, Tp, Da] in the last S
        states; of single ones in one pass.
        """
        some = len(second)
        if start.shape[1] > 1:
            return policy.integrate(feat, start), policy.integrate(feat[-some:], second)
        noise = torch.cat([start[:, 0], second])
        latent = policy.integrate(torch.cat([feat, feat[-some:]]), noise)
        return latent[:-some, None], latent[-some:]

    def inside(self, policy: Any, latent: Tensor) -> Tensor:
        """Points [..., Tp, Da] that the flow led beyond the walls, brought back to them."""
        if not self.box:
            return latent
        centre, half = (side.unflatten(0, latent.shape[-2:]) for side in self.units(policy))
        return torch.minimum(torch.maximum(latent, centre - half), centre + half)

    def chosen(
        self, policy: Any, critic: Any, obs: Tensor, own: Tensor, waiting: Any, T: Tensor
    ) -> Tensor:
        """The one of own [R, M, Tp, Da] that x starts from, [R, Tp, Da]."""
        if own.shape[1] == 1:
            return own[:, 0]
        heat = 1.0 if waiting is None else self.choice_temperature * T
        return choose(critic, obs, policy.to_action(own), heat, waiting, of=own)

    def time_weight(self, path: Any, t: Tensor) -> Tensor:
        """Weight of the squared velocity error at the times t, [R]."""
        if self.weighting == "uniform":
            return torch.ones_like(t)
        if self.weighting == "ramp":
            return (t / 0.2).square().clamp(max=1.0)
        A, B, dA, dB = path.coefficients(t)
        return ((B if self.weighting == "data" else A) / (A * dB - dA * B)).square()

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
        moves: Moves | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """v = A' E[a|x] + B' E[eps|x] [R, Tp, Da], metrics, and Q's within-state deviation []."""
        A, B, dA, dB = (c.view(-1, 1) for c in policy.path.coefficients(t))
        rows = x.flatten(1)
        centre, half = self.units(policy)
        a_unit = A * half
        guess = None
        if self.proposal == "self":
            mean = (A * velocity.flatten(1) - dA * rows) / (A * dB - dA * B)
            ratio = B / (A * spread.clamp_min(self.spread_floor))
            guess = mean, self.self_scale / (1.0 + ratio.square()).sqrt(), self.self_share
        bounds = estimators.box_noise(rows - A * centre, a_unit, B) if self.box else None

        def ask(eps: Tensor) -> Particles:
            u = (rows - A * centre - B * eps) / a_unit
            u = u.clamp(-1.0, 1.0) if self.box else u
            a = (centre + half * u).unflatten(-1, x.shape[1:])
            energy, grad, q = self.energy(policy, critic, obs, a, T)
            return Particles(eps, u, energy, None if grad is None else half * grad, q)

        drawn, told = self.proposed(uniform, bounds, guess), {}
        found = first = ask(drawn.eps)
        if moves is not None:
            shrink, width = B / a_unit, spread.clamp_min(self.spread_floor)
            more = annealing.excess(shrink, half, width, self.box)
            chain = Annealing(ask, bounds, shrink, more, self.anneal_step)
            drawn, found, told["accepted"] = chain.run(uniform, first, moves)
        weight = estimators.weights(drawn, found.energy)
        mean, ratio = self.posterior_mean(weight, found, a_unit, B)
        if bounds is not None:  # in which a posterior mean lies
            mean = torch.minimum(torch.maximum(mean, bounds[0]), bounds[1])
        target = dA * (rows - B * mean) / A + dB * mean
        told["ess"] = estimators.effective_share(weight)
        told |= {} if ratio is None else {"variance_ratio": ratio}
        early = (t < TIME_BINS[1]).float()
        prior = first.q[-max(self.particles - self.own_draws(), 2) :]  # of the prior alone
        q_std = (prior.std(0) * early).sum() / early.sum().clamp_min(1.0)
        return target.unflatten(1, x.shape[1:]), self.diagnose(t, told), q_std.clamp_min(1e-6)

    @staticmethod
    def proposed(uniform: Tensor, bounds: Any, guess: Any) -> estimators.Proposal:
        """Noises from quantiles [N, R, D]; `bounds` of a box or None, `guess` of the policy or None
        for the prior alone.
        """
        if bounds is None:
            return estimators.propose_free(uniform, *(guess or ()))
        if guess is None:
            return estimators.propose_prior(uniform, *bounds)
        return estimators.propose_self(uniform, *bounds, *guess)

    def units(self, policy: Any) -> tuple[Tensor, Tensor]:
        """Centre and half width of the density's box in the policy's normalised units, [D] each.

        Before a tanh there is no box: its units are those of the policy, 0 and 1.
        """
        low, high = policy.action_norm.walls()
        centre, half = (high + low) / 2, (high - low) / 2
        half = half * self.walls if self.box else half
        return centre.repeat(policy.horizon), half.repeat(policy.horizon)

    def own_draws(self) -> int:
        """Number of particles that the self-proposal draws, leading in N."""
        if self.proposal != "self":
            return 0
        return min(max(round(self.self_share * self.particles), 1), self.particles - 1)

    def energy(
        self, policy: Any, critic: Any, obs: Tensor, a: Tensor, T: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """E(a) = min Q / T (+ the tanh Jacobian) [N, R], dE/da [N, R, D] if used, and Q [N, R]."""
        with_grad = self.estimator != "noise" or self.anneals
        with torch.set_grad_enabled(with_grad):
            a = a.detach().requires_grad_(with_grad)
            q = critic(obs[None], policy.to_action(a)).amin(0)
            energy = q / T
            if not self.box:
                energy = energy + (1.0 - a.tanh().square()).clamp_min(1e-12).log().sum((-2, -1))
            grad = torch.autograd.grad(energy.sum(), a)[0].flatten(2) if with_grad else None
        return energy.detach(), grad, q.detach()

    def posterior_mean(
        self, weight: Tensor, found: Particles, A: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """E[eps|x] [R, D] by the chosen estimator; variance ratio to the noise form [R] if any."""
        eps, a, grad = found.eps, found.point, found.grad
        if grad is None or self.estimator == "noise":
            return estimators.noise_mean(weight, eps), None
        if self.estimator == "gradient":
            return estimators.gradient_mean(weight, grad, A, B), None
        control = estimators.controls(eps, a, grad, A, B, self.box)
        if self.control == "published":
            return estimators.published_mean(weight, eps, control[..., 0], A, B, *PUBLISHED)
        return estimators.combined_mean(weight, eps, control, self.ridge)

    @staticmethod
    def diagnose(t: Tensor, shares: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each of the shares [R] averaged in each time bin."""
        metrics = {}
        for i, (low, high) in enumerate(zip(TIME_BINS, TIME_BINS[1:], strict=False)):
            inside = ((t >= low) & (t < high)).float()
            count = inside.sum().clamp_min(1.0)
            for name, share in shares.items():
                metrics[f"rfm/{name}_{i}"] = (share * inside).sum() / count
        return metrics
