"""What a method may try out before it is trained."""

from typing import NamedTuple

import torch
from torch import Tensor

from rheo.envs.chunk import ChunkEnv
from rheo.envs.rollout import Deploy, Episode, evaluate

from .config.top import EVAL_SEED


class Trial(NamedTuple):
    """An environment, if there is one, and what is observed first in it or in the data."""

    obs: Tensor  # [N, O]
    env: ChunkEnv | None
    episodes: int

    @property
    def execute(self) -> int:
        """Steps of a plan that are executed; 0 without an environment."""
        return 0 if self.env is None else self.env.execute

    def worths(self, act: Deploy, attempt: int = 0, execute: int | None = None) -> Tensor:
        """Return or success of each episode [episodes]; attempts differ in the policy's noise only.

        execute: steps of a plan, where other ones than in training.
        """
        env = self.env
        assert env is not None
        if execute is not None:
            env = ChunkEnv(env.env, execute=execute, obs_steps=env.obs_steps, gamma=env.gamma)
        device, noise = str(self.obs.device), EVAL_SEED + attempt
        rows = evaluate(env, act, self.episodes, EVAL_SEED, device, noise_seed=noise)
        return torch.tensor([worth(row) for row in rows], dtype=torch.float64)


def worth(row: Episode) -> float:
    """Success at any step where the environment tells, else the return."""
    return row.ret if row.success_once is None else float(row.success_once)
