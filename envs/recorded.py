"""What is settled once about a recording: what it is, who validates, where it is acted in."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from .chunk import ChunkEnv
from .data.recording import Recording, Stage


def fingerprint(recording: Recording) -> str:
    """SHA-256 of everything that is learned from."""
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
    held = torch.zeros(count, dtype=torch.bool)
    if isinstance(share, str):
        names = set(recording.about["filters"][share])
        held[:] = torch.tensor([demo in names for demo in recording.about["demos"]])
        if not held.any():
            raise ValueError(f"data.holdout={share}: no demonstration of it is left to validate")
        return held
    if share == 0.0:
        return held
    if count < 2:
        raise ValueError(f"data.holdout={share} needs two episodes and there is one; set it to 0")
    spared = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held[order[count - spared :]] = True
    return held


def stage_of(env: ChunkEnv | None) -> Stage | None:
    """What a run's environment says of recorded actions."""
    return None if env is None else Stage(env.env.id, env.env.action_low, env.env.action_high)
