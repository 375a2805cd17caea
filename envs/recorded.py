"""What is settled once about a recording: what it is, who validates, where it is acted in."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import EnvError
from .chunk import ChunkEnv
from .data.recording import Recording, Stage

RETURN_RANGE = 1000.0  # what reward_norm=return_range scales the spread of returns to
SPARSE = 0.05  # rewards are sparse when fewer steps than this share have an unusual one


class Sampler:
    """What draws batches of a file: how many it gave, and what its noise and the file are."""

    generator: torch.Generator
    updates: int
    digest: str

    @property
    def progress(self) -> int:
        """Batches so far."""
        return self.updates

    def metrics(self) -> dict[str, float]:
        """Nothing to report between batches."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position of the sampler."""
        return {
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "digest": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Raises EnvError when the data are others now."""
        if state["digest"] != self.digest:
            raise EnvError(
                "data: the file's content changed since the run was saved, or it is read otherwise "
                "by now; put the old file back, or start a new run with init=RUN"
            )
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]


def fingerprint(recording: Iterable[Any]) -> str:
    """SHA-256 of everything that is learned from: all arrays of a record."""
    digest = hashlib.sha256()
    for array in recording:
        if isinstance(array, np.ndarray):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def held_out_episodes(recording: Recording, share: float | str) -> Tensor:
    """Which episodes [E] bool validate: a share, or those of a filter key.

    Raises ValueError when none can be spared.
    """
    count = len(recording.ends)
    if isinstance(share, str):
        held = torch.zeros(count, dtype=torch.bool)
        names = set(recording.about["filters"][share])
        held[:] = torch.tensor([demo in names for demo in recording.about["demos"]])
        if not held.any():
            raise ValueError(f"data.holdout={share}: no demonstration of it is left to validate")
        return held
    return held_out(count, share, "episodes")


def held_out(count: int, share: float, what: str) -> Tensor:
    """Which of so many validate, [count] bool: a share, at least one, whatever the run's seed.

    what: they are called. Raises ValueError where none can be spared.
    """
    held = torch.zeros(count, dtype=torch.bool)
    if share == 0.0:
        return held
    if count < 2:
        raise ValueError(f"data.holdout={share} needs two {what} and there is one; set it to 0")
    spared = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held[order[count - spared :]] = True
    return held


def refuse_share(share: float) -> None:
    """Raises ValueError for a share to validate on that leaves nothing to learn from."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"data.holdout={share} must lie in [0, 1)")


def following(recording: Recording, last: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Steps from every step on until `span` later or its episode's end, [S], and the row of `obs`
    after them, [S]; -1: not in the file. last [S]: the last step of the step's episode.
    """
    step = torch.arange(len(last), dtype=last.dtype)
    left = last - step + 1
    frames = left.clamp(max=span)
    lengths = torch.from_numpy(recording.lengths)
    successor = torch.from_numpy(recording.successor).to(last.dtype).repeat_interleave(lengths)
    return frames, torch.where(frames == left, successor, step + frames)


def discounted(reward: Tensor, frames: Tensor, gamma: float) -> Tensor:
    """sum_k gamma^k r_{s+k} over the `frames` steps from every step s on, all [S]."""
    step, total = torch.arange(len(reward)), torch.zeros(len(reward))
    for k in range(int(frames.max())):
        inside = frames > k
        total[inside] += gamma**k * reward[step[inside] + k]
    return total


def largest(cost: Tensor, frames: Tensor) -> Tensor:
    """The largest of the `frames` steps' costs from every step on, all [S]."""
    step, worst = torch.arange(len(cost)), cost.clone()
    for k in range(1, int(frames.max())):
        inside = frames > k
        worst[inside] = torch.maximum(worst[inside], cost[step[inside] + k])
    return worst


def refuse_unrewarded(recording: Recording, path: str | list[str], remedy: str) -> None:
    """Raises ValueError where nothing can be learned from a recording's rewards."""
    if "undecided" in recording.about:
        raise ValueError(f"data={path}: {recording.about['undecided']}; or {remedy}")
    if recording.reward is None:
        raise ValueError(
            f"data={path}: it holds no rewards, which this algorithm learns from; {remedy}, or a "
            "file with rewards"
        )


def returns_ahead(recording: Recording, gamma: float) -> Tensor:
    """The discounted rewards from every step to its episode's end, [S] float64; gamma below 1.

    An episode that was cut counts as if it went on as it went from there: its sum is divided by
    1 - gamma^n of the n steps that are left. One that ended by the task has no more to come.
    """
    assert recording.reward is not None
    reward = torch.from_numpy(recording.reward).double()
    ends, lengths = torch.from_numpy(recording.ends), torch.from_numpy(recording.lengths)
    total = reward.clone()
    for back in range(2, int(lengths.max()) + 1):
        row = (ends - back)[lengths >= back]
        total[row] += gamma * total[row + 1]
    end = ends.repeat_interleave(lengths)
    cut = ~torch.from_numpy(recording.terminated)[end - 1]
    left = (end - torch.arange(len(end))).double()
    return torch.where(cut, total / (1 - gamma**left), total)


def scale_of(recording: Recording, how: str, path: str | list[str]) -> float:
    """Factor on rewards. Raises ValueError when all returns are equal."""
    if how == "none":
        return 1.0
    assert recording.reward is not None
    _, counts = np.unique(recording.reward, return_counts=True)
    if how == "auto" and counts.max() > (1 - SPARSE) * len(recording.reward):
        return 1.0
    returns = np.add.reduceat(np.asarray(recording.reward, np.float64), recording.starts)
    spread = float(returns.max() - returns.min())
    if spread <= 0:
        raise ValueError(
            f"data={path}: all {len(returns)} episodes have the return {returns[0]:g}, so "
            "their range cannot scale rewards; set data.reward_norm=none"
        )
    return RETURN_RANGE / spread


def stage_of(env: ChunkEnv | None) -> Stage | None:
    """What a run's environment says of recorded actions."""
    return None if env is None else Stage(env.env.id, env.env.action_low, env.env.action_high)
