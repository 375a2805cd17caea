"""Flow and diffusion policies that learn off policy by matching: averages, the best of several.

The fields are keys of every algorithm that inherits them. B batch, N environments, T chunk, Da
action dimension.
"""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.candidates import sample
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative, Positive, Rate
from .losses import matching_draws, refuse_jumps
from .offpolicy import OffPolicy, Scheduled
from .optim import step


@dataclass(eq=False)
class Averaged(OffPolicy):
    """A flow or diffusion policy that learns by matching, with an averaged copy.

    Raises ValueError for a policy that acts by jumps, unless the algorithm trains them.

    Args:
        ema_rate: Share by which the averaged copy that is deployed moves towards the policy per
            policy update; 1 deploys the policy itself.
        max_norm: Largest gradient norm of a policy step; a longer gradient is scaled down to it.
    """

    trains_jumps = False

    policy: FlowPolicy
    _: KW_ONLY
    ema_rate: Rate
    max_norm: Positive

    def __post_init__(self) -> None:
        if not self.trains_jumps:
            refuse_jumps(self.policy)
        super().__post_init__()
        self.average = clone(self.policy)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.act(obs, self.policy.noise(len(obs), self.generator))

    def learn_policy(self, loss: Tensor) -> Tensor | None:
        """One step on the policy's loss []; the average follows. Returns the gradient's norm []."""
        norm = step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        return norm


@dataclass(eq=False)
class BestOf(OffPolicy):
    """Deployment of one of several samples.

    Args:
        deploy_candidates: Samples of the policy per deployed action, from which the critics choose:
            the highest Q, unless a temperature is set; 1: no choice.
        deploy_temperature: Temperature, in units of Q, of the softmax that draws one of
            deploy_candidates by their Q; 0 takes the highest.
    """

    _: KW_ONLY
    deploy_candidates: Count
    deploy_temperature: NonNegative

    def unit(self) -> float:
        """What deploy_temperature is in units of."""
        return 1.0

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the deployed policy, [N, T, Da]."""
        policy, count, heat = self.deployed(), self.deploy_candidates, self.deploy_temperature
        if count > 1 and heat > 0:
            heat *= self.unit()
        eta = policy.eta if self.noisy_steps else 0.0
        return sample(policy, self.critic, obs, generator, count, heat, eta)

    def deploy_one(self) -> int:
        candidates, self.deploy_candidates = self.deploy_candidates, 1
        return candidates


@dataclass(eq=False)
class Matching(Scheduled, BestOf, Averaged):
    """What matches recorded actions, among others, on a schedule."""

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted matching loss of the averaged policy on held-out data."""
        return held_out(self.average, batch, generator)


def held_out(policy: FlowPolicy, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    """Matching loss of a policy on held-out data."""
    draws = matching_draws(policy, len(batch.obs), generator)
    error = policy.match(batch.obs, batch.action, *draws, space=policy.prediction)
    return {"val/loss": error.mean()}
