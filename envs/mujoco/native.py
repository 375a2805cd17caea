"""gymnasium's MuJoCo tasks on MuJoCo's own batched thread pool (`mujoco.batch`, 3.17 and later).

Physics run bit for bit as in a loop over `mj_step`; observations, rewards, terminations and reset
noise are arrays over environments (`tasks.py`, `walkers.py`), so no step loops over environments
in Python.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from ...errors import EnvError, nearest
from ..batch import Step
from ..bounds import Declared
from ..families import parts_of, vector
from ..guard import reset_warnings, told
from ..memory import cores
from ..vector import VectorEnv
from . import control_tasks, fetch, hands, tasks, walkers
from .physics import INTEGRATION, mujoco, simulate
from .tasks import Options, Task

TASKS: dict[str, type[Task]] = {
    "HalfCheetah-v5": walkers.HalfCheetah,
    "Hopper-v5": walkers.Hopper,
    "Walker2d-v5": walkers.Walker,
    "Ant-v5": walkers.Ant,
    "Humanoid-v5": walkers.Humanoid,
    "HumanoidStandup-v5": walkers.Standup,
    "Swimmer-v5": walkers.Swimmer,
    "Reacher-v5": tasks.Reacher,
    "Pusher-v5": tasks.Pusher,
    "InvertedPendulum-v5": tasks.Pendulum,
    "InvertedDoublePendulum-v5": tasks.DoublePendulum,
    "HalfCheetah-v4": walkers.HalfCheetah,
    "Hopper-v4": walkers.HopperV4,
    "Walker2d-v4": walkers.WalkerV4,
    "Ant-v4": walkers.AntV4,
    **control_tasks.TASKS,
    **hands.TASKS,
    **fetch.TASKS,
}
RENDERING = frozenset(  # what is drawn, and a choice of what is observed
    [
        "cameras",
        "obs_keys",
        "render_mode",
        "width",
        "height",
        "camera_id",
        "camera_name",
        "default_camera_config",
        "max_geom",
        "visual_options",
    ]
)


def task_options(env_id: str, given: Options) -> Options:
    """The task's constructor options, gymnasium's defaults filled in; EnvError for unknown ones."""
    spec = gymnasium.spec(env_id)
    assert spec.entry_point is not None
    entry = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    parameters = inspect.signature(creator).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    for name in sorted(set(given) - set(named) - {"max_episode_steps"}):
        if name in RENDERING:
            raise EnvError(f"{env_id}: {name} is a rendering option, which needs backend=gymnasium")
        raise EnvError(f"{env_id} has no option {name!r}{nearest(name, named)}")
    return {**named, **spec.kwargs, **given}


def refuse_options(made: gymnasium.Env, env_id: str, options: dict[str, Any]) -> None:
    """Raises EnvError for options that gymnasium's own task only stumbles over when it runs."""
    try:
        made.reset(seed=0)
        made.step(np.zeros(made.action_space.shape or (), np.float32))
    except Exception as error:
        raise EnvError(f"{env_id} refuses its options {options}: {told(error)}") from error


class Opened(NamedTuple):
    """What a backend needs of gymnasium's own class for an id."""

    made: gymnasium.Env
    kind: type[Task]
    settings: Options  # all of its constructor's options
    obs_dim: int
    max_steps: int | None

    @property
    def template(self) -> Any:
        """The environment within: model, dt, initial state, spaces."""
        return self.made.unwrapped


def opened(env_id: str, options: Options) -> Opened:
    """One environment of gymnasium's for a task. Raises EnvError for options that it refuses."""
    settings = task_options(env_id, options)
    made = vector(env_id, options)
    if options:
        refuse_options(made, env_id, options)
    box: Any = made.observation_space
    width = int(box.shape[0])
    limit = made.spec.max_episode_steps if made.spec else None
    return Opened(made, TASKS[env_id], settings, width, limit)


def pool_size(threads: int, num_envs: int) -> int:
    """Threads of the pool: `threads`, or one per usable CPU when 0, at most one per environment."""
    return min(threads or cores(), num_envs)


class NativeVector(VectorEnv):
    """N simulations of one task in a batch. Options are those of gymnasium's class for the id.

    threads: threads of the physics pool, 0 for one per usable CPU. speed_limit: a step that is
    faster costs 1 (`costs.speed_limit`); None: nothing costs.
    """

    backend = "native"

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        threads: int = 0,
        dtype: torch.dtype = torch.float32,
        speed_limit: float | None = None,
        **options: Any,
    ) -> None:
        made, kind, settings, obs_dim, limit = one = opened(env_id, options)
        template = one.template
        super().__init__(env_id, num_envs, obs_dim, template.action_space, limit, dtype)
        self.obs_parts = parts_of(made)
        self._declared = Declared(env_id, made.observation_space)
        derived = kind.derived(settings)
        pool = pool_size(threads, num_envs)
        forces = "cfrc_ext" in derived
        self._physics = simulate(template.model, num_envs, pool, forces, kind.synced)
        views = {name: self._physics.bind(name) for name in ("qpos", "qvel", "ctrl", *derived)}
        views |= {name: self._physics.own(name) for name in kind.own}
        self._task = kind(template, settings, views)
        self._views, self._ctrl = views, views["ctrl"]
        self._frame_skip = kind.substeps(template)
        self._fresh = np.zeros(self._physics.state.shape[1])
        mujoco.mj_getState(template.model, mujoco.MjData(template.model), self._fresh, INTEGRATION)
        self._warnings = self._physics.warnings[:, reset_warnings()]
        self._position = np.zeros(num_envs)
        self._left = np.zeros(num_envs)  # positions before the latest step
        self._all = np.ones(num_envs, bool)
        self.costs, self._speed_limit = speed_limit is not None, speed_limit
        self._spot: NDArray | None = self._task.spot() if self.costs else None
        self._obs = np.zeros((num_envs, obs_dim))
        self._last = np.zeros((num_envs, obs_dim))
        self._seed(seed)
        made.close()

    def _seed(self, seed: int | None) -> None:
        self._rng = [
            seeding.np_random(None if seed is None else seed + i)[0] for i in range(self.num_envs)
        ]

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is not None:
            self._seed(seed)
        self._warnings[...] = 0
        self._restart(np.arange(self.num_envs, dtype=np.int32))
        self._started = True
        return self._tensor(self._obs)

    def _restart(self, ids: NDArray) -> None:
        """New episodes in the simulations ids; only drawing the noise is a loop."""
        task = self._task
        self._physics.state[ids] = self._fresh
        for i in ids:
            task.begin(int(i), self._physics.state[i], self._rng[i])
        self._physics.forward(ids)
        task.settle(ids)
        self._elapsed[ids] = 0
        scratch = np.empty_like(self._obs)
        task.observe(scratch)
        self._obs[ids] = scratch[ids]
        position = task.position()
        if position is not None:
            self._position[ids] = position[ids]
        if self._spot is not None and (spot := task.spot()) is not None:
            self._spot[ids] = spot[ids]

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        rows = None if active is None else np.flatnonzero(active.numpy()).astype(np.int32)
        given = self._task.inputs(self._physical(action, rows))
        if rows is None or rows.size:
            self._advance(rows, given)
        obs, reward, terminated = self._score()
        truncated = self._elapsed >= self._limit
        valid = self._all.copy()
        if rows is not None:
            self._keep_idle(rows, obs, reward, terminated, truncated, valid)
        # the squares of finite observations do not overflow: MuJoCo resets states above 1e10
        if np.count_nonzero(self._warnings) or not math.isfinite(
            np.vdot(obs, obs) + np.vdot(reward, reward)
        ):
            self._cut_broken(obs, reward, terminated, truncated, valid)
        if not self._declared.silent:
            self._tell_outside(obs)
        final = self._tensor(obs)
        # before a reset moves what it looks at; a row that was cut or not stepped solves nothing
        solved = torch.from_numpy(self._task.success() & valid) if self._task.reports else None
        cost = None if self._spot is None else self._charge(self._spot, valid, rows)
        ended = terminated | truncated
        following = final
        if np.count_nonzero(ended):
            self._restart(np.flatnonzero(ended).astype(np.int32))
            following = self._tensor(obs)
        return Step(
            following,
            self._tensor(reward),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            final,
            torch.from_numpy(valid),
            solved,
            cost,
        )

    def _advance(self, rows: NDArray | None, given: dict[str, NDArray]) -> None:
        """One step of the rows (None: all), under what they are given by field [N, ...]."""
        task, chosen = self._task, slice(None) if rows is None else rows
        for name, value in given.items():
            self._views[name][chosen] = value[chosen]
        self._elapsed[chosen] += 1
        self._physics.step(rows, self._frame_skip)
        if task.amends:
            task.amend(chosen)
            self._physics.forward(rows)
        task.keep(chosen)

    def _score(self) -> tuple[NDArray, NDArray, NDArray]:
        """Observation, reward and termination of the simulations as they stand."""
        task = self._task
        obs, self._last = self._last, self._obs
        self._obs = obs
        task.observe(obs)
        position = task.position()
        speed = self._left = self._position
        if position is not None:
            speed = (position - self._left) / task.dt
            self._position = position
        reward, terminated = task.score(self._ctrl, speed, obs)
        return obs, reward, np.zeros(self.num_envs, bool) if terminated is None else terminated

    def _charge(self, before: NDArray, valid: NDArray, rows: NDArray | None) -> Tensor:
        """1 [N] for every row that went faster than allowed; rows: those that were stepped."""
        now = self._task.spot()
        assert now is not None
        velocity = (now - before) / self._task.dt
        one = velocity.shape[1] == 1
        speed = velocity[:, 0] if one else np.sqrt(np.square(velocity).sum(1))
        moved = slice(None) if rows is None else rows
        before[moved] = now[moved]
        return self._tensor((speed > self._speed_limit) & valid)

    def _keep_idle(
        self, rows: NDArray, obs: NDArray, reward: NDArray,
        terminated: NDArray, truncated: NDArray, valid: NDArray,
    ) -> None:  # fmt: skip
        """Undo whatever was written for the rows that were not stepped."""
        idle = np.ones(self.num_envs, bool)
        idle[rows] = False
        obs[idle], self._position[idle] = self._last[idle], self._left[idle]
        reward[idle] = 0
        for flag in (terminated, truncated, valid):
            flag[idle] = False

    def _cut_broken(
        self, obs: NDArray, reward: NDArray,
        terminated: NDArray, truncated: NDArray, valid: NDArray,
    ) -> None:  # fmt: skip
        """End, unstored, the rows that MuJoCo reset or whose numbers are not finite."""
        diverged = self._warnings.any(1)
        infinite = ~(np.isfinite(obs).all(1) & np.isfinite(reward)) & ~diverged & valid
        self.counters["physics_resets"] += int(diverged.sum())
        self.counters["bad_obs"] += int(infinite.sum())
        self._warnings[diverged] = 0
        broken = diverged | infinite
        obs[broken] = self._last[broken]
        reward[broken] = 0
        terminated[broken], truncated[broken], valid[broken] = False, True, False

    def _tell_outside(self, obs: NDArray) -> None:
        """Says once that observations [N, Do] lie outside of the bounds that are declared."""
        found = self._declared.beyond(obs)
        if found is not None:
            i, j = found
            place = f"{self.id}, environment {i}, step {self._elapsed[i]}"
            self._declared.tell(place, j, obs[i, j])

    def close(self) -> None:
        """Nothing is open: the simulations are freed with the object."""

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._common_state(),
            "physics": self._physics.state.copy(),
            "position": self._position.copy(),
            **({} if self._spot is None else {"place": self._spot.copy()}),
            "obs": self._obs.copy(),
            "memory": {name: value.copy() for name, value in self._task.memory().items()},
            "rng": [rng.bit_generator.state for rng in self._rng],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load_common(state)
        self._physics.state[...] = state["physics"]
        self._position[:] = state["position"]
        if self._spot is not None:
            self._spot[:] = state["place"]
        self._obs[:] = state["obs"]
        for name, value in self._task.memory().items():
            value[...] = state["memory"][name]
        self._warnings[...] = 0
        for rng, saved in zip(self._rng, state["rng"], strict=True):
            rng.bit_generator.state = saved

    def _live(self) -> dict[str, NDArray]:
        """What the next steps depend on but the resets' generators, by name, live [N, ...]."""
        own = {"physics": self._physics.state, "position": self._position, "obs": self._obs}
        return {**own, "elapsed": self._elapsed, **self._task.memory()}

    def unbranched(self) -> None:
        """None: every task here can be branched."""

    def take(self, row: int) -> dict[str, Any]:
        return {name: value[row].copy() for name, value in self._live().items()}

    def branch(self, states: Sequence[dict[str, Any]]) -> Tensor:
        for name, value in self._live().items():
            value[...] = np.stack([state[name] for state in states])
        self._warnings[...] = 0
        self._started = True
        return self._tensor(self._obs)
