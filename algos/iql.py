"""Implicit Q-learning: expectile values, and the policy cloned from recorded actions by weight."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.heads import Gaussian
from ..ranges import NonNegative, Positive
from .expectile import Implicit
from .losses import Draws, exp_weight, matching_draws
from .matching import Matching
from .optim import step


@dataclass(eq=False)
class IQL(Implicit, Matching):
    """Implicit Q-learning with a flow policy (arXiv:2110.06169; IDQL arXiv:2304.10573).

    The policy matches recorded actions with weights min(exp(beta A), weight_max) of the advantages
    A = min Q' - V that the critic (`Implicit`) gives them: it learns the flow of mu(a|s) w(s, a). B
    batch, T chunk, Da action dimension.

    Args:
        beta: Inverse temperature of the weights exp(beta * advantage), per unit of Q: larger copies
            the better actions only, 0 clones all alike.
        weight_max: Limit of the weights exp(beta * advantage).
    """

    pure = ("critic_loss", "policy_loss")

    _: KW_ONLY
    beta: NonNegative
    weight_max: Positive

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        loss, advantage, metrics = self.critic_loss(batch)
        self.learn_critic(loss)
        weight = exp_weight(advantage, self.beta, self.weight_max)
        draws = self.draw(len(batch.obs), self.generator)
        loss = self.policy_loss(batch.obs, batch.action, weight, draws)
        self.learn_policy(loss)
        return metrics | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Noises and times of a matching step."""
        return matching_draws(self.policy, rows, generator)

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor, draws: Draws) -> Tensor:
        """Weighted matching, []. The weights [B] are not normalised: their mean is Z."""
        error = self.policy.match(obs, action, *draws, space=self.policy.prediction)
        return (weight * error).mean()


@dataclass(eq=False)
class IQLGaussian(Implicit):
    """Implicit Q-learning with a Gaussian policy, the published form (arXiv:2110.06169).

    As `IQL`, with the policy maximising w log pi(a|s) over recorded actions. The Gaussian is not
    squashed: recorded actions on the border would have no finite density behind a tanh.

    Args:
        beta: Inverse temperature of the weights exp(beta * advantage), per unit of Q: larger copies
            the better actions only, 0 clones all alike.
        weight_max: Limit of the weights exp(beta * advantage).
        deploy_mean: Whether the mean is deployed instead of a sample.
    """

    pure = ("critic_loss", "policy_loss")

    policy: Gaussian
    _: KW_ONLY
    beta: NonNegative
    weight_max: Positive
    deploy_mean: bool

    @torch.no_grad()
    def sampled(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.sample(obs, self.policy.noise(len(obs), generator))[0].clamp(-1, 1)

    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.sampled(obs, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mean of the policy, or a sample, [N, T, Da]."""
        return self.policy.mean(obs) if self.deploy_mean else self.sampled(obs, generator)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        loss, advantage, metrics = self.critic_loss(batch)
        self.learn_critic(loss)
        weight = exp_weight(advantage, self.beta, self.weight_max)
        loss = self.policy_loss(batch.obs, batch.action, weight)
        step(self.policy_opt, loss)
        return metrics | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Negative log density of held-out actions and the critics' loss."""
        nll = -self.policy.log_prob(batch.obs, batch.action).mean()
        return super().validate(batch, generator) | {"val/loss": nll}

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        """Weighted negative log density, []."""
        return -(weight * self.policy.log_prob(obs, action)).mean()
