"""Any registered gymnasium environment with Box spaces behind the vector contract, in a loop."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError
from . import families
from .batch import Step
from .guard import number, ours, place, reset_warnings, shown, told, truth
from .mujoco import snapshot
from .vector import VectorEnv

log = logging.getLogger("rheo")
RETURNS = {  # what gymnasium's calls return
    "reset": "the pair (obs, info)",
    "step": "the five (obs, reward, terminated, truncated, info)",
}


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
        self.obs_parts, self.obs_images = families.parts_of(first), families.images_of(first)
        self._kind = first.action_space.dtype
        self._next_seed = seed
        self._obs = np.zeros((num_envs, self.obs_dim))
        self._mujoco = [snapshot.simulator(env) for env in self._envs]
        self._cameras = [families.cameras_of(env) for env in self._envs]
        self._success_key: str | None = None  # found in the first info that has one
        self._seeds = np.full(num_envs, -1, np.int64)  # the last one given to each
        self._episodes = np.zeros(num_envs, np.int64)  # of each since then
        self.first = 0  # index of the first one among those of all processes
        self._at = np.zeros(2, np.int64)  # rows worked on so far, and which it is: others may look
        self._broken = False  # whether one of them failed: its state says nothing any more
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
        try:
            result = self._envs[i].reset(seed=seed)
        except Exception as error:
            raise self._raised(i, "reset", error) from error
        self._mujoco[i] = snapshot.simulator(self._envs[i])  # some make a new one
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._wrong(i, "reset returned", shown(result), RETURNS["reset"])
        obs = self._checked(i, result[0])
        if not np.isfinite(obs).all():
            got = f"a non-finite observation {obs}"
            raise self._wrong(i, "reset starts with", got, "finite numbers")
        self._obs[i] = obs

    def _turn(self, i: int) -> None:
        """Row i is worked on from now."""
        self._at[0] += 1
        self._at[1] = i

    def _checked(self, i: int, obs: Any) -> NDArray:
        try:
            found = np.asarray(obs)
        except Exception as error:
            raise self._wrong(i, "the observation is", shown(obs), f"an array ({error})") from error
        if found.shape != (self.obs_dim,):
            got = f"shape {found.shape}, but its observation_space says {(self.obs_dim,)}"
            if found.dtype.kind == "O":
                got = f"{shown(obs)}, but its observation_space says shape {(self.obs_dim,)}"
            raise self._wrong(i, "the observation has", got, None)
        if found.dtype.kind not in "fiub":
            got = f"{found.dtype} ({shown(obs)})"
            raise self._wrong(i, "the observation's type is", got, "real numbers")
        return found

    # ---- what is wrong with an environment: its name, index, seed and step, got and expected ----

    def _place(self, i: int) -> str:
        """Where row i is, for a message."""
        self._broken = True
        counts = self._seeds[i], self._episodes[i], self._elapsed[i]
        return place(self.id, self.first + i, *map(int, counts))

    def _wrong(self, i: int, field: str, got: str, expected: str | None) -> EnvError:
        """An answer that no environment may give."""
        wanted = f", expected {expected}" if expected else ""
        return EnvError(f"{self._place(i)}: {field} {got}{wanted}: correct the environment")

    def _raised(self, i: int, call: str, error: Exception) -> EnvError:
        """The message for an error inside the environment; raises it as it is if it is ours."""
        if isinstance(error, EnvError):
            return EnvError(f"{self._place(i)}: {error}: correct the environment")
        if ours(error):
            raise error
        text = str(error)
        if call == "reset" and isinstance(error, TypeError) and "'seed'" in text:
            got = f"no seed ({told(error)})"
            return self._wrong(i, "reset takes", got, "reset(self, *, seed=None, options=None)")
        if isinstance(error, ValueError) and "values to unpack (expected " in text:
            found = re.search(r"got (\d+)", text)
            count = f"{found[1]} values" if found else "too many values"
            return self._wrong(i, f"{call} returned", count, RETURNS[call])
        return EnvError(f"{self._place(i)}: {call} raised {told(error)}")

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
        control = self._physical(action, rows).astype(self._kind, copy=False)
        reward = np.zeros(n)
        terminated, truncated, valid, solved = (np.zeros(n, bool) for _ in range(4))
        final = self._obs.copy()
        for i in rows.tolist():
            self._blind(i, kept)
            self._step_row(i, control[i], final, reward, terminated, truncated, valid, solved)
        self._obs[...] = final
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
            self._acted[i].append(control)
        try:
            result = self._envs[i].step(control)
        except Exception as error:
            raise self._raised(i, "step", error) from error
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            raise self._wrong(i, "step returned", shown(result), RETURNS["step"])
        obs, value, ends, cut, info = result
        obs = self._checked(i, obs)
        if type(value) is not float:
            value = self._asked(i, "reward", value, number(value), "one real number")
        simulator = self._mujoco[i]
        if simulator is not None and simulator.warning.number[reset_warnings()].any():
            self.counters["physics_resets"] += 1
        elif not (np.isfinite(obs).all() and math.isfinite(value)):
            self.counters["bad_obs"] += 1
        else:
            final[i], reward[i] = obs, value
            terminated[i] = ends if type(ends) is bool else self._flag(i, "terminated", ends)
            truncated[i] = cut if type(cut) is bool else self._flag(i, "truncated", cut)
            valid[i] = True
            solved[i] = self._solved(i, info)
            return
        truncated[i] = True

    def _asked(self, i: int, field: str, value: Any, read: Any, expected: str) -> Any:
        """What was read of a value; EnvError when nothing could be."""
        if read is None:
            raise self._wrong(i, f"the {field} is", shown(value), expected)
        return read

    def _flag(self, i: int, field: str, value: Any) -> bool:
        """An end of an episode: a bool, or one number or array of size one that stands for it."""
        one = number(value)
        return self._asked(i, field, value, None if one is None else truth(value), "True or False")

    def _solved(self, i: int, info: Any) -> bool:
        """Success as a step's info tells it: of an array any entry; nothing said is no success."""
        if type(info) is not dict and not isinstance(info, Mapping):
            raise self._wrong(i, "info is", shown(info), "a dictionary")
        if self._success_key is None:
            self._success_key = families.success_key(info)
            if self._success_key is None:
                return False
        value = info.get(self._success_key, False)
        if type(value) is bool or value is None:
            return bool(value)
        field = f"info[{self._success_key!r}]"
        return self._asked(i, field, value, truth(value), "a flag, or an array of flags")

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
        """States of an environment's generators; none of one that failed and cannot be asked."""
        try:
            return [bits.state for bits in snapshot.generators(env)]
        except Exception:
            if not self._broken:
                raise
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
                self._obs[i] = env.step(action)[0]
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

    def _set_generators(self, env: gymnasium.Env, saved: list[Any]) -> None:
        for bits, state_of in zip(snapshot.generators(env), saved, strict=True):
            bits.state = state_of

    def close(self) -> None:
        for env in self._envs:
            try:
                env.close()
            except Exception as error:  # noqa: BLE001 - what was measured is not lost for it
                log.warning("%s: closing it raised %s", self.id, told(error))
