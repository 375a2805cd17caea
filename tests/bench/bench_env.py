"""Environment frames per second beside gymnasium's loop, EnvPool and physics alone."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rheo.envs.mujoco.native import pool_size
from rheo.envs.suites import make
from rheo.envs.vector import gymnasium_make
from rheo.scripts.limits import AHEAD, COUNTS, TASKS, native, random_actions, stepped
from rheo.scripts.paired import Goal, Plan, Row, against_limit, alternate, faster

LOOP_GOALS = {
    1: Goal("ratio", ">=", 1.0),
    8: Goal("ratio", ">=", 1.8),
    64: Goal("ratio", ">=", 2.5),
}
POOL_GOAL = (Goal("ratio", ">=", 0.85),)
LOOP, POOL = "gymnasium SyncVectorEnv", "envpool async"
ROBOTS, OURS = ("AdroitHandDoor-v1", "FetchPush-v4"), "our loop over its class"


def measure(plan: Plan) -> Iterator[Row]:
    """Three tasks at three batch sizes, a hand and an arm; random actions, resets included."""
    for task, count in itertools.product(TASKS, COUNTS):
        yield from compare(plan, task, count)
    if find_spec("gymnasium_robotics") is not None:
        for task, count in itertools.product(ROBOTS, (8, 64)):
            yield beside_loop(plan, task, count)


def compare(plan: Plan, task: str, count: int) -> Iterator[Row]:
    """Rows of one task and batch size."""
    env, sides = stepped(plan, task, count)
    actions = random_actions(np.random.default_rng(0), env.action_dim, count)
    sides[LOOP] = loop(task, count, actions)
    pooled = count > 1 and find_spec("envpool") is not None
    if pooled:
        sides[POOL] = envpool_async(task, count, actions)
    times = alternate(plan, sides)
    goals = (LOOP_GOALS[count], *COUNTS[count])
    row = faster(Row(f"{task} x {count}", "frames/s", 0.0, goals=goals), times, LOOP, count)
    yield against_limit(row, times, "frames/s", count, AHEAD * count)
    if pooled:  # a call of it is half the environments
        times[POOL] = 2 * times[POOL]
        row = Row(f"{task} x {count}", "frames/s", 0.0, goals=POOL_GOAL)
        yield faster(row, times, POOL, count)
    env.close()


def beside_loop(plan: Plan, task: str, count: int) -> Row:
    """A task's batch beside our loop over its own class, `backend=gymnasium`."""
    ours, theirs = (make(task, count, seed=0, backend=name) for name in ("native", "gymnasium"))
    actions = random_actions(np.random.default_rng(0), ours.action_dim, count)
    sides = {"ours": native(ours, actions), OURS: native(theirs, actions)}
    row = Row(f"{task} x {count}", "frames/s", 0.0)
    return faster(row, alternate(plan, sides), OURS, count)


def loop(task: str, count: int, actions: NDArray) -> Callable[[], object]:
    """One step of gymnasium's loop, at its best: no checker, reset in the same step."""
    one = partial(gymnasium_make, task, {})
    modes = getattr(gymnasium.vector, "AutoresetMode", None)  # since gymnasium 1.1
    options: dict[str, Any] = {"autoreset_mode": modes.SAME_STEP} if modes else {}
    envs = gymnasium.vector.SyncVectorEnv([one] * count, **options)
    envs.reset(seed=0)
    feed = itertools.cycle(actions)
    return lambda: envs.step(next(feed))


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
