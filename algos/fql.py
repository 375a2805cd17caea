"""Flow Q-learning: a one-step head that climbs Q, distilled from a cloned flow."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies.flow import FlowPolicy
from ..policies.nets import clone
from ..ranges import NonNegative
from .losses import matching_draws, refuse_jumps
from .matching import BestOf
from .optim import frozen, step
from .returns import pessimistic


class Draws(NamedTuple):
    """The randomness of a policy step."""

    noise: Tensor  # [B, T, Da] of the matching loss
    t: Tensor  # [B]
    start: Tensor  # [B, T, Da] noise that flow and head map to actions


@dataclass(eq=False)
class FQL(BestOf):
    """Flow Q-learning (arXiv:2502.02538).

    `policy` is a flow matched to the recorded actions and nothing else. `head`, the same field with
    one step, minimises alpha |head(s, z) - flow(s, z)|^2 - mean Q(s, head(s, z)) / mean|Q|: it maps
    a noise z to the flow's action in one network call and moves it uphill. Q is the mean of the
    critics; they learn r + discount Q'(s', head(s', z')). No gradient goes through the flow's
    steps. Published values of alpha are for Q itself, not divided by its mean. B batch, T chunk, Da
    action dimension.

    Raises ValueError for a noise prediction, which says nothing about the action at t = 0.

    Args:
        policy_lr: Adam learning rate of the flow and of its one-step head.
        alpha: Weight of the head's distance to the cloned flow against Q, divided by its mean size:
            larger stays closer to the data.
        target_join: How the TD target joins the critics: mean, or min, the smallest.
    """

    pure = ("critic_loss", "policy_loss")
    deploys = "head"

    policy: FlowPolicy
    _: KW_ONLY
    alpha: NonNegative
    target_join: Literal["mean", "min"]

    def __post_init__(self) -> None:
        refuse_jumps(self.policy)
        if self.policy.prediction == "eps":
            raise ValueError(
                "policy.prediction=eps: a one-step head cannot find an action from the noise in "
                "its input; use policy.prediction=v or a"
            )
        self.head = clone(self.policy, frozen=False)
        self.head.steps = 1
        super().__post_init__()

    @staticmethod
    def upgrade(state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state with the count of updates, which was not kept before."""
        return {"updates": 0, **state}

    def tuned(self) -> Iterable[nn.Parameter]:
        """Parameters of flow and head."""
        return [*self.policy.parameters(), *self.head.parameters()]

    def deployed(self) -> FlowPolicy:
        """The head."""
        return self.head

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the head, [N, T, Da]."""
        return self.head.act(obs, self.head.noise(len(obs), self.generator))

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and one step of flow and head; metrics are 0-d."""
        rows = len(batch.obs)
        loss, metrics = self.critic_loss(batch, self.head.noise(rows, self.generator))
        self.learn_critic(loss)
        with frozen(self.critic):
            loss, more = self.policy_loss(batch.obs, batch.action, self.draw(rows, self.generator))
            step(self.policy_opt, loss)
        return metrics | more

    def draw(self, rows: int, generator: torch.Generator) -> Draws:
        """Randomness of a policy step."""
        noise, t = matching_draws(self.policy, rows, generator)
        return Draws(noise, t, self.policy.noise(rows, generator))

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the flow, and the head's distance to it, on held-out data."""
        draws = self.draw(len(batch.obs), generator)
        return {
            "val/loss": self.cloning(batch.obs, batch.action, draws),
            "val/distance": self.distance(batch.obs, draws)[0],
        }

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; noise [B, T, Da] of the next actions."""
        with torch.no_grad():
            values = self.target(batch.next_obs, self.head.act(batch.next_obs, noise))
            value = pessimistic(values, self.target_join)
        return self.td(batch, value)

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Matching of the flow, distillation and normalised Q of the head, [], and metrics."""
        cloning = self.cloning(obs, action, draws)
        distance, own = self.distance(obs, draws)
        q = self.critic(obs, own.clamp(-1.0, 1.0)).mean(0)
        climb = -q.mean() / q.detach().abs().mean().clamp_min(1e-8)
        loss = cloning + self.alpha * distance + climb
        return loss, {
            "policy/loss": loss.detach(),
            "policy/bc": cloning.detach(),
            "policy/distance": distance.detach(),
        }

    def cloning(self, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        """Matching loss of the flow, []."""
        policy = self.policy
        return policy.match(obs, action, draws.noise, draws.t, space=policy.prediction).mean()

    def distance(self, obs: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mean squared distance of the head to the flow from the same noise [], and the head's
        actions [B, T, Da] before they are clipped."""
        with torch.no_grad():
            goal = self.policy.act(obs, draws.start)
        own = self.head.act(obs, draws.start, clip=False)
        return (own - goal).square().mean(), own
