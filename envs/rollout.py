"""Evaluation: exactly N episodes, without favouring the short ones."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError
from ..stats import of_mean, wilson
from .chunk import ChunkEnv, ChunkStep
from .noise import TILE, EpisodeNoise, filled

log = logging.getLogger("rheo")
ENDLESS = 100_000  # frames after which an episode without a time limit is taken for endless
SAID = 10_000  # frames of such an episode after which, again and again, the wait is said
TILE_GPU = 64  # a GPU's products change with more than its tiles: more rows cost it nothing


class Deploy(Protocol):
    """Deployed behaviour: obs [N, O] and a generator -> action chunk [N, T, Da]."""

    def __call__(self, obs: Tensor, generator: torch.Generator, /) -> Tensor: ...


class Episode(NamedTuple):
    """One evaluation episode."""

    env: int  # index of the environment that ran it
    seed: int  # that environment's seed
    episode: int  # position among that environment's episodes
    ret: float  # undiscounted return
    length: int  # environment frames
    truncated: bool
    broken: bool  # cut because the physics or the observation broke; such a return is no result
    success_once: bool | None = None  # solved at any step; None: no notion of success
    success_at_end: bool | None = None  # solved by the last step; likewise


class Patience:
    """Whether running episodes may still end, where the environment has no time limit."""

    def __init__(self, env: ChunkEnv) -> None:
        self.id, self.bounded, self.next = env.env.id, env.env.max_steps is not None, SAID

    def wait(self, lengths: Tensor, awaited: NDArray) -> None:
        """Looks at the frames [N] of the episodes that are `awaited` [N].

        Says every SAID frames of one that it goes on. Raises EnvError behind ENDLESS frames.
        """
        if self.bounded:
            return
        frames = int(lengths.numpy().max(where=awaited, initial=0))
        if frames < min(self.next, ENDLESS):
            return
        self.next += SAID
        remedy = (
            "register the environment with max_episode_steps, or set "
            "env.options.max_episode_steps=1000"
        )
        if frames > ENDLESS:
            raise EnvError(
                f"{self.id}: an episode has not ended after {ENDLESS} frames and there is no "
                f"time limit; {remedy}"
            )
        text = "%s: an episode has run for %d frames and there is no time limit; it is given up "
        log.warning(text + "after %d (%s)", self.id, frames, ENDLESS, remedy)


def evaluate(
    env: ChunkEnv,
    deploy: Deploy,
    episodes: int,
    seed: int,
    device: str = "cpu",
    on_end: Callable[[Tensor], None] | None = None,
    noise_seed: int | None = None,
) -> list[Episode]:
    """Runs exactly `episodes` episodes from the initial states that `seed` fixes.

    Environment i owes the same number of episodes as every other (up to one) and its first ones
    count, whichever finish first, so an episode's length does not change its chance to count.
    Every episode has noise of its own (`EpisodeNoise`), and rows are acted on in whole tiles, some
    of them twice: what an episode comes to does not depend on how many run beside it, and those of
    a smaller number are the first of a larger one's, all first episodes before all second ones.
    The same seed, environments and policy give the same rows.

    noise_seed: of the policy's noise, if it is another than the initial states'. on_end is told
    after every decision which rows' episodes are over. Raises EnvError when an episode does not end
    within ENDLESS frames although the environment has no time limit.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    count = env.num_envs
    owed = shares(episodes, count)
    done_before = np.zeros(count, dtype=int)
    noise_seed = seed if noise_seed is None else noise_seed
    generator, where = EpisodeNoise(noise_seed, count, device), torch.device(device)
    generator.rows = filled(np.arange(count), TILE if where.type == "cpu" else TILE_GPU)
    acting, patience = torch.from_numpy(generator.rows), Patience(env)
    env.own_noise(noise_seed)
    rows: list[Episode] = []
    obs = env.reset(seed)
    while len(rows) < episodes:
        # index_select copies into torch's own memory, on whose alignment bits may depend
        step = env.step(deploy(obs.index_select(0, acting).to(where), generator)[:count])
        obs = step.obs
        over = step.terminated | step.truncated
        if on_end is not None:
            on_end(over[acting])
        ended = over.numpy()
        generator.begin(ended)
        for i in np.flatnonzero(ended & (done_before < owed)):
            rows.append(finished(step, int(i), seed + int(i), int(done_before[i])))
        done_before += ended
        patience.wait(step.episode_length, done_before < owed)
    return sorted(rows, key=lambda row: (row.episode, row.env))


def finished(step: ChunkStep, row: int, seed: int, episode: int) -> Episode:
    """The episode that ended in one row of a step."""
    return Episode(
        env=row,
        seed=seed,
        episode=episode,
        ret=float(step.episode_return[row]),
        length=int(step.episode_length[row]),
        truncated=bool(step.truncated[row]),
        broken=not bool(step.valid[row]),
        success_once=flag(step.success_once, row),
        success_at_end=flag(step.success_at_end, row),
    )


def shares(total: int, count: int) -> NDArray:
    """`total` shared out among `count`, as evenly as it goes."""
    return np.full(count, total // count) + (np.arange(count) < total % count)


def flag(value: Tensor | None, row: Any) -> bool | None:
    """One row of a success, None where there is no such thing."""
    return None if value is None else bool(value[row])


def success_rates(rows: list[Episode]) -> dict[str, float]:
    """Shares of episodes solved at any step and at the end, with Wilson's 95 % intervals.

    Empty where no episode has a notion of success. An environment may say nothing until it first
    succeeds: episodes before that count as not solved, as soon as any later one says something.
    """
    figures: dict[str, float] = {}
    for name in ("success_once", "success_at_end"):
        values = [getattr(row, name) for row in rows]
        if any(value is not None for value in values):
            count = sum(value is True for value in values)
            low, high = wilson(count, len(rows))
            figures[f"eval/{name}"] = count / len(rows)
            figures |= {f"eval/{name}_low": low, f"eval/{name}_high": high}
    return figures


def summary(rows: list[Episode]) -> dict[str, float]:
    """Mean return and length with a 95 % bootstrap interval of the mean return over episodes.

    `eval/broken` counts episodes that the physics guard cut; it is there when it is not zero.
    Success rates are there where the environment has a notion of success.
    """
    broken = sum(row.broken for row in rows)
    returns = np.array([row.ret for row in rows])
    low, high = of_mean(returns)
    return {
        "eval/return": float(returns.mean()),
        "eval/return_low": low,
        "eval/return_high": high,
        "eval/return_std": float(returns.std()),
        "eval/length": float(np.mean([row.length for row in rows])),
        "eval/episodes": float(len(rows)),
        **success_rates(rows),
    } | ({"eval/broken": float(broken)} if broken else {})


def as_rows(rows: list[Episode]) -> list[dict[str, Any]]:
    """Plain dictionaries, for a file of per-episode results; without what is not known."""
    return [{k: v for k, v in row._asdict().items() if v is not None} for row in rows]
