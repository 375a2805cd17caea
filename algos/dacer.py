"""DACER: a chain that climbs Q, with noise on its actions that keeps their entropy."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.flow import FlowPolicy
from ..ranges import Count, NonNegative, Positive
from .losses import refuse_jumps
from .offpolicy import OffPolicy
from .optim import frozen, step
from .temperature import Temperature

NEIGHBOUR = 3  # whose distance tells the density
LARGEST = 8  # elements of an action, above which so few samples tell nothing of its entropy


@dataclass(eq=False)
class DACER(OffPolicy):
    """Diffusion actor-critic with an entropy regulator (arXiv:2405.15177).

    An action is a = clip(x + noise_scale alpha xi), x the end of the policy's chain and xi standard
    normal. The actor minimises -min Q(s, a) through all steps of the chain, critics learn r +
    discount min Q'(s', a'); in both the noise is there, deployed is the chain without it. Nothing
    else holds the entropy of the chain up, so alpha is moved until that of x + noise_scale alpha xi
    is entropy_per_dim times its elements. It is estimated from samples at some states
    (`neighbour_entropy`), where the released code takes the weights and covariances of a mixture of
    three Gaussians, an upper bound.

    The chain is the deterministic one, the published the noisy one of DDPM; critics tell a mean,
    the published also a deviation. A scale of the rewards (published: 0.2) would change nothing
    here: no entropy is added to Q. B batch, T chunk, Da action dimension.

    Raises ValueError for a policy that acts by jumps or has noise in its steps, for more than eight
    executed action elements and for too few samples.

    Args:
        noise_scale: Deviation of the noise on actions for alpha = 1, in action units (the box is -1
            to 1).
        alpha: First value of the temperature, which multiplies the noise on actions.
        alpha_lr: Adam learning rate of the temperature; a step is due every entropy_every updates.
        entropy_per_dim: Entropy of actions that the temperature holds, in nats per executed action
            element: higher explores more.
        entropy_every: Updates between two measurements of the entropy.
        entropy_states: States of a batch at which the entropy is measured, at most.
        entropy_samples: Actions per state from which the entropy is measured, more than three.
        policy_every: Critic updates per policy update.
        max_norm: Largest gradient norm of a policy step; a longer gradient is scaled down to it.
    """

    pure = ("critic_loss", "policy_loss", "entropy")
    learned = {"temperature": "alpha"}

    policy: FlowPolicy
    executed: int | None = None
    _: KW_ONLY
    noise_scale: Positive
    alpha: Positive
    alpha_lr: NonNegative
    entropy_per_dim: float
    entropy_every: Count
    entropy_states: Count
    entropy_samples: Count
    policy_every: Count
    max_norm: Positive

    def __post_init__(self) -> None:
        refuse_jumps(self.policy)
        if self.policy.eta > 0:
            raise ValueError(
                f"policy.eta={self.policy.eta:g}: DACER's chain has no noise in its steps, only on "
                "its end; set policy.eta=0"
            )
        size = (self.executed or self.policy.horizon) * self.policy.action_dim
        if size > LARGEST:
            raise ValueError(
                f"this task has {size} executed action elements, whose entropy cannot be told from "
                f"samples; algo=dacer takes {LARGEST} at most: choose algo=sac or algo=rfm"
            )
        if self.entropy_samples <= NEIGHBOUR:
            raise ValueError(
                f"algo.entropy_samples={self.entropy_samples}: choose more than {NEIGHBOUR}"
            )
        super().__post_init__()
        parts = self.alpha, self.entropy_per_dim * size, self.alpha_lr
        self.temperature = Temperature(*parts, self.generator.device)

    def kicks(self, rows: int) -> Tensor:
        """Start of the chain and noise on its end, standard normal, [rows, 2, T, Da]."""
        return self.policy.noise((rows, 2), self.generator)

    def sample(self, obs: Tensor, kicks: Tensor, alpha: Tensor) -> Tensor:
        """Actions [..., T, Da] before the clip, differentiable; kicks [..., 2, T, Da]."""
        start, noise = kicks.unbind(-3)
        return self.policy.act(obs, start) + self.noise_scale * alpha * noise

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The end of the chain with noise, [N, T, Da]."""
        return self.sample(obs, self.kicks(len(obs)), self.temperature.value).clamp(-1.0, 1.0)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The end of the chain, [N, T, Da]."""
        return self.policy.act(obs, self.policy.start(len(obs), generator))

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, each at its time, one step of the policy and of the temperature."""
        alpha, rows = self.temperature.value, len(batch.obs)
        loss, metrics = self.critic_loss(batch, self.kicks(rows), alpha)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            with frozen(self.critic):
                loss = self.policy_loss(batch.obs, self.kicks(rows), alpha)
                step(self.policy_opt, loss, self.max_norm)
            metrics["policy/loss"] = loss.detach()
        if self.updates % self.entropy_every == 0:
            metrics |= self.regulate(batch.obs[: self.entropy_states])
        return metrics

    def regulate(self, obs: Tensor) -> dict[str, Tensor]:
        """One step of the temperature, by the entropy at states [R, O]; metrics."""
        kicks = self.policy.noise((len(obs), self.entropy_samples, 2), self.generator)
        entropy = self.entropy(obs, kicks, self.temperature.value)
        if self.alpha_lr > 0:
            self.temperature.update(entropy)
        return {"policy/entropy": entropy, "policy/temperature": self.temperature.value}

    @torch.no_grad()
    def entropy(self, obs: Tensor, kicks: Tensor, alpha: Tensor) -> Tensor:
        """Mean entropy [] of the executed steps, in nats; obs [R, O], kicks [R, M, 2, T, Da]."""
        action = self.sample(obs, kicks, alpha)
        return neighbour_entropy(action[..., : self.executed, :].flatten(-2)).mean()

    def critic_loss(
        self, batch: Batch, kicks: Tensor, alpha: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; kicks [B, 2, T, Da] of the next actions."""
        with torch.no_grad():
            action = self.sample(batch.next_obs, kicks, alpha).clamp(-1.0, 1.0)
        return self.backup(batch, action)

    def policy_loss(self, obs: Tensor, kicks: Tensor, alpha: Tensor) -> Tensor:
        """-mean min Q of own actions, []; kicks [B, 2, T, Da]."""
        action = self.sample(obs, kicks, alpha).clamp(-1.0, 1.0)
        return -self.critic(obs, action).amin(0).mean()


def neighbour_entropy(points: Tensor) -> Tensor:
    """Differential entropy [...] of the density that M points [..., M, D] were drawn from, in nats.

    psi(M) - psi(k) + log V_D + D mean log r_k (Kozachenko and Leonenko, 1987), r_k the distance to
    the k-th nearest of the others and V_D the volume of the unit ball.
    """
    count, size = points.shape[-2:]
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.kthvalue(NEIGHBOUR + 1, -1).values  # the nearest is the point itself
    psi = sum(1 / i for i in range(NEIGHBOUR, count))  # psi(M) - psi(k)
    ball = size / 2 * math.log(math.pi) - math.lgamma(size / 2 + 1)
    return psi + ball + size * apart.clamp_min(1e-12).log().mean(-1)
