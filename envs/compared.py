"""Recorded chunks of which one is better than the other, as batches."""

import logging
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ranges import Count, Share
from .batch import Compared
from .chunk import ChunkEnv
from .data.pairs import Pairs, read_pairs
from .pixels import Images
from .recorded import Sampler, fingerprint, held_out, refuse_share

HELD_ROWS = 2048  # at most so many observations validate: a validation is one batch
log = logging.getLogger("rheo")


@dataclass(eq=False)
class Comparisons(Sampler):
    """Chunks that were tried at one observation each, drawn evenly, with what each came to.

    Observations whose chunks all came to the same, or are the same in their executed steps, teach
    nothing: they are left out, and told. Which observations validate is fixed, whatever the run's
    seed. Statistics are not taken: they are those of the policy that is tuned.

    Args:
        path: File of pairs, as `rheo collect branches` writes it: observations, chosen and rejected
            chunks, or chunks and their returns.
        batch_size: Observations per update, each with its chunks.
        holdout: Share of the observations kept for validation; 0: none, else at least one.
        chunks: Which chunks of an observation are compared: ends, the best and the worst one, or
            all, where the file tells the returns of all that were tried.
        obs_steps: Observations of history that a policy sees, the latest included; as
            env.obs_steps.
        execute: Actions of each chunk that are executed before the next decision; as env.execute.
        big: Whether a file may become more than 1 GB and 100 times its size on disk, in memory.
    """

    gives = Compared  # the kind of its batches

    generator: torch.Generator
    horizon: int
    env: InitVar[ChunkEnv | None] = None
    _: KW_ONLY
    path: str
    batch_size: Count
    holdout: Share
    chunks: Literal["ends", "all"]
    obs_steps: Count
    execute: Count
    big: bool

    def __post_init__(self, env: ChunkEnv | None) -> None:
        refuse_share(self.holdout)
        pairs = read_pairs(self.path, big=self.big)
        self.refuse_other(pairs)
        if env is not None:
            tell_elsewhere(pairs, env)
        self.updates, self.about, self.digest = 0, pairs.about, fingerprint(pairs)
        self.obs_images: Images = {}
        action, score = self.compared(pairs)
        tells = self.telling(action, score)
        held, device = held_out(len(tells), self.holdout, "observations"), self.generator.device
        obs, tried = (torch.from_numpy(c[tells]).to(device) for c in (pairs.obs, action))
        came = None if score is None else torch.from_numpy(score[tells]).to(device)
        whole = Compared(obs, tried, came)
        self.train = whole.take((~held).nonzero()[:, 0].to(device))
        self.held = whole.take(held.nonzero()[:, 0].to(device))
        counts = len(self.train.obs), len(self.held.obs), action.shape[1]
        judge = "labels" if score is None else "returns"
        text = "data=%s: %d observations learn, %d validate, %d chunks at each, compared by %s"
        log.info(text, self.path, *counts, judge)

    def refuse_other(self, pairs: Pairs) -> None:
        """Raises ValueError for chunks that the run's policy does not plan or execute so."""
        steps, told = pairs.chosen.shape[1], pairs.about.get("execute")
        if steps != self.horizon:
            raise ValueError(
                f"data={self.path}: its chunks are of {steps} actions, and the policy plans "
                f"horizon={self.horizon}; take init=RUN of the policy whose chunks they are"
            )
        if told is not None and told != min(self.execute, self.horizon):
            raise ValueError(
                f"data={self.path}: {told} actions of a chunk were executed, which its returns are "
                f"of, and env.execute={self.execute}; set env.execute={told}"
            )
        if self.chunks == "all" and pairs.chunks is None:
            raise ValueError(
                f"data.chunks=all: data={self.path} holds labels alone, not the returns of all "
                "chunks that were tried; leave it ends"
            )

    def compared(self, pairs: Pairs) -> tuple[NDArray, NDArray | None]:
        """The chunks [S, K, T, Da] and what they came to [S, K], None where labels alone tell."""
        if self.chunks == "all":
            assert pairs.chunks is not None
            return pairs.chunks, pairs.scores
        action, scores = np.stack([pairs.chosen, pairs.rejected], 1), pairs.scores
        return action, None if scores is None else np.stack([scores.max(1), scores.min(1)], 1)

    def telling(self, action: NDArray, score: NDArray | None) -> NDArray:
        """The rows [M] that teach something. Raises ValueError where none does."""
        done = action[:, :, : self.execute]
        tells = (done != done[:, :1]).any((1, 2, 3))
        if score is not None:
            with np.errstate(over="ignore"):  # of returns as large as numbers go
                gap = score.max(1) - score.min(1)
            tells &= np.isfinite(gap) & (gap > 0)
        lost = int((~tells).sum())
        text = f"data={self.path}: %d of %d observations have chunks of one return, or one chunk"
        if lost == len(tells):
            raise ValueError(f"{text % (lost, lost)}: none is better, so nothing can be learned")
        if lost:
            log.warning(f"{text}: they are left out", lost, len(tells))
        return np.flatnonzero(tells)

    @property
    def obs_size(self) -> int:
        """Size of an observation history."""
        return self.train.obs.shape[1]

    @property
    def action_dim(self) -> int:
        """Action dimensions."""
        return self.train.action.shape[-1]

    def beginning(self, count: int) -> Tensor:
        """Observation histories of the first rows, [count, To*Do] at most."""
        return self.train.obs[:count]

    def next(self, act: Any) -> Compared:
        """A batch of training rows; `act` is not needed."""
        self.updates += 1
        count, device = (self.batch_size,), self.generator.device
        rows = len(self.train.obs)
        return self.train.take(torch.randint(rows, count, generator=self.generator, device=device))

    def held_out(self) -> Compared | None:
        """The validation rows, evenly spaced ones where there are many; None without any."""
        count = len(self.held.obs)
        if not count:
            return None
        rows = torch.arange(0, count, -(-count // HELD_ROWS), device=self.generator.device)
        return self.held.take(rows)


def tell_elsewhere(pairs: Pairs, env: ChunkEnv) -> None:
    """Warns of chunks that were tried in another environment than the run's."""
    there, here = pairs.about.get("env_id"), env.env.id
    if there not in (None, here):
        log.warning("data=%s: tried in %s, and the run is in %s", pairs.about["path"], there, here)
