"""More from a policy without training it: guided sampling, ascent on Q, and chains of these.

Samplers draw candidates [N, M, T, Da], a choice takes one, and ascent moves them in between;
`Chain` puts them together. N observations, M candidates, P particles, T chunk, Da action dimension.
A critic is Q(obs [..., O], action [..., T, Da]) -> [members, ...], of which the smallest counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ranges import Count, Natural, NonNegative
from . import draw
from .candidates import choose, chosen, race
from .field import Field
from .flow import FlowPolicy
from .nets import expand_lead

NEAR = 1e-4  # times that lie no further apart are one

# ---- guided sampling ---------------------------------------------------------------------------


@torch.no_grad()
def interpolated(
    policy: FlowPolicy, reference: FlowPolicy, obs: Tensor, noise: Tensor, weight: float
) -> Tensor:
    """Actions of the field v_ref + weight (v - v_ref), [..., T, Da] (RLG, arXiv:2508.21016).

    weight 0 is the reference and 1 the policy, bit for bit; above 1 goes on in the direction of the
    tuning. Every transition is the same combination of the two transitions. Exact for the tilted
    density only where both have the same variance.
    """
    if weight in (0.0, 1.0):
        return (policy if weight else reference).act(obs, noise)
    times = policy.times()
    seen = expand_lead(obs, noise.ndim - 2, 1)
    sides = [(side, side.features(seen)) for side in (reference, policy)]
    x = noise
    for t, s in zip(times[:-1], times[1:], strict=True):
        start, end = (side.step(x, t, s, feat)[0] for side, feat in sides)
        x = torch.lerp(start, end, weight)
    return policy.to_action(x)


@torch.no_grad()
def value_guided(
    policy: FlowPolicy,
    critic: Any,
    obs: Tensor,
    noise: Tensor,
    generator: torch.Generator,
    particles: int,
    temperature: float,
) -> Tensor:
    """SVDD (arXiv:2408.08252): every stochastic step drawn from P by the value it leads to.

    noise [..., T, Da] -> actions of that shape. Each DDPM step (eta = 1) proposes P points; one is
    drawn from softmax(Q(E[a | x]) / temperature), or at temperature 0 the best is taken, as public
    code does. As P grows this samples the density tilted by exp(Q / temperature), where Q of the
    mean stands for the mean of exp(Q / temperature): exactly for a linear Q and Gaussian actions.
    """

    def move(mean: Tensor, std: Tensor, worth: Callable[[Tensor], Tensor]) -> Tensor:
        shape = (*mean.shape[:-2], particles, *mean.shape[-2:])
        kick = draw.normal(shape, generator, device=mean.device, dtype=mean.dtype)
        x = mean[..., None, :, :] + std[..., None, :, :] * kick
        return chosen(worth(x), x, temperature, race(x, temperature, generator))

    return walked(policy, critic, obs, noise, move)


@torch.no_grad()
def doob_guided(
    policy: FlowPolicy,
    critic: Any,
    obs: Tensor,
    noise: Tensor,
    generator: torch.Generator,
    particles: int,
    temperature: float,
) -> Tensor:
    """Doob's transform by Monte Carlo (in the manner of arXiv:2602.16198), without gradients of Q.

    The kernel of each stochastic step is tilted by h(x) = exp(Q(E[a | x]) / temperature): its mean
    moves by std times the average of the kicks of P antithetic particles, weighted by h, and its
    deviation stays. So a tilted normal is met exactly as P grows. noise [..., T, Da] -> actions.
    """
    if particles % 2 or temperature <= 0:
        raise ValueError("Doob guidance needs an even number of particles and a temperature")

    def move(mean: Tensor, std: Tensor, worth: Callable[[Tensor], Tensor]) -> Tensor:
        shape = (*mean.shape[:-2], particles // 2, *mean.shape[-2:])
        half = draw.normal(shape, generator, device=mean.device, dtype=mean.dtype)
        kick = torch.cat([half, -half], -3)
        value = worth(mean[..., None, :, :] + std[..., None, :, :] * kick)
        weight = (value / temperature).softmax(-1)[..., None, None]
        fresh = draw.normal(mean.shape, generator, device=mean.device, dtype=mean.dtype)
        return mean + std * ((weight * kick).sum(-3) + fresh)

    return walked(policy, critic, obs, noise, move)


def walked(policy: FlowPolicy, critic: Any, obs: Tensor, noise: Tensor, move: Any) -> Tensor:
    """A stochastic chain whose every step `move` takes but the last, which has no noise.

    move(mean, std, worth): worth gives values [..., P] of points [..., P, T, Da] after the step.
    """
    times = policy.times()
    seen = expand_lead(obs, noise.ndim - 2, 1)
    feat = policy.features(seen)
    many = expand_lead(seen, noise.ndim - 1, 1)
    x, *steps, last = noise, *zip(times[:-1], times[1:], strict=True)
    for t, s in steps:
        mean, std = policy.step(x, t, s, feat, eta=1.0)

        def worth(points: Tensor, s: Tensor = s) -> Tensor:
            a = policy.pred(points, s, feat[..., None, :]).a
            return critic(many, policy.to_action(a)).amin(0)

        x = move(mean, std.expand_as(mean), worth)
    return policy.to_action(policy.step(x, *last, feat, eta=1.0)[0])


@torch.no_grad()
def inpainted(
    policy: FlowPolicy,
    obs: Tensor,
    noise: Tensor,
    known: Tensor,
    mask: Tensor,
    start: float | None = None,
) -> Tensor:
    """Actions [..., T, Da] that agree with `known` where `mask` [..., T, Da] is true.

    Before every transition the known part is put to A(t) known + B(t) noise, the place where the
    flow of its own noise would be; the rest is filled in by the policy (arXiv:2506.07339 for
    chunks whose first actions are already being executed).

    start: a time from which on the flow is followed, where the rest too is A known + B noise: it
    stays near what `known` holds for it (SDEdit, arXiv:2108.01073). None: the rest is noise at 0.
    """
    times = policy.times()
    seen = expand_lead(obs, noise.ndim - 2, 1)
    feat, point = policy.features(seen), policy.to_latent(known)
    x = noise
    if start is not None:
        times = torch.cat([times.new_tensor([start]), times[times > start + NEAR]])
        c = policy.path.coefficients(times[0])
        x = c.a * point + c.b * noise
    x = filled(policy, feat, x, noise, point, mask, times)
    return torch.where(mask, known.clamp(-1, 1), policy.to_action(x))


@torch.no_grad()
def filled(
    policy: Field,
    feat: Tensor,
    x: Tensor,
    noise: Tensor,
    point: Tensor,
    mask: Tensor,
    times: Tensor,
) -> Tensor:
    """Where a flow leads that is at x [..., T, D] at the first of the times [K + 1], and keeps to
    A(t) point + B(t) noise before every transition where the mask is true; normalised units.
    """
    for t, s in zip(times[:-1], times[1:], strict=True):
        c = policy.path.coefficients(t)
        x = torch.where(mask, c.a * point + c.b * noise, x)
        x = policy.step(x, t, s, feat)[0]
    return x


# ---- ascent --------------------------------------------------------------------------------------


def kept(value: Tensor, action: Tensor, keep: int) -> Tensor:
    """The `keep` of M candidates [N, M, T, Da] with the largest values [N, M], the best first."""
    index = value.topk(keep, 1).indices[..., None, None]
    return action.gather(1, index.expand(-1, -1, *action.shape[2:]))


def climbed(critic: Any, obs: Tensor, action: Tensor, rounds: int, rate: float | Tensor) -> Tensor:
    """Ascent of actions [..., T, Da] on their smallest Q inside the box (PA-RL, arXiv:2412.06685).

    a <- clip(a + rate dQ/da), `rounds` times; of all iterates of an action the one that is worth
    most is returned, so its value never falls. `rate` is in action units per unit of the gradient.
    """
    best, height = action, torch.full(action.shape[:-2], -torch.inf, device=action.device)
    for _ in range(rounds + 1):
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            value = critic(obs, action).amin(0)
            slope = torch.autograd.grad(value.sum(), action)[0]
        higher = value.detach() > height
        best = torch.where(higher[..., None, None], action.detach(), best)
        height = torch.where(higher, value.detach(), height)
        action = (action.detach() + rate * slope).clamp(-1, 1)
    return best


@dataclass(kw_only=True)
class Settings:
    """A chain's words and their numbers.

    Args:
        words: What deployed actions go through: one sampler (rlg, svdd, doob or inpaint), climb,
            then one choice (best or soft).
        n: Candidates drawn per state, of which best or soft chooses one.
        temperature: Temperature of soft's draw among the candidates, in units of Q; 0 takes the one
            with the highest Q.
        weight: Place of rlg between two policies: 0 is the reference, 1 the run's own, above 1 goes
            further the same way.
        particles: Points that svdd or doob tries in each denoising step; doob needs an even number.
        tilt: Temperature of svdd and doob, in units of Q: lower follows Q more sharply.
        rounds: Gradient steps of climb on Q, per action.
        rate: Step size of climb, in action units per unit of dQ/da.
    """

    words: list[str]
    n: Count
    temperature: NonNegative
    weight: float
    particles: Count
    tilt: NonNegative
    rounds: Natural
    rate: NonNegative

    def __post_init__(self) -> None:
        if self.n < 1 or self.particles < 1 or self.rounds < 0:
            raise ValueError("steer: n and particles are at least 1, rounds at least 0")


NEEDS = {  # word: what it cannot do without
    "best": {"critic"},
    "soft": {"critic"},
    "rlg": {"reference"},
    "svdd": {"critic", "stochastic"},
    "doob": {"critic", "stochastic"},
    "climb": {"critic"},  # and its gradient, which every critic here has
    "inpaint": {"overlap"},
}
SAMPLERS = ("rlg", "svdd", "doob", "inpaint")


class Chain:
    """Deployed behaviour from words: at most one sampler (rlg, svdd, doob, inpaint), then climb,
    then a choice (best, soft) among n candidates. Raises ValueError for words that do not go
    together and for what a word needs and the policy has not.

    inpaint: every plan keeps what the one before left unexecuted, row by row; `ended` tells which
    episodes are over. The only word with a memory: a chain per set of environments.

    reference: another policy over the same actions, for rlg. critic: over actions; None: there is
    none, as after fine-tuning on policy.
    """

    def __init__(
        self,
        policy: Any,
        critic: Any,
        reference: FlowPolicy | None,
        settings: Settings,
        execute: int = 0,
    ) -> None:
        words = settings.words
        unknown = [word for word in words if word not in NEEDS]
        if unknown:
            raise ValueError(f"steer={','.join(words)}: choose from {', '.join(NEEDS)}")
        for kind, group in (("sampler", SAMPLERS), ("choice", ("best", "soft"))):
            if len(set(words) & set(group)) > 1:
                raise ValueError(f"steer={','.join(words)}: one {kind} of {', '.join(group)}")
        has = {"critic"} if critic is not None else set()
        has |= {"reference"} if reference is not None else set()
        has |= {"stochastic"} if stochastic(policy) else set()
        has |= {"overlap"} if 0 < execute < getattr(policy, "horizon", 0) else set()
        for word in words:
            for need in sorted(NEEDS[word] - has):
                raise ValueError(f"steer={word}: {LACKING[need]}")
        self.words, self.policy, self.critic = words, policy, critic
        self.reference, self.settings, self.execute = reference, settings, execute
        self.plan: Tensor | None = None  # [N, T, Da] that is being executed
        self.running: Tensor | None = None  # [N] whether its episode goes on

    @torch.no_grad()
    def __call__(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [N, T, Da]."""
        words, settings = self.words, self.settings
        count = settings.n if {"best", "soft"} & set(words) else 1
        start = self.policy.start(len(obs) * count, generator).unflatten(0, (len(obs), count))
        action = self.sampled(obs, start if count > 1 else start[:, 0], generator)
        action = action if count > 1 else action[:, None]
        if "climb" in words:
            action = climbed(self.critic, obs[:, None], action, settings.rounds, settings.rate)
        temperature = settings.temperature if "soft" in words else 0.0
        waiting = race(action, temperature, generator)
        action = choose(self.critic, obs, action, temperature, waiting)
        if "inpaint" in words:
            self.plan, self.running = action, torch.ones(len(obs), dtype=torch.bool)
        return action

    def ended(self, rows: Tensor) -> None:
        """Forgets the plans of episodes that are over, rows [N]."""
        if self.running is not None:
            self.running &= ~rows.cpu()

    def left(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the last plans left unexecuted, moved to the front, and where that is known; both of
        noise's shape [N, ..., T, Da].
        """
        known, mask = torch.zeros_like(noise), torch.zeros_like(noise, dtype=torch.bool)
        if self.plan is not None and self.running is not None and len(self.plan) == len(noise):
            tail = self.plan.shape[1] - self.execute
            rows = self.running.to(noise.device).view(-1, *[1] * (noise.ndim - 1))
            known[..., :tail, :] = expand_lead(self.plan[:, self.execute :], noise.ndim - 2, 2)
            mask[..., :tail, :] = rows
        return known, mask

    def sampled(self, obs: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Candidates by the sampler that the words name, of noise's shape."""
        policy, settings = self.policy, self.settings
        guided = {"svdd": value_guided, "doob": doob_guided}
        for word in self.words:
            if word in guided:
                numbers = settings.particles, settings.tilt
                return guided[word](policy, self.critic, obs, noise, generator, *numbers)
            if word == "inpaint":
                return inpainted(policy, obs, noise, *self.left(noise))
            if word == "rlg" and self.reference is not None:
                return interpolated(policy, self.reference, obs, noise, settings.weight)
        return policy.act(obs, noise)


LACKING = {
    "critic": "needs a critic of actions, and this run has none",
    "reference": "needs another policy; add steer.reference=RUN (in training: algo.anchor_coef "
    "above 0, for the policy of the start)",
    "overlap": "continues plans, which `rheo eval` does for runs with horizon= above env.execute=",
    "stochastic": "needs a stochastic sampler, and this policy's transitions have no noise",
}


def stochastic(policy: Any) -> bool:
    """Whether a policy has DDPM transitions: not those that jump over their path."""
    return isinstance(policy, FlowPolicy) and not policy.jumps and policy.sampler == "euler"
