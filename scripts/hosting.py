"""Speed of environments in worker processes beside one process, and beside robosuite's own loop."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from rheo.envs.families import make as make_one
from rheo.envs.families import register, step_ms
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv
from rheo.envs.workers import Workers
from rheo.errors import EnvError

from .limits import random_actions
from .paired import Goal, Plan, Row, alternate, faster, with_ratio

COUNT, WORKERS, CHUNK = 4, 2, 8
TASKS = {  # and how many times the frames two workers should make, on two cores that are idle
    "robosuite/Lift-v0": (Goal("ratio", ">=", 1.8),),
    "cube-single-play-singletask-v0": (Goal("ratio", ">=", 1.6),),
    "Pendulum-v1": (),  # the exchange and little else: what a worker costs
}
ALONE = "one process"
LEARNERS = (Goal("ours", "<=", 0.25),)
OWN = "robosuite's loop"
LOOPS = {  # and how many times the steps of robosuite's own loop
    "robosuite/Lift-v0": (Goal("ratio", ">=", 2.0),),
    "robosuite/PickPlaceCan-v0": (),
    "robosuite/NutAssemblySquare-v0": (),
    "robosuite/ToolHang-v0": (),
    "robosuite/TwoArmTransport-v0": (),
}


class Spent(NamedTuple):
    """Seconds of processor time that a call takes."""

    learner: float
    all: float


def rows(plan: Plan) -> Iterator[Row]:
    """Every task that runs with the packages that are installed here; in short those soon made."""
    for task, goals in TASKS.items():
        if plan.quick and step_ms(task) is not None:
            continue
        try:
            alone = make(task, COUNT, seed=0)
        except EnvError:
            continue  # of the other set of packages
        shared = make(task, COUNT, seed=0, workers=WORKERS, execute=CHUNK)
        assert isinstance(shared, Workers)
        yield from compared(plan, task, goals, alone, shared)
        alone.close()
        shared.close()
    if not plan.quick:
        yield from loops(plan)


def loops(plan: Plan) -> Iterator[Row]:
    """Steps of robosuite's tasks, beside those of robosuite's own loop: the same to the last bit.

    In processor time, for both keep one thread busy. No episode ends.
    """
    for task, goals in LOOPS.items():
        try:
            register(task)
            envs = [make_one(task, {}) for _ in range(2)]
        except EnvError:
            return  # of the other set of packages
        for env in envs:
            env.reset(seed=0)
        ours, theirs = (cast(Any, env.unwrapped) for env in envs)
        actions = random_actions(np.random.default_rng(0), len(ours.action_space.low), 1)[:, 0]
        feeds = [itertools.cycle(actions) for _ in envs]
        sides = {
            "ours": lambda feed=feeds[0], env=ours: env.step(next(feed)),
            OWN: lambda feed=feeds[1], env=theirs.env: env.step(next(feed)),
        }
        times = alternate(plan, sides, cpu=True)
        yield faster(Row(f"{task}, its control", "steps/CPU s", 0.0, goals=goals), times, OWN)
        for env in envs:
            env.close()


def compared(
    plan: Plan, task: str, goals: tuple[Goal, ...], alone: VectorEnv, shared: Workers
) -> Iterator[Row]:
    """Frames of both, and the processor time of a frame: the learner's and that of all.

    In a chunk rows that end wait for the others, which these tasks' hardly do.
    """
    name = f"{task} x {COUNT}, {WORKERS} workers"
    sides = {"ours": stepped(shared), ALONE: stepped(alone)}
    times = alternate(plan, sides | {"chunks": chunks(shared)})
    yield faster(Row(name, "frames/s", 0.0, goals=goals), times, ALONE, COUNT)
    whole = {"ours": times["chunks"] / CHUNK, ALONE: times[ALONE]}
    yield faster(Row(f"{name}, {CHUNK} steps at once", "frames/s", 0.0), whole, ALONE, COUNT)
    lasting = int(plan.seconds * plan.repeats / np.median(times["ours"]))
    calls = 4 if plan.quick else max(lasting, 60)
    spends: list[Spent] = []
    for env, side in zip((shared, alone), sides.values(), strict=True):
        env.reset(0)  # a step costs what the state makes it cost, so both go through the same
        spends.append(spent(side, calls, shared.pids))
    ours, theirs = spends
    unit = 1e3 / COUNT
    row = Row(f"{name}: CPU of all", "ms/frame", ours.all * unit, ALONE, theirs.all * unit)
    yield with_ratio(row, np.array([ours.all / theirs.all]))
    yield Row(f"{name}: learner", "ms/frame", ours.learner * unit, goals=LEARNERS)
    part = spent(chunks(shared), max(calls // CHUNK, 2), shared.pids).learner * unit / CHUNK
    yield Row(f"{name}: learner, {CHUNK} steps at once", "ms/frame", part, goals=LEARNERS)


def stepped(env: VectorEnv) -> Callable[[], object]:
    """One step of random actions in all environments."""
    actions = random_actions(np.random.default_rng(0), env.action_dim, COUNT)
    env.reset(0)
    feed = itertools.cycle(torch.from_numpy(actions))
    return lambda: env.step(next(feed))


def chunks(env: VectorEnv) -> Callable[[], object]:
    """A chunk of random actions in all environments."""
    actions = random_actions(np.random.default_rng(0), env.action_dim, COUNT)[:CHUNK]
    action: Any = torch.from_numpy(actions.swapaxes(0, 1).copy())
    return lambda: env.ahead(action)


def spent(side: Callable[[], object], count: int, pids: list[int]) -> Spent:
    """Processor time of a call, over `count` of them; all: with what the workers take."""
    before, others = process_time(), taken(pids)
    for _ in range(count):
        side()
    mine = process_time() - before
    return Spent(mine / count, (mine + taken(pids) - others) / count)


def taken(pids: list[int]) -> float:
    """Seconds of processor time that processes have taken; 0 where the system does not say."""
    ticks = 0
    for pid in pids:
        file = Path(f"/proc/{pid}/stat")
        if file.is_file():
            ticks += sum(map(int, file.read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
