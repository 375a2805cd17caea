"""An iteration of fine-tuning on policy: ReinFlow in 4 steps against DPPO in 20, part by part.

Both sides use every core, as `threads=0 env.threads=0` do; rollouts sample on one thread.
"""

import os
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rheo.envs.sources import Rollouts
from rheo.scripts.assemble import assemble, fit_statistics
from rheo.scripts.config.compose import compose
from rheo.scripts.fast import fast, one_thread
from rheo.scripts.paired import Goal, Plan, Row, with_ratio
from rheo.scripts.store.state import tensors

WORLD = ("env=hopper", "env.num_envs=40", "env.threads=0", "horizon=4", "source.decisions=500")
NET = ("policy.net.width=256", "policy.net.depth=3", "algo.learn.epochs=5")
SIDES = {  # 20,000 decisions: 20 steps of the optimiser for either
    "ours": ("algo=reinflow", "init=scratch", "policy.steps=4", "algo.learn.minibatch=5000"),
    "DPPO": (
        *("algo=dppo", "init=scratch", "policy.steps=20", "algo.tuned_steps=10"),
        "algo.learn.minibatch=50000",
    ),
}
SMALL = ("env.num_envs=4", "source.decisions=6", "algo.learn.epochs=1")
PARTS = ("environment", "sampling", "update")


def measure(plan: Plan) -> Iterator[Row]:
    """Seconds of an iteration and of its parts, and the memory of a rollout."""
    repeats = 1 if plan.quick else 3
    sides = {name: side(words, plan) for name, words in SIDES.items()}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        for repeat in range(repeats):
            for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
                times[name].append(iteration(*sides[name]))
    finally:
        torch.set_num_threads(before)
    goals = {"sampling + update": 0.18, "iteration": 0.25}
    for part in (*PARTS, *goals):
        found = {name: np.array([total(row, part) for row in rows]) for name, rows in times.items()}
        ours, theirs = (float(np.median(found[name])) for name in ("ours", "DPPO"))
        goal = (Goal("ratio", "<=", goals[part]),) if part in goals else ()
        row = Row(f"ReinFlow 4, Hopper: {part}", "s", ours, "DPPO 20, 10 tuned", theirs, goals=goal)
        yield with_ratio(row, found["ours"] / found["DPPO"])
    sizes = [megabytes(source.store) for _, source, _ in sides.values()]
    row = Row("ReinFlow 4, Hopper: rollout", "MB", sizes[0], "DPPO 20, 10 tuned", sizes[1])
    yield with_ratio(row, np.array([sizes[0] / sizes[1]]))


def side(words: tuple[str, ...], plan: Plan) -> tuple[Any, Rollouts, Any]:
    """An algorithm, its source and its update at the shipped speed."""
    config = compose([*words, *WORLD, *NET, *(SMALL if plan.quick else ())])
    algo, source, sizes, _ = assemble(config)
    obs = torch.randn(1000, sizes.obs_dim)
    fit_statistics(algo, obs, torch.zeros(1000, sizes.action_dim))
    return algo, source, fast(algo, plan.fast or config["fast"])


def iteration(algo: Any, source: Rollouts, update: Any) -> dict[str, float]:
    """Seconds of one rollout and one update."""
    acting = 0.0

    def act(obs: torch.Tensor) -> Any:
        nonlocal acting
        start = perf_counter()
        choice = algo.act(obs)
        acting += perf_counter() - start
        return choice

    start = perf_counter()
    with one_thread():
        rollout = source.next(act)
    middle = perf_counter()
    update(rollout)
    return {
        "environment": middle - start - acting,
        "sampling": acting,
        "update": perf_counter() - middle,
    }


def total(row: dict[str, float], part: str) -> float:
    """Seconds of a part, or of several."""
    if part == "iteration":
        return sum(row.values())
    return sum(row[name] for name in part.split(" + "))


def megabytes(store: Any) -> float:
    """Memory of everything in a rollout."""
    return sum(tensor.nbytes for _, tensor in tensors(store, "")) / 1e6
