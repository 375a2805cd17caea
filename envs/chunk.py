"""Environments that are acted on in chunks: Ta actions per decision, To observations of history.

Between two decisions lie n <= Ta steps; what is learnt from is one transition with
reward = sum_k gamma^k r_k (k < n) and discount = gamma^n (1 - terminated), so a truncated episode
keeps its bootstrap and a chunk that ends early discounts by the steps it took.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .vector import EnvError, VectorEnv


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
        powers = [gamma**k for k in range(execute + 1)]
        self._powers = torch.tensor(powers, dtype=env.dtype)
        self._scales = powers
        self._history = torch.zeros(n, obs_steps, env.obs_dim, dtype=env.dtype)
        self._return = torch.zeros(n, dtype=torch.float64)
        self._length = torch.zeros(n, dtype=torch.int64)
        self._one = torch.ones(n, dtype=torch.int64)

    def reset(self, seed: int | None = None) -> Tensor:
        """Start N episodes -> obs [N, To*Do]."""
        obs = self.env.reset(seed)
        self._return.zero_()
        self._length.zero_()
        self._history = obs[:, None].repeat(1, self.obs_steps, 1)
        return self._history.flatten(1)

    def step(self, action: Tensor) -> ChunkStep:
        """Execute action [N, T >= Ta, Da] in [-1, 1]."""
        if action.dim() != 3 or action.shape[1] < self.execute:
            raise ValueError(
                f"chunk has shape {tuple(action.shape)}, expected [{self.num_envs}, >= "
                f"{self.execute}, {self.action_dim}]"
            )
        if self.execute == 1 and self.obs_steps == 1:
            return self._single(action[:, 0])
        return self._chunk(action)

    def _single(self, action: Tensor) -> ChunkStep:
        """One action, no history: the vector step with its discount."""
        out = self.env.step(action)
        discount = (~out.terminated) * self._powers[1]
        self._return += out.reward
        self._length += 1
        returns, lengths = self._finish(out.terminated | out.truncated)
        return ChunkStep(
            out.obs, out.reward, discount, out.final_obs, out.terminated, out.truncated,
            out.valid, self._one, returns, lengths,
        )  # fmt: skip

    def _chunk(self, action: Tensor) -> ChunkStep:
        n = self.num_envs
        active, valid = torch.ones(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
        terminated, truncated = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        reward = torch.zeros(n, dtype=self.env.dtype)
        frames = torch.zeros(n, dtype=torch.int64)
        mask: Tensor | None = None
        history = self._history
        for k in range(self.execute):
            out = self.env.step(action[:, k], mask)
            reward += self._scales[k] * out.reward
            self._return += out.reward
            frames += active
            shifted = torch.cat([history[:, 1:], out.final_obs[:, None]], dim=1)
            history = (
                shifted if mask is None else torch.where(mask[:, None, None], shifted, history)
            )
            valid &= out.valid | ~active
            terminated |= out.terminated
            truncated |= out.truncated
            active = active & ~(out.terminated | out.truncated)
            if not bool(active.all()):
                mask = active
                if not bool(active.any()):
                    break
        self._length += frames
        done = ~active
        discount = self._powers[frames] * ~terminated
        next_obs = history.flatten(1)
        if mask is not None:
            first = out.obs[:, None].expand_as(history)
            history = torch.where(done[:, None, None], first, history)
        self._history = history
        returns, lengths = self._finish(done)
        return ChunkStep(
            history.flatten(1), reward, discount, next_obs, terminated, truncated, valid, frames,
            returns, lengths,
        )  # fmt: skip

    def _finish(self, done: Tensor) -> tuple[Tensor, Tensor]:
        """Returns and lengths so far, [N] each; restarts them for the rows that are done."""
        returns, lengths = self._return.clone(), self._length.clone()
        if bool(done.any()):
            self._return[done] = 0
            self._length[done] = 0
        return returns, lengths

    def state_dict(self) -> dict[str, Any]:
        """The environments' state with the histories and the running episodes' totals."""
        return {
            "env": self.env.state_dict(),
            "history": self._history.clone(),
            "return": self._return.clone(),
            "length": self._length.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; `obs` tells where to act."""
        self.env.load_state_dict(state["env"])
        self._history = state["history"].clone()
        self._return.copy_(state["return"])
        self._length.copy_(state["length"])

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
