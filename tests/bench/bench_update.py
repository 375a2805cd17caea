"""Updates as they ship, compiled, beside SAC's and beside a peer's, on one thread."""

import functools
import importlib
import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from rheo.envs.batch import Batch
from rheo.envs.buffer import Buffer
from rheo.envs.vector import gymnasium_make
from rheo.scripts.fast import fast
from rheo.scripts.limits import (
    CRITICS,
    FLOW,
    SAC,
    SIZES,
    against_eager,
    composed,
    fresh,
    transitions,
    updates,
)
from rheo.scripts.paired import Goal, Plan, Row, alternate, faster, shorter

AWM = ("algo=awm", "env=none", *FLOW, *CRITICS)
SCRATCH = ("algo=rfm", "algo=rfm_box")  # as they ship, beside SAC as it ships
SAC_GOAL = (Goal("ratio", "<=", 1.5),)
PEER_GOAL = (Goal("ratio", ">=", 1.2),)
PEER = "Stable-Baselines3"


def measure(plan: Plan) -> Iterator[Row]:
    """Updates beside themselves without speed-ups, RFM's beside SAC's, and SAC's beside a peer."""
    yield from updates(plan)
    if not plan.quick:  # compiling takes a minute
        goals = (Goal("ratio", ">=", 1.2),)
        compiled = plan._replace(fast="compile")
        yield against_eager(compiled, "AWM offline, compiled", composed(AWM), goals)
    for word in SCRATCH:
        yield from beside_sac(plan, word)
    if find_spec("stable_baselines3") is not None:
        yield against_peer(plan, composed(SAC))


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
