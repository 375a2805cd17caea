"""Reverse flow matching: a flow policy trained towards exp(Q / T) without samples from it."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from . import reverse
from .optim import adam, step
from .returns import dual_step, td_loss, td_target

TIME_BINS = (0.0, 0.3, 0.7, 1.0)
T_MIN, T_MAX = 0.015, 0.985  # the target velocity divides by A and B: never at the ends


class Draws(NamedTuple):
    """All randomness of one policy step, drawn ahead so that the loss is a pure function."""

    pair: Tensor  # [R, 2, Tp, Da] noises of two policy samples per state
    noise: Tensor  # [R, Tp, Da] noise that makes x
    t: Tensor  # [R]
    uniform: Tensor  # [N, R, D] quantiles of the proposals


class RFM:
    """Reverse flow matching with a Q-critic (arXiv:2601.08136).

    The policy's target is p(a|s) ~ exp(Q(s, a) / T) on the box [-1, 1]^D. For x = A a + B eps the
    marginal velocity is v = A' E[a|x] + B' E[eps|x]; the posterior mean is estimated by
    self-normalised importance sampling over N noises (`algos.reverse`) and regressed on.
    B batch, R policy rows, N particles, D = Tp * Da, M candidates.

    particles: N. estimator: "noise" needs Q, "combined" adds Stein controls from dQ/da that vanish
    on the box's walls, "gradient" (dQ/da alone) is only right without a box and refuses one.
    support: "box" clips actions; "tanh" learns the flow before a tanh (the policy's `squash`).
    proposal: "truncated" draws from the prior inside the box; "self" adds `self_share` draws around
    the policy's own posterior mean, `self_scale` times its standard deviation wide, with
    `spread_floor` the least policy width (normalised units) assumed there.
    ridge: of the control regression. replay_share: rows whose x starts from a replay action.
    weighting: of the squared velocity error over time; "ramp" is min(1, (t / 0.2)^2), "data" makes
    it the squared error of the predicted action, (B / (A B' - A' B))^2.
    temperature: T in units of an EMA of the within-state standard deviation of Q over near-uniform
    actions. temperature_rule: "fixed", or "spread": T follows the policy's standard deviation per
    dimension, measured with the deployed sampler, to `spread_target` at `spread_rate`.
    policy_batch: R. policy_every: critic updates per policy update. scale_rate: rate of both EMAs.
    act_candidates, deploy_candidates, target_candidates: M of best-of-M while exploring, deployed
    and in the TD target. explore_noise: Gaussian noise added while exploring (action units).
    target_rate: Polyak rate of the target critic. ema_rate: of the deployed policy; 1 = raw.
    Learning rates `policy_lr`, `critic_lr`; `max_norm`: gradient-norm limit of the policy.
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        *,
        particles: int,
        estimator: Literal["noise", "gradient", "combined"],
        support: Literal["box", "tanh"],
        proposal: Literal["truncated", "self"],
        self_share: float,
        self_scale: float,
        spread_floor: float,
        ridge: float,
        replay_share: float,
        weighting: Literal["ramp", "data"],
        temperature: float,
        temperature_rule: Literal["fixed", "spread"],
        spread_target: float,
        spread_rate: float,
        scale_rate: float,
        policy_batch: int,
        policy_every: int,
        act_candidates: int,
        deploy_candidates: int,
        deploy_noise: float,
        target_candidates: int,
        explore_noise: float,
        target_rate: float,
        ema_rate: float,
        policy_lr: float,
        critic_lr: float,
        max_norm: float,
    ) -> None:
        if estimator == "gradient" and support == "box":
            raise ValueError(
                "algo.estimator=gradient is biased on a box: the walls carry a flux that it "
                "ignores; use estimator=combined (safe controls), noise, or support=tanh"
            )
        if (support == "tanh") != (policy.squash == "tanh"):
            raise ValueError(
                f"algo.support={support} does not fit policy.squash={policy.squash}: "
                "set policy.squash=tanh for support=tanh and policy.squash=clip for support=box"
            )
        if particles < 2:
            raise ValueError(f"algo.particles={particles}: importance sampling needs at least 2")
        self.policy = policy
        self.average = clone(policy)
        self.critic = critic
        self.target = clone(critic)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam(critic.parameters(), critic_lr)
        device = generator.device
        self.log_temperature = torch.tensor(temperature, device=device).log()
        self.q_scale = torch.ones((), device=device)
        self.spread = torch.full((policy.horizon * policy.action_dim,), 0.6, device=device)
        self.updates = 0
        self.particles, self.estimator, self.box = particles, estimator, support == "box"
        self.proposal, self.self_share = proposal, self_share
        self.self_scale, self.spread_floor, self.ridge = self_scale, spread_floor, ridge
        self.replay_share, self.scale_rate = replay_share, scale_rate
        self.weighting = weighting
        self.temperature_rule = temperature_rule
        self.spread_target, self.spread_rate = spread_target, spread_rate
        self.policy_batch, self.policy_every = policy_batch, policy_every
        self.act_candidates, self.deploy_candidates = act_candidates, deploy_candidates
        self.target_candidates, self.explore_noise = target_candidates, explore_noise
        self.deploy_noise = deploy_noise
        self.target_rate, self.ema_rate, self.max_norm = target_rate, ema_rate, max_norm

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Exploring action chunk [N, Tp, Da]: best of M, then Gaussian noise."""
        noise = self.candidate_noise(self.policy, obs, self.act_candidates, self.generator)
        action = self.best(self.policy, self.critic, obs, noise)
        jitter = torch.randn(action.shape, generator=self.generator, device=action.device)
        return (action + self.explore_noise * jitter).clamp(-1.0, 1.0)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Deployed action chunk [N, Tp, Da]: best of M of the averaged policy, no noise added."""
        noise = self.candidate_noise(self.average, obs, self.deploy_candidates, generator)
        noise = self.deploy_noise * noise
        return self.best(self.average, self.critic, obs, noise)

    @staticmethod
    def candidate_noise(policy: Any, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Noises [N, M, Tp, Da] for M candidate actions per observation."""
        return policy.noise(len(obs) * count, generator).unflatten(0, (len(obs), count))

    @staticmethod
    def best(policy: Any, critic: Any, obs: Tensor, noise: Tensor) -> Tensor:
        """The candidate with the largest minimum Q, [N, Tp, Da]."""
        action = policy.act(obs, noise)
        if noise.shape[1] == 1:
            return action[:, 0]
        choice = critic(obs[:, None], action).amin(0).argmax(1)
        return action.gather(1, choice[:, None, None, None].expand(-1, 1, *action.shape[2:]))[:, 0]

    # ---------------------------------------------------------------- learning
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        self.updates += 1
        noise = self.candidate_noise(
            self.policy, batch.next_obs, self.target_candidates, self.generator
        )
        loss, metrics = self.critic_loss(batch, noise)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        if self.updates % self.policy_every == 0:
            metrics |= self.update_policy(batch)
        return metrics

    def update_policy(self, batch: Batch) -> dict[str, Tensor]:
        """One regression step towards the reverse-flow-matching velocity."""
        rows = min(self.policy_batch, len(batch.obs))
        loss, metrics, measured = self.policy_loss(
            batch.obs[:rows], batch.action[:rows], self.draw(rows), self.temperature()
        )
        step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        q_std, spread = measured
        # the first measurement starts the average, so that T means the same from the first step
        rate = 1.0 if self.updates == self.policy_every else self.scale_rate
        self.q_scale.lerp_(q_std, rate)
        self.spread.lerp_(spread, self.scale_rate)
        if self.temperature_rule == "spread":
            dual_step(self.log_temperature, spread.mean(), self.spread_target, self.spread_rate)
        metrics["policy/temperature"] = self.temperature().detach()
        return metrics

    def temperature(self) -> Tensor:
        """T in units of Q, []."""
        return self.log_temperature.exp() * self.q_scale

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step; times are stratified over [T_MIN, T_MAX]."""
        generator, device = self.generator, self.generator.device
        size = self.policy.horizon * self.policy.action_dim
        pair = self.policy.noise(2 * rows, generator).unflatten(0, (rows, 2))
        noise = self.policy.noise(rows, generator)
        jitter = torch.rand(rows, generator=generator, device=device)
        t = (torch.randperm(rows, generator=generator, device=device) + jitter) / rows
        half = torch.rand((-(-self.particles // 2), rows, size), generator=generator, device=device)
        half = half.clamp(1e-6, 1 - 1e-6)
        # mirrored pairs: near the data end all weights are alike and the pairs' errors cancel
        uniform = torch.stack([half, 1 - half], 1).flatten(0, 1)[: self.particles]
        return Draws(pair, noise, T_MIN + (T_MAX - T_MIN) * t, uniform)

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Twin TD loss with the target y = r + discount * min Q'(s', a'), a' the policy's."""
        with torch.no_grad():
            action = self.best(self.policy, self.target, batch.next_obs, noise)
            value = self.target(batch.next_obs, action).amin(0)
            target = td_target(batch.reward, batch.discount, value)
        q = self.critic(batch.obs, batch.action)
        loss = td_loss(q, target)
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}

    def policy_loss(
        self, obs: Tensor, replay_action: Tensor, draws: Draws, temperature: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Regression onto the estimated velocity, weighted over time.

        Also returns what the duals measure: the within-state deviation of Q [] and the policy's
        standard deviation per dimension [D] from two samples a state.
        """
        policy, t = self.policy, draws.t
        with torch.no_grad():
            feat = policy.features(obs)
            latent = policy.integrate(feat, draws.pair)  # [R, 2, Tp, Da]
            if self.box:
                latent = latent.clamp(-1.0, 1.0)
            spread = (0.5 * (latent[:, 0] - latent[:, 1]).square()).mean(0).sqrt().flatten()
            replayed = int(self.replay_share * len(obs))
            start = torch.cat([policy.to_latent(replay_action[:replayed]), latent[replayed:, 0]])
            A, B, _, _ = policy.path.coefficients(t[:, None, None])
            x = A * start + B * draws.noise
        velocity = policy.velocity(x, t, policy.features(obs))
        target, metrics, q_std = self.velocity_target(
            obs, x, t, velocity.detach(), draws.uniform, temperature
        )
        weight = self.time_weight(t)
        loss = (weight * (velocity - target).square().mean((-2, -1))).mean()
        metrics |= {"policy/loss": loss.detach(), "policy/spread": spread.mean()}
        return loss, metrics, (q_std, spread)

    def time_weight(self, t: Tensor) -> Tensor:
        """Weight of the squared velocity error at the times t, [R]."""
        if self.weighting == "ramp":
            return (t / 0.2).square().clamp(max=1.0)
        A, B, dA, dB = self.policy.path.coefficients(t)
        return (B / (A * dB - dA * B)).square()

    @torch.no_grad()
    def velocity_target(
        self, obs: Tensor, x: Tensor, t: Tensor, velocity: Tensor, uniform: Tensor, T: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """v = A' E[a|x] + B' E[eps|x] [R, Tp, Da], metrics, and Q's within-state deviation []."""
        A, B, dA, dB = (c.view(-1, 1) for c in self.policy.path.coefficients(t))
        rows = x.flatten(1)
        low, high = reverse.box_noise(rows, A, B)
        if not self.box:
            low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
        draw = self.propose(rows, velocity.flatten(1), A, B, dA, dB, low, high, uniform)
        a = (rows - B * draw.eps) / A
        if self.box:
            a = a.clamp(-1.0, 1.0)
        energy, grad, q = self.energy(obs, a.unflatten(-1, x.shape[1:]), T)
        weight = reverse.weights(draw, energy)
        mean, ratio = self.posterior_mean(weight, draw.eps, a, grad, A, B)
        mean = torch.minimum(torch.maximum(mean, low), high)  # a posterior mean lies in the box
        target = dA * (rows - B * mean) / A + dB * mean
        metrics = self.diagnose(t, reverse.effective_share(weight), ratio)
        early = (t < TIME_BINS[1]).float()
        prior = q[-max(self.particles - self.own_draws(), 2) :]  # draws from the prior alone
        q_std = (prior.std(0) * early).sum() / early.sum().clamp_min(1.0)
        return target.unflatten(1, x.shape[1:]), metrics, q_std.clamp_min(1e-6)

    def own_draws(self) -> int:
        """Number of particles that the self-proposal draws, leading in N."""
        if self.proposal == "truncated":
            return 0
        return min(max(round(self.self_share * self.particles), 1), self.particles - 1)

    def propose(
        self,
        x: Tensor,
        velocity: Tensor,
        A: Tensor,
        B: Tensor,
        dA: Tensor,
        dB: Tensor,
        low: Tensor,
        high: Tensor,
        uniform: Tensor,
    ) -> reverse.Proposal:
        """Noises [N, R, D] from the prior or from the policy's own posterior guess."""
        if self.proposal == "truncated":
            return reverse.propose_prior(uniform, low, high)
        mean = (A * velocity - dA * x) / (A * dB - dA * B)
        ratio = B / (A * self.spread.clamp_min(self.spread_floor))
        std = self.self_scale / (1.0 + ratio.square()).sqrt()
        return reverse.propose_self(uniform, low, high, mean, std, self.self_share)

    def energy(self, obs: Tensor, a: Tensor, T: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """E(a) = min Q / T (+ the tanh Jacobian) [N, R], dE/da [N, R, D] if used, and Q [N, R]."""
        with_grad = self.estimator != "noise"
        with torch.set_grad_enabled(with_grad):
            a = a.detach().requires_grad_(with_grad)
            q = self.critic(obs[None], self.policy.to_action(a)).amin(0)
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
