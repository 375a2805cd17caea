"""What a configuration takes: memory, threads and processes, before anything is allocated.

Every estimate is from below, of what a run holds at the same time, so that what is refused could
not have run. `rheo train ... dry=true` counts what was really made.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rheo.envs.memory import available, size_text

from .top import inside, walk

NUMBER = 4  # bytes
KEPT = 5  # numbers per weight: itself, its gradient, two moments, a copy
LAYER, WORLD = 4096, 4096  # bytes of a layer's objects, of an environment's
PER_CPU = 4  # threads or processes, at most
LARGEST = 2**53
DEEPEST = {  # of what is made, or gone through, one by one
    **{"depth": 1000, "encoder_depth": 1000, "members": 10_000, "steps": 100_000},
    **{"n_step": 1000, "episodes": 100_000, "anneal_moves": 1000},
}


class Share(NamedTuple):
    """What one part of a run takes, and the keys that say so."""

    what: str
    keys: tuple[str, ...]
    size: float  # bytes


def refuse(tree: dict[str, Any]) -> list[str]:
    """What no machine could run, and what this one has no memory for."""
    errors = [*deep(tree)]
    if errors:
        return errors
    steps = inside(tree, "env.obs_steps")
    mine = shares(tree, steps if isinstance(steps, int) else 1, 1)
    if tree.get("device") != "cpu":  # what lies on a GPU is known with torch
        mine = (share for share in mine if share.what == "environments")
    free = available()
    return [] if free is None else too_much(tree, list(mine), free)


def crowded(tree: dict[str, Any]) -> list[str]:
    """Threads and processes that could only wait for each other."""
    most = PER_CPU * (os.cpu_count() or 1)
    errors = []
    for key in ("threads", "env.threads", "env.workers"):
        value = inside(tree, key)
        if isinstance(value, int) and value > most:
            errors.append(
                f"{key}={value}: this machine has {os.cpu_count()} CPUs; at most {most} are useful"
            )
    return errors


def deep(tree: dict[str, Any]) -> Iterator[str]:
    """Numbers of what is made one by one, and numbers beyond all counting."""
    for place, value in walk({key: node for key, node in tree.items() if key != "seed"}):
        key = place.rpartition(".")[2]
        most = LARGEST if place == "steps" else DEEPEST.get(key, LARGEST)
        if isinstance(value, int) and value > most and place.partition(".")[0] != "limits":
            yield f"{place}={value}: more than anybody has run; at most {most}"


def nodes(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node of a network or an algorithm, with its place."""
    waiting = [(key, tree.get(key)) for key in ("policy", "critic", "eye", "algo")]
    for place, node in waiting:
        if isinstance(node, Mapping):
            yield place, node
            waiting += [(f"{place}.{key}", value) for key, value in node.items()]


def shares(tree: Mapping[str, Any], obs: int, action: int) -> Iterator[Share]:
    """Who takes memory, for observations and actions of these sizes."""
    yield from networks(tree, obs, action)
    yield from experience(tree, obs, action)
    count = inside(tree, "env.num_envs")
    if inside(tree, "env.id") is not None and isinstance(count, int):
        yield Share("environments", ("env.num_envs",), count * (WORLD + NUMBER * obs))


def networks(tree: Mapping[str, Any], obs: int, action: int) -> Iterator[Share]:
    """The networks of a run with their optimisers and copies."""
    horizon = tree.get("horizon") or 1
    for place, node in nodes(tree):
        width = node.get("width")
        if not isinstance(width, int) or not isinstance(node.get("depth", 1), int):
            continue
        sequence = "heads" in node or "widths" in node  # a step of the plan at a time
        chunk = action if sequence else action * horizon
        depth = node.get("depth", 1)
        inner = 12 * depth if "heads" in node else depth - 1
        acts = place.partition(".")[0] in ("policy", "critic")
        ends = width * (obs + 2 * chunk) if acts else width
        members = node.get("members", 1)
        size = members * (NUMBER * KEPT * (ends + inner * width**2) + LAYER * depth)
        keys = [f"{place}.{key}" for key in ("width", "depth", "members") if key in node]
        yield Share(f"the network {place}", (*keys, "horizon", "env.obs_steps"), size)


def experience(tree: Mapping[str, Any], obs: int, action: int) -> Iterator[Share]:
    """What is kept of an environment, and a batch of it."""
    horizon, source = tree.get("horizon") or 1, tree.get("source")
    row = NUMBER * (2 * obs + horizon * action + 2)
    places = [("source", source), ("source.replay", inside(tree, "source.replay"))]
    for place, node in places:
        if not isinstance(node, Mapping):
            continue
        if isinstance(node.get("capacity"), int):
            rows = min(node["capacity"], tree.get("steps") or 1)
            kept = NUMBER * (2 * obs + (node.get("kept_rows") or horizon) * action + 2)
            keys = (f"{place}.capacity", "steps", "horizon", "env.obs_steps")
            yield Share("the replay", keys, rows * kept)
        if isinstance(node.get("decisions"), int):
            rows = node["decisions"] * (inside(tree, "env.num_envs") or 1)
            yield Share("a rollout", (f"{place}.decisions", "env.num_envs", "horizon"), rows * row)
        if isinstance(node.get("batch_size"), int):
            yield from batch(tree, place, node["batch_size"], row)


def batch(tree: Mapping[str, Any], place: str, rows: int, row: int) -> Iterator[Share]:
    """A batch, with what the widest layer of every network makes of its rows."""
    widths = [node.get("width") for _, node in nodes(tree)]
    width = max((one for one in widths if isinstance(one, int)), default=0)
    yield Share("a batch", (f"{place}.batch_size", "horizon"), rows * (row + NUMBER * width))
    algo = tree.get("algo") or {}
    for key, value in algo.items():
        if key.endswith(("particles", "candidates", "branches", "pool")) and isinstance(value, int):
            states = 1 if key.startswith(("deploy", "act")) else algo.get("policy_batch") or rows
            keys = (f"algo.{key}", f"{place}.batch_size")
            yield Share(f"algo.{key}", keys, NUMBER * width * value * min(states, rows))


def too_much(tree: Mapping[str, Any], found: list[Share], free: float) -> list[str]:
    """An error where all shares together take more than there is, with the largest three."""
    needed = sum(share.size for share in found)
    if needed <= free or not math.isfinite(needed):  # of a number that is none, which is told
        return []
    largest = sorted(found, key=lambda share: -share.size)[:3]
    told = [
        f"{share.what} {size_text(share.size)}" for share in largest if share.size > needed / 20
    ]
    values = [(key, inside(tree, key)) for key in largest[0].keys]
    values.sort(key=lambda pair: -(pair[1] if isinstance(pair[1], int) else 0))
    said = ", ".join(f"{key}={value}" for key, value in values if value not in (None, 1))
    keys = " or ".join(key for key, value in values if value not in (None, 1))
    return [
        f"{said}: takes at least {size_text(needed)} of memory ({', '.join(told)}), and "
        f"{size_text(free)} are free; lower {keys}"
    ]
