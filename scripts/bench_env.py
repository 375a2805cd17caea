"""Environment frames per second: the native batch, gymnasium's loop, and physics alone."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rheo.envs.mujoco.native import pool_size
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv, gymnasium_make

from .bench_measure import Goal, Plan, Row, against_limit, alternate, faster

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")
GOALS = {
    1: (Goal("ratio", ">=", 1.0),),
    8: (Goal("ratio", ">=", 1.8),),
    64: (Goal("ratio", ">=", 2.5), Goal("share", ">=", 0.85)),
}
POOL_GOAL = (Goal("ratio", ">=", 0.85),)
AHEAD = 10  # environment steps of the open loop, short: its rows are not reset when they fall
MIXED = 200  # random steps before measuring, so that the rows are in different phases
LOOP, POOL = "gymnasium SyncVectorEnv", "envpool async"


def measure(plan: Plan) -> Iterator[Row]:
    """Three tasks at three batch sizes; random actions, resets included."""
    for task, count in itertools.product(TASKS, GOALS):
        yield from compare(plan, task, count)


def compare(plan: Plan, task: str, count: int) -> Iterator[Row]:
    """Rows of one task and batch size."""
    generator = np.random.default_rng(0)
    env = make(task, count, seed=0, backend="native")
    shape = (64, count, env.action_dim)
    actions = generator.uniform(-1, 1, shape).astype(np.float32)
    ours = native(env, actions)
    for _ in range(MIXED // 10 if plan.quick else MIXED):
        ours()
    sides = {"ours": ours, LOOP: loop(task, count, actions), "limit": open_loop(env, generator)}
    pooled = count > 1 and find_spec("envpool") is not None
    if pooled:
        sides[POOL] = envpool_async(task, count, actions)
    times = alternate(plan, sides)
    row = Row(f"{task} x {count}", "frames/s", 0.0, goals=GOALS[count])
    row = faster(row, times, LOOP, count)
    yield against_limit(row, times, "frames/s", count, AHEAD * count)
    if pooled:  # a call of it is half the environments
        times[POOL] = 2 * times[POOL]
        row = Row(f"{task} x {count}", "frames/s", 0.0, goals=POOL_GOAL)
        yield faster(row, times, POOL, count)
    env.close()


def native(env: VectorEnv, actions: NDArray) -> Callable[[], object]:
    """One step of the batch."""
    env.reset(0)
    feed = itertools.cycle(torch.from_numpy(actions))
    return lambda: env.step(next(feed))


def loop(task: str, count: int, actions: NDArray) -> Callable[[], object]:
    """One step of gymnasium's loop, at its best: no checker, reset in the same step."""
    one = partial(gymnasium_make, task, {})
    modes = getattr(gymnasium.vector, "AutoresetMode", None)  # since gymnasium 1.1
    options: dict[str, Any] = {"autoreset_mode": modes.SAME_STEP} if modes else {}
    envs = gymnasium.vector.SyncVectorEnv([one] * count, **options)
    envs.reset(seed=0)
    feed = itertools.cycle(actions)
    return lambda: envs.step(next(feed))


def open_loop(env: VectorEnv, generator: np.random.Generator) -> Callable[[], object]:
    """Physics alone from the batch's present states, on as many threads: the limit."""
    template: Any = gymnasium_make(env.id, {}).unwrapped
    model, data = template.model, mujoco.MjData(template.model)
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    states = np.zeros((env.num_envs, mujoco.mj_stateSize(model, full)))
    warmstart = np.zeros((env.num_envs, model.nv))
    for i, row in enumerate(env.state_dict()["physics"]):
        mujoco.mj_setState(model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION.value)
        mujoco.mj_getState(model, data, states[i], full)
        warmstart[i] = data.qacc_warmstart
    low, high = model.actuator_ctrlrange.T
    control = generator.uniform(low, high, (env.num_envs, AHEAD, model.nu))
    control = control.repeat(template.frame_skip, axis=1)
    threads = pool_size(0, env.num_envs)
    rollout: Any = importlib.import_module("mujoco.rollout")
    pool = rollout.Rollout(nthread=threads if threads > 1 else 0)
    works = [mujoco.MjData(model) for _ in range(threads)]
    models = [model] * env.num_envs
    return lambda: pool.rollout(models, works, states, control, initial_warmstart=warmstart)


def envpool_async(task: str, count: int, actions: NDArray) -> Callable[[], object]:
    """Half of EnvPool's environments received and sent on, in its asynchronous mode."""
    threads, half = pool_size(0, count), count // 2
    envs = importlib.import_module("envpool").make_gymnasium(
        task, num_envs=count, batch_size=half, num_threads=threads, seed=0
    )
    envs.async_reset()
    feed = itertools.cycle(actions[:, :half].astype(np.float64))

    def step() -> None:
        ready = envs.recv()[-1]["env_id"]
        envs.send(next(feed), ready)

    return step
