"""Any registered gymnasium environment with Box spaces behind the vector contract, in a loop."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import families
from .batch import Step
from .guard import close, once, reset_warnings, told
from .judged import Judged
from .mujoco import snapshot

log = logging.getLogger("rheo")


class GymnasiumVector(Judged):
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
        self.obs_parts, self.obs_images = families.parts_of(first), families.images_of(first)
        self._kind = first.action_space.dtype
        self._next_seed = seed
        self._obs = np.zeros((num_envs, self.obs_dim))
        self._mujoco = [snapshot.simulator(env) for env in self._envs]
        self._cameras = [families.cameras_of(env) for env in self._envs]
        self._seeds = np.full(num_envs, -1, np.int64)
        self._episodes = np.zeros(num_envs, np.int64)
        self._learn_spaces()
        self._at = np.zeros(2, np.int64)  # rows worked on so far, and which it is: others may look
        self.exact = all(snapshot.whole(env) for env in self._envs)
        repeats = all(getattr(env.unwrapped, "repeats", False) for env in self._envs)
        self._repeats = repeats and not self.exact  # what happened is the state
        self._begun: list[Any] = [None] * num_envs  # seed or generators' states an episode began at
        self._acted: list[list[NDArray]] = [[] for _ in range(num_envs)]  # actions since

    def reset(self, seed: int | None = None) -> Tensor:
        seed = self._next_seed if seed is None else seed
        self._next_seed = None
        for i in range(self.num_envs):
            self._restart(i, None if seed is None else seed + self.first + i)
        self._started = True
        return self._tensor(self._obs)

    def wrap(self, wrapper: Callable[[gymnasium.Env], gymnasium.Env]) -> None:
        """Puts something around each environment, before its first reset."""
        self._envs = [wrapper(env) for env in self._envs]

    def restart(self, seeds: list[int]) -> None:
        """New episodes from a seed of each environment's own."""
        for i, seed in enumerate(seeds):
            self._restart(i, seed)
        self._started = True

    def share(self, rows: dict[str, NDArray], at: NDArray) -> None:
        """Keeps in memory that others see: each row's obs, elapsed, seed, episode; and `_at`."""
        rows["seed"][:] = self._seeds
        self._obs, self._elapsed = rows["obs"], rows["elapsed"]
        self._seeds, self._episodes, self._at = rows["seed"], rows["episode"], at

    def _restart(self, i: int, seed: int | None = None) -> None:
        """A new episode of one environment. Raises EnvError for whatever is wrong with it."""
        if seed is not None:
            self._seeds[i], self._episodes[i] = seed, 0
        self._elapsed[i] = 0
        self._episodes[i] += 1
        self._turn(i)
        self._blind(i, 0)
        if self._repeats:
            self._begun[i] = self._generators(self._envs[i]) if seed is None else int(seed)
            self._acted[i].clear()
        self._obs[i] = self._begun_obs(i, seed)
        self._mujoco[i] = snapshot.simulator(self._envs[i])  # some make a new one

    def _turn(self, i: int) -> None:
        """Row i is worked on from now."""
        self._at[0] += 1
        self._at[1] = i

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        return self._step(action, active)

    def ahead(
        self, action: Tensor, active: Tensor | None = None, last: int | None = None
    ) -> list[Step] | None:
        fewer = self.obs_images and last is not None and last < action.shape[1]
        if not fewer or not bool(torch.isfinite(action).all()):
            return None  # step by step an action that is not finite is refused at its turn
        return self.chunk(action, active, last)

    def chunk(self, action: Tensor, active: Tensor | None, last: int | None) -> list[Step]:
        """The steps of `ahead`.

        Images that nobody looks at are not drawn. Which these are is only known at a row's end: an
        episode that ends in the middle of a chunk has its latest ones drawn after all.
        """
        steps = action.shape[1]
        last, found = steps if last is None else last, []
        rows = torch.ones(self.num_envs, dtype=torch.bool) if active is None else active
        for k in range(steps):
            past = [out.final_obs.numpy() for out in found[max(k + 1 - last, 0) :]]
            kept = last + 1 if k < steps - last else 0
            found.append(self._step(action[:, k], None if rows.all() else rows, kept, past))
            rows = rows & ~(found[k].terminated | found[k].truncated)
            if not rows.any():
                break
        return found

    def _blind(self, i: int, kept: int) -> None:
        """Row i's cameras do not draw, and keep so many of their views; 0: they draw."""
        cameras = self._cameras[i]
        if cameras is not None:
            cameras.blind = kept

    def _develop(self, i: int, seen: list[NDArray]) -> None:
        """Draws after all what row i of these observations is of, where its cameras were blind."""
        cameras = self._cameras[i]
        if cameras is not None:
            for obs in seen:
                cameras.develop(obs[i])

    def _step(
        self, action: Tensor, active: Tensor | None, kept: int = 0, past: Sequence[NDArray] = ()
    ) -> Step:
        """`step`, blind where `kept` is not 0 (`_blind`).

        past: successors [N, Do] of the steps before, which are looked at where a row ends.
        """
        n = self.num_envs
        rows = np.arange(n) if active is None else np.flatnonzero(active.numpy())
        control = self._physical(action, rows).astype(self._kind)  # theirs: they may write to it
        reward = np.zeros(n)
        terminated, truncated, valid, solved = (np.zeros(n, bool) for _ in range(4))
        final = self._obs.copy()
        for i in rows.tolist():
            self._blind(i, kept)
            self._step_row(i, control[i], final, reward, terminated, truncated, valid, solved)
        self._obs[...] = final
        self._tell_outside(final)
        ended = terminated | truncated
        last = self._tensor(final)
        following = last
        if ended.any():
            for i in np.flatnonzero(ended).tolist():
                self._develop(i, [*past, last.numpy()])
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
        self._elapsed[i] += 1
        self._turn(i)
        if self._repeats:
            self._acted[i].append(control.copy())
        obs, value, ends, cut, info = self._answer(i, control)
        value = self._reward(i, value)
        simulator = self._mujoco[i]
        if simulator is not None and simulator.warning.number[reset_warnings()].any():
            self.counters["physics_resets"] += 1
        elif not self._is_sound(i, obs, value):
            self.counters["bad_obs"] += 1
        else:
            final[i], reward[i] = obs, value
            terminated[i] = self._flag(i, "terminated", ends)
            truncated[i] = self._flag(i, "truncated", cut)
            valid[i] = True
            solved[i] = self._solved(i, info)
            return
        truncated[i] = True

    def state_dict(self) -> dict[str, Any]:
        """Exact for the tasks of `snapshot.TASKS`; others say `exact: False` (load_state_dict).

        Where an episode repeats to the last bit, what it began at and the actions since are kept.
        """
        exact = self.exact and not self._broken
        repeats = self._repeats and self._started and not self._broken
        return {
            **self._common_state(),
            "exact": exact,
            "success_key": self._success_key,
            "obs": self._obs.copy(),
            "rng": [self._generators(env) for env in self._envs],
            "physics": [snapshot.take(env) for env in self._envs] if exact else [],
            "begun": list(self._begun) if repeats else [],
            "acted": [np.array(actions) for actions in self._acted] if repeats else [],
        }

    def _generators(self, env: gymnasium.Env) -> list[Any]:
        """States of an environment's generators; none where it failed or they are not numpy's."""
        try:
            return [bits.state for bits in snapshot.generators(env)]
        except Exception as error:  # noqa: BLE001 - np_random is the environment's own to make
            if not self._broken:
                text = (
                    f"its generator cannot be saved ({told(error)}): what follows a resume differs"
                )
                once((self.id, "generator"), f"{self.id}: {text}")
            return []

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        """Continue; where the simulator's state cannot be read, new episodes are started instead.

        Episodes that repeat to the last bit are played again up to where they were. New ones
        follow the saved generators, so they are the same after every load of one state, but
        the running episodes are lost and a warning says so.
        """
        self._load_common(state)
        self._success_key = state.get("success_key")
        self._next_seed = None  # the saved generators go on
        self._seeds[:] = -1
        if self._repeats and state.get("begun"):
            return self._replay(state)
        for i, (env, saved) in enumerate(zip(self._envs, state["rng"], strict=True)):
            elapsed = self._elapsed[i]
            self._restart(i)
            self._elapsed[i] = elapsed
            if saved:
                self._set_generators(env, saved)
        if self.exact and state["exact"]:
            for env, saved, elapsed in zip(
                self._envs, state["physics"], self._elapsed, strict=True
            ):
                snapshot.put_back(env, saved, int(elapsed))
            self._obs[:] = state["obs"]
            return None
        log.warning(
            "%s: this environment's state cannot be saved, so its %d running episodes were "
            "replaced by new ones", self.id, self.num_envs,
        )  # fmt: skip
        for i in range(self.num_envs):
            self._restart(i)
        return self._tensor(self._obs)

    def _replay(self, state: dict[str, Any]) -> Tensor | None:
        """Plays the running episodes again; those that end elsewhere are replaced by new ones."""
        other = 0
        for i, (begun, actions) in enumerate(zip(state["begun"], state["acted"], strict=True)):
            elapsed, env = self._elapsed[i], self._envs[i]
            if not isinstance(begun, int):
                self._set_generators(env, begun)
            self._restart(i, begun if isinstance(begun, int) else None)
            for k, action in enumerate(actions, 1):
                self._turn(i)
                self._blind(i, int(k < len(actions)))  # the last one's image is compared
                self._acted[i].append(action)
                self._obs[i] = self._answer(i, action.copy())[0]
            self._elapsed[i] = elapsed
            self._set_generators(env, state["rng"][i])
            if not np.array_equal(self._obs[i], state["obs"][i]):
                self._restart(i)
                other += 1
        if not other:
            return None
        log.warning(
            "%s: %d of %d running episodes did not repeat here and were replaced by new ones",
            self.id, other, self.num_envs,
        )  # fmt: skip
        return self._tensor(self._obs)

    def unbranched(self) -> str | None:
        return next(filter(None, map(snapshot.lacking, self._envs)), None)

    def take(self, row: int) -> dict[str, Any]:
        env = self._envs[row]
        rest = {"obs": self._obs[row].copy(), "elapsed": int(self._elapsed[row])}
        return {"physics": snapshot.take(env), "rng": self._generators(env), **rest}

    def branch(self, states: Sequence[dict[str, Any]]) -> Tensor:
        for i, (env, state) in enumerate(zip(self._envs, states, strict=True)):
            self._restart(i)
            self._set_generators(env, state["rng"])
            snapshot.put_back(env, state["physics"], state["elapsed"])
            self._elapsed[i], self._obs[i] = state["elapsed"], state["obs"]
        self._started = True
        return self._tensor(self._obs)

    def _set_generators(self, env: gymnasium.Env, saved: list[Any]) -> None:
        for bits, state_of in zip(snapshot.generators(env), saved, strict=True):
            bits.state = state_of

    def close(self) -> None:
        for env in self._envs:
            close(env, self.id)
