"""Episodes in a learned model of an environment: no simulator, and no recording, is needed.

N environments, E members of the model, O numbers of an observation, Da action dimension.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError
from ..ranges import Count, NonNegative, Rate
from .batch import Step
from .chunk import ChunkEnv
from .guard import LARGEST
from .noise import filled
from .vector import VectorEnv

IMAGINED = "imagined"  # the id of every such environment
PIECE = 512  # recorded steps that are judged at a time


class Model(Protocol):
    """What is asked of a model of the world (`algos.world`)."""

    states: Tensor  # [K, O] recorded observations, from which episodes may begin
    actions: Tensor  # [K, Da] what was done there
    firsts: Tensor  # [F, O] first observations of recorded episodes

    def predict(self, obs: Tensor, action: Tensor) -> Any:
        """Of a step from obs [N, O] by action [N, Da]: each member's means next_obs [E, N, O] and
        reward [E, N], std [E, N, O + 1], probability of the end terminal [E, N]; and their
        disagreement [N].
        """
        ...


class World(NamedTuple):
    """A model with what is known of the environment that it is of."""

    model: Model
    name: str  # of its run, for messages
    digest: str  # of its checkpoint
    parts: dict[str, int]  # of an observation
    low: NDArray  # [Da] bounds of an action, in the environment's units
    high: NDArray


class Imagined(VectorEnv):
    """N episodes of a model: every step is drawn from one member's Gaussian, any one's.

    An episode begins at a recorded observation, and is truncated after `length` steps, or behind
    the first one where the members disagree more than in all but a share 1 - `quantile` of the
    recorded steps (counted as `cut`): both keep their bootstrap. It is terminated, which keeps
    none, with the probability that the member tells. The reward is less by `penalty` times the
    disagreement (MOPO, arXiv:2005.13239). Actions are taken as within [-1, 1].

    All of a row's randomness is its own generator's: it does not depend on other rows.
    """

    backend = IMAGINED
    imagined = True

    def __init__(
        self,
        world: World,
        num_envs: int,
        *,
        length: int,
        start: Literal["any", "first"] = "any",
        quantile: float | None = None,
        penalty: float = 0.0,
        seed: int | None = None,
    ) -> None:
        states: Tensor = world.model.states
        box: Any = spaces.Box(world.low, world.high, dtype=np.float64)
        super().__init__(IMAGINED, num_envs, states.shape[1], box, length, torch.float32)
        self.world, self.model, self.penalty = world, world.model, penalty
        self.obs_parts = world.parts
        self.begins = (world.model.firsts if start == "first" else states).numpy()
        self.limit = np.inf if quantile is None else limit_of(world.model, quantile)
        self._counters |= {"cut": 0}
        self._obs = np.zeros((num_envs, self.obs_dim), np.float32)
        self._seed(seed)

    def _seed(self, seed: int | None) -> None:
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        self._rng = [np.random.Generator(np.random.PCG64(each)) for each in seeds]

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is not None:
            self._seed(seed)
        self._restart(np.arange(self.num_envs))
        self._started = True
        return self._tensor(self._obs)

    def _restart(self, rows: NDArray) -> None:
        """New episodes of some rows."""
        for i in rows.tolist():
            self._obs[i] = self.begins[self._rng[i].integers(len(self.begins))]
        self._elapsed[rows] = 0

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        moved = np.ones(self.num_envs, bool) if active is None else active.numpy().copy()
        rows, given = np.flatnonzero(moved), action.detach().cpu().float()
        self._physical(given, rows)  # refuses what is not finite
        self._elapsed[rows] += 1
        told = self._told(torch.where(torch.from_numpy(moved)[:, None], given, 0.0))
        obs, reward, terminated = self._drawn(told, rows)
        apart = told.disagreement.numpy()
        sound = (np.abs(obs).max(1) <= LARGEST) & (np.abs(reward) <= LARGEST)  # nan is not
        valid, broken = moved & sound, moved & ~sound
        far = valid & (apart > self.limit)
        truncated = broken | far | (moved & (self._elapsed >= self._limit))
        terminated &= valid
        self.counters["bad_obs"] += int(broken.sum())
        self.counters["cut"] += int(far.sum())
        obs[~valid], reward[~valid] = self._obs[~valid], 0.0
        self._obs[:] = obs
        final, ended = self._tensor(obs), terminated | truncated
        following = final
        if ended.any():
            self._restart(np.flatnonzero(ended))
            following = self._tensor(self._obs)
        ends, cuts, stored = map(torch.from_numpy, (terminated, truncated, valid))
        return Step(following, self._tensor(reward), ends, cuts, final, stored)

    def _told(self, action: Tensor) -> Any:
        """The members' forecasts for all rows, which are asked in whole tiles."""
        acting = torch.from_numpy(filled(np.arange(self.num_envs)))
        obs = torch.from_numpy(self._obs).index_select(0, acting)
        given = action.clamp(-1, 1).index_select(0, acting)
        told, count = self.model.predict(obs, given), self.num_envs
        parts = {name: value[:, :count] for name, value in told._asdict().items() if value.ndim > 1}
        return told._replace(**parts, disagreement=told.disagreement[:count])

    def _drawn(self, told: Any, rows: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Next observations [N, O], penalised rewards [N] and ends [N] bool, drawn for `rows`."""
        mean = torch.cat([told.next_obs, told.reward[..., None]], -1).numpy()
        member, chance = np.zeros(self.num_envs, np.int64), np.ones(self.num_envs)
        noise = np.zeros((self.num_envs, self.obs_dim + 1), np.float32)
        for i in rows.tolist():
            rng = self._rng[i]
            member[i], chance[i] = rng.integers(len(mean)), rng.random()
            noise[i] = rng.standard_normal(self.obs_dim + 1, np.float32)
        every = np.arange(self.num_envs)
        value = mean[member, every] + told.std.numpy()[member, every] * noise
        reward = value[:, -1] - self.penalty * told.disagreement.numpy()
        return value[:, :-1], reward, chance < told.terminal.numpy()[member, every]

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._common_state(),
            "world": self.world.digest,
            "obs": self._obs.copy(),
            "rng": [rng.bit_generator.state for rng in self._rng],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["world"] != self.world.digest:
            raise EnvError(
                f"env.model={self.world.name}: is not as it was when this run was saved, so that "
                "its episodes would go on in another world; put it back, or start a new run with "
                "init=RUN"
            )
        self._load_common(state)
        self._obs[:] = state["obs"]
        for rng, saved in zip(self._rng, state["rng"], strict=True):
            rng.bit_generator.state = saved

    def unbranched(self) -> None:
        """None: rows go on from any state of a row."""

    def take(self, row: int) -> dict[str, Any]:
        rng = self._rng[row].bit_generator.state
        return {"obs": self._obs[row].copy(), "elapsed": int(self._elapsed[row]), "rng": rng}

    def branch(self, states: Sequence[dict[str, Any]]) -> Tensor:
        for i, state in enumerate(states):
            self._obs[i], self._elapsed[i] = state["obs"], state["elapsed"]
            self._rng[i].bit_generator.state = state["rng"]
        self._started = True
        return self._tensor(self._obs)

    def close(self) -> None:
        """Nothing is open."""


def limit_of(model: Model, quantile: float) -> float:
    """The disagreement that a share `quantile` of the recorded steps does not exceed."""
    pairs = zip(model.states.split(PIECE), model.actions.split(PIECE), strict=True)
    found = [model.predict(obs, action).disagreement for obs, action in pairs]
    return float(np.quantile(torch.cat(found).numpy(), quantile))


def imagined(
    *,
    id: Literal["imagined"],
    model: str,
    num_envs: Count,
    length: Count,
    start: Literal["any", "first"],
    quantile: Rate | None,
    penalty: NonNegative,
    execute: Count,
    obs_steps: Count,
    gamma: Rate,
    world: World,
) -> ChunkEnv:
    """Imagined environments acted on in chunks, as a configuration names them.

    Args:
        id: Not to be changed: what is imagined is no gymnasium task.
        model: Run of algo=world, in which episodes are imagined.
        num_envs: Copies of the environment that are stepped side by side.
        length: Steps after which an episode is cut, which keeps its bootstrap; errors add up with
            every one.
        start: Where episodes begin: any, at any recorded observation; first, where recorded
            episodes do.
        quantile: Share of the recorded steps at which the model's members disagree less than where
            an episode is cut, which keeps its bootstrap; 1: at the largest, null: never.
        penalty: What a step costs by the members' disagreement, in units of reward; 0: nothing.
        execute: Actions of a planned chunk that are executed per decision; at most horizon.
        obs_steps: Observations that the policy sees, the latest included; 1: no history.
        gamma: Discount per environment step; nearer to 1 looks further ahead.
    """
    how: dict[str, Any] = {"length": length, "start": start, "quantile": quantile}
    env = Imagined(world, num_envs, penalty=penalty, **how)
    return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=gamma)
