"""Safe learning from recorded data: rewards where a state can stay safe, the way back elsewhere."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies.candidates import sample
from ..policies.nets import clone, lerp_
from ..ranges import NonNegative, Positive, Quantile
from .expectile import Implicit, expectile_loss
from .losses import Draws, matching_times
from .matching import Matching
from .reach import feasible_weight, reach_target, violation
from .returns import td_loss


@dataclass(eq=False)
class FISOR(Implicit, Matching):
    """Feasibility-guided safe offline learning (arXiv:2401.10700).

    Two critics look at recorded actions only. That of rewards is `Implicit`. That of costs is a
    reachability: Qh learns (1 - d) h + d max(h, Vh(s')) of h, `unsafe` where a decision cost more
    than `margin` and -1 where not, and Vh the expectile of the largest Qh' towards its smallest
    action. Vh <= 0 says that the state can stay safe. The policy matches recorded actions with the
    weights of `reach.feasible_weight`: the better ones among those that keep such a state safe, and
    where it is too late those after which the least happens. Deployed is, of several samples, the
    one with the smallest of the largest Qh', or the highest Q. The networks of costs are of the
    sizes of those of rewards, and begin where these do.

    Published code takes time limits for ends by the task, matches two more halves of a batch per
    critic step, and has three residual blocks with dropout; here a cut episode keeps its bootstrap.
    Actions are those of the noisy chain (`policy.eta`), as published. B batch, T chunk, Da action
    dimension.

    Args:
        cost_expectile: Expectile of the cost critic over recorded actions that the state's
            reachability learns, towards 1 its smallest: 0.5 is the mean.
        beta: Inverse temperature of the weights exp(beta * advantage) where a state can stay safe,
            per unit of Q: larger copies the better actions only, 0 clones safe ones alike.
        weight_max: Limit of the weights exp(beta * advantage).
        cost_beta: Inverse temperature of the weights where a state cannot stay safe, per unit of
            the cost critic: larger copies only the actions after which the least happens.
        cost_weight_max: Limit of the weights where a state cannot stay safe.
        unsafe: What a decision that costs more than margin counts in the cost critic; one that does
            not counts -1.
        margin: Cost of a step, of several the largest, above which a decision is unsafe.
        deploy_by: What chooses among deploy_candidates: cost, the least reachable cost, or reward,
            the highest Q.
    """

    pure = ("critic_loss", "cost_loss", "policy_loss")
    noisy_steps = True  # what is deployed has noise in its transitions
    needs_costs = True

    _: KW_ONLY
    cost_expectile: Quantile
    beta: NonNegative
    weight_max: Positive
    cost_beta: NonNegative
    cost_weight_max: Positive
    unsafe: Positive
    margin: NonNegative
    deploy_by: Literal["cost", "reward"]

    def __post_init__(self) -> None:
        self.cost_critic, self.cost_target = clone(self.critic, frozen=False), clone(self.critic)
        self.cost_value = clone(self.value, frozen=False).to(self.generator.device)
        super().__post_init__()

    def judging(self) -> Iterable[nn.Parameter]:
        """Parameters of Q and V, and of those of costs."""
        return [
            *super().judging(),
            *self.cost_critic.parameters(),
            *self.cost_value.parameters(),
        ]

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy's noisy chain, [N, T, Da]."""
        noise = self.policy.noise(len(obs), self.generator)
        return self.policy.drawn(obs, noise, self.generator, self.policy.eta)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The sample with the least reachable cost, or what `BestOf` deploys, [N, T, Da]."""
        if self.deploy_by == "reward":
            return super().deploy(obs, generator)
        count, heat = self.deploy_candidates, self.deploy_temperature
        return sample(self.average, self.safety, obs, generator, count, heat, self.average.eta)

    def safety(self, obs: Tensor, action: Tensor) -> Tensor:
        """-Qh' of every member, the smallest of which is that of the largest cost, [E, ...]."""
        return -self.cost_target(obs, action)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all critics and one of the policy; metrics are 0-d."""
        loss, advantage, metrics = self.critic_loss(batch)
        cost_loss, risk, value, more = self.cost_loss(batch)
        self.learn_critic(loss + cost_loss)
        lerp_(self.cost_target, self.cost_critic, self.target_rate)
        weight = feasible_weight(
            *(advantage, risk, value),
            (self.beta, self.weight_max),
            (self.cost_beta, self.cost_weight_max),
        )
        draws = self.draw(len(batch.obs), self.generator)
        loss = self.policy_loss(batch.obs, batch.action, weight, draws)
        self.learn_policy(loss)
        metrics |= more | {"policy/loss": loss.detach(), "policy/weight": weight.mean()}
        return metrics | {"policy/matched": (weight > 0).float().mean()}

    def cost_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Loss of Vh and Qh [], the largest Qh' of recorded actions and Vh [B], metrics."""
        assert batch.cost is not None
        with torch.no_grad():
            risk = self.cost_target(batch.obs, batch.action).amax(0)
            h = violation(batch.cost, self.margin, self.unsafe)
            target = reach_target(h, batch.discount, self.cost_value(batch.next_obs))
        value = self.cost_value(batch.obs)
        value_loss = expectile_loss(risk - value, 1.0 - self.cost_expectile)
        loss = td_loss(self.cost_critic(batch.obs, batch.action), target)
        value = value.detach()
        return (
            loss + value_loss,
            risk,
            value,
            {
                "critic/cost_loss": loss.detach(),
                "critic/cost_value": value.mean(),
                "critic/infeasible": (value > 0).float().mean(),
            },
        )

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Noises and times of a matching step, these at the levels of a table."""
        return Draws(
            self.policy.noise(rows, generator),
            matching_times(self.policy.path, rows, generator),
        )

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted matching loss of the averaged policy, and the critics', on held-out data."""
        draws = self.draw(len(batch.obs), generator)
        error = self.average.match(batch.obs, batch.action, *draws, space=self.average.prediction)
        return {
            "val/loss": error.mean(),
            "val/critic_loss": self.critic_loss(batch)[0],
            "val/cost_loss": self.cost_loss(batch)[0],
        }

    def policy_loss(self, obs: Tensor, action: Tensor, weight: Tensor, draws: Draws) -> Tensor:
        """Weighted matching, []. The weights [B] are not normalised."""
        error = self.policy.match(obs, action, *draws, space=self.policy.prediction)
        return (weight * error).mean()
