"""Recorded data: an npz of episodes as chunk windows."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .vector import EnvError

KEYS = ("observations", "actions", "episode_ends")
log = logging.getLogger("rheo")


class Windows(NamedTuple):
    """Observation histories and the action chunks that followed them."""

    obs: Tensor  # [B, To * Do]
    action: Tensor  # [B, Tp, Da], the last action repeated past an episode's end


class Episodes(NamedTuple):
    """Concatenated episodes; `ends` [E] are exclusive ends, so episode e is ends[e-1]:ends[e]."""

    obs: Tensor  # [S, Do]
    action: Tensor  # [S, Da]
    ends: Tensor  # [E]


def read_npz(path: str) -> Episodes:
    """Reads `observations` [S, Do], `actions` [S, Da] and `episode_ends` [E] of an npz file.

    Raises EnvError naming file, key, and place for a missing file or key, unequal lengths, a NaN,
    or ends that do not rise to S. Pickled content is refused.
    """
    if not Path(path).is_file():
        raise EnvError(f"data={path}: no such file; give the path of an .npz file with {KEYS}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise EnvError(f"data={path}: no key {missing[0]}; it holds {sorted(file)}")
            obs, action, ends = (file[key] for key in KEYS)
    except (ValueError, OSError) as error:
        if isinstance(error, EnvError):
            raise
        raise EnvError(f"data={path}: not a readable .npz file ({error})") from error
    for key, array in (("observations", obs), ("actions", action)):
        if array.ndim != 2:
            raise EnvError(f"data={path}: {key} has shape {array.shape}, expected [steps, dims]")
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            step, dim = bad[0]
            raise EnvError(f"data={path}: {key}[{step}, {dim}] is {array[step, dim]}; remove it")
    if len(obs) != len(action):
        raise EnvError(f"data={path}: {len(obs)} observations but {len(action)} actions")
    if ends.ndim != 1 or not len(ends) or ends[-1] != len(obs) or (np.diff(ends, prepend=0) < 1).any():
        raise EnvError(f"data={path}: episode_ends must rise strictly to {len(obs)}; got {ends}")
    outside = np.abs(action) > 1.0
    if outside.any():
        log.warning(
            "%s: %.1f %% of action entries lie outside [-1, 1] (largest %.2f); an environment clips them",
            path, 100 * outside.mean(), np.abs(action).max(),
        )
    tensors = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (obs, action))
    return Episodes(*tensors, torch.from_numpy(ends.astype(np.int64)))


class Dataset:
    """Chunk windows of recorded episodes: one for every step, none lost at an episode's end.

    Histories before an episode's start repeat its first observation, chunks past its end repeat
    its last action. batch_size: windows a batch. holdout: share of episodes (the last ones of a
    seeded shuffle) kept for validation. path: the npz file.
    """

    def __init__(
        self,
        generator: torch.Generator,
        horizon: int,
        *,
        path: str,
        batch_size: int,
        holdout: float,
        obs_steps: int,
    ) -> None:
        if not 0.0 <= holdout < 1.0:
            raise ValueError(f"source.holdout={holdout} must lie in [0, 1)")
        self.generator, self.horizon, self.obs_steps = generator, horizon, obs_steps
        self.batch_size, self.updates = batch_size, 0
        episodes = read_npz(path)
        device = generator.device
        self.obs, self.action = episodes.obs.to(device), episodes.action.to(device)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), episodes.ends[:-1]])
        lengths = episodes.ends - starts
        order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
        kept = len(starts) - int(holdout * len(starts))
        if holdout > 0 and kept == len(starts):
            raise ValueError(f"source.holdout={holdout} holds out none of {len(starts)} episodes")
        held = torch.zeros(len(starts), dtype=torch.bool)
        held[order[kept:]] = True
        self.first = starts.repeat_interleave(lengths).to(device)  # [S] first step of my episode
        self.last = (episodes.ends - 1).repeat_interleave(lengths).to(device)  # [S]
        held_steps = held.repeat_interleave(lengths).to(device)
        self.train_steps = (~held_steps).nonzero()[:, 0]
        self.held_steps = held_steps.nonzero()[:, 0]

    @property
    def obs_size(self) -> int:
        """Size of an observation history."""
        return self.obs.shape[1] * self.obs_steps

    @property
    def action_dim(self) -> int:
        """Action dimensions."""
        return self.action.shape[1]

    @property
    def progress(self) -> int:
        """Batches so far."""
        return self.updates

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Training observations [S, Do] and actions [S, Da], for fitting normalisers."""
        return self.obs[self.train_steps], self.action[self.train_steps]

    def next(self, act: Any) -> Windows:
        """A batch of training windows; `act` is not needed."""
        self.updates += 1
        count = (self.batch_size,)
        device = self.generator.device
        pick = torch.randint(len(self.train_steps), count, generator=self.generator, device=device)
        return self.windows(self.train_steps[pick])

    def held_out(self) -> Windows:
        """Every validation window."""
        return self.windows(self.held_steps)

    def windows(self, step: Tensor) -> Windows:
        """The windows that start at the steps [B]."""
        device = step.device
        back = torch.arange(1 - self.obs_steps, 1, device=device)
        ahead = torch.arange(self.horizon, device=device)
        past = torch.maximum(step[:, None] + back, self.first[step, None])
        future = torch.minimum(step[:, None] + ahead, self.last[step, None])
        return Windows(self.obs[past].flatten(1), self.action[future])

    def metrics(self) -> dict[str, float]:
        """Nothing to report between batches."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position of the sampler."""
        return {"generator": self.generator.get_state(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
