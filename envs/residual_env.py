"""A frozen chunked policy as part of the world: who acts here corrects each of its actions."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .chunk import ChunkEnv, ChunkStep
from .mujoco.tasks import Array
from .noise import EpisodeNoise, filled


class Plan(Protocol):
    """A base: obs [n, O] and a generator -> action chunks [n, T, Da] in [-1, 1]."""

    def __call__(self, obs: Tensor, generator: torch.Generator, /) -> Tensor: ...


class Residual(ChunkEnv):
    """The environments of a ChunkEnv, one step per decision, driven by a plan plus corrections.

    The base plans a chunk and its first `env.execute` actions are used one after the other; then,
    and in every new episode, it plans anew. Executed is clip(a_b + scale delta) for a correction
    delta [N, 1, Da]: none leaves the base as it is, bit for bit. Observations are [obs, a_b, phase]
    of O + Da + 1 numbers, a_b the planned action of this step and phase the share of the plan that
    was used: without them the correction's world would not be Markov (arXiv:2407.16677). A
    successor's planned action is the plan's next one, or that of a new plan where it is used up.
    Environments on a device are asked twice a step which rows need a plan: a base costs more.
    """

    def __init__(self, env: ChunkEnv, plan: Plan, scale: float, generator: torch.Generator) -> None:
        super().__init__(env.env, execute=1, obs_steps=env.obs_steps, gamma=env.gamma)
        self.plan, self.scale, self.every = plan, scale, env.execute
        self.generator = generator  # of the base's noise, on the base's device
        self.base_dim = env.obs_dim  # of what the base sees
        self.obs_dim += env.action_dim + 1
        place = self.env.device or "cpu"
        self.chunk = torch.zeros(self.num_envs, env.execute, env.action_dim, device=place)
        self.rows = torch.arange(self.num_envs, device=place)
        self.phase = self._zeros((self.num_envs,), torch.int64)
        self.noise: EpisodeNoise | None = None

    def own_noise(self, seed: int, first: int = 0) -> None:
        """The base's noise is each episode's own from now on, as evaluations want it."""
        device = str(self.generator.device)
        self.noise = EpisodeNoise(seed, self.num_envs, device, stream=1, first=first)

    def reset(self, seed: int | None = None) -> Tensor:
        """Start N episodes -> obs [N, O + Da + 1]; a seed fixes the base's noise too."""
        if seed is not None:
            self.generator.manual_seed(seed)
        obs = super().reset(seed)
        self.replan(obs, self._all)
        return self.with_plan(obs)

    def replan(self, obs: Tensor, rows: Array) -> None:
        """New plans for some rows."""
        chosen, generator = np.flatnonzero(self._kept(rows)), self.generator
        if not len(chosen):
            return
        asked = chosen
        if self.noise is not None:
            asked = self.noise.rows = filled(chosen)
            generator = self.noise
        chunk = self.plan(obs[torch.from_numpy(asked).to(obs.device)], generator)
        index = torch.from_numpy(chosen).to(self.chunk.device)
        self.chunk[index] = chunk[: len(chosen), : self.every].to(self.chunk)
        self.phase = self._xp.where(rows, 0, self.phase)

    def planned(self) -> Tensor:
        """The base's action of this step, [N, Da]."""
        return self.chunk[self.rows, self._tensor(self.phase)]

    def with_plan(self, obs: Tensor) -> Tensor:
        """Observations with the planned action and the phase."""
        phase = self._tensor(self.phase / self.every).to(obs.dtype)
        return torch.cat([obs, self.planned().to(obs.dtype), phase[:, None]], 1)

    def step(self, action: Tensor, active: Tensor | None = None) -> ChunkStep:
        """One step for corrections [N, >= 1, Da]; as `ChunkEnv.step`."""
        if action.dim() != 3 or action.shape[2] != self.action_dim:
            return super().step(action)  # which says what is wrong with it
        planned = self.planned().to(action)
        step = super().step((planned + self.scale * action[:, 0]).clamp(-1, 1)[:, None], active)
        self.phase = self.phase + self._array(step.frames)
        self.replan(step.next_obs, self.phase == self.every)
        following = self.with_plan(step.next_obs)
        done = self._array(step.terminated | step.truncated)
        if self.noise is not None:
            self.noise.begin(self._kept(done))
        self.replan(step.obs, done)
        return step._replace(obs=self.with_plan(step.obs), next_obs=following)

    def state_dict(self) -> dict[str, Any]:
        """The environments' state with the running plans and the base's noise."""
        plan = {"chunk": self.chunk.cpu().clone(), "phase": self._kept(self.phase)}
        return super().state_dict() | plan | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        """Continue where `state_dict` was taken; as `ChunkEnv.load_state_dict`."""
        obs = super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        if obs is not None:
            self.replan(obs, self._all)
            return self.with_plan(obs)
        self.chunk.copy_(torch.as_tensor(state["chunk"]))
        self.phase = self._given(state["phase"], self.phase)
        return None
