"""Q-learning with adjoint matching: a cloned flow tilted by Q, its chain not differentiated."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import NonNegative, Positive, Rate, Share
from . import adjoint, walks
from .losses import Draws, matching_draws
from .matching import BestOf
from .optim import adam, step
from .returns import follow, pessimistic
from .walks import Met, Sides, at

SPREAD_ROWS = 64  # states at which the spread of Q is measured


@dataclass(eq=False)
class QAM(BestOf):
    """Q-learning with adjoint matching (arXiv:2601.14234; adjoint matching, arXiv:2409.08861).

    `behaviour` clones the recorded actions, `slow` is its average and the base v_b; `policy`, the
    field that acts, learns the base's density tilted by exp(kappa Q). Walks of the policy with
    noise end in actions; -kappa dQ/da there, Q the mean of the target critics, goes back along each
    walk through Jacobians of the base alone, and the policy is matched to v_b less what arrives
    (`adjoint`). The loss is 0 at its minimum where Q is linear, and no gradient passes through a
    chain of the policy. Critics learn r + discount (mean - rho std) Q'(s', a'), a' the policy's.

    Deployed is the deterministic map, as published, or with policy.eta above 0 the chain with that
    share of DDPM's noise. Few steps tilt less than kappa says where a density has modes apart. The
    published code has one optimiser and one limit of the norm for critics, clone and policy; here
    each has its own. B batch, K steps, T chunk, Da action dimension.

    Raises ValueError for anything but velocities on the straight path.

    Args:
        policy_lr: Adam learning rate of the tuned field.
        behaviour_lr: Adam learning rate of the clone.
        behaviour_rate: Share by which the averaged clone, which is tilted, moves towards the clone
            per update; 1 tilts the clone itself.
        kappa: How far the clone is tilted, as exp(kappa Q): larger is greedier, 0 only clones.
        kappa_unit: Unit of kappa: spread, one over the standard deviation of Q among the clone's
            actions of a state; q, one over Q, as published.
        scale_rate: Share by which the running spread of Q moves towards that of an update; without
            effect with kappa_unit=q.
        kernel: Noise of the walks: memoryless, as published; posterior, that of DDPM, exact for
            linear Q in any number of steps.
        rho: Standard deviations over the critics that the TD target lies below their mean: larger
            is more pessimistic.
        clip_gradient: Whether Q has no gradient where a walk ends outside the box; else the one at
            the box's edge.
        max_norm: Largest gradient norm of a step of the clone or of the tuned field; a longer
            gradient is scaled down to it.
    """

    pure = ("critic_loss", "clone_loss", "tuned_loss")
    noisy_steps = True  # what is deployed has noise in its transitions, where policy.eta > 0

    policy: FlowPolicy
    executed: int | None = None
    _: KW_ONLY
    behaviour_lr: Positive
    behaviour_rate: Rate
    kappa: NonNegative
    kappa_unit: Literal["spread", "q"]
    scale_rate: Share
    kernel: Literal["memoryless", "posterior"]
    rho: NonNegative
    clip_gradient: bool
    max_norm: Positive

    def __post_init__(self) -> None:
        walks.refuse(self.policy, self.kernel)
        super().__post_init__()
        self.behaviour, self.slow = clone(self.policy, frozen=False), clone(self.policy)
        self.behaviour_opt = adam(self.behaviour.parameters(), self.behaviour_lr)
        self.q_scale = torch.ones((), device=self.generator.device)

    @property
    def learned(self) -> dict[str, None]:
        """What belongs to the networks: the spread of Q, where it is kappa's unit."""
        return {"q_scale": None} if self.kappa_unit == "spread" else {}

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        noise = self.policy.noise(len(obs), self.generator)
        return self.policy.drawn(obs, noise, self.generator, self.policy.eta)

    # ---------------------------------------------------------------- learning
    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, of the clone and of the policy, in this order."""
        loss, metrics = self.critic_loss(batch, self.act(batch.next_obs))
        self.learn_critic(loss)
        draws = matching_draws(self.behaviour, len(batch.obs), self.generator)
        cloning = self.clone_loss(self.behaviour, batch.obs, batch.action, draws)
        step(self.behaviour_opt, cloning, self.max_norm)
        lerp_(self.slow, self.behaviour, self.behaviour_rate)
        met, more = self.meet(batch.obs)
        loss, drift = self.tuned_loss(batch.obs, met)
        step(self.policy_opt, loss, self.max_norm)
        told = {"policy/loss": loss.detach(), "policy/bc": cloning.detach(), "policy/drift": drift}
        return metrics | more | told

    def critic_loss(self, batch: Batch, next_action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; next_action [B, T, Da]."""
        with torch.no_grad():
            values = self.target(batch.next_obs, next_action)
            value = pessimistic(values, "lcb", self.rho)
        return self.td(batch, value)

    @staticmethod
    def clone_loss(policy: FlowPolicy, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        """Matching of recorded actions, []."""
        return policy.match(obs, action, *draws).mean()

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged clone on held-out data."""
        draws = matching_draws(self.slow, len(batch.obs), generator)
        return {"val/loss": self.clone_loss(self.slow, batch.obs, batch.action, draws)}

    @torch.no_grad()
    def meet(self, obs: Tensor) -> tuple[Met, dict[str, Tensor]]:
        """What the policy is matched to at states [B, O], and metrics."""
        kappa, metrics = self.strength(obs[:SPREAD_ROWS])
        field, base = (at(side, side.features(obs)) for side in (self.policy, self.slow))
        sides = Sides(self.policy, field, base, self.steps())

        def pull(x: Tensor) -> Tensor:
            return -kappa * self.slope(obs, x)

        return walks.meet(sides, len(obs), self.generator, pull), metrics

    def steps(self) -> adjoint.Kernel:
        """The steps of walks, on the policy's own grid."""
        return adjoint.KERNELS[self.kernel](self.policy.times())

    def strength(self, obs: Tensor) -> tuple[Tensor | float, dict[str, Tensor]]:
        """kappa per unit of Q, and metrics; measures the spread at states [R, O] if it counts."""
        if self.kappa_unit == "q":
            return self.kappa, {}
        noise = self.slow.noise((len(obs), 2), self.generator)
        one, two = self.target(obs[:, None], self.slow.act(obs, noise)).mean(0).unbind(1)
        spread = ((one - two).square().mean() / 2).sqrt()
        follow(self.q_scale, ranks.mean(spread)[0], self.scale_rate)
        return self.kappa / self.q_scale.clamp_min(1e-8), {"critic/q_std": self.q_scale.clone()}

    def slope(self, obs: Tensor, x: Tensor) -> Tensor:
        """dQ/dx [B, T, Da] of the mean target critic at the actions of the points x."""

        def height(action: Tensor) -> Tensor:
            return self.target(obs, action).mean(0)

        return walks.slope(self.policy, x, height, self.clip_gradient, self.executed)

    def tuned_loss(self, obs: Tensor, met: Met) -> tuple[Tensor, Tensor]:
        """Matching of the tuned field, [], and its distance to the clone [] (`walks.matched`)."""
        return walks.matched(self.steps(), at(self.policy, self.policy.features(obs)), met)
