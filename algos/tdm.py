"""TDM-R1: gradients of Q through one jump, held to a clone's density by matching distributions."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.nets import clone
from ..ranges import Count, NonNegative, Positive
from . import onestep
from .anchors import dmd
from .losses import Draws as Law
from .losses import row_times
from .onestep import OneStep, boxed
from .optim import adam, anneal, step

T_MIN, T_MAX = 0.02, 0.98  # at which laws are compared, as published


class Drawn(NamedTuple):
    """The randomness of a policy step."""

    step: onestep.Draws
    law: Law  # noises and times at which densities are compared


@dataclass(eq=False)
class TDM(OneStep):
    """A one-step policy that climbs Q and keeps the density of a clone (arXiv:2603.07700).

    The anchor is distribution matching (arXiv:2311.18828): own actions a are noised to x_t, and
    (score_fake - score_real)(x_t), the gradient of KL(own density || clone's) there, goes into the
    network through a. `base`, the policy of init=RUN, is the real field and stays; `fake`, which
    starts as it, follows the own actions by flow matching, fake_updates steps per policy step.
    Where cloning (`algo=ofql`) asks that every recorded action be reached, this asks that no own
    action lie where the clone has none: the anchor keeps to modes and may leave some.

    The paper tunes a few-step image model, whose surrogate of rewards is the critic here. B batch,
    T chunk, Da action dimension.

    Args:
        dmd_coef: Weight of distribution matching: larger stays closer to the clone's density.
        clone_coef: Weight of cloning the recorded actions besides, by average velocities; 0: none,
            then data teach the critics alone, and jump, flow_share and the weight's keys are
            without effect.
        fake_updates: Steps per policy step of the field that follows the policy's own actions.
        fake_lr: Adam learning rate of that field.
    """

    pure = ("critic_loss", "policy_loss", "fake_loss")

    _: KW_ONLY
    dmd_coef: NonNegative
    clone_coef: NonNegative
    fake_updates: Count
    fake_lr: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        self.base, self.fake = clone(self.policy), clone(self.policy, frozen=False)
        self.fake_opt = adam(self.fake.parameters(), self.fake_lr)

    def begin(self) -> float:
        """Sets the rate of the fake field too, along the policy's cosine."""
        share = super().begin()
        anneal(self.fake_opt, self.fake_lr, share, self.lr_floor)
        return share

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """Steps of the fake field, then one of the critics and one of the policy; 0-d."""
        rows, told = len(batch.obs), {}
        for _ in range(self.fake_updates):
            start = self.policy.noise(rows, self.generator)
            loss = self.fake_loss(batch.obs, start, self.law(rows, self.generator))
            step(self.fake_opt, loss, self.max_norm)
            told = {"policy/fake": loss.detach()}
        return super().learn_from(batch) | told

    def law(self, rows: int, generator: torch.Generator) -> Law:
        """Noises and times at which a field is asked."""
        return Law(self.policy.noise(rows, generator), row_times(rows, generator, T_MIN, T_MAX))

    def draw(self, rows: int) -> Any:
        """Randomness of a policy step, a `Drawn`."""
        return Drawn(super().draw(rows), self.law(rows, self.generator))

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The distance of both fields at the averaged policy's actions, and of cloning if any."""
        policy, rows = self.average, len(batch.obs)
        point = policy.integrate(policy.features(batch.obs), policy.noise(rows, generator))
        law = self.law(rows, generator)
        told = {"val/dmd": dmd(point, batch.obs, self.base, self.fake, *law)[1]}
        return told | (super().validate(batch, generator) if self.clone_coef > 0 else {})

    def fake_loss(self, obs: Tensor, start: Tensor, law: Law) -> Tensor:
        """Flow matching of the policy's own actions, []."""
        with torch.no_grad():
            point = self.policy.integrate(self.policy.features(obs), start)
            place = law.t[:, None, None]
            x = place * point + (1 - place) * law.noise
        error = self.fake.velocity(x, law.t, self.fake.features(obs)) - (point - law.noise)
        return error.square().mean()

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Drawn
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distribution matching, the normalised Q term and cloning, [], and metrics."""
        point = self.policy.integrate(self.policy.features(obs), draws.step.start)
        law, gap = dmd(point, obs, self.base, self.fake, *draws.law)
        loss = self.dmd_coef * law
        told = {"policy/dmd": gap}
        if self.eta > 0:
            own = boxed(self.policy.to_action(point, clip=False))
            loss = loss + self.eta * self.climb(obs, own, draws.step.member)
        if self.clone_coef > 0:
            cloning = self.cloning(obs, action, draws.step)
            loss, told = loss + self.clone_coef * cloning, told | {"policy/bc": cloning.detach()}
        return loss, {"policy/loss": loss.detach(), **told}
