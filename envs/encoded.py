"""Environments whose images a trained encoder replaces by its features, step by step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batch import Step
from .pixels import pixels
from .vector import VectorEnv

See = Callable[[Tensor], Tensor]  # [N, state and pixels] -> [N, state and features]


class Encoded(VectorEnv):
    """The environments of another one, which observe [state, features] for [state, pixels].

    Whatever learns here, replays included, meets small observations, and each image that is looked
    at is encoded once. features: how many there are; see: what encodes, set before the first reset.
    obs_parts and obs_images are those of the environment within: what the features are made of.
    """

    def __init__(self, env: VectorEnv, features: int) -> None:
        self.env = env
        self.see: See = unset
        self.id, self.num_envs, self.action_dim = env.id, env.num_envs, env.action_dim
        self.max_steps, self.dtype, self.backend = env.max_steps, env.dtype, env.backend
        self.action_low, self.action_high = env.action_low, env.action_high
        self.obs_parts, self.obs_images = env.obs_parts, env.obs_images
        self.obs_dim = env.obs_dim - pixels(env.obs_images) + features
        self.seen = torch.zeros(env.num_envs, self.obs_dim, dtype=env.dtype)

    @property
    def counters(self) -> dict[str, int]:
        return self.env.counters

    def look(self, obs: Tensor, rows: Tensor, before: Tensor, read: Tensor | None = None) -> Tensor:
        """What was encoded before, anew in some rows [N] bool of observations [N, Do].

        read: those of the rows whose features are asked for, all when None. The others' state is
        new. They are encoded beside them, for a row's last bits depend on how many there are.
        """
        after, asked = before.clone(), rows if read is None else rows & read
        state = self.env.obs_dim - pixels(self.obs_images)
        after[rows, :state] = obs[rows, :state]
        if asked.any():
            after[asked] = self.see(obs[rows])[asked[rows]].to(after)
        return after

    def reset(self, seed: int | None = None) -> Tensor:
        obs = self.env.reset(seed)
        self.seen = self.look(obs, torch.ones(len(obs), dtype=torch.bool), self.seen)
        return self.seen

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        return self.encoded(self.env.step(action, active), self.rows(active))

    def ahead(
        self, action: Tensor, active: Tensor | None = None, last: int | None = None
    ) -> list[Step] | None:
        steps, rows = self.env.ahead(action, active, last), [self.rows(active)]
        if steps is None:
            return None
        for out in steps:
            rows.append(rows[-1] & ~(out.terminated | out.truncated))
        found, left = [], torch.stack(rows[: len(steps)]).sum(0)  # steps that a row still takes
        for out, stepped in zip(steps, rows, strict=False):
            read = left <= (len(steps) if last is None else last)
            found.append(self.encoded(out, stepped, read))
            left -= 1
        return found

    def rows(self, active: Tensor | None) -> Tensor:
        """Which rows [N] are stepped."""
        return torch.ones(self.num_envs, dtype=torch.bool) if active is None else active

    def encoded(self, out: Step, rows: Tensor, read: Tensor | None = None) -> Step:
        """A step of the rows [N] with features for pixels, new ones where they are read."""
        final = self.seen = self.look(out.final_obs, rows, self.seen, read)
        if out.obs is not out.final_obs:
            self.seen = self.look(out.obs, out.terminated | out.truncated, final)
        return out._replace(obs=self.seen, final_obs=final)

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "seen": self.seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        obs = self.env.load_state_dict(state["env"])
        if obs is None:
            self.seen = torch.as_tensor(state["seen"]).clone()
            return None
        self.seen = self.look(obs, torch.ones(len(obs), dtype=torch.bool), self.seen)
        return self.seen

    def close(self) -> None:
        self.env.close()


def unset(obs: Tensor) -> Tensor:
    """There is no encoder yet."""
    raise RuntimeError("Encoded.see has to be set before the environments are reset")
