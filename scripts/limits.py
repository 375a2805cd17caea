"""Speed on this machine, beside what it could do: environment frames, actions, updates."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheo.envs.batch import Batch
from rheo.envs.mujoco.native import pool_size
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv, gymnasium_make

from .assemble import Sizes, fit_statistics, make_algo
from .config.compose import compose
from .fast import fast, fast_deploy
from .paired import (
    Goal,
    Plan,
    Row,
    against_limit,
    alternate,
    faster,
    gigaflop,
    products,
    rate,
    shorter,
)

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")
COUNTS = {1: (), 8: (), 64: (Goal("share", ">=", 0.85),)}  # environments and goals
AHEAD = 10  # environment steps of the open loop, short: its rows are not reset when they fall
MIXED = 200  # random steps before measuring, so that the rows are in different phases
ACTED = {1: (Goal("ratio", "<=", 0.35),), 256: (Goal("share", ">=", 0.85),)}  # rows and goals
SIZES = Sizes(obs_dim=17, action_dim=6)  # of HalfCheetah
FLOW = ("policy.net.width=256", "policy.net.depth=3")
CRITICS = ("critic.members=2", "critic.width=256", "critic.depth=2")
BC = ("algo=bc", "env=none", *FLOW)
RFM = ("algo=rfm_box", "env=halfcheetah", *FLOW, *CRITICS)
SAC = ("algo=sac", "env=halfcheetah", "policy.width=256", "policy.depth=2", *CRITICS)
UPDATES = {  # name -> configuration and goal
    "BC flow, batch 256": ((*BC, "source.batch_size=256"), 1.35),
    "BC flow, batch 1024": ((*BC, "source.batch_size=1024"), 1.5),
    "RFM, 16 proposals": ((*RFM, "algo.particles=16"), 1.3),
    "RFM, 64 proposals": ((*RFM, "algo.particles=64"), 1.3),
    "SAC": (SAC, None),
}
NAIVE, EAGER = "naive loop", "default eager"


# ---- environments: random actions, resets included ---------------------------------------------


def frames(plan: Plan) -> Iterator[Row]:
    """Three tasks at three batch sizes, against physics alone."""
    for task, (count, goals) in itertools.product(TASKS, COUNTS.items()):
        env, sides = stepped(plan, task, count)
        times = alternate(plan, sides)
        row = Row(f"{task} x {count}", "frames/s", rate(times["ours"], count), goals=goals)
        yield against_limit(row, times, "frames/s", count, AHEAD * count)
        env.close()


def stepped(plan: Plan, task: str, count: int) -> tuple[VectorEnv, dict[str, Callable[[], object]]]:
    """A batch of environments in different phases; its step, and physics alone as the limit."""
    generator = np.random.default_rng(0)
    env = make(task, count, seed=0, backend="native")
    ours = native(env, random_actions(generator, env.action_dim, count))
    for _ in range(MIXED // 10 if plan.quick else MIXED):
        ours()
    return env, {"ours": ours, "limit": open_loop(env, generator)}


def random_actions(generator: np.random.Generator, action_dim: int, count: int) -> NDArray:
    """Actions of 64 steps, [64, N, Da]."""
    return generator.uniform(-1, 1, (64, count, action_dim)).astype(np.float32)


def native(env: VectorEnv, actions: NDArray) -> Callable[[], object]:
    """One step of the batch."""
    env.reset(0)
    feed = itertools.cycle(torch.from_numpy(actions))
    return lambda: env.step(next(feed))


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


# ---- acting, on one thread ---------------------------------------------------------------------


def actions(plan: Plan) -> Iterator[Row]:
    """Sampling an action in 4 steps, as it is deployed."""
    cfg = composed([*BC, "policy.steps=4"])
    algo = fresh(cfg)
    torch.nn.init.normal_(algo.average.net.outlet.weight, std=0.05)  # it starts at zero
    for rows, goals in ACTED.items():
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


# ---- updates, on one thread --------------------------------------------------------------------


def updates(plan: Plan) -> Iterator[Row]:
    """Updates as they ship, each beside itself without speed-ups."""
    for name, (words, goal) in UPDATES.items():
        goals = () if goal is None else (Goal("ratio", ">=", goal),)
        yield against_eager(plan, name, composed(words), goals)


def against_eager(plan: Plan, name: str, cfg: dict[str, Any], goals: tuple[Goal, ...]) -> Row:
    """One algorithm against its identical copy with fast=off."""
    rows = cfg["source"]["batch_size"]
    batch = transitions(rows, torch.Generator().manual_seed(1))
    eager, ours = fast(fresh(cfg), "off"), fast(fresh(cfg), plan.fast or cfg["fast"])
    turn = cfg["algo"].get("policy_every", 1)  # updates until the same work comes round again
    limit, limit_work = products(rows, True)
    sides = {"ours": lambda: ours(batch), EAGER: lambda: eager(batch)}
    work = gigaflop(sides[EAGER], turn)
    times = alternate(plan, {**sides, "limit": limit}, block=turn, cpu=True)
    row = faster(Row(name, "updates/s", 0.0, goals=goals), times, EAGER)
    return against_limit(row, times, "GFLOP/s", work, limit_work)


def composed(words: Sequence[str]) -> dict[str, Any]:
    """A configuration; the data that cloning asks for is a file of one step, which nobody reads."""
    if "env=none" not in words:
        return compose(words)
    with TemporaryDirectory() as folder:
        file = Path(folder, "data.npz")
        obs, action = np.zeros((1, SIZES.obs_dim)), np.zeros((1, SIZES.action_dim))
        np.savez(file, observations=obs, actions=action, rewards=[0.0], episode_ends=[1])
        return compose([*words, f"data={file}"])


def fresh(cfg: dict[str, Any]) -> Any:
    """A new algorithm; same configuration, same numbers. Statistics as of normal data."""
    algo = make_algo(cfg, SIZES, cfg["steps"])
    data = transitions(1000, torch.Generator().manual_seed(0))
    fit_statistics(algo, data.obs, data.action)
    return algo


def transitions(
    count: int, generator: torch.Generator, sizes: Sizes = SIZES, horizon: int = 1
) -> Batch:
    """Random transitions of an environment's sizes."""
    obs, next_obs = (torch.randn(count, sizes.obs_dim, generator=generator) for _ in range(2))
    action = 2 * torch.rand(count, horizon, sizes.action_dim, generator=generator) - 1
    reward = torch.randn(count, generator=generator)
    discount, free = torch.full((count,), 0.99), torch.zeros(count)
    return Batch(obs, action, reward, discount, next_obs, free)
