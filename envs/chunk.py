"""Environments that are acted on in chunks: Ta actions per decision, To observations of history.

Between two decisions lie n <= Ta steps; what is learnt from is one transition with
reward = sum_k gamma^k r_k (k < n) and discount = gamma^n (1 - terminated), so a truncated episode
keeps its bootstrap and a chunk that ends early discounts by the steps it took.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import EnvError
from .mujoco.tasks import Array, copied
from .vector import VectorEnv


class ChunkStep(NamedTuple):
    """One decision of N environments."""

    obs: Tensor  # [N, To*Do] where to act next
    reward: Tensor  # [N] discounted sum inside the chunk
    discount: Tensor  # [N] gamma^n (1 - terminated)
    next_obs: Tensor  # [N, To*Do] the true successor, never the reset's
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    valid: Tensor  # [N] bool: False rows broke and must not be stored
    frames: Tensor  # [N] int64: environment steps executed
    episode_return: Tensor  # [N] float64, undiscounted; meaningful where the episode ended
    episode_length: Tensor  # [N] int64, in environment steps; likewise
    success_once: Tensor | None = None  # [N] bool: solved at any step of the episode; likewise
    success_at_end: Tensor | None = None  # [N] bool: solved by the last step executed
    cost: Tensor | None = None  # [N] the largest of a step inside the chunk; None: nothing costs
    episode_cost: Tensor | None = None  # [N] float64, summed; meaningful where the episode ended


Bill = tuple[Array, Array]  # largest and summed costs, [N] each
Kind = tuple[Any, Callable[[Tensor], Array], Callable[[Array], Tensor]]


def _itself(value: Tensor) -> Tensor:
    return value


HOST: Kind = (np, Tensor.numpy, torch.from_numpy)
DEVICE: Kind = (torch, _itself, _itself)


class ChunkEnv:
    """Executes the first `execute` actions of every chunk and stacks `obs_steps` observations.

    A row that ends inside a chunk is reset and waits there: the rest of the chunk belongs to a
    plan for the ended episode and is not executed in the new one. The history of a new episode is
    its first observation repeated.

    On the host the few numbers of an environment are kept in numpy, where arithmetic on them is
    much cheaper than in torch; of environments on a device they are tensors there. The code is the
    same, only that the host looks whether something is to be done, and a device does it masked.
    """

    def __init__(self, env: VectorEnv, *, execute: int, obs_steps: int, gamma: float) -> None:
        for name, value in (("execute", execute), ("obs_steps", obs_steps)):
            if value < 1:
                raise EnvError(f"{name} is {value}, but at least 1 is needed")
        if not 0 <= gamma <= 1:
            raise EnvError(f"gamma is {gamma}, but a discount lies in [0, 1]")
        self.env, self.execute, self.obs_steps, self.gamma = env, execute, obs_steps, gamma
        n = env.num_envs
        self.num_envs, self.action_dim = n, env.action_dim
        self.obs_dim = obs_steps * env.obs_dim
        self._scales = [gamma**k for k in range(execute + 1)]
        self._host = env.device is None
        # the namespace, a tensor as this class computes with it, and back: on the same memory
        self._xp, self._array, self._tensor = HOST if self._host else DEVICE
        self._powers = self._array(torch.tensor(self._scales, dtype=env.dtype, device=env.device))
        self._history = self._zeros((n, obs_steps, env.obs_dim), env.dtype)
        self._return = self._zeros((n,), torch.float64)
        self._length = self._zeros((n,), torch.int64)
        self._solved = self._zeros((n,), torch.bool)  # at any step of the running episodes
        self._cost = self._zeros((n,), torch.float64)
        self._none, self._nothing = self._zeros((n,), torch.bool), self._zeros((n,), env.dtype)
        self._all, self._never = ~self._none, self._zeros((n,), torch.int64)
        self._one = self._never + 1

    def reset(self, seed: int | None = None) -> Tensor:
        """Start N episodes -> obs [N, To*Do]."""
        return self._begun(self.env.reset(seed))

    def own_noise(self, seed: int, first: int = 0) -> None:
        """Whoever acts inside the environments gives each episode noise of its own from now on.

        first: index of the first environment among those of the evaluation. Nobody does here.
        """

    def _begun(self, obs: Tensor) -> Tensor:
        """The histories of N new episodes from their first observations [N, Do]."""
        self._return[:] = 0
        self._length[:] = 0
        self._solved[:] = False
        self._cost[:] = 0
        self._history = self._xp.stack([self._array(obs)] * self.obs_steps, 1)
        return self._flat(self._history)

    def step(self, action: Tensor, active: Tensor | None = None) -> ChunkStep:
        """Execute action [N, T >= Ta, Da] in [-1, 1]; tensors returned are not to be written to.

        active [N]: rows that take part, all when None. The others stay where they are: obs
        unchanged, no frames, no reward, flags False. Raises NonFiniteAction for NaN or Inf in an
        action that is about to be executed.
        """
        if action.dim() != 3 or action.shape[1] < self.execute:
            raise ValueError(
                f"chunk has shape {tuple(action.shape)}, expected [{self.num_envs}, >= "
                f"{self.execute}, {self.action_dim}]"
            )
        if self.execute == 1 and self.obs_steps == 1:
            return self._single(action.select(1, 0), active)
        return self._chunk(action[:, : self.execute], active)

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Array:
        return self._array(torch.zeros(shape, dtype=dtype, device=self.env.device))

    def _any(self, rows: Array) -> bool:
        """Whether something may have to be done for the rows [N]."""
        return not self._host or bool(np.count_nonzero(rows))

    def _flat(self, history: Array) -> Tensor:
        return self._tensor(history.reshape(self.num_envs, -1))

    def _single(self, action: Tensor, active: Tensor | None) -> ChunkStep:
        """One action, no history: the vector step with its discount."""
        out = self.env.step(action, active)
        terminated = self._array(out.terminated)
        frames = copied(self._one) if active is None else self._one * self._array(active)
        self._return += self._array(out.reward)
        self._length += frames
        done = terminated | self._array(out.truncated)
        returns, lengths = self._finish(done)
        once = None
        if out.success is not None:  # nothing is spent where there is no such notion
            self._solved |= self._array(out.success)
            once = self._ever(done)
        return ChunkStep(
            out.obs,
            out.reward,
            self._tensor(self._powers[1] * ~terminated),
            out.final_obs,
            out.terminated,
            out.truncated,
            out.valid,
            self._tensor(frames),
            returns,
            lengths,
            once,
            out.success,
            *self._paid(self._billed(out.cost, None), done),
        )

    def _chunk(self, action: Tensor, asked: Tensor | None) -> ChunkStep:
        history = self._history
        active = self._all if asked is None else self._array(asked)
        valid, terminated, truncated = copied(active), copied(self._none), copied(self._none)
        reward, frames = copied(self._nothing), copied(self._never)
        first, solved, bill = history[:, 0], None, None
        all_active = asked is None
        ahead = self.env.ahead(action, asked, self.obs_steps)
        for k in range(self.execute):
            mask = None if all_active else self._tensor(active)
            out = self.env.step(action[:, k], mask) if ahead is None else ahead[k]
            rewards, first = self._array(out.reward), self._array(out.obs)
            reward += self._powers[k] * rewards
            self._return += rewards
            frames += active
            newest = self._array(out.final_obs)
            history = self._extended(history, newest, None if all_active else active)
            if out.success is not None:
                solved = self._noted(self._array(out.success), active, solved)
            bill = self._billed(out.cost, bill)
            valid &= self._array(out.valid) | ~active
            terminated |= self._array(out.terminated)
            truncated |= self._array(out.truncated)
            active = active & ~(terminated | truncated)
            running = np.count_nonzero(active) if self._host else None  # not to be known: None
            if running == 0:
                break
            all_active = running == self.num_envs
        self._length += frames
        done = terminated | truncated
        self._history = history
        if self._any(done):
            self._history = self._xp.where(done[:, None, None], first[:, None], history)
        returns, lengths = self._finish(done)
        return ChunkStep(
            self._flat(self._history),
            self._tensor(reward),
            self._tensor(self._powers[frames] * ~terminated),
            self._flat(history),
            self._tensor(terminated),
            self._tensor(truncated),
            self._tensor(valid),
            self._tensor(frames),
            returns,
            lengths,
            None if solved is None else self._ever(done),
            None if solved is None else self._tensor(solved),
            *self._paid(bill, done),
        )

    def _noted(self, success: Array, active: Array, before: Array | None) -> Array:
        """Success [N] at the latest step of every row, after it is added to the episodes' own."""
        self._solved |= success
        return success if before is None else self._xp.where(active, success, before)

    def _extended(self, history: Array, newest: Array, active: Array | None) -> Array:
        """The histories with the newest observation appended, as a new array."""
        if self.obs_steps == 1:
            extended = newest[:, None]
        else:
            extended = self._xp.concatenate([history[:, 1:], newest[:, None]], 1)
        if active is None:
            return extended
        return self._xp.where(active[:, None, None], extended, history)

    def _ever(self, done: Array) -> Tensor:
        """Whether the episodes were solved so far, [N]; starts anew for the rows that are done."""
        solved = self._tensor(copied(self._solved))
        self._solved &= ~done
        return solved

    def _billed(self, cost: Tensor | None, before: Bill | None) -> Bill | None:
        """The largest and the sum of a chunk's costs with those of a step, 0 where none was taken.

        None where nothing costs.
        """
        if cost is None:
            return before
        now = self._array(cost)
        return (now, now) if before is None else (self._xp.maximum(before[0], now), before[1] + now)

    def _paid(self, bill: Bill | None, done: Array) -> tuple[Tensor | None, Tensor | None]:
        """The largest cost, and those of the episodes so far, [N]; anew for rows that are done."""
        if bill is None:
            return None, None
        self._cost += bill[1]
        total = self._tensor(copied(self._cost))
        self._cost[done] = 0.0
        return self._tensor(bill[0]), total

    def _finish(self, done: Array) -> tuple[Tensor, Tensor]:
        """Returns and lengths so far, [N] each; restarts them for the rows that are done."""
        returns, lengths = copied(self._return), copied(self._length)
        if self._any(done):
            self._return = self._xp.where(done, 0.0, self._return)
            self._length = self._xp.where(done, 0, self._length)
        return self._tensor(returns), self._tensor(lengths)

    def state_dict(self) -> dict[str, Any]:
        """The environments' state with the histories and the running episodes' totals."""
        return {
            "env": self.env.state_dict(),
            **{name: self._kept(value) for name, value in self._own().items()},
        }

    def _own(self) -> dict[str, Array]:
        """What is this class's own of the state."""
        totals = {"return": self._return, "length": self._length, "solved": self._solved}
        totals |= {"cost": self._cost} if self.env.costs else {}
        return {"history": self._history, **totals}

    def _kept(self, value: Array) -> Array:
        """A copy on the host, a numpy array."""
        return value.copy() if self._host else value.cpu().numpy().copy()

    def _given(self, saved: Any, mine: Array) -> Array:
        """What `_kept` returned, as an array of this one's kind."""
        like = self._tensor(mine)
        return self._array(torch.tensor(np.asarray(saved)).to(like))

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        """Continue where `state_dict` was taken, with the observation the caller held then.

        Where new episodes were begun instead, where to act in them is returned, [N, To*Do].
        """
        obs = self.env.load_state_dict(state["env"])
        if obs is not None:
            return self._begun(obs)
        self._load(state)
        return None

    def _load(self, state: dict[str, Any]) -> None:
        """Puts back what is this class's own."""
        own = {name: self._given(state[name], mine) for name, mine in self._own().items()}
        self._history, self._solved = own["history"], own["solved"]
        self._return, self._length = own["return"], own["length"]
        self._cost = own.get("cost", self._cost)

    def take(self, row: int) -> dict[str, Any]:
        """Everything that the next decisions of a row lead to depends on (`VectorEnv.take`)."""
        own = {name: self._kept(value[row]) for name, value in self._own().items()}
        return {"env": self.env.take(row), **own}

    def branch(self, states: Sequence[dict[str, Any]]) -> Tensor:
        """Each row goes on from one of N `states` that `take` returned -> obs [N, To*Do]."""
        self.env.branch([state["env"] for state in states])
        self._load({name: np.stack([state[name] for state in states]) for name in self._own()})
        return self._flat(self._history)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
