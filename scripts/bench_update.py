"""Updates on one thread: as they ship, against themselves without speed-ups, and against a peer."""

import functools
import importlib
import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rheo.envs.batch import Batch
from rheo.envs.buffer import Buffer
from rheo.envs.vector import gymnasium_make

from .assemble import Sizes, fit_statistics, make_algo
from .bench_measure import (
    Goal,
    Plan,
    Row,
    against_limit,
    alternate,
    faster,
    gigaflop,
    products,
    shorter,
)
from .config.compose import compose
from .fast import fast

SIZES = Sizes(obs_dim=17, action_dim=6)  # of HalfCheetah
FLOW = ("policy.net.width=256", "policy.net.depth=3")
CRITICS = ("critic.members=2", "critic.width=256", "critic.depth=2")
BC = ("algo=bc", "env=none", *FLOW)
AWM = ("algo=awm", "env=none", *FLOW, *CRITICS)
RFM = ("algo=rfm_box", "env=halfcheetah", *FLOW, *CRITICS)
SAC = ("algo=sac", "env=halfcheetah", "policy.width=256", "policy.depth=2", *CRITICS)
CASES = {  # name -> configuration and goal
    "BC flow, batch 256": ((*BC, "source.batch_size=256"), 1.35),
    "BC flow, batch 1024": ((*BC, "source.batch_size=1024"), 1.5),
    "RFM, 16 proposals": ((*RFM, "algo.particles=16"), 1.3),
    "RFM, 64 proposals": ((*RFM, "algo.particles=64"), 1.3),
    "SAC": (SAC, None),
}
SCRATCH = ("algo=rfm", "algo=rfm_box")  # as they ship, beside SAC as it ships
SAC_GOAL = (Goal("ratio", "<=", 1.5),)
PEER_GOAL = (Goal("ratio", ">=", 1.2),)
EAGER, PEER = "default eager", "Stable-Baselines3"


def measure(plan: Plan) -> Iterator[Row]:
    """Updates as they ship, each beside itself without speed-ups, and SAC beside its peer."""
    for name, (words, goal) in CASES.items():
        cfg = composed(words)
        goals = () if goal is None else (Goal("ratio", ">=", goal),)
        yield against_eager(plan, name, cfg, goals)
    if not plan.quick:  # compiling takes a minute
        goals = (Goal("ratio", ">=", 1.2),)
        compiled = plan._replace(fast="compile")
        yield against_eager(compiled, "AWM offline, compiled", composed(AWM), goals)
    for word in SCRATCH:
        yield from beside_sac(plan, word)
    if find_spec("stable_baselines3") is not None:
        yield against_peer(plan, composed(SAC))


def composed(words: Sequence[str]) -> dict[str, Any]:
    """A configuration; the data that cloning asks for is a file of one step, which nobody reads."""
    if "env=none" not in words:
        return compose(words)
    with TemporaryDirectory() as folder:
        file = Path(folder, "data.npz")
        obs, action = np.zeros((1, SIZES.obs_dim)), np.zeros((1, SIZES.action_dim))
        np.savez(file, observations=obs, actions=action, rewards=[0.0], episode_ends=[1])
        return compose([*words, f"data={file}"])


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


def beside_sac(plan: Plan, word: str) -> Iterator[Row]:
    """An update, a critic step and a policy step of RFM in milliseconds, each beside SAC's.

    An update holds as many policy steps as ship: SAC takes one for every critic step.
    """
    names = {"ours": word, "SAC": "algo=sac"}
    made = {side: composed((name, "env=halfcheetah")) for side, name in names.items()}
    turn = max(cfg["algo"]["policy_every"] for cfg in made.values())
    parts: dict[str, dict[str, Any]] = {"update": {}, "critic step": {}, "policy step": {}}
    for side, cfg in made.items():
        batch = transitions(cfg["source"]["batch_size"], torch.Generator().manual_seed(1))
        mode = plan.fast or cfg["fast"]
        whole, critic = fast(fresh(cfg), mode), fresh(cfg)
        critic.policy_every = math.inf  # no policy step ever falls due
        policy = fresh(cfg)
        policy.update = policy.update_policy
        given = batch if side == "ours" else batch.obs
        parts["update"][side] = functools.partial(whole, batch)
        parts["critic step"][side] = functools.partial(fast(critic, mode), batch)
        parts["policy step"][side] = functools.partial(fast(policy, mode), given)
    for part, sides in parts.items():
        goals = SAC_GOAL if part == "update" else ()
        times = alternate(plan, sides, block=turn, cpu=True)
        row = Row(f"{word.removeprefix('algo=')}, {part}", "ms", 0.0, goals=goals)
        yield shorter(row, times, "SAC", unit=1e3)


def against_peer(plan: Plan, cfg: dict[str, Any]) -> Row:
    """SAC with its replay sampling against Stable-Baselines3's, equal networks and rates."""
    rows, capacity = cfg["source"]["batch_size"], 10_000
    ours, generator = fast(fresh(cfg), plan.fast or cfg["fast"]), torch.Generator().manual_seed(2)
    data = transitions(capacity, generator)
    buffer = Buffer(capacity, SIZES.obs_dim, 1, SIZES.action_dim, "cpu")
    buffer.add(data, torch.ones(capacity, dtype=torch.bool))
    peer = stable_baselines(cfg, data)
    sides = {
        "ours": lambda: ours(buffer.sample(rows, generator)),
        PEER: lambda: peer.train(1, rows),
    }
    times = alternate(plan, sides, cpu=True)
    return faster(Row("SAC", "updates/s", 0.0, goals=PEER_GOAL), times, PEER)


def stable_baselines(cfg: dict[str, Any], data: Batch) -> Any:
    """Stable-Baselines3's SAC of the same sizes, its buffer filled with the same data."""
    package = "stable_baselines3"
    library, logger = (importlib.import_module(package + end) for end in ("", ".common.logger"))
    policy, critic, capacity = cfg["policy"], cfg["critic"], len(data.obs)
    layers = {
        "pi": [policy["width"]] * policy["depth"],
        "qf": [critic["width"]] * critic["depth"],
    }
    peer = library.SAC(
        "MlpPolicy",
        gymnasium_make("HalfCheetah-v5", {}),
        learning_rate=cfg["algo"]["policy_lr"],
        buffer_size=capacity,
        batch_size=cfg["source"]["batch_size"],
        tau=cfg["algo"]["target_rate"],
        policy_kwargs={"net_arch": layers, "n_critics": critic["members"]},
        device="cpu",
    )
    peer.set_logger(logger.configure(None, []))
    ended = torch.zeros(capacity).numpy()
    arrays = [x.numpy() for x in (data.obs, data.next_obs, data.action[:, 0], data.reward)]
    for row in zip(*arrays, ended, strict=True):
        peer.replay_buffer.add(*row, [{}])
    return peer


def fresh(cfg: dict[str, Any]) -> Any:
    """A new algorithm; same configuration, same numbers. Statistics as of normal data."""
    algo = make_algo(cfg, SIZES, cfg["steps"])
    data = transitions(1000, torch.Generator().manual_seed(0))
    fit_statistics(algo, data.obs, data.action)
    return algo


def transitions(count: int, generator: torch.Generator) -> Batch:
    """Random transitions of HalfCheetah's sizes."""
    obs, next_obs = (torch.randn(count, SIZES.obs_dim, generator=generator) for _ in range(2))
    action = 2 * torch.rand(count, 1, SIZES.action_dim, generator=generator) - 1
    reward = torch.randn(count, generator=generator)
    return Batch(obs, action, reward, torch.full((count,), 0.99), next_obs)
