"""What `init=RUN` brings into a configuration before anything is built; without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from rheo.errors import RheoError

from ..store.where import existing, stored
from .top import AT_WILL, IMAGINING, files_of

# settings of a base that are told at the start of a run: sampling, units, chunks
POLICY_KEYS = (
    *(*AT_WILL, "policy.squash"),
    *("policy.obs_norm.kind", "policy.action_norm.kind"),
    *("horizon", "env.execute", "env.obs_steps"),
)
FLOW, FEW_STEPS = "rheo.policies.flow.FlowPolicy", "rheo.policies.fewstep.FewStepPolicy"
LABELLED = "rheo.policies.labelled.LabelledPolicy"
VELOCITIES = {"path": "linear", "levels": None, "prediction": "v"}  # of which jumps are means
ONE_STEP = "rheo.algos.fql.FQL"  # deploys a copy of its policy that takes one step


def inherit(base: dict[str, Any], overrides: list[Override], roots: list[Path]) -> None:
    """Takes policy, chunking and world of init=RUN: what its weights mean and how it samples.

    So a base is the policy that was evaluated. What is set by hand stays, and of the sampling
    (AT_WILL) also what another algorithm's own file asks for. A policy of another class is
    left alone: `start.start_from` answers for it. A replay is warmed up by this policy, of which
    uniform actions would teach another: half of what a mixed batch clones were theirs.
    """
    values = {one.key_or_group: one.value() for one in overrides}
    theirs = base_of(values)
    if theirs is None:
        return
    same_world(base, theirs, values)
    for place, node in replays(base["source"]):
        if f"{place}.warmup_policy" not in values:
            node["warmup_policy"] = True
    if theirs.get("eye") and "eye" not in values:  # what is typed of it is put in later
        base["eye"] = theirs["eye"]
    given = acting_policy(theirs, {**base, "init_part": values.get("init_part", "auto")})
    mine = base["policy"]
    head = given is not theirs["policy"]
    given = {**given, **grown_from(given, mine)}
    if given.get("_target_") != mine["_target_"]:
        return
    sampling = {place.partition(".")[2] for place in AT_WILL}
    asked = preset_keys(values, roots) & sampling
    if base["algo"]["_target_"] == theirs["algo"]["_target_"]:
        asked = set()
    if head:
        asked -= {"steps"}
    asked |= {key.partition("/")[2] for key in values}  # policy/net=... by hand
    lacking = {key: mine[key] for key in mine if key in sampling}  # of runs older than a setting
    base["policy"] = {**lacking, **given, **{key: mine[key] for key in mine if key in asked}}
    base["horizon"] = theirs["horizon"]
    for key in ("execute", "obs_steps"):
        if isinstance(base.get("env"), dict) and key in (theirs.get("env") or {}):
            base["env"][key] = theirs["env"][key]


def base_of(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of init=RUN; None without, and for what is no run."""
    if not values.get("init"):
        return None
    try:
        return stored(existing(str(values["init"])))
    except RheoError:  # the checks say what is wrong with it
        return None


def tuned_in(overrides: list[Override]) -> list[str]:
    """The choice of the environment of init=RUN, where neither `env` nor data tell another.

    An environment without a file of its own is taken by its id (`same_world`).
    """
    values = {one.key_or_group: one.value() for one in overrides}
    world = (base_of(values) or {}).get("env") or {}
    if not world.get("id") or "env.id" in values:
        return []
    return [f"env={[*files_of(world['id']), 'gym'][0]}"]


def same_world(base: dict[str, Any], theirs: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Makes an environment of the base's id with the options that the base's was made with.

    They say what its actions and observations mean (a robomimic file's controller, say). An
    id that the chosen file leaves open is the base's too.
    """
    env, other = base.get("env"), theirs.get("env") or {}
    if not isinstance(env, dict) or not other.get("id"):
        return
    files = files_of(other["id"]) or ["gym"]
    if env["id"] == "???" and "env.id" not in values and values.get("env", files[0]) in files:
        env["id"] = other["id"]
    if other["id"] != environment_of(base, values):
        return
    if "options" in env:
        env["options"] = {**(env["options"] or {}), **(other.get("options") or {})}
    env |= {key: other[key] for key in IMAGINING if key in env and key in other}


def environment_of(base: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    """The id of a run's environment: what was typed, or what its file says."""
    return values.get("env.id", (base.get("env") or {}).get("id"))


def replays(source: Any, place: str = "source") -> list[tuple[str, dict[str, Any]]]:
    """A source's replays with their full keys: itself, or a part of it."""
    if not isinstance(source, dict):
        return []
    found = [(place, source)] if "warmup_policy" in source else []
    return found + [one for k, node in source.items() for one in replays(node, f"{place}.{k}")]


def acting_policy(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the policy that a run starting from `theirs` takes over."""
    node = theirs.get("policy") or {}
    other = theirs["algo"]["_target_"] != mine["algo"]["_target_"]
    part = mine.get("init_part", "auto")
    head = theirs["algo"]["_target_"] == ONE_STEP and part != "base" and (other or part != "auto")
    return {**node, "steps": 1} if head else node


def grown_from(given: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, Any]:
    """What this run's policy is beside a plain flow that it begins as: untrained jumps, or labels
    that say nothing yet. Nothing where the given policy is no such flow, or this one no more.
    """
    if mine.get("_target_") == FEW_STEPS and jumps_can_start_as(given):
        return {"_target_": FEW_STEPS}
    if mine.get("_target_") == LABELLED and given.get("_target_") == FLOW:
        return {"_target_": LABELLED, "labels": mine["labels"]}
    return {}


def jumps_can_start_as(policy: Mapping[str, Any]) -> bool:
    """Whether this is a plain flow, which average velocities begin as: those of no length."""
    straight = all(policy.get(key) == value for key, value in VELOCITIES.items())
    return policy.get("_target_") == FLOW and straight


def preset_keys(values: Mapping[str, Any], roots: list[Path]) -> set[str]:
    """Keys of the policy that the chosen algorithm's and recipe's files set themselves."""
    found, algos = read_preset("recipe", values.get("recipe"), roots)
    algo = values.get("algo") or (algos[-1] if algos else None)
    return found | read_preset("algo", algo, roots)[0]


def read_preset(group: str, choice: Any, roots: list[Path]) -> tuple[set[str], list[str]]:
    """Keys under `policy:` of a file and of those that it builds on, and algorithms it names."""
    files = [root / group / f"{choice}.yaml" for root in roots]
    file = next((each for each in files if each.is_file()), None)
    if choice is None or file is None:
        return set(), []
    node = yaml.safe_load(file.read_text()) or {}
    keys, algos = set(node.get("policy") or {}), []
    for entry in node.get("defaults") or []:
        if isinstance(entry, Mapping):
            algos += [str(value) for key, value in entry.items() if str(key).endswith("/algo")]
        elif entry != "_self_" and not entry.startswith("/"):
            keys |= read_preset(group, entry, roots)[0]
    return keys, algos


def word(value: Any) -> str:
    """A value as it is typed: null, true, [8,16]."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(word(each) for each in value) + "]"
    return str(value)
