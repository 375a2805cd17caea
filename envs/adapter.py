"""Any registered gymnasium environment with Box spaces behind the vector contract, in a loop."""

import logging
import math
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from .batch import Step
from .guard import reset_warnings
from .physics import INTEGRATION, mujoco
from .vector import EnvError, VectorEnv, gymnasium_make

log = logging.getLogger("rheo")

# Wrappers and tasks whose whole state is the simulator's, the generator and the step count.
PLAIN_WRAPPERS = ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker")
PLAIN_TASKS = "gymnasium.envs.mujoco."
# Derived MjData fields that gymnasium's tasks read before the next step refreshes them.
DERIVED = [
    "xpos",
    "xipos",
    "site_xpos",
    "cinert",
    "cvel",
    "qfrc_actuator",
    "qfrc_constraint",
    "cfrc_ext",
]


def flat_box(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """The environment with a 1-D Box observation; Dict and Tuple ones are flattened."""
    space = env.observation_space
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and space.is_np_flattenable:
        log.info("%s: its %s observation is flattened", env_id, type(space).__name__)
        env = gymnasium.wrappers.FlattenObservation(env)
        space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise EnvError(
            f"{env_id} has the observation space {space}, but a vector (1-D Box) is needed: wrap "
            "the environment, for example in gymnasium.wrappers.FlattenObservation, and register it"
        )
    return env


class GymnasiumVector(VectorEnv):
    """N environments made by gymnasium.make and stepped one after the other."""

    backend = "gymnasium"

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        self._envs = [flat_box(gymnasium_make(env_id, options), env_id) for _ in range(num_envs)]
        first = self._envs[0]
        shape, limit = (
            first.observation_space.shape,
            first.spec.max_episode_steps if first.spec else None,
        )
        assert shape is not None
        super().__init__(env_id, num_envs, shape[0], first.action_space, limit, dtype)
        self._kind = first.action_space.dtype
        self._next_seed = seed
        self._obs = np.zeros((num_envs, self.obs_dim))
        self._mujoco = [_simulator(env) for env in self._envs]
        self.exact = all(_plain(env) for env in self._envs)

    def reset(self, seed: int | None = None) -> Tensor:
        seed = self._next_seed if seed is None else seed
        self._next_seed = None
        for i in range(self.num_envs):
            self._restart(i, None if seed is None else seed + i)
        self._started = True
        return self._tensor(self._obs)

    def _tensor(self, value: NDArray) -> Tensor:
        return torch.from_numpy(value.astype(self._numpy_dtype))

    def _restart(self, i: int, seed: int | None = None) -> None:
        obs, _ = self._envs[i].reset(seed=seed)
        self._obs[i] = self._checked(obs)
        self._elapsed[i] = 0
        if not np.isfinite(self._obs[i]).all():
            raise EnvError(f"{self.id}: environment {i} starts with a non-finite observation {obs}")

    def _checked(self, obs: Any) -> NDArray:
        obs = np.asarray(obs)
        if obs.shape != (self.obs_dim,):
            raise EnvError(
                f"{self.id} returned an observation of shape {obs.shape}, but its "
                f"observation_space says {(self.obs_dim,)}: correct the environment"
            )
        return obs

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        n = self.num_envs
        rows = np.arange(n) if active is None else np.flatnonzero(active.numpy())
        control = self._physical(action, rows).astype(self._kind, copy=False)
        reward = np.zeros(n)
        terminated, truncated, valid = (np.zeros(n, bool) for _ in range(3))
        final = self._obs.copy()
        for i in rows.tolist():
            self._step_row(i, control[i], final, reward, terminated, truncated, valid)
        self._obs[...] = final
        ended = terminated | truncated
        last = self._tensor(final)
        following = last
        if ended.any():
            for i in np.flatnonzero(ended).tolist():
                self._restart(i)
            following = self._tensor(self._obs)
        return Step(
            following,
            self._tensor(reward),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            last,
            torch.from_numpy(valid),
        )

    def _step_row(
        self, i: int, control: NDArray, final: NDArray, reward: NDArray,
        terminated: NDArray, truncated: NDArray, valid: NDArray,
    ) -> None:  # fmt: skip
        """One environment's step into row i; a broken one is cut and keeps its last observation."""
        obs, value, ends, cut, _ = self._envs[i].step(control)
        obs = self._checked(obs)
        self._elapsed[i] += 1
        simulator = self._mujoco[i]
        if simulator is not None and simulator.warning.number[reset_warnings()].any():
            self.counters["physics_resets"] += 1
        elif not (np.isfinite(obs).all() and math.isfinite(value)):
            self.counters["bad_obs"] += 1
        else:
            final[i], reward[i], terminated[i], truncated[i] = obs, value, ends, cut
            valid[i] = True
            return
        truncated[i] = True

    def state_dict(self) -> dict[str, Any]:
        """Exact for gymnasium's MuJoCo tasks; others say `exact: False` (see load_state_dict)."""
        return {
            **self._common_state(),
            "exact": self.exact,
            "obs": self._obs.copy(),
            "rng": [env.unwrapped.np_random.bit_generator.state for env in self._envs],
            "physics": [_snapshot(env) for env in self._envs] if self.exact else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue; where the simulator's state cannot be read, new episodes are started instead.

        Those follow the saved generators, so they are the same after every load of one state, but
        the running episodes are lost and a warning says so.
        """
        self._load_common(state)
        self._next_seed = None  # the saved generators go on
        for env, saved in zip(self._envs, state["rng"], strict=True):
            env.reset()
            env.unwrapped.np_random.bit_generator.state = saved
        if self.exact and state["exact"]:
            for env, saved, elapsed in zip(
                self._envs, state["physics"], self._elapsed, strict=True
            ):
                _restore(env, saved, int(elapsed))
            self._obs[:] = state["obs"]
            return
        log.warning(
            "%s: this environment's state cannot be saved, so its %d running episodes were "
            "replaced by new ones", self.id, self.num_envs,
        )  # fmt: skip
        for i in range(self.num_envs):
            self._restart(i)

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _simulator(env: gymnasium.Env) -> Any | None:
    """The environment's MjData, if it has one."""
    data = getattr(env.unwrapped, "data", None)
    return data if isinstance(data, mujoco.MjData) else None


def _plain(env: gymnasium.Env) -> bool:
    """Whether simulator, generator and step count are the whole state."""
    while env is not env.unwrapped:
        if type(env).__name__ not in PLAIN_WRAPPERS:
            return False
        env = env.env  # type: ignore[attr-defined]
    return _simulator(env) is not None and type(env).__module__.startswith(PLAIN_TASKS)


def _snapshot(env: gymnasium.Env) -> dict[str, NDArray]:
    base: Any = env.unwrapped
    state = np.zeros(mujoco.mj_stateSize(base.model, INTEGRATION))
    mujoco.mj_getState(base.model, base.data, state, INTEGRATION)
    return {"state": state, **{name: getattr(base.data, name).copy() for name in DERIVED}}


def _restore(env: gymnasium.Env, saved: dict[str, NDArray], elapsed: int) -> None:
    base: Any = env.unwrapped
    mujoco.mj_setState(base.model, base.data, np.asarray(saved["state"]), INTEGRATION)
    for name in DERIVED:
        getattr(base.data, name)[...] = saved[name]
    while env is not base:
        if hasattr(env, "_elapsed_steps"):
            env._elapsed_steps = elapsed  # type: ignore[attr-defined]
        env = env.env  # type: ignore[attr-defined]
