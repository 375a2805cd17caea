"""Evaluation: exactly N episodes, without favouring the short ones."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError, Halted
from ..stats import of_mean, wilson
from .chunk import ChunkEnv, ChunkStep
from .noise import TILE, EpisodeNoise, filled

log = logging.getLogger("rheo")
ENDLESS = 100_000  # frames after which an episode without a time limit is taken for endless
SAID = 10_000  # frames of such an episode after which, again and again, the wait is said
ROWS = 64  # initial states of an evaluation: more episodes are the following ones of these rows
TILE_GPU = 64  # a GPU's products change with more than its tiles: more rows cost it nothing


class Deploy(Protocol):
    """Deployed behaviour: obs [N, O] and a generator -> action chunk [N, T, Da]."""

    def __call__(self, obs: Tensor, generator: torch.Generator, /) -> Tensor: ...


class Episode(NamedTuple):
    """One evaluation episode."""

    env: int  # its row
    seed: int  # that row's seed
    episode: int  # position among that row's episodes
    ret: float  # undiscounted return
    length: int  # environment frames
    truncated: bool
    broken: bool  # cut because the physics or the observation broke; such a return is no result
    success_once: bool | None = None  # solved at any step; None: no notion of success
    success_at_end: bool | None = None  # solved by the last step; likewise
    cost: float | None = None  # summed over the steps; None: nothing costs


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
    rows: int | None = None,
) -> list[Episode]:
    """Runs exactly `episodes` episodes from the initial states that `seed` fixes.

    Row i is seeded with seed + i. It owes the same number of episodes as every other (up to one)
    and its first ones count, whichever finish first, so an episode's length does not change its
    chance to count; one that owes nothing more stands still. Every episode has noise of its own
    (`EpisodeNoise`), and rows are acted on in whole tiles, some of them twice: what an episode
    comes to does not depend on how many run beside it, and those of a smaller number are the first
    of a larger one's, all first episodes before all second ones. The same seed, rows and policy
    give the same episodes.

    rows: as many as there are environments when None; of more, the later ones take their turn when
    the earlier ones are done. noise_seed: of the policy's noise, if it is another than the initial
    states'. on_end is told after every decision which environments' episodes are over. Raises
    EnvError when an episode does not end within ENDLESS frames although the environment has no time
    limit.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    count, noise_seed = env.num_envs, seed if noise_seed is None else noise_seed
    owed = shares(episodes, count if rows is None else rows)
    found: list[Episode] = []
    for first in range(0, min(len(owed), episodes), count):
        part = np.zeros(count, owed.dtype)
        part[: len(owed) - first] = owed[first : first + count]
        found += some(env, deploy, part, (seed, noise_seed, first), device, on_end)
    return sorted(found, key=lambda row: (row.episode, row.env))


def some(
    env: ChunkEnv,
    deploy: Deploy,
    owed: NDArray,
    start: tuple[int, int, int],
    device: str,
    on_end: Callable[[Tensor], None] | None,
) -> list[Episode]:
    """The episodes that as many rows owe as there are environments, [N].

    start: the seeds of the first row of all and of the noise, and which row is here the first.
    """
    (seed, noise_seed, first), count = start, env.num_envs
    where, found, done = torch.device(device), [], np.zeros(count, int)
    generator = EpisodeNoise(noise_seed, count, device, first=first)
    generator.rows = filled(np.arange(count), TILE if where.type == "cpu" else TILE_GPU)
    acting, patience = torch.from_numpy(generator.rows), Patience(env)
    env.own_noise(noise_seed, first)
    obs = env.reset(seed + first)
    while (waiting := done < owed).any():
        # index_select copies into torch's own memory, on whose alignment bits may depend
        action = deploy(obs.index_select(0, acting).to(where), generator)[:count]
        step = env.step(action, None if waiting.all() else torch.from_numpy(waiting))
        obs = step.obs
        over = step.terminated | step.truncated
        if on_end is not None:
            on_end(over[acting])
        ended = over.numpy()
        generator.begin(ended)
        for i in np.flatnonzero(ended).tolist():
            found.append(finished(step, i, first, seed, int(done[i])))
        done += ended
        patience.wait(step.episode_length, waiting)
    return found


def heeding(deploy: Deploy, halt: Callable[[], bool]) -> Deploy:
    """The same behaviour, which raises Halted instead of a decision where `halt` says so."""

    def act(obs: Tensor, generator: torch.Generator) -> Tensor:
        if halt():
            raise Halted
        return deploy(obs, generator)

    return act


def finished(step: ChunkStep, row: int, first: int, seed: int, episode: int) -> Episode:
    """The episode that ended in one environment of a step, the rows of which begin at `first`."""
    return Episode(
        env=first + row,
        seed=seed + first + row,
        episode=episode,
        ret=float(step.episode_return[row]),
        length=int(step.episode_length[row]),
        truncated=bool(step.truncated[row]),
        broken=not bool(step.valid[row]),
        success_once=flag(step.success_once, row),
        success_at_end=flag(step.success_at_end, row),
        cost=None if step.episode_cost is None else float(step.episode_cost[row]),
    )


def rows_of(episodes: int) -> int:
    """Over how many rows the episodes of an evaluation are spread, whatever it has to run them."""
    return min(episodes, ROWS)


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


def mean_cost(rows: list[Episode]) -> dict[str, float]:
    """Mean cost of an episode with a 95 % bootstrap interval over episodes; empty: nothing costs.

    `eval/unsafe` is the share of the episodes with any cost.
    """
    costs = np.array([row.cost for row in rows if row.cost is not None])
    if not len(costs):
        return {}
    low, high = of_mean(costs)
    figures = {"eval/cost": float(costs.mean()), "eval/cost_low": low, "eval/cost_high": high}
    return figures | {"eval/unsafe": float((costs > 0).mean())}


def summary(rows: list[Episode]) -> dict[str, float]:
    """Mean return and length with a 95 % bootstrap interval of the mean return over episodes.

    `eval/broken` counts episodes that the physics guard cut; it is there when it is not zero.
    Success rates are there where the environment has a notion of success, costs where steps cost.
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
        **mean_cost(rows),
    } | ({"eval/broken": float(broken)} if broken else {})


def as_rows(rows: list[Episode]) -> list[dict[str, Any]]:
    """Plain dictionaries, for a file of per-episode results; without what is not known."""
    return [{k: v for k, v in row._asdict().items() if v is not None} for row in rows]
