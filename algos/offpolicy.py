"""Learning off policy: a policy and a critic, their optimisers, and the copies that follow them.

What several algorithms state alike; the fields are keys of every algorithm that inherits them.
B batch, N environments, T chunk, Da action dimension.
"""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies.critics import QEnsemble
from ..policies.nets import clone, lerp_
from ..ranges import Positive, Rate, Share
from .contract import Algorithm
from .optim import adam, anneal, step
from .returns import td_loss, td_target


@dataclass(eq=False)
class OffPolicy(Algorithm):
    """A policy and a critic that learn from transitions, wherever these come from.

    Args:
        policy_lr: Adam learning rate of the policy.
        critic_lr: Adam learning rate of the critics.
        target_rate: Share by which the target critic moves towards the critic after each of its
            updates (Polyak averaging); 1 copies it.
    """

    policy: Any
    critic: QEnsemble
    generator: torch.Generator
    _: KW_ONLY
    policy_lr: Positive
    critic_lr: Positive
    target_rate: Rate

    def __post_init__(self) -> None:
        self.target = clone(self.critic)
        self.policy_opt = adam(self.tuned(), self.policy_lr)
        self.critic_opt = adam(self.judging(), self.critic_lr)
        self.updates = 0

    def tuned(self) -> Iterable[nn.Parameter]:
        """Parameters that the policy's optimiser moves."""
        return self.policy.parameters()

    def judging(self) -> Iterable[nn.Parameter]:
        """Parameters that the critic's optimiser moves."""
        return self.critic.parameters()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Counts an update, sets its rates, and learns; metrics are 0-d tensors."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> float:
        """The host's part of an update. Returns how much of the run is over, where that counts."""
        self.updates += 1
        return 0.0

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """The device's part: asks it nothing, and decides by nothing that changes on the host, but
        by which multiples of fields named `*_every` the number of updates is.
        """
        raise NotImplementedError

    def learn_critic(self, loss: Tensor, max_norm: float | None = None) -> None:
        """One step on the critic's loss []; the target follows."""
        step(self.critic_opt, loss, max_norm)
        lerp_(self.target, self.critic, self.target_rate)

    def backup(
        self,
        batch: Batch,
        next_action: Tensor,
        here: Sequence[Tensor] = (),
        ahead: Sequence[Tensor] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss [] of every critic towards r + discount min Q'(s', a'), and metrics.

        here, ahead: what critics are told beside obs and beside next_obs (`recall.told`).
        """
        with torch.no_grad():
            value = self.target(batch.next_obs, next_action, *ahead).amin(0)
        return self.td(batch, value, here)

    def td(
        self, batch: Batch, value: Tensor, beside: Sequence[Tensor] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss [] of every critic towards r + discount value, and metrics.

        value [B] of next_obs, without gradient; beside: what critics are told beside obs.
        """
        q = self.critic(batch.obs, batch.action, *beside)
        loss = td_loss(q, td_target(batch.reward, batch.discount, value))
        return loss, {"critic/loss": loss.detach(), "critic/q": q.detach().mean()}


@dataclass(eq=False)
class Scheduled(OffPolicy):
    """The policy's learning rate falls over run_updates.

    Args:
        lr_floor: Share of the policy's learning rate that is left at the end of the run, reached
            along a cosine; 1 keeps it constant.
    """

    run_updates: int
    _: KW_ONLY
    lr_floor: Share

    def begin(self) -> float:
        """Sets the policy's rate too. Returns how much of the run is over."""
        super().begin()
        share = self.updates / max(self.run_updates, 1)
        anneal(self.policy_opt, self.policy_lr, share, self.lr_floor)
        return share
