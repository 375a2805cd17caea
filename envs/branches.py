"""Branches: several chunks tried from one state of a task, and what each of them comes to.

States are met by a behaviour in whole episodes; then, from each of them, `width` chunks of its own
are executed and the behaviour goes on. The branches of a state differ in their chunk alone: they
begin at the same simulator state and are followed by the same noise, so that their returns can be
compared although the behaviour is random (common random numbers).
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .chunk import ChunkEnv
from .noise import TILE, EpisodeNoise, filled
from .rollout import TILE_GPU, Deploy, Patience

FIRST, LATER = 1, 2  # streams of noise: of a state's chunks, and of what follows them

SPARSE = 4  # decisions for each state that is drawn, at least: neighbours are much alike


class Behaviour(NamedTuple):
    """What decides, with noise that follows from a seed and from the row that it is for."""

    deploy: Deploy
    seed: int
    device: str = "cpu"

    def noise(self, rows: NDArray, first: int = 0, stream: int = 0) -> EpisodeNoise:
        """Noise for decisions of `rows`, numbers from 0 on; one may stand there several times.

        first: added to these numbers.
        """
        noise = EpisodeNoise(self.seed, int(rows.max()) + 1, self.device, stream, first)
        tile = TILE if torch.device(self.device).type == "cpu" else TILE_GPU
        noise.rows = filled(rows, tile)
        return noise

    def decide(self, obs: Tensor, noise: EpisodeNoise) -> Tensor:
        """Chunks [N, T, Da] for obs [N, O], clipped to [-1, 1] as they are executed."""
        tiled = torch.from_numpy(filled(np.arange(len(obs)), len(noise.rows)))
        with torch.no_grad():
            chunk = self.deploy(obs.index_select(0, tiled).to(self.device), noise)[: len(obs)]
        return chunk.to("cpu", obs.dtype).clamp(-1.0, 1.0)


class Met(NamedTuple):
    """A state at which the behaviour had to decide."""

    state: dict[str, Any]  # as `ChunkEnv.take` returns it
    obs: Tensor  # [O]
    episode: int
    step: int  # environment steps since its beginning


class Branches(NamedTuple):
    """What the branches of S states came to."""

    chunk: NDArray  # [S, K, T, Da] float32 in [-1, 1]
    ret: NDArray  # [S, K] float32: discounted sum of rewards, without a value of what follows
    terminated: NDArray  # [S, K] bool: the task ended within
    cut: NDArray  # [S, K] bool: its time was up within
    broken: NDArray  # [S, K] bool: physics or numbers broke: the return is none


def meet(env: ChunkEnv, behaviour: Behaviour, count: int) -> tuple[list[Met], int]:
    """`count` states of whole episodes, in the order in which they were met, and out of how many.

    Every row plays the same number of episodes, as few as have SPARSE times as many decisions, and
    each of these decisions is as likely to be among them as any other: episodes and times come up
    as often as they are lived through. Raises EnvError for an episode that does not end
    (`rollout.Patience`).
    """
    n = env.num_envs
    drawing, noise = np.random.default_rng(behaviour.seed), behaviour.noise(np.arange(n))
    kept: list[tuple[float, int, Met]] = []  # a heap: those with the largest keys stay
    owed, done, length, met = 1, np.zeros(n, np.int64), np.zeros(n, np.int64), 0
    patience, obs = Patience(env), env.reset(behaviour.seed)
    while (waiting := done < owed).any():
        keys = drawing.random(n)
        for row in np.flatnonzero(waiting).tolist():
            met += 1
            if len(kept) < count or keys[row] > kept[0][0]:
                place = int(done[row]) * n + row, int(length[row])
                push = heapq.heappush if len(kept) < count else heapq.heapreplace
                push(kept, (float(keys[row]), met, Met(env.take(row), obs[row].clone(), *place)))
        action = behaviour.decide(obs, noise)
        step = env.step(action, None if waiting.all() else torch.from_numpy(waiting))
        obs, ended = step.obs, (step.terminated | step.truncated).numpy()
        length = np.where(ended, 0, length + step.frames.numpy())
        noise.begin(ended)
        done += ended
        patience.wait(step.episode_length, waiting)
        owed += bool((done >= owed).all() and met < SPARSE * count)
    return [each for _, _, each in sorted(kept, key=lambda one: one[1])], met


def branch(
    env: ChunkEnv,
    behaviour: Behaviour,
    met: Sequence[Met],
    width: int,
    execute: int,
    steps: int,
    first: int = 0,
) -> Branches:
    """`width` branches of each state: a chunk's first `execute` actions, and `steps` steps after.

    env: as many environments as branches, S * width, one step per decision (`execute` of its own is
    1), with histories as those of the states. The behaviour plans anew after every `execute` steps.
    A branch ends where the task does and where its time is up; nothing is added for what would
    follow. first: number of the first state among all, which its noise follows from.
    """
    rows = np.arange(len(met) * width)
    chunks = behaviour.noise(rows, first * width, FIRST)
    later = behaviour.noise(rows // width, first, LATER)
    obs = env.branch([each.state for each in met for _ in range(width)])
    plan = chunk = behaviour.decide(obs, chunks)
    ret, (terminated, cut, broken) = np.zeros(len(rows)), np.zeros((3, len(rows)), bool)
    for k in range(execute + steps):
        running = ~(terminated | cut)
        if not running.any():
            break
        if k and k % execute == 0:
            plan = behaviour.decide(obs, later)
        active = None if running.all() else torch.from_numpy(running)
        step = env.step(plan[:, k % execute, None], active)
        ret += env.gamma**k * step.reward.numpy().astype(np.float64)  # 0 of those that stand still
        terminated |= step.terminated.numpy()
        cut |= step.truncated.numpy()
        broken |= running & ~step.valid.numpy()
        obs = step.obs
    shape = (len(met), width)
    parts = (each.reshape(shape) for each in (ret.astype(np.float32), terminated, cut, broken))
    return Branches(chunk.numpy().astype(np.float32).reshape(*shape, *chunk.shape[1:]), *parts)
