"""Sampling actions, on one thread."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .bench_measure import Goal, Plan, Row, against_limit, alternate, gigaflop, products, shorter
from .bench_update import BC, SIZES, composed, fresh
from .fast import fast_deploy

GOALS = {1: (Goal("ratio", "<=", 0.35),), 256: (Goal("share", ">=", 0.85),)}
NAIVE = "naive loop"


def measure_act(plan: Plan) -> Iterator[Row]:
    """Sampling an action in 4 steps, as it is deployed."""
    cfg = composed([*BC, "policy.steps=4"])
    algo = fresh(cfg)
    torch.nn.init.normal_(algo.average.net.outlet.weight, std=0.05)  # it starts at zero
    for rows, goals in GOALS.items():
        yield act_row(plan, algo, plan.fast or cfg["fast"], rows, goals)


def act_row(plan: Plan, algo: Any, mode: str, rows: int, goals: tuple[Goal, ...]) -> Row:
    """`rows` actions sampled at once, against the naive loop and the rate of products."""
    policy, obs, generator = algo.average, torch.randn(rows, SIZES.obs_dim), torch.Generator()
    ours, other = samplers(algo, mode, obs, generator)
    limit, limit_work = products(rows, rows >= 8)
    noise = policy.noise(rows, generator)
    work = gigaflop(lambda: policy.integrate(policy.features(obs), noise))
    times = alternate(plan, {"ours": ours, NAIVE: other, "limit": limit}, cpu=True)
    row = shorter(Row(f"act, batch {rows}", "us", 0.0, goals=goals), times, NAIVE)
    return against_limit(row, times, "GFLOP/s", work, limit_work)


def samplers(
    algo: Any, mode: str, obs: Tensor, generator: torch.Generator
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The deployed policy, and the same map written naively; equal for equal generators."""
    policy, deploy = algo.average, fast_deploy(algo, mode, len(obs))

    @torch.no_grad()
    def naive() -> Tensor:
        x = policy.noise(len(obs), generator)
        for k in range(policy.steps):
            t = torch.full((len(obs),), k / policy.steps)
            x = x + policy.velocity(x, t, policy.features(obs)) / policy.steps
        return policy.to_action(x)

    return lambda: deploy(obs, generator), naive
