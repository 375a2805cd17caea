"""Environments by name."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from ..errors import EnvError
from ..ranges import Count, Natural, Positive, Rate
from .adapter import GymnasiumVector
from .chunk import ChunkEnv
from .costs import speed_limit
from .families import register, step_ms
from .memory import available, cores
from .mujoco import native, physics, warp
from .mujoco.native import NativeVector
from .mujoco.variety import read_ranges
from .noise import TILE
from .packages import engine_lacks
from .vector import VectorEnv, say
from .workers import Workers

log = logging.getLogger("rheo")

BACKENDS = ("auto", "native", "gymnasium", "warp")
OURS = {  # not the environment's options
    *("id", "num_envs", "seed", "backend", "threads", "dtype"),
    *("workers", "step_timeout", "restarts", "execute", "device", "randomise", "cost"),
}
EXCHANGE_MS = 0.4  # what a worker has to do between two exchanges for the exchange to pay
WORKER_BYTES, MEMORY_SHARE = 1e9, 0.5  # what one takes with robosuite; of free memory, for all
_said: set[str] = set()


def choose(
    env_id: str, backend: str, options: Mapping[str, Any], workers: int | str = "auto"
) -> str:
    """The backend for an id: `auto` takes the native one where it has the task.

    Not with options that it does not have, nor where a number of worker processes is asked for to
    share out a task whose steps are long: they step it in a loop.
    """
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
    if backend == "warp" and not warp.has(env_id):
        raise EnvError(
            f"{env_id} has no warp backend (it exists for {', '.join(warp.tasks())}): use "
            f"env.backend={'native' if has_task and has_pool else 'auto'}"
        )
    lack = engine_lacks(backend)
    if lack is not None:
        raise EnvError(lack)
    if backend != "auto":
        return backend
    if has_task and not has_pool and "pool" not in _said:
        _said.add("pool")
        log.warning("mujoco.batch is missing (MuJoCo below 3.17): environments run in a loop")
    shared = workers not in ("auto", 0) and step_ms(env_id) is not None
    fast = has_task and has_pool and not shared and not native.RENDERING & set(options)
    return "native" if fast else "gymnasium"


def crew(env_id: str, num_envs: int, workers: int | str, execute: int) -> int:
    """How many worker processes step an environment that is stepped in a loop; 0: this one does.

    `auto`: one a core where the share of a worker's work between two exchanges, `execute` steps of
    its environments, is known to take longer than the exchange; no more than half of the free
    memory can hold. Never more than environments.
    """
    if workers == "auto":
        free = available()
        most = num_envs if free is None else int(MEMORY_SHARE * free / WORKER_BYTES)
        count, work = min(cores(), num_envs, most), (step_ms(env_id) or 0) * execute * num_envs
        if count < 2 or work / count < EXCHANGE_MS:
            return 0
        say(f"{env_id}: its {num_envs} environments are stepped by {count} worker processes")
        return count
    count = min(int(workers), num_envs)
    if count < int(workers):
        say(
            f"env.workers={workers}: {count} for {num_envs} environments, there is no more to share"
        )
    if count > cores():
        say(f"env.workers={count}: {cores()} cores can be used, so they share them")
    return count


def side_by_side(env_id: str, rows: int, workers: int | str) -> int:
    """How many environments to make for so many rows of an evaluation.

    Of those that take long to make and much memory at most a tile of rows, for which acting costs
    what it costs for one, or as many as workers; the rows take turns, as even as it goes. Of the
    rest all: a larger batch is acted on more quickly.
    """
    if step_ms(env_id) is None:
        return rows
    most = max(TILE, 0 if workers == "auto" else int(workers))
    return math.ceil(rows / math.ceil(rows / most))


def refuse_workers(env_id: str, backend: str, workers: int | str) -> None:
    """Raises EnvError for worker processes of environments that are stepped all at once."""
    if workers in ("auto", 0):
        return
    how = "on threads of this process (env.threads=N)" if backend == "native" else "on one device"
    raise EnvError(
        f"env.workers={workers}: {env_id} is stepped in batches {how}, which is quicker; leave "
        "env.workers out, or set env.backend=gymnasium"
    )


def ranges_for(backend: str, randomise: Mapping[str, Any]) -> Any:
    """Ranges by which worlds differ. Raises EnvError where a backend's worlds share one model."""
    ranges = read_ranges(randomise)
    if ranges and backend != "warp":
        raise EnvError(
            f"env.randomise={dict(randomise)}: {backend} environments share one model; set "
            "env.backend=warp, or leave env.randomise out"
        )
    return ranges


def make(
    id: str,
    num_envs: int,
    seed: int | None = None,
    backend: str = "auto",
    threads: int = 0,
    dtype: torch.dtype = torch.float32,
    workers: int | str = 0,
    step_timeout: float = 120.0,
    restarts: int = 3,
    execute: int = 1,
    device: str = "cpu",
    randomise: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    **options: Any,
) -> VectorEnv:
    """num_envs environments of one kind; environment i is seeded with seed + i.

    backend: `native` (MuJoCo's batched stepper), `warp` (MuJoCo Warp, in float32, all on `device`),
    `gymnasium` (any registered Box environment, in a loop) or `auto`. threads: physics threads of
    the native backend, 0 for one per usable CPU.
    workers: processes among which the loop is shared out, or `auto` (`crew`); step_timeout and
    restarts: as of `Workers`. execute: steps that are asked for at once. randomise: ranges
    of factors by which worlds of the backend `warp` differ (`mujoco.variety`). cost: what a step
    costs (`costs`). options: the environment's own constructor options. Raises EnvError for
    whatever the user can put right: unknown id or option, missing package, unusable spaces.
    """
    for name, value, least in (("num_envs", num_envs, 1), ("threads", threads, 0)):
        if value < least:
            raise EnvError(f"{name} is {value}, but at least {least} is needed")
    if seed is not None and seed < 0:
        raise EnvError(f"seed is {seed}, but seeds are not negative")
    chosen = choose(id, backend, options, workers)
    ranges, limit = ranges_for(chosen, randomise or {}), speed_limit(id, chosen, cost or {})
    if chosen != "gymnasium":
        refuse_workers(id, chosen, workers)
        register(id)
    if chosen == "native":
        given = {"threads": threads, "dtype": dtype, "speed_limit": limit}
        return NativeVector(id, num_envs, seed=seed, **given, **options)
    if chosen == "warp":
        kind = {"dtype": dtype, "device": device, "randomise": ranges}
        return warp.WarpVector(id, num_envs, seed=seed, **kind, **options)
    count = crew(id, num_envs, workers, execute)
    if count:
        given = {"step_timeout": step_timeout, "restarts": restarts, "steps": execute}
        return Workers(
            id, num_envs, workers=count, options=options, seed=seed, dtype=dtype, **given
        )
    register(id)
    return GymnasiumVector(id, num_envs, seed=seed, dtype=dtype, **options)


def chunked(
    *,
    id: str | None,
    num_envs: Count,
    backend: Literal["auto", "native", "gymnasium", "warp"],
    threads: Natural,
    workers: Literal["auto"] | Natural,
    step_timeout: Positive,
    restarts: Natural,
    execute: Count,
    obs_steps: Count,
    gamma: Rate,
    randomise: dict[str, Any],
    cost: dict[str, Any],
    options: dict[str, Any],
    device: str = "cpu",
) -> ChunkEnv | None:
    """Environments acted on in chunks, as a configuration names them; None for id=null.

    Args:
        id: Gymnasium id, or MODULE:NAME for one that MODULE registers; null: no environment.
        num_envs: Copies of the environment that are stepped side by side.
        backend: What steps the environments: native (MuJoCo on CPU threads), gymnasium (a loop),
            warp (MuJoCo Warp on the run's device), or auto (native where it can).
        threads: CPU threads for the physics of backend=native; 0: one per core that can be used.
        workers: Processes that share out a loop of environments; 0: none; auto: as many as pay.
        step_timeout: Seconds without progress after which a worker process is replaced.
        restarts: Worker processes that may be replaced, in all, before the run saves and ends.
        execute: Actions of a planned chunk that are executed per decision; at most horizon.
        obs_steps: Observations that the policy sees, the latest included; 1: no history.
        gamma: Discount per environment step; nearer to 1 looks further ahead.
        randomise: Factors by which worlds of backend=warp differ, as {mass: [0.8, 1.2], friction:
            ..., damping: ...}; empty: not at all.
        cost: What a step costs beside its reward, as {kind: speed, limit: X}: 1 above that speed of
            a walking robot, auto (or no limit) is Safety-Gymnasium's; empty: nothing costs.
        options: Options of the environment's constructor, by name; also obs_keys, and the cameras
            and size of images.
        device: Device of the run.
    """
    if id is None:
        return None
    for key in sorted(OURS & set(options)):
        raise EnvError(
            f"env.options.{key}={options[key]!r}: {key} is no option of the environment's here; "
            + ("set seed=N for the whole run" if key == "seed" else f"set env.{key}")
        )
    env = make(
        id, num_envs, backend=backend, threads=threads, workers=workers,
        step_timeout=step_timeout, restarts=restarts, execute=execute, device=device,
        randomise=randomise, cost=cost, **options,
    )  # fmt: skip
    return ChunkEnv(env, execute=execute, obs_steps=obs_steps, gamma=gamma)
