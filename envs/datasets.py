"""Recorded data: an npz of episodes as chunk windows."""

import hashlib
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batch import Windows
from .vector import EnvError, nearest

KEYS = ("observations", "actions", "episode_ends")
UNREADABLE = (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)
HELD_WINDOWS = 8192  # at most so many validation windows: a validation is one batch
log = logging.getLogger("rheo")


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
    *numbers, ends = load_arrays(path)
    obs, action = (clean(path, key, array) for key, array in zip(KEYS, numbers, strict=False))
    if len(obs) != len(action):
        raise EnvError(
            f"data={path}: {len(obs)} observations but {len(action)} actions; "
            "every step needs one of each"
        )
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise EnvError(f"data={path}: episode_ends must be a list of whole numbers, got {ends!r}")
    ends = ends.astype(np.int64)
    if not len(ends) or ends[-1] != len(obs) or (np.diff(ends, prepend=0) < 1).any():
        raise EnvError(
            f"data={path}: episode_ends must rise strictly from above 0 to {len(obs)}, the number "
            f"of steps; got {np.array2string(ends, threshold=8)}"
        )
    outside = np.abs(action) > 1.0
    if outside.any():
        text = "%s: %.1f %% of action entries lie outside [-1, 1] (largest %.2f); a policy clips"
        log.warning(text, path, 100 * outside.mean(), np.abs(action).max())
    return Episodes(*(torch.from_numpy(array) for array in (obs, action, ends)))


def load_arrays(path: str) -> list[NDArray]:
    """The arrays of KEYS in an npz file. Raises EnvError; nothing is unpickled."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise EnvError(
            f"data={path}: no such file; give the path of an .npz file with {', '.join(KEYS)}"
        )
    try:
        loaded = np.load(file, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise EnvError(f"data={path}: holds one array; an .npz file with {', '.join(KEYS)} is read")
    with loaded:
        for key in KEYS:
            if key not in loaded:
                hint = nearest(key, set(loaded.files) - set(KEYS))
                held = ", ".join(sorted(loaded.files)) or "nothing"
                raise EnvError(f"data={path}: no key {key!r}; it holds {held}{hint}")
        try:
            return [loaded[key] for key in KEYS]
        except UNREADABLE as error:
            raise unreadable(path, error) from error


def unreadable(path: str, error: Exception) -> EnvError:
    """The message for a file that is not what it should be."""
    size = Path(path).expanduser().stat().st_size
    return EnvError(
        f"data={path}: not a readable .npz file ({error}); it has {size} bytes. Fetch or write it "
        "again, without objects in it"
    )


def clean(path: str, key: str, array: NDArray) -> NDArray:
    """A [steps, dims] array in float32. Raises EnvError with the place of the first bad number."""
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
        raise EnvError(
            f"data={path}: {key} has shape {array.shape} and type {array.dtype}, "
            "expected numbers [steps, dims]"
        )
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(result).all():
        step, dim = np.argwhere(~np.isfinite(result))[0]
        raise EnvError(
            f"data={path}: {key}[{step}, {dim}] is {array[step, dim]}; remove that episode"
        )
    return result


def fingerprint(episodes: Episodes) -> str:
    """SHA-256 of everything that is read from a file."""
    digest = hashlib.sha256()
    for array in episodes:
        digest.update(str(tuple(array.shape)).encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def held_out_episodes(count: int, share: float) -> Tensor:
    """Which of `count` episodes [E] bool validate. Raises ValueError when none can be spared."""
    held = torch.zeros(count, dtype=torch.bool)
    if share == 0.0:
        return held
    if count < 2:
        raise ValueError(f"source.holdout={share} needs two episodes and there is one; set it to 0")
    spared = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held[order[count - spared :]] = True
    return held


class Dataset:
    """Chunk windows of recorded episodes: one for every step, none lost at an episode's end.

    Histories before an episode's start repeat its first observation, chunks past its end repeat
    its last action. batch_size: windows a batch. holdout: share of episodes kept for validation,
    at least one unless it is 0; the choice is fixed, whatever the run's seed. path: the npz file.
    obs_steps: observations of history (To). horizon: actions of a window (Tp).
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
        self.digest = fingerprint(episodes)
        device = generator.device
        self.obs, self.action = episodes.obs.to(device), episodes.action.to(device)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), episodes.ends[:-1]])
        lengths = episodes.ends - starts
        held = held_out_episodes(len(starts), holdout)
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
        """Training observations [S, To*Do] and actions [S, Da], for fitting normalisers.

        Every place of a history holds the same observation, so that all get the same scale.
        """
        obs = self.obs[self.train_steps].repeat(1, self.obs_steps)
        return obs, self.action[self.train_steps]

    def next(self, act: Any) -> Windows:
        """A batch of training windows; `act` is not needed."""
        self.updates += 1
        count = (self.batch_size,)
        device = self.generator.device
        pick = torch.randint(len(self.train_steps), count, generator=self.generator, device=device)
        return self.windows(self.train_steps[pick])

    def held_out(self) -> Windows | None:
        """The validation windows, at most HELD_WINDOWS evenly spaced ones; None without any."""
        count = len(self.held_steps)
        if not count:
            return None
        stride = -(-count // HELD_WINDOWS)
        return self.windows(self.held_steps[::stride])

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
        return {
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "digest": self.digest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. Raises EnvError when the data are others now."""
        if state["digest"] != self.digest:
            raise EnvError(
                "data: the file's content changed since the run was saved; put the old file back, "
                "or start a new run with init=RUN"
            )
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
