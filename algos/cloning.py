"""What every way of cloning demonstrations shares: schedule, average, rows of velocities and jumps.

B batch, N environments, O observation history, T chunk, Da action dimension.
"""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch, Windows
from ..policies.fewstep import FewStepPolicy
from ..policies.nets import clone, lerp_
from ..ranges import NonNegative, Positive, Rate, Share
from . import jumping
from .contract import Algorithm
from .optim import adam, cosine, set_rate, step


@dataclass(eq=False)
class Cloning(Algorithm):
    """A policy, its optimiser and the averaged copy that is deployed.

    run_updates: length of the run, for the schedule.

    Args:
        lr: AdamW learning rate between the warm-up and the cosine decay.
        weight_decay: Weight decay of AdamW; 0: none.
        lr_warmup: Share of the run over which the learning rate rises linearly from 0 to lr; 0: no
            warm-up.
        lr_floor: Share of lr that is left at the end of the run, reached along a cosine; 1 keeps it
            constant.
        ema_rate: Share by which the averaged copy that is deployed moves towards the policy per
            update; 1 deploys the raw weights.
        learn_padding: Whether the copies of an episode's last action that fill up a chunk past its
            end are cloned too.
        max_norm: Largest gradient norm of an update; a longer gradient is scaled down to it.
    """

    policy: Any
    generator: torch.Generator
    run_updates: int
    _: KW_ONLY
    lr: Positive
    weight_decay: NonNegative
    lr_warmup: Share
    lr_floor: Share
    ema_rate: Rate
    learn_padding: bool
    max_norm: Positive

    def __post_init__(self) -> None:
        self.average = clone(self.policy)
        self.optimizer = adam(self.policy.parameters(), self.lr, self.weight_decay)
        self.updates = 0

    def act(self, obs: Tensor) -> Tensor:
        """Action chunk [N, T, Da] for obs [N, O]."""
        return self.deploy(obs, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the averaged policy, [N, T, Da]."""
        return self.average.act(obs, self.average.start(len(obs), generator))

    def example(self, batch: Batch | Windows) -> tuple[Tensor, Tensor, Tensor | None]:
        """Observations, actions, and which of those count (None: all)."""
        if self.learn_padding or not isinstance(batch, Windows):
            return batch.obs, batch.action, None
        return batch.obs, batch.action, batch.inside

    def update(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """Counts an update, sets its rate, and learns; metrics are 0-d tensors."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> None:
        """The host's part of an update."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        set_rate(self.optimizer, self.lr * cosine(share, self.lr_warmup, self.lr_floor))

    def learn_from(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """The device's part: asks it nothing, and decides by nothing that changes on the host."""
        raise NotImplementedError

    def descend(self, loss: Tensor) -> None:
        """One step on `loss` []; the average follows."""
        step(self.optimizer, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)


@dataclass(eq=False)
class JumpCloning(Cloning):
    """Cloning with average velocities: one regression, two kinds of rows (`algos.jumping`).

    What a jump is regressed on is of the subclass. Batches of a source come shuffled, and
    `validate` shuffles its own.
    """

    pure = ("errors",)
    trains_jumps = True
    policy: FewStepPolicy

    def learn_from(self, batch: Batch | Windows) -> dict[str, Tensor]:
        """One step on velocities and jumps; metrics are 0-d tensors, all but `loss` unweighted."""
        losses = self.losses(self.policy, batch, self.generator)
        self.descend(losses["loss"])
        return {f"policy/{name}": value.detach() for name, value in losses.items()}

    def jumps(self, rows: int) -> int:
        """How many of a batch's rows learn jumps."""
        raise NotImplementedError

    def spans(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the jumps of so many rows start and end: t and s, [rows] each."""
        raise NotImplementedError

    def target(
        self, policy: FewStepPolicy, x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor
    ) -> Tensor:
        """What u(x, t, s) is regressed on, [J, T, Da] without gradient, v = a - eps of the rows."""
        raise NotImplementedError

    def losses(
        self, policy: FewStepPolicy, batch: Batch | Windows, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The mean `loss` of all rows with its gradient, and that of either kind without, []."""
        rows = len(batch.obs)
        count = self.jumps(rows)
        error = self.errors(policy, *self.example(batch), *self.draw(rows, generator))
        plain = error.detach()
        parts = {"flow_loss": plain[count:], "jump_loss": plain[:count]}
        means = {name: part.mean() for name, part in parts.items() if len(part)}
        return {"loss": self.weighted(error).mean(), **means}

    def weighted(self, error: Tensor) -> Tensor:
        """The squared errors [B] as they enter the loss."""
        return error

    @torch.no_grad()
    def validate(self, batch: Batch | Windows, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of the averaged policy on held-out data, whose order means nothing."""
        device = generator.device
        rows = torch.randperm(len(batch.obs), generator=generator, device=device)
        losses = self.losses(self.average, batch.take(rows), generator)
        return {f"val/{name}": value for name, value in losses.items()}

    def draw(self, rows: int, generator: torch.Generator) -> jumping.Draws:
        """Noise [B, T, Da] and the times t and s [B]: jumps first, then s = t."""
        return jumping.draws(self.policy, rows, self.jumps(rows), self.spans, generator)

    def errors(
        self,
        policy: FewStepPolicy,
        obs: Tensor,
        action: Tensor,
        inside: Tensor | None,
        noise: Tensor,
        t: Tensor,
        s: Tensor,
    ) -> Tensor:
        """|u(x_t, t, s) - target|^2 of every row [B], the mean over T * Da."""
        drawn, target = jumping.Draws(noise, t, s), partial(self.target, policy)
        return jumping.errors(policy, obs, action, inside, drawn, self.jumps(len(obs)), target)
