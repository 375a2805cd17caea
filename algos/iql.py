"""Implicit Q-learning: expectile values, and the policy cloned from recorded actions by weight."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import steer
from ..policies.critics import QEnsemble, Value
from ..policies.flow import FlowPolicy
from ..policies.gaussian import Gaussian
from ..policies.nets import clone, lerp_
from . import expectile as expectiles
from .losses import exp_weight, refuse_jumps, row_times
from .optim import adam, anneal, step


class Draws(NamedTuple):
    """The randomness of a matching step."""

    noise: Tensor  # [B, T, Da]
    t: Tensor  # [B]


class IQL:
    """Implicit Q-learning with a flow policy (arXiv:2110.06169; IDQL arXiv:2304.10573).

    V is the expectile of min Q' over recorded actions, Q learns r + discount V(s'), and the policy
    matches recorded actions with weights min(exp(beta (min Q' - V)), weight_max): it learns the
    flow of mu(a|s) w(s, a). No action that is not in the data is ever evaluated in training.
    B batch, T chunk, Da action dimension.

    expectile: 0.5 is the mean, towards 1 the maximum. beta: inverse temperature, per unit of Q.
    policy_lr, critic_lr: Adam; the policy's falls by a cosine to lr_floor of itself over
    run_updates. target_rate: Polyak rate of Q'. ema_rate: of the deployed policy; 1 = raw.
    max_norm: gradient-norm limit of the policy. deploy_candidates: best of so many samples by min
    Q; deploy_temperature: 0 takes the best, above 0 draws from softmax(Q / temperature).
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: FlowPolicy,
        critic: QEnsemble,
        generator: torch.Generator,
        run_updates: int,
        value: Value,
        *,
        expectile: float,
        beta: float,
        weight_max: float,
        policy_lr: float,
        critic_lr: float,
        lr_floor: float,
        target_rate: float,
        ema_rate: float,
        max_norm: float,
        deploy_candidates: int,
        deploy_temperature: float,
    ) -> None:
        refuse_jumps(policy)
        self.policy, self.average = policy, clone(policy)
        self.critic, self.target = critic, clone(critic)
        self.value = value.to(generator.device)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam([*critic.parameters(), *value.parameters()], critic_lr)
        self.updates, self.run_updates = 0, run_updates
        self.expectile, self.beta, self.weight_max = expectile, beta, weight_max
        self.policy_lr, self.lr_floor, self.max_norm = policy_lr, lr_floor, max_norm
        self.target_rate, self.ema_rate = target_rate, ema_rate
        self.deploy_candidates = deploy_candidates
        self.deploy_temperature = deploy_temperature

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return self.policy.act(obs, self.policy.noise(len(obs), self.generator))

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the averaged policy, [N, T, Da]."""
        chosen = self.deploy_candidates, self.deploy_temperature
        return steer.sample(self.average, self.critic, obs, generator, *chosen)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        loss, advantage, metrics = self.critic_loss(batch)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        weight = exp_weight(advantage, self.beta, self.weight_max)
        draws = self.draw(len(batch.obs), self.generator)
        loss = self.policy_loss(batch.obs, batch.action, weight, draws)
        step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        return metrics | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Noises and times of a matching step."""
        return Draws(self.policy.noise(rows, generator), row_times(rows, generator))

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted matching loss of the averaged policy, and the critics' loss."""
        noise, t = self.draw(len(batch.obs), generator)
        error = self.average.match(batch.obs, batch.action, noise, t, self.average.prediction)
        return {"val/loss": error.mean(), "val/critic_loss": self.critic_loss(batch)[0]}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of V and Q [], advantage [B], metrics."""
        parts = self.critic, self.target, self.value
        return expectiles.critic_loss(*parts, batch, self.expectile)

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor, draws: Draws) -> Tensor:
        """Weighted matching, []. The weights [B] are not normalised: their mean is Z."""
        error = self.policy.match(obs, action, *draws, space=self.policy.prediction)
        return (weight * error).mean()


class IQLGaussian:
    """Implicit Q-learning with a Gaussian policy, the published form (arXiv:2110.06169).

    As `IQL`, with the policy maximising w log pi(a|s) over recorded actions. The Gaussian is not
    squashed: recorded actions on the border would have no finite density behind a tanh.

    deploy_mean: deploy the mean rather than a sample.
    """

    pure = ("critic_loss", "policy_loss")

    def __init__(
        self,
        policy: Gaussian,
        critic: QEnsemble,
        generator: torch.Generator,
        run_updates: int,
        value: Value,
        *,
        expectile: float,
        beta: float,
        weight_max: float,
        policy_lr: float,
        critic_lr: float,
        lr_floor: float,
        target_rate: float,
        deploy_mean: bool,
    ) -> None:
        self.policy = policy
        self.critic, self.target = critic, clone(critic)
        self.value = value.to(generator.device)
        self.generator = generator
        self.policy_opt = adam(policy.parameters(), policy_lr)
        self.critic_opt = adam([*critic.parameters(), *value.parameters()], critic_lr)
        self.updates, self.run_updates = 0, run_updates
        self.expectile, self.beta, self.weight_max = expectile, beta, weight_max
        self.policy_lr, self.lr_floor, self.target_rate = policy_lr, lr_floor, target_rate
        self.deploy_mean = deploy_mean

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        action, _ = self.policy.sample(obs, self.policy.noise(len(obs), self.generator))
        return action.clamp(-1, 1)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mean of the policy, or a sample, [N, T, Da]."""
        if self.deploy_mean:
            return self.policy.mean(obs)
        return self.policy.sample(obs, self.policy.noise(len(obs), generator))[0].clamp(-1, 1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        loss, advantage, metrics = self.critic_loss(batch)
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        weight = exp_weight(advantage, self.beta, self.weight_max)
        loss = self.policy_loss(batch.obs, batch.action, weight)
        step(self.policy_opt, loss)
        return metrics | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Negative log density of held-out actions and the critics' loss."""
        nll = -self.policy.log_prob(batch.obs, batch.action).mean()
        return {"val/loss": nll, "val/critic_loss": self.critic_loss(batch)[0]}

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss of V and Q [], advantage [B], metrics."""
        parts = self.critic, self.target, self.value
        return expectiles.critic_loss(*parts, batch, self.expectile)

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        """Weighted negative log density, []."""
        return -(weight * self.policy.log_prob(obs, action)).mean()
