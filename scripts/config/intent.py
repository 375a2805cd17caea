"""What a command means to do: words that nothing would use, and things that have to be said.

A run that ignores what was typed, or begins where nobody wanted it to, looks like any other run.
So these are refused with the command that was meant, or said before the first step.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rheo.errors import RheoError

from .inherit import base_of, replays
from .overrides import SCRATCH
from .recorded import is_pairs, recorded_there
from .rules import reader
from .top import STEPPING, inside, walk
from .words import is_there

BARE = (
    "rheo train needs to know what to train: algo=NAME, and env=NAME or data=FILE. For example\n"
    "  rheo train algo=rfm env=hopper        from scratch\n"
    "  rheo train algo=bc data=FILE          clone recorded actions\n"
    "  rheo train recipe=demo                a small task in a minute\n"
    "`rheo train --help` lists the keys."
)
PURPOSE = ("algo", "recipe", "env", "data")
# of an environment that is stepped
ACTING = ("num_envs", "backend", "randomise", "cost", "options", *STEPPING)
RECKLESS = 0.1  # learning rate
NORMALIZER = "rheo.policies.normalize.Normalizer"


class Typed(NamedTuple):
    """What the user typed, for messages that lead with it."""

    groups: dict[str, str]  # the word that chose a group's file: {"source": "source=mixed"}
    keys: dict[str, str]  # full key -> as it was typed: {"source.on_bad": "data.on_bad"}
    algo: str  # algo=bc, whoever chose it
    given: frozenset[str] = frozenset()  # full keys of the values


def refuse_bare(words: Sequence[str]) -> None:
    """Raises RheoError for a command that does not say what to train."""
    firsts = {word.partition("=")[0].partition(".")[0].partition("/")[0] for word in words}
    if not firsts & set(PURPOSE):
        raise RheoError(BARE)


# ------------------------------------------------------------------ refused


def unread(tree: dict[str, Any], algo: str) -> list[str]:
    """Data that no part of the run reads; of pairs `rules.data` says what does."""
    data = tree.get("data")
    if data is None or reader(tree.get("source"), data) is not None or is_pairs(data):
        return []
    kind = str(inside(tree, "source._target_")).rpartition(".")[2]
    file = data if isinstance(data, str) else f"[{','.join(data)}]"
    clone = f"`rheo train algo=bc data={file} name=base`"
    if tree.get("init") not in (None, "???"):
        remedy = "leave data= out"
        if "pulls" in (tree.get("algo") or {}) and kind == "Rollouts":
            remedy += ", or set source=rollouts_data algo.pulls=[{kind: data, coef: 0.5}]"
    elif kind == "Rollouts":
        remedy = f"clone them first by {clone}, then `rheo train {algo} init=base env=NAME`"
    else:
        remedy = f"clone them by {clone}, or learn from their rewards by algo=iql"
    if kind != "Rollouts":
        remedy += "; source=mixed puts recorded rows into every batch"
    return [f"data={file}: {algo} does not read recorded data (its source is {kind}); {remedy}"]


def pulled(tree: dict[str, Any]) -> list[str]:
    """Entries that hold a policy to recorded actions where none are read, and the other way."""
    pulls, source = inside(tree, "algo.pulls") or [], tree.get("source")
    kinds = [entry.get("kind") for entry in pulls if isinstance(entry, dict)]
    reads = reader(source, tree.get("data")) is not None
    rollouts = str(inside(tree, "source._target_")).endswith(".Rollouts")
    if "data" in kinds and not reads:
        name = "rollouts_data" if rollouts else "mixed"
        return [f"algo.pulls: kind data needs recorded actions; set data=FILE source={name}"]
    if rollouts and reads and "data" not in kinds:
        return [
            "source=rollouts_data: nothing learns from the recorded actions; set "
            "algo.pulls=[{kind: data, coef: 0.5}] where the algorithm has this key, or leave "
            "source= and data= out"
        ]
    return []


def uncoded(tree: dict[str, Any]) -> list[str]:
    """Recorded actions that no code can be found for: the base is run backwards from them."""
    if not codes_are_kept(tree) or not str(inside(tree, "source._target_")).endswith(".Mixed"):
        return []
    if inside(tree, "source.shown_share"):
        return [
            f"source.shown_share={inside(tree, 'source.shown_share')}: what is shown has no code "
            "in this algorithm's replay; set it to 0"
        ]
    rows, horizon = inside(tree, "algo.noise_map.rows"), tree.get("horizon")
    remedy = "or take algo=dsrl_na, which learns of actions"
    if str(inside(tree, "policy._target_")).endswith(".Exported"):
        return [f"source=mixed: a program cannot be run backwards; start from a run, {remedy}"]
    if inside(tree, "policy.sampler") == "heun":
        return [f"policy.sampler=heun: only Euler's steps are run backwards; set euler, {remedy}"]
    if rows != horizon:
        return [
            f"algo.noise_map.rows={rows}: recorded plans of horizon={horizon} become codes of as "
            f"many rows; set algo.noise_map.rows={horizon}, {remedy}"
        ]
    return []


def codes_are_kept(tree: dict[str, Any]) -> bool:
    """Whether an algorithm's transitions hold codes of noise instead of actions."""
    algo = tree.get("algo") or {}
    return algo.get("_target_") == "rheo.algos.dsrl.DSRL" and not algo.get("noise_critic")


def baseless(algo: str, tree: dict[str, Any]) -> str:
    """The message for an algorithm that tunes or steers, without anything to tune."""
    acts = inside(tree, "env.id") is not None  # "???" where it has to be told
    where = "env=NAME" if acts else "data=FILE"
    return (
        f"init: has to be set (init=RUN): {algo} tunes or steers a policy that was trained "
        f"before, by `rheo train algo=bc data=FILE name=base` for example, then `rheo train {algo} "
        f"init=base {where}`; init={SCRATCH} starts from random weights all the same"
    )


def unfitted(tree: dict[str, Any]) -> list[str]:
    """Statistics that neither data nor another run can give: all of them at once."""
    source = str(inside(tree, "source._target_"))
    reads = reader(tree.get("source"), tree.get("data")) is not None
    if tree.get("init") or reads or not source.startswith("rheo.envs.sources."):
        return []
    parts = ("policy", "critic", "algo")
    places = [place for part in parts for place in normalizers(tree.get(part), part)]
    if not places:
        return []
    remedy = " ".join(f"{place}.kind=none" for place in places)
    return [
        f"{', '.join(places)}: there are no recorded data to take statistics from; set {remedy}, "
        "or data=FILE with source=mixed, or init=RUN"
    ]


def normalizers(node: Any, place: str) -> list[str]:
    """Places of the normalisers that need statistics."""
    if not isinstance(node, dict):
        return []
    if node.get("_target_") == NORMALIZER:
        return [place] if node.get("kind") != "none" else []
    return [one for key, value in node.items() for one in normalizers(value, f"{place}.{key}")]


# ------------------------------------------------------------------ said


def remarks(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """What was chosen without being named, is not used, or is too short to learn anything."""
    firsts = {word.partition("=")[0] for word in words}
    told = [*unnamed(tree, firsts), *unused(tree, words), *short(tree), *warmed(tree)]
    told += [*flattened(tree, firsts), *reckless(tree), *unheld(tree)]
    rollouts = str(inside(tree, "source._target_")).endswith(".Rollouts")
    if rollouts and not tree.get("init") and f"init={SCRATCH}" not in words:
        told.append("init: not given, so the policy starts from random weights")
    if f"init={SCRATCH}" in words and is_there(SCRATCH):
        told.append(f"init={SCRATCH} means random weights; the run of that name is runs/{SCRATCH}")
    return told


def unheld(tree: dict[str, Any]) -> list[str]:
    """A policy that clones what its own critic makes of its actions, and nothing else."""
    alone = str(inside(tree, "source._target_")).endswith(".Replay")
    if not alone or inside(tree, "algo.bc_coef") != 0 or inside(tree, "algo.rounds") is None:
        return []
    return [
        "algo.bc_coef=0 without recorded actions: nothing holds the policy where its critic is "
        "wrong; set algo.bc_coef=1, or source=mixed data=FILE"
    ]


def reckless(tree: dict[str, Any]) -> list[str]:
    """Learning rates of Adam, whose every step moves a weight by about as much."""
    rates = [(key, value) for key, value in walk({"algo": tree["algo"]}) if key.endswith("lr")]
    return [
        f"{key}={value:g}: every step moves every weight by about {value:g}, more than it weighs; "
        f"nothing is learned so, 1e-3 is already fast"
        for key, value in rates
        if isinstance(value, int | float) and value > RECKLESS
    ]


def unnamed(tree: dict[str, Any], firsts: set[str]) -> list[str]:
    """Algorithm and environment that nobody named: no recipe, no data, not the user."""
    told, name = [], inside(tree, "env.id")
    if not firsts & {"algo", "recipe"}:
        algo = str(inside(tree, "algo._target_")).rpartition(".")[2]
        told.append(f"algo: not given, so {algo} is trained")
    if name is None or firsts & {"env", "env.id"}:
        return told
    based = name == inside(base_of(tree) or {}, "env.id")
    if based or not ("recipe" in firsts or recorded_there(tree)):
        told.append(f"env: not given, so the run is in {name}{', as its base' if based else ''}")
    return told


def unused(tree: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Settings of an environment where there is none."""
    if inside(tree, "env.id") is not None:
        return []
    known = [f"env.{key}" for key in ACTING]
    found = [word for word in words if ".".join(word.partition("=")[0].split(".")[:2]) in known]
    return [f"{word}: not used, there is no environment (env=NAME)" for word in found]


def flattened(tree: dict[str, Any], firsts: set[str]) -> list[str]:
    """That a temperature which begins hot undoes a policy that was trained before."""
    spread = inside(tree, "algo.temperature_rule") == "spread"
    if not (tree.get("init") and spread) or "algo.temperature" in firsts:
        return []
    return [
        f"algo.temperature={inside(tree, 'algo.temperature'):g}: T begins far above what Q "
        "deviates by, which flattens the policy of init= before it learns (unless that run had "
        "learned a T, which goes on); algo.temperature=0.05 begins near it"
    ]


def warmed(tree: dict[str, Any]) -> list[str]:
    """Whose actions fill a replay before the first update of a run that starts from another."""
    return [
        f"{place}.warmup={node['warmup']}: these frames are acted by the policy of init= "
        f"({place}.warmup_policy=false: by uniform actions)"
        for place, node in replays(tree.get("source"))
        if tree.get("init") and node["warmup_policy"] and node["warmup"] > 0
    ]


def short(tree: dict[str, Any]) -> list[str]:
    """Runs that end before their first update, or with it."""
    source, steps = tree.get("source") or {}, tree["steps"]
    env = tree.get("env") or {}
    if str(source.get("_target_")).endswith(".Rollouts"):
        corrects = "residual_scale" in (tree.get("algo") or {})  # one action a decision
        factors = {
            "source.decisions": source["decisions"],
            "env.num_envs": env.get("num_envs", 1),
            "env.execute": 1 if corrects else env.get("execute", 1),
        }
        frames = math.prod(factors.values())
        if steps < frames:
            text = " x ".join(f"{key}={value}" for key, value in factors.items())
            return [
                f"steps={steps}: one rollout takes up to {frames} frames ({text}), and the run "
                "ends with it"
            ]
    node, place = source.get("replay", source), "source" + ".replay" * ("replay" in source)
    warmup = node.get("warmup", 0) if isinstance(node, dict) else 0
    if steps <= warmup:
        return [
            f"steps={steps}: the first {place}.warmup={warmup} frames only collect experience, so "
            f"nothing is learned; set more steps, or a smaller {place}.warmup"
        ]
    return []
