"""Places on the way to a goal: a flow that draws them, a value of how near two of them are."""

import torch
from torch import Tensor, nn

from ..ranges import Count
from .critics import QEnsemble
from .flow import FlowPolicy
from .nets import MLP
from .normalize import Normalizer, statistics


class Way(nn.Module):
    """What is known of goals: `flow` draws places on the way, `value` tells how near two are.

    A place is what an observation tells in the columns `achieved`, a goal what it tells in `goal`;
    of a history the last step counts. Both are scaled to the range of recorded places, once `fit`
    has seen these. M candidates, Dg columns of a goal.

    Args:
        goal: Columns of the observation that name the goal; as source.goal.
        achieved: Columns that tell what is achieved; as source.achieved.
        width: Units of each hidden layer, of the flow and of the value.
        depth: Number of hidden layers.
        activation: Nonlinearity between the layers: relu, silu, mish, gelu or tanh.
        steps: Integration steps of the flow per place.
        members: Networks of the value, of which the smallest counts.
    """

    goal: Tensor
    achieved: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        obs_dim: int,
        obs_steps: int,
        obs_norm: Normalizer | None = None,
        *,
        goal: list[int],
        achieved: list[int],
        width: Count,
        depth: Count,
        activation: str,
        steps: Count,
        members: Count,
    ) -> None:
        super().__init__()
        self.obs_steps, size = obs_steps, len(goal)
        # tensors, since a list would be copied to the device each time it is an index
        self.register_buffer("goal", torch.tensor(goal), persistent=False)
        self.register_buffer("achieved", torch.tensor(achieved), persistent=False)
        self.obs_norm = statistics(obs_dim, obs_norm)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        net = MLP(
            obs_dim, size, 1, width=width, depth=depth, encoder_depth=1, activation=activation
        )
        self.flow = FlowPolicy(
            net, path="linear", levels=None, prediction="v", steps=steps, sampler="euler", eta=0.0,
            clip_x=False, clip_a=False, squash="clip", obs_norm=self.obs_norm,
            action_norm=Normalizer(size, kind="none"),
        )  # fmt: skip
        self.nearness = QEnsemble(
            size, size, 1, members=members, width=width, depth=depth, layer_norm=True,
            activation=activation,
        )  # fmt: skip

    @torch.no_grad()
    def fit(self, place: Tensor) -> None:
        """Takes the range of places [R, Dg] for that from -1 to 1."""
        low, high = place.amin(0), place.amax(0)
        self.centre.copy_((low + high) / 2)
        self.spread.copy_(torch.where(high > low, (high - low) / 2, 1.0))

    def scaled(self, place: Tensor) -> Tensor:
        """Places [..., Dg] in scaled units."""
        return (place - self.centre) / self.spread

    def here(self, obs: Tensor) -> Tensor:
        """Where an observation [..., O] is, [..., Dg] in scaled units."""
        return self.scaled(self.last(obs)[..., self.achieved])

    def aim(self, obs: Tensor) -> Tensor:
        """The goal of an observation [..., O], [..., Dg] in scaled units."""
        return self.scaled(self.last(obs)[..., self.goal])

    def last(self, obs: Tensor) -> Tensor:
        """The last step of histories [..., To*Do], [..., Do]."""
        return obs.unflatten(-1, (self.obs_steps, -1))[..., -1, :]

    def values(self, place: Tensor, goal: Tensor) -> Tensor:
        """What each network says of places under goals [..., Dg], 0 to 1, [members, ...].

        gamma^d is learned, with d the steps from the one to the other.
        """
        return self.nearness(place, goal[..., None, :]).sigmoid()

    def value(self, place: Tensor, goal: Tensor) -> Tensor:
        """The smallest of `values`, [...]."""
        return self.values(place, goal).amin(0)

    def draw(self, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Places on the way from observations [N, O] to their goals, [N, M, Dg] in scaled units."""
        noise = self.flow.noise((len(obs), count), generator)
        return self.flow.act(obs, noise)[..., 0, :]

    def toward(self, obs: Tensor, place: Tensor) -> Tensor:
        """Observations [N, O] whose goal, in every step, is a place [N, Dg] in scaled units."""
        rows = obs.unflatten(-1, (self.obs_steps, -1)).clone()
        rows[..., self.goal] = (place * self.spread + self.centre)[..., None, :]
        return rows.flatten(-2)


def chosen(near: Tensor, far: Tensor, least: float) -> Tensor:
    """Which of M candidates is gone to, [N]: of those that can be reached the nearest to the goal.

    near, far [N, M]: values of the candidate from here, and of the goal from the candidate. A
    candidate can be reached whose value is at least `least`; where none can, the nearest one is
    gone to.
    """
    can = near >= least
    worth = torch.where(can, far, -torch.inf)
    return torch.where(can.any(1, keepdim=True), worth, near).argmax(1)
