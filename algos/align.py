"""Plans asked for by attributes whose strength is learned from pairs of recorded windows."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Windows
from ..errors import RheoError
from ..policies.nets import Stack
from ..ranges import Count, Positive
from .optim import adam, step
from .planning import Planning
from .preferences import agreement, bradley_terry, preferred

REMEMBERED = 4096  # windows among which the strength of others is a rank


@dataclass(eq=False)
class Align(Planning):
    """Strengths of attributes by the model of Bradley and Terry, then plans told them (AlignDiff,
    arXiv:2310.02054).

    The first batches come in pairs, with the sign of which window has more of each attribute
    (source.pair_batches). On them a network learns one number of a step for each attribute, whose
    mean over a window is its z: -log sigmoid(z - z') of the one that has more. Then it rests, and
    plans learn as in `Planning`, told the strengths of their own windows: only the order of z means
    anything, so a strength is the share of the last REMEMBERED windows whose z is smaller. Which
    strength a deployed plan should have is `policy.want`.

    Args:
        strength_lr: Adam learning rate of the network of strengths.
        strength_width: Units of its hidden layers.
        strength_depth: Hidden layers.
    """

    pure = ("loss", "strength_loss")

    _: KW_ONLY
    strength_lr: Positive
    strength_width: Count
    strength_depth: Count

    def __post_init__(self, executed: int | None) -> None:
        super().__post_init__(executed)
        if not self.labels:
            raise ValueError("policy.want=[]: no attribute is asked for; use algo=plan")
        width, policy = self.strength_width, self.policy
        sizes = [policy.state_dim + policy.action_dim, *[width] * self.strength_depth, self.labels]
        device = self.generator.device
        self.attributes = Stack(sizes, "silu").to(device)
        self.attributes_opt = adam(self.attributes.parameters(), self.strength_lr)
        self.remembered = torch.zeros(REMEMBERED, self.labels, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def read(self, source: Any) -> None:
        """As `Planning.read`; and raises RheoError where no windows are compared."""
        super().read(source)
        if not source.pair_batches:
            raise RheoError(
                "source.pair_batches=0: strengths are learned from pairs of windows, in the first "
                "batches of a run; set it to 1000, or use algo=plan"
            )

    def learn_from(self, batch: Windows) -> dict[str, Tensor]:
        """One step of the strengths where windows come in pairs, else one of the plans."""
        if batch.more is None:
            self.note(batch)
            return super().learn_from(batch)
        loss, right = self.strength_loss(self.value(batch), batch.more)
        step(self.attributes_opt, loss, self.max_norm)
        return {"strength/loss": loss.detach(), "strength/accuracy": right}

    def value(self, batch: Windows) -> Tensor:
        """z of every window and attribute, [B, C]."""
        _, plan, _ = self.planned(batch)
        steps = self.attributes(self.policy.to_latent(plan))
        inside = batch.inside[..., None].to(steps.dtype)
        return (steps * inside).sum(1) / inside.sum(1)

    def strength_loss(self, value: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of pairs, half a batch apart, and the share that is told right, [] each.

        value and more [B, C]; the second half of `more` is the first one's opposite.
        """
        half = len(value) // 2
        pair = torch.stack([value[:half], value[half:]], -1).flatten(0, 1)  # [B / 2 C, 2]
        sign = torch.stack([more[:half], more[half:]], -1).flatten(0, 1)
        sign = preferred(sign, "hard", self.generator)
        return bradley_terry(pair, sign, 1.0), agreement(pair.detach(), sign)

    @torch.no_grad()
    def note(self, batch: Windows) -> None:
        """Puts the windows' z at the end of what is remembered, in place of the oldest."""
        value = self.value(batch)[-REMEMBERED:]
        self.remembered.copy_(torch.cat([self.remembered, value])[-REMEMBERED:])
        self.count.add_(len(value)).clamp_(max=REMEMBERED)

    @torch.no_grad()
    def strengths(self, batch: Windows) -> Tensor:
        """The share of the remembered windows whose z is smaller, ties counting half, [B, C]."""
        value, known = self.value(batch)[:, None], self.remembered
        place = torch.arange(REMEMBERED, device=known.device)
        there = (place >= REMEMBERED - self.count)[:, None].to(value.dtype)
        less = (known < value).to(value.dtype) + 0.5 * (known == value).to(value.dtype)
        return (less * there).sum(1) / there.sum().clamp_min(1.0)

    @torch.no_grad()
    def validate(self, batch: Windows, generator: torch.Generator) -> dict[str, Tensor]:
        """As `Planning`; of held-out windows, taken as pairs, the share that is told right."""
        found = super().validate(batch, generator)
        value, known = self.value(batch), batch.strength
        if known is None or len(value) < 2:
            return found
        rows = torch.randperm(len(value), generator=generator, device=value.device)
        rows = rows[: len(rows) // 2 * 2]
        more = (known[rows] - known[rows].roll(len(rows) // 2, 0)).sign()
        _, right = self.strength_loss(value[rows], more)
        return found | {"val/accuracy": right}
