"""Transitions over several decisions: n-step returns (arXiv:1602.01783, section 4)."""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import Batch


class Decision(NamedTuple):
    """One decision of N environments."""

    batch: Batch  # [N, ...] each
    ended: Tensor  # [N] bool: the episode does not go on behind it
    valid: Tensor  # [N] bool


def join(decisions: list[Decision]) -> tuple[Batch, Tensor]:
    """The transition from the first decision's state to the last one's successor, and its validity.

    Rewards are summed under the product of the discounts before them, which is the discount of the
    whole, and the largest cost counts; an episode that ends on the way is left there, with its own
    bootstrap. One broken step makes the whole transition invalid. N rows each.
    """
    batch, ended, valid = decisions[0]
    reward, discount, next_obs, goes_on = batch.reward, batch.discount, batch.next_obs, ~ended
    cost = batch.cost
    for later, ended, sound in decisions[1:]:
        reward = torch.where(goes_on, reward + discount * later.reward, reward)
        discount = torch.where(goes_on, discount * later.discount, discount)
        next_obs = torch.where(goes_on[:, None], later.next_obs, next_obs)
        if cost is not None and later.cost is not None:
            cost = torch.where(goes_on, torch.maximum(cost, later.cost), cost)
        valid = valid & (sound | ~goes_on)
        goes_on = goes_on & ~ended
    return Batch(batch.obs, batch.action, reward, discount, next_obs, cost), valid


class Pending:
    """The last n decisions, joined to one transition whenever there are n of them.

    The rewards between are those of the actions that were taken, not of the policy that learns: off
    policy an n-step target is biased towards the behaviour, and soon worth it where that is close.
    The last n - 1 decisions of a run are never given out. n = 1 passes everything on.
    """

    def __init__(self, n: int) -> None:
        self.size = n
        self.window: deque[Decision] = deque(maxlen=n)

    def add(self, batch: Batch, ended: Tensor, valid: Tensor) -> tuple[Batch, Tensor] | None:
        """Takes a decision; returns the transition that begins n - 1 decisions before it."""
        if self.size == 1:
            return batch, valid
        # environments may reuse their memory
        copies = Batch(*(column.clone() for column in batch.columns))
        self.window.append(Decision(copies, ended.clone(), valid.clone()))
        return join(list(self.window)) if len(self.window) == self.size else None

    def state_dict(self) -> dict[str, Any]:
        """The decisions that wait."""
        return {"window": [(d.batch.columns, d.ended, d.valid) for d in self.window]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores what `state_dict` returned."""
        self.window.clear()
        for columns, *flags in state["window"]:
            batch = Batch(*(column.to(device) for column in columns))
            self.window.append(Decision(batch, *(flag.to(device) for flag in flags)))
