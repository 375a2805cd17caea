"""Advantage-weighted actor-critic: recorded actions weighted by how they beat the policy's."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.candidates import candidate_noise
from ..ranges import Count, NonNegative, Positive
from .losses import Draws, exp_weight, matching_draws
from .matching import Matching


@dataclass(eq=False)
class AWAC(Matching):
    """Advantage-weighted actor-critic (arXiv:2006.09359) with a flow policy (FAWAC in
    arXiv:2601.14234).

    Q is that of the policy: it learns r + discount min Q'(s', a') with a' from the averaged policy.
    The policy matches recorded actions with weights min(exp(beta A), weight_max), A = min Q(s, a) -
    mean_k min Q(s, a_k) over own samples a_k: it learns the flow of mu(a|s) w(s, a). `IQL` has the
    same policy step, and a Q that never asks an action which is not in the data. B batch, T chunk,
    Da action dimension.

    Args:
        beta: Inverse temperature of the weights exp(beta * advantage), per unit of Q: larger copies
            the better actions only, 0 clones all alike.
        weight_max: Limit of the weights exp(beta * advantage).
        own_samples: Own actions per state whose mean Q is subtracted to make the advantage
            (published: 1).
    """

    pure = ("backup", "policy_loss")

    _: KW_ONLY
    beta: NonNegative
    weight_max: Positive
    own_samples: Count

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and one policy step; metrics are 0-d."""
        rows = len(batch.obs)
        with torch.no_grad():
            ahead = self.average.act(batch.next_obs, self.average.noise(rows, self.generator))
        loss, metrics = self.backup(batch, ahead)
        self.learn_critic(loss)
        advantage = self.advantage(batch.obs, batch.action)
        weight = exp_weight(advantage, self.beta, self.weight_max)
        draws = matching_draws(self.policy, rows, self.generator)
        loss = self.policy_loss(batch.obs, batch.action, weight, draws)
        self.learn_policy(loss)
        metrics |= {"critic/advantage": advantage.mean(), "policy/loss": loss.detach()}
        return metrics | {"policy/weight": weight.mean()}

    @torch.no_grad()
    def advantage(self, obs: Tensor, action: Tensor) -> Tensor:
        """min Q of given actions less its mean over the policy's own, [B]."""
        noise = candidate_noise(self.policy, len(obs), self.own_samples, self.generator)
        own = self.critic(obs[:, None], self.policy.act(obs, noise)).amin(0).mean(1)
        return self.critic(obs, action).amin(0) - own

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor, draws: Draws) -> Tensor:
        """Weighted matching, []. The weights [B] are not normalised: their mean is Z."""
        error = self.policy.match(obs, action, *draws, space=self.policy.prediction)
        return (weight * error).mean()
