"""Environments that are acted on in chunks: Ta actions per decision, To observations of history.

Between two decisions lie n <= Ta steps; what is learnt from is one transition with
reward = sum_k gamma^k r_k (k < n) and discount = gamma^n (1 - terminated), so a truncated episode
keeps its bootstrap and a chunk that ends early discounts by the steps it took.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError
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


class ChunkEnv:
    """Executes the first `execute` actions of every chunk and stacks `obs_steps` observations.

    A row that ends inside a chunk is reset and waits there: the rest of the chunk belongs to a
    plan for the ended episode and is not executed in the new one. The history of a new episode is
    its first observation repeated.
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
        self._powers = torch.tensor(self._scales, dtype=env.dtype).numpy()
        # arithmetic on a few numbers per environment is much cheaper in numpy than in torch
        self._history = np.zeros((n, obs_steps, env.obs_dim), self._powers.dtype)
        self._return = np.zeros(n)
        self._length = np.zeros(n, np.int64)
        self._solved = np.zeros(n, bool)  # at any step of the running episodes
        self._one = np.ones(n, np.int64)

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
        self._history = obs.numpy()[:, None].repeat(self.obs_steps, axis=1)
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

    def _flat(self, history: NDArray) -> Tensor:
        return torch.from_numpy(history.reshape(self.num_envs, -1))

    def _single(self, action: Tensor, active: Tensor | None) -> ChunkStep:
        """One action, no history: the vector step with its discount."""
        out = self.env.step(action, active)
        terminated = out.terminated.numpy()
        frames = self._one.copy() if active is None else active.numpy().astype(np.int64)
        self._return += out.reward.numpy()
        self._length += frames
        done = terminated | out.truncated.numpy()
        returns, lengths = self._finish(done)
        once = None
        if out.success is not None:  # nothing is spent where there is no such notion
            self._solved |= out.success.numpy()
            once = self._ever(done)
        return ChunkStep(
            out.obs,
            out.reward,
            torch.from_numpy(self._powers[1] * ~terminated),
            out.final_obs,
            out.terminated,
            out.truncated,
            out.valid,
            torch.from_numpy(frames),
            returns,
            lengths,
            once,
            out.success,
        )

    def _chunk(self, action: Tensor, asked: Tensor | None) -> ChunkStep:
        n, history = self.num_envs, self._history
        active = np.ones(n, bool) if asked is None else asked.numpy()
        valid, terminated, truncated = active.copy(), np.zeros(n, bool), np.zeros(n, bool)
        reward, frames = np.zeros(n, self._powers.dtype), np.zeros(n, np.int64)
        first, solved = history[:, 0], None
        all_active = asked is None
        ahead = self.env.ahead(action, asked, self.obs_steps)
        for k in range(self.execute):
            mask = None if all_active else torch.from_numpy(active)
            out = self.env.step(action[:, k], mask) if ahead is None else ahead[k]
            rewards, first = out.reward.numpy(), out.obs.numpy()
            reward += self._powers[k] * rewards
            self._return += rewards
            frames += active
            history = self._extended(history, out.final_obs.numpy(), None if all_active else active)
            if out.success is not None:
                solved = self._noted(out.success.numpy(), active, solved)
            valid &= out.valid.numpy() | ~active
            terminated |= out.terminated.numpy()
            truncated |= out.truncated.numpy()
            active = active & ~(terminated | truncated)
            running = np.count_nonzero(active)
            if running == 0:
                break
            all_active = running == n
        self._length += frames
        done = terminated | truncated
        self._history = history
        if np.count_nonzero(done):
            self._history = np.where(done[:, None, None], first[:, None], history)
        returns, lengths = self._finish(done)
        return ChunkStep(
            self._flat(self._history),
            torch.from_numpy(reward),
            torch.from_numpy(self._powers[frames] * ~terminated),
            self._flat(history),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            torch.from_numpy(valid),
            torch.from_numpy(frames),
            returns,
            lengths,
            None if solved is None else self._ever(done),
            None if solved is None else torch.from_numpy(solved),
        )

    def _noted(self, success: NDArray, active: NDArray, before: NDArray | None) -> NDArray:
        """Success [N] at the latest step of every row, after it is added to the episodes' own."""
        self._solved |= success
        return success if before is None else np.where(active, success, before)

    def _extended(self, history: NDArray, newest: NDArray, active: NDArray | None) -> NDArray:
        """The histories with the newest observation appended, as a new array."""
        if self.obs_steps == 1:
            extended = newest[:, None]
        else:
            extended = np.concatenate([history[:, 1:], newest[:, None]], axis=1)
        return extended if active is None else np.where(active[:, None, None], extended, history)

    def _ever(self, done: NDArray) -> Tensor:
        """Whether the episodes were solved so far, [N]; starts anew for the rows that are done."""
        solved = torch.from_numpy(self._solved.copy())
        self._solved[done] = False
        return solved

    def _finish(self, done: NDArray) -> tuple[Tensor, Tensor]:
        """Returns and lengths so far, [N] each; restarts them for the rows that are done."""
        returns = torch.from_numpy(self._return.copy())
        lengths = torch.from_numpy(self._length.copy())
        if np.count_nonzero(done):
            self._return[done] = 0
            self._length[done] = 0
        return returns, lengths

    def state_dict(self) -> dict[str, Any]:
        """The environments' state with the histories and the running episodes' totals."""
        return {
            "env": self.env.state_dict(),
            "history": self._history.copy(),
            "return": self._return.copy(),
            "length": self._length.copy(),
            "solved": self._solved.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        """Continue where `state_dict` was taken, with the observation the caller held then.

        Where new episodes were begun instead, where to act in them is returned, [N, To*Do].
        """
        obs = self.env.load_state_dict(state["env"])
        if obs is not None:
            return self._begun(obs)
        self._history = np.array(state["history"], self._powers.dtype)
        self._return[:] = np.asarray(state["return"])
        self._length[:] = np.asarray(state["length"])
        self._solved[:] = np.asarray(state["solved"])
        return None

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
