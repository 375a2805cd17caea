"""Any registered gymnasium environment with Box spaces behind the vector contract, in a loop."""

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import families, snapshot
from .batch import Step
from .guard import reset_warnings
from .vector import EnvError, VectorEnv

log = logging.getLogger("rheo")


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
        self._envs = [families.make(env_id, options) for _ in range(num_envs)]
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
        self._mujoco = [snapshot.simulator(env) for env in self._envs]
        self._success_key: str | None = None  # found in the first info that has one
        self.exact = all(snapshot.whole(env) for env in self._envs)

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
        terminated, truncated, valid, solved = (np.zeros(n, bool) for _ in range(4))
        final = self._obs.copy()
        for i in rows.tolist():
            self._step_row(i, control[i], final, reward, terminated, truncated, valid, solved)
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
            None if self._success_key is None else torch.from_numpy(solved),
        )

    def _step_row(
        self, i: int, control: NDArray, final: NDArray, reward: NDArray,
        terminated: NDArray, truncated: NDArray, valid: NDArray, solved: NDArray,
    ) -> None:  # fmt: skip
        """One environment's step into row i; a broken one is cut and keeps its last observation."""
        obs, value, ends, cut, info = self._envs[i].step(control)
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
            if self._success_key is None:
                self._success_key = families.success_key(info)
            if self._success_key is not None:
                solved[i] = bool(info.get(self._success_key, False))
            return
        truncated[i] = True

    def state_dict(self) -> dict[str, Any]:
        """Exact for the tasks of `snapshot.TASKS`; others say `exact: False` (load_state_dict)."""
        return {
            **self._common_state(),
            "exact": self.exact,
            "obs": self._obs.copy(),
            "rng": [[bits.state for bits in snapshot.generators(env)] for env in self._envs],
            "physics": [snapshot.take(env) for env in self._envs] if self.exact else [],
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
            for bits, state_of in zip(snapshot.generators(env), saved, strict=True):
                bits.state = state_of
        if self.exact and state["exact"]:
            for env, saved, elapsed in zip(
                self._envs, state["physics"], self._elapsed, strict=True
            ):
                snapshot.put_back(env, saved, int(elapsed))
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
