"""Recorded windows as plans: states beside actions, and how strong their labels are.

S steps, E episodes, T horizon, C labels.
"""

import re
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ranges import Natural, Quantile
from .batch import Windows
from .chunk import ChunkEnv
from .data.judged import read_judged
from .data.recording import Recording, Refused
from .datasets import Dataset
from .recorded import fingerprint, refuse_unrewarded, returns_ahead

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
        judged: File of people's comparisons of windows, which stand in place of what labels are
            measured by (they then only name its columns); null: compared as measured.
    """

    _: KW_ONLY
    labels: list[str]
    gamma: Quantile
    pair_batches: Natural
    judged: str | None

    def __post_init__(self, env: ChunkEnv | None) -> None:
        self.place = "" if env is None else env.env.id  # where the run acts
        super().__post_init__(env)
        if self.judged is None:
            self.strength = strengths(self.amount, self.train_steps.cpu()).to(self.obs.device)

    @property
    def row_size(self) -> int:
        """The states of the window too."""
        return self.obs_size + self.width * self.horizon

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        if self.judged is None:
            amounts = [self.measured(label, recording, last) for label in self.labels]
            self.amount = torch.stack(amounts, -1) if amounts else torch.zeros(len(last), 0)
        else:
            self.judge(self.judged, recording)
        return super().prepare(recording, first, last)

    def judge(self, file: str, recording: Recording) -> None:
        """Reads the comparisons of a file. Raises ValueError."""
        if recording.about.get("dropped"):
            raise ValueError(
                f"source.judged={file}: its steps are counted in the whole recording, of which "
                "episodes are dropped; set data.on_bad=refuse (or clip)"
            )
        try:
            pairs, more = read_judged(file, len(recording.action), len(self.labels))
        except Refused as error:  # which is of a recording elsewhere
            raise ValueError(str(error).replace("data=", "source.judged=", 1)) from error
        device = self.generator.device
        self.pairs, self.more = (torch.from_numpy(one).to(device) for one in (pairs, more))
        self.digest = fingerprint([np.frombuffer(self.digest.encode(), np.uint8), pairs, more])

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
        step, more = self.paired(self.batch_size // 2)
        return self.rows(step)._replace(more=more)

    def paired(self, count: int) -> tuple[Tensor, Tensor]:
        """Steps at which so many pairs of windows begin, the first ones and then the second ones
        [2 count], and the sign of which has more, likewise [2 count, C].
        """
        generator, where = self.generator, self.generator.device
        if self.judged is None:
            size = (2, count)
            pick = torch.randint(len(self.train_steps), size, generator=generator, device=where)
            step = self.train_steps[pick]
            more = (self.strength[step[0]] - self.strength[step[1]]).sign()
        else:
            pick = torch.randint(len(self.pairs), (count,), generator=generator, device=where)
            step, more = self.pairs[pick].T, self.more[pick]
        return step.flatten(), torch.cat([more, -more])

    def windows(self, step: Tensor) -> Windows:
        """The windows that start at the steps [B], with their states and strengths."""
        ahead = torch.arange(self.horizon, device=step.device, dtype=step.dtype)
        rows = torch.minimum(step[:, None] + ahead, self.last[step][:, None])
        strength = None if self.judged is not None else self.strength[step]
        return super().windows(step)._replace(state=self.obs[rows], strength=strength)


def strengths(amount: Tensor, among: Tensor) -> Tensor:
    """The share of the rows `among` [M] that have less, ties counting half, [S, C] in [0, 1]."""
    found = torch.empty(amount.shape)
    for k, values in enumerate(amount.T.contiguous()):
        known = values[among].sort().values
        sides = [torch.searchsorted(known, values, right=right) for right in (False, True)]
        found[:, k] = (sides[0] + sides[1]) / (2 * len(known))
    return found
