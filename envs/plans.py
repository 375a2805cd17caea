"""Recorded windows as plans: states beside actions, and how strong their labels are.

S steps, E episodes, T horizon, C labels.
"""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..ranges import Natural, Quantile
from .batch import Windows
from .chunk import ChunkEnv
from .data.recording import Recording
from .datasets import Dataset
from .recorded import refuse_unrewarded, returns_ahead

RETURN = "return"
COLUMN = re.compile(r"obs(\d+)")
HEIGHT, SPEED = "height", "speed"
WALKERS = {  # robot -> the columns of its observations that hold them, in gymnasium's order
    "Hopper": {HEIGHT: 0, SPEED: 5},
    "HalfCheetah": {HEIGHT: 0, SPEED: 8},
    "Walker2d": {HEIGHT: 0, SPEED: 8},
    "Ant": {HEIGHT: 0, SPEED: 13},
    "Humanoid": {HEIGHT: 0, SPEED: 22},
    "Swimmer": {SPEED: 3},
}


@dataclass(eq=False)
class Plans(Dataset):
    """Windows of T states and actions, one for every step, with the strengths of their labels.

    A window that reaches past its episode's end repeats the last step there, and says so in
    `inside`: none crosses into the next episode. A label is a number of a window. Its strength is
    the share of the windows to train on that have less of it, ties counting half.

    Args:
        labels: What is told of a window: return (discounted, to the episode's end), or the mean of
            speed or height (of walking robots) or of obsN, column N of the observation; empty:
            nothing.
        gamma: Discount per environment step of the label return, below 1; as env.gamma.
        pair_batches: Batches at the beginning of a run whose windows come in pairs, with the sign
            of which has more of each label; for algo=align.
    """

    _: KW_ONLY
    labels: list[str]
    gamma: Quantile
    pair_batches: Natural

    def __post_init__(self, env: ChunkEnv | None) -> None:
        self.place = "" if env is None else env.env.id  # where the run acts
        super().__post_init__(env)
        if self.obs_images:
            raise ValueError(
                f"data={self.path}: holds images, and plans are of states; leave them out by "
                "data.obs_keys=[...], or use algo=bc"
            )
        self.strength = strengths(self.amount, self.train_steps.cpu()).to(self.obs.device)

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        amounts = [self.measured(label, recording, last) for label in self.labels]
        self.amount = torch.stack(amounts, -1) if amounts else torch.zeros(len(last), 0)
        return super().prepare(recording, first, last)

    def measured(self, label: str, recording: Recording, last: Tensor) -> Tensor:
        """The label's number of the window at every step, [S]. Raises ValueError."""
        if label == RETURN:
            refuse_unrewarded(recording, self.path, "set source.labels=[], or use algo=bc")
            return returns_ahead(recording, self.gamma)
        column = torch.from_numpy(recording.obs[: len(last), self.column(label, recording)])
        total = torch.cat([torch.zeros(1), column]).double().cumsum(0)
        begin = torch.arange(len(last))
        end = torch.minimum(begin + self.horizon, last + 1)
        return (total[end] - total[begin]) / (end - begin)

    def column(self, label: str, recording: Recording) -> int:
        """The column of the observation that a label names. Raises ValueError."""
        found, width = COLUMN.fullmatch(label), recording.obs.shape[1]
        env_id = recording.about.get("env_id") or self.place
        known = WALKERS.get(env_id.rpartition("-v")[0], {})
        if found and int(found[1]) < width:
            return int(found[1])
        if label in known:
            return known[label]
        of_robot = f", {', '.join(known)}" if known else ""
        where = env_id or "an environment that the file does not name"
        raise ValueError(
            f"source.labels: {label} is no label of data from {where}; choose {RETURN}{of_robot}, "
            f"or a column of the observation, obs0 to obs{width - 1}"
        )

    def next(self, act: Any) -> Windows:
        """A batch of training windows; those of a pair are half a batch apart."""
        if self.updates >= self.pair_batches:
            return super().next(act)
        self.updates += 1
        count, device = (self.batch_size // 2 * 2,), self.generator.device
        pick = torch.randint(len(self.train_steps), count, generator=self.generator, device=device)
        batch = self.rows(self.train_steps[pick])
        return batch._replace(more=self.compared(batch.strength))

    @staticmethod
    def compared(strength: Tensor) -> Tensor:
        """The sign of each one's strength [B, C] less its partner's."""
        return (strength - strength.roll(len(strength) // 2, 0)).sign()

    def windows(self, step: Tensor) -> Windows:
        """The windows that start at the steps [B], with their states and strengths."""
        ahead = torch.arange(self.horizon, device=step.device, dtype=step.dtype)
        rows = torch.minimum(step[:, None] + ahead, self.last[step][:, None])
        told = {"state": self.obs[rows], "strength": self.strength[step]}
        return super().windows(step)._replace(**told)


def strengths(amount: Tensor, among: Tensor) -> Tensor:
    """The share of the rows `among` [M] that have less, ties counting half, [S, C] in [0, 1]."""
    found = torch.empty(amount.shape)
    for k, values in enumerate(amount.T.contiguous()):
        known = values[among].sort().values
        sides = [torch.searchsorted(known, values, right=right) for right in (False, True)]
        found[:, k] = (sides[0] + sides[1]) / (2 * len(known))
    return found
