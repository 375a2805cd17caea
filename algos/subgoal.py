"""A base that reaches near goals is led to far ones, by places on the way that values choose."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Aimed
from ..errors import RheoError
from ..policies.candidates import sample
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..policies.waypoints import Way, chosen
from ..ranges import Count, Positive, Quantile, Rate
from .contract import Algorithm
from .losses import Draws, matching_draws
from .optim import adam, step
from .returns import td_target


@dataclass(eq=False)
class Subgoal(Algorithm):
    """Subgoals by a flow and a value, after HECRL (arXiv:2602.02722), over a base that rests.

    A flow learns p(g' | s, g), what was achieved `source.way_steps` after s by recordings that went
    on to g; a value V(x, g) of places under goals learns gamma^d, d the steps between them, as the
    expectile of what transitions under goals in hindsight bring (HIQL, arXiv:2307.11949). The two
    know nothing of each other. Deployed, deploy_candidates places are drawn and the goal itself is
    one more; of those that can be reached from here in deploy_reach steps, V(x, g') >=
    gamma^deploy_reach, the one from which the goal is nearest, max V(g', g), takes the goal's place
    in what the base sees. It is chosen anew in every decision.

    In the paper goals are whole states in factors of entities, and its value is one of states; here
    a goal is some columns, and the value is of these alone, whatever else a state holds. B batch, M
    candidates, Dg columns of a goal.

    Args:
        gamma: Discount per environment step of the value; as source.gamma.
        deploy_candidates: Places drawn per decision, of which one is chosen; of many the best is
            one where the value errs.
        deploy_reach: Steps within which a place counts as one that the base can reach; fewer are
            safer and lead less far.
        expectile: Expectile of what transitions bring that the value learns: 0.5 is the mean of the
            recordings, towards 1 it nears their shortest ways.
        lr: Adam learning rate of the flow and the value.
        target_rate: Share by which the target value moves towards the value per update.
        ema_rate: Share by which the averaged copy that is deployed moves towards the flow and the
            value per update; 1 deploys these themselves.
    """

    pure = ("value_loss", "way_loss")
    beyond = "its base on the way to places that its flow draws and its value chooses"

    policy: FlowPolicy
    generator: torch.Generator
    way: Way
    _: KW_ONLY
    gamma: Rate
    deploy_candidates: Count
    deploy_reach: Positive
    expectile: Quantile
    lr: Positive
    target_rate: Rate
    ema_rate: Rate

    def __post_init__(self) -> None:
        self.way.to(self.generator.device)
        self.policy.requires_grad_(False)
        self.target, self.slow = clone(self.way), clone(self.way)
        self.optimizer = adam(self.way.parameters(), self.lr)
        self.updates = 0

    def read(self, source: Any) -> None:
        """Takes the range of places. Raises RheoError where no waypoints are told."""
        if not hasattr(source, "way_steps"):
            raise RheoError(
                "source: Subgoal learns from places on the way to goals, which this one does not "
                "tell; leave source= out (source=waypoints)"
            )
        for part in (self.way, self.target, self.slow):
            part.fit(source.where(source.train_steps))

    # ------------------------------------------------------------------ acting
    def act(self, obs: Tensor) -> Tensor:
        """As deployed, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the base on its way to a chosen place, [N, T, Da]."""
        place = self.choose(obs, generator)
        return sample(self.policy, None, self.slow.toward(obs, place), generator)

    @torch.no_grad()
    def choose(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The place that is gone to, [N, Dg] in scaled units."""
        way = self.slow
        here, aim = way.here(obs)[:, None], way.aim(obs)[:, None]
        place = torch.cat([way.draw(obs, self.deploy_candidates, generator), aim], 1)
        near = way.value(here.expand_as(place), place)
        far = way.value(place, aim.expand_as(place))
        far[:, -1] = 1.0  # from the goal itself
        index = chosen(near, far, self.gamma**self.deploy_reach)
        return place[torch.arange(len(place), device=place.device), index]

    # ---------------------------------------------------------------- learning
    def update(self, batch: Aimed) -> dict[str, Tensor]:
        """One step of the flow and of the value; metrics are 0-d."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> None:
        """The host's part of an update."""
        self.updates += 1

    def learn_from(self, batch: Aimed) -> dict[str, Tensor]:
        """The device's part: a step on both losses, and the copies follow."""
        value, metrics = self.value_loss(self.way, batch)
        draws = matching_draws(self.way.flow, len(batch.obs), self.generator)
        drawn = self.way_loss(self.way, batch, draws)
        step(self.optimizer, value + drawn)
        lerp_(self.target, self.way, self.target_rate)
        lerp_(self.slow, self.way, self.ema_rate)
        return metrics | {"policy/loss": drawn.detach()}

    def value_loss(self, way: Way, batch: Aimed) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile loss of every network of the value, [], and metrics."""
        aim = way.aim(batch.obs)
        with torch.no_grad():
            ahead = self.target.value(way.here(batch.next_obs), aim)
            goal = td_target(batch.reward, batch.discount, ahead)
        found = way.values(way.here(batch.obs), aim)
        gap = goal - found
        weight = (self.expectile - (gap < 0).to(gap.dtype)).abs()
        loss = (weight * gap.square()).mean(1).sum()
        return loss, {"critic/loss": loss.detach(), "critic/value": found.detach().mean()}

    @staticmethod
    def way_loss(way: Way, batch: Aimed, draws: Draws) -> Tensor:
        """Matching of places on the way, [], the mean of the rows that lead to their goal."""
        place = way.scaled(batch.way).clamp(-1, 1)[:, None]
        error = way.flow.match(batch.obs, place, *draws)
        return (error * batch.leads).sum() / batch.leads.sum().clamp_min(1)

    @torch.no_grad()
    def validate(self, batch: Aimed, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of the averaged flow and value on held-out data."""
        draws = matching_draws(self.slow.flow, len(batch.obs), generator)
        value = self.value_loss(self.slow, batch)[0]
        return {"val/loss": self.way_loss(self.slow, batch, draws), "val/critic_loss": value}
