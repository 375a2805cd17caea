"""What is tried out before a run begins: by a method, and of every one."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rheo.algos.contract import Algorithm
from rheo.envs.batch import Choice
from rheo.envs.chunk import ChunkEnv
from rheo.envs.rollout import Deploy, Episode, evaluate, heeding, rows_of
from rheo.envs.sources import Rollouts
from rheo.errors import RheoError
from rheo.policies.normalize import affine

from .assemble import Sizes
from .batches import refuse_other
from .config.top import EVAL_SEED

log = logging.getLogger("rheo")
FAR = 5.0  # scales that an observation may lie from the statistics before it is suspicious


class Trial(NamedTuple):
    """An environment, if there is one, and what is observed first in it or in the data."""

    obs: Tensor  # [N, O]
    env: ChunkEnv | None
    episodes: int
    halt: Callable[[], bool] = lambda: False

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
        spread = rows_of(self.episodes)
        act = heeding(act, self.halt)
        found = evaluate(env, act, self.episodes, EVAL_SEED, device, noise_seed=noise, rows=spread)
        return torch.tensor([worth(row) for row in found], dtype=torch.float64)


def worth(row: Episode) -> float:
    """Success at any step where the environment tells, else the return."""
    return row.ret if row.success_once is None else float(row.success_once)


def tell_shift(algo: Algorithm, source: Any) -> None:
    """Says how far the environment's first observations lie from the base's statistics."""
    norm, env = getattr(algo.policy, "obs_norm", None), getattr(source, "env", None)
    if norm is None or norm.kind == "none" or env is None:
        return
    numbers = affine(norm)
    obs = norm.own(env.reset().to(numbers.shift.device))
    worst, dim = numbers.scaled(obs).abs().mean(0).max(0)
    unit = "standard deviations" if norm.kind == "gaussian" else "half ranges"
    text = "first observations lie up to %.1f %s from the base's data (dimension %d)"
    if worst > FAR:
        text += "; is this the same environment and the same order of observations?"
    (log.warning if worst > FAR else log.info)(text, float(worst), unit, int(dim))


def rehearse(algo: Algorithm, source: Any, sizes: Sizes) -> None:
    """Whether algorithm and source fit, and memory for rollouts, before any work.

    Raises RheoError for a pair that does not fit and for whatever the algorithm refuses to act on,
    exploring or deployed; EnvError for a rollout larger than memory.
    """
    if algo.policy is None:
        return refuse_other(algo, source)
    rows = source.env.num_envs if isinstance(source, Rollouts) else 1
    state = algo.generator.get_state()
    size = source.env.obs_dim if isinstance(source, Rollouts) else sizes.obs_dim
    obs = torch.zeros((rows, size), device=algo.generator.device)
    try:
        choice = algo.act(obs)
        algo.deploy(obs, torch.Generator(algo.generator.device).manual_seed(EVAL_SEED))
    except ValueError as error:
        raise RheoError(str(error)) from error
    algo.generator.set_state(state)
    if isinstance(choice, Choice) != isinstance(source, Rollouts):
        name = type(algo).__name__
        if isinstance(choice, Choice):
            raise RheoError(f"source: {name} learns from its own rollouts; set source=rollouts")
        raise RheoError(f"source=rollouts: {name} does not learn on policy; leave its own source")
    refuse_other(algo, source)
    if isinstance(source, Rollouts):
        source.store = source.reserve(choice)


def refuse_unfitted(algo: Algorithm) -> None:
    """Raises RheoError for statistics that neither data nor another run have given."""
    for name, part in vars(algo).items():
        for norm in ("obs_norm", "action_norm"):
            if not getattr(getattr(part, norm, None), "ready", True):
                group = {"policy": "policy", "critic": "critic"}.get(name, f"algo.{name}")
                raise RheoError(
                    f"{group}.{norm}: there are no recorded data to take statistics from; set "
                    f"{group}.{norm}.kind=none, or data=FILE with source=mixed, or init=RUN"
                )
