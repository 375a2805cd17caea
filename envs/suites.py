"""Environments by name."""

import logging
from typing import Any, Literal

import torch

from ..errors import EnvError
from ..ranges import Count, Natural, Rate
from .adapter import GymnasiumVector
from .chunk import ChunkEnv
from .families import register
from .mujoco import native, physics
from .mujoco.native import NativeVector
from .vector import VectorEnv

log = logging.getLogger("rheo")

BACKENDS = ("auto", "native", "gymnasium")
OURS = {"id", "num_envs", "seed", "backend", "threads", "dtype"}  # not the environment's options
_said: set[str] = set()


def choose(env_id: str, backend: str, options: dict[str, Any]) -> str:
    """The backend for an id: `auto` takes the native one where it has the task."""
    if backend not in BACKENDS:
        raise EnvError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    has_task, has_pool = env_id in native.TASKS, physics.available()
    if backend == "native" and not has_task:
        raise EnvError(
            f"{env_id} has no native backend (it exists for {', '.join(native.TASKS)}): "
            "use backend=gymnasium"
        )
    if backend == "native" and not has_pool:
        raise EnvError(f"backend=native needs mujoco.batch: {physics.pool_remedy()}")
    if backend != "auto":
        return backend
    if has_task and not has_pool and "pool" not in _said:
        _said.add("pool")
        log.warning("mujoco.batch is missing (MuJoCo below 3.17): environments run in a loop")
    fast = has_task and has_pool and not native.RENDERING & set(options)
    return "native" if fast else "gymnasium"


def make(
    id: str,
    num_envs: int,
    seed: int | None = None,
    backend: str = "auto",
    threads: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> VectorEnv:
    """num_envs environments of one kind; environment i is seeded with seed + i.

    backend: `native` (MuJoCo's batched stepper), `gymnasium` (any registered Box environment, in
    a loop) or `auto`. threads: physics threads of the native backend, 0 for one per usable CPU.
    options: the environment's own constructor options. Raises EnvError for whatever the user can
    put right: unknown id or option, missing package, unusable spaces.
    """
    for name, value, least in (("num_envs", num_envs, 1), ("threads", threads, 0)):
        if value < least:
            raise EnvError(f"{name} is {value}, but at least {least} is needed")
    if seed is not None and seed < 0:
        raise EnvError(f"seed is {seed}, but seeds are not negative")
    register(id)
    if choose(id, backend, options) == "native":
        return NativeVector(id, num_envs, seed=seed, threads=threads, dtype=dtype, **options)
    return GymnasiumVector(id, num_envs, seed=seed, dtype=dtype, **options)


def chunked(
    *,
    id: str | None,
    num_envs: Count,
    backend: Literal["auto", "native", "gymnasium"],
    threads: Natural,
    execute: Count,
    obs_steps: Count,
    gamma: Rate,
    options: dict[str, Any],
) -> ChunkEnv | None:
    """Environments acted on in chunks, as a configuration names them; None for id=null.

    id: gymnasium id. num_envs: copies. backend, threads, options: as in `make`. execute: actions
    executed per decision (Ta). obs_steps: observations of history (To). gamma: discount per step.
    """
    if id is None:
        return None
    for key in sorted(OURS & set(options)):
        raise EnvError(
            f"env.options.{key}={options[key]!r}: {key} is no option of the environment's here; "
            + (f"set env.{key}" if key in OURS - {"seed"} else "set seed=N for the whole run")
        )
    env = make(id, num_envs, backend=backend, threads=threads, **options)
    return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=gamma)
