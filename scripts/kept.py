"""What a run keeps of the one that it starts from, in the line that says so."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config.inherit import POLICY_KEYS, acting_policy, word
from .config.top import inside
from .store.run import Run

log = logging.getLogger("rheo")
# settings of a network's node that do not change what its weights are: this run's are used
APART = (
    *("algo.noise.std_min", "algo.noise.std_max", "algo.noise.schedule", "algo.noise.tuned_steps"),
    *("algo.editor.scale", "algo.noise_map.kind", "algo.noise_map.bound"),
    *("eye.shift", "eye.frozen"),
)
OPTIONS = "env.options"
# what else the networks of the same algorithm were learned with
LEARNED_WITH = (
    *APART,
    *("algo.deploy_candidates", "algo.deploy_temperature", "algo.deploy_mean", "algo.steer.n"),
    *("algo.tuned_steps", "algo.residual_scale", "algo.learn.scale_rewards", "env.gamma"),
)


class Donor(NamedTuple):
    """The run that `init` names."""

    who: str  # init=NAME
    run: Run
    config: dict[str, Any]
    kind: Any  # its algorithm's class
    saved: Mapping[str, Any]  # the parts of its algorithm, by attribute
    images: Mapping[str, Any] = {}  # heights and widths of those that it observed, in order


class Pair(NamedTuple):
    """A network of the new run and the weights that it gets."""

    name: str  # attribute of the algorithm
    part: torch.nn.Module
    state: Mapping[str, Tensor]
    origin: str  # the donor's attribute


def say(
    pairs: list[Pair],
    duals: list[str],
    config: Mapping[str, Any],
    donor: Donor,
    same: bool,
    noisy: bool,
) -> None:
    """One line: what is taken, and which of the donor's settings are kept and which change.

    same: whether all networks are taken; noisy: whether what this run deploys has noise in its
    steps where policy.eta says so.
    """
    kept, changed = [], []
    theirs = {**donor.config, "policy": acting_policy(donor.config, config)}
    for key in (*POLICY_KEYS, *options(config, theirs), *(LEARNED_WITH if same else ())):
        mine, other = inside(config, key), inside(theirs, key)
        if (mine is None or other is None) and not key.startswith(OPTIONS):
            continue
        if mine == other:
            kept.append(f"{key}={brief(mine)}")
        else:
            keeps = (
                f"{key}={word(other)} keeps" if word(other) == brief(other) else "left out keeps"
            )
            changed.append(f"{key} {brief(other)} -> {brief(mine)} ({keeps} it)")
    base = config.get("init_part") == "base"
    alone = not same and not base  # a policy without the rest of its run
    lost = loosely(donor) if alone else []
    eta = inside(config, "policy.eta") or 0.0, inside(donor.config, "policy.eta") or 0.0
    acts = noisy and eta[0] > 0, donor.kind.noisy_steps and eta[1] > 0
    lost += [f"the noise of its steps (policy.eta={eta[1]:g})"] * (alone and acts == (False, True))
    parts = [taken(pairs, duals, same, base) + (f" without {' and '.join(lost)}" if lost else "")]
    if alone and acts == (True, False) and eta[0] == eta[1]:  # set there for its training alone
        changed.append(f"noise of its steps none -> policy.eta={eta[0]:g} (policy.eta=0 keeps it)")
    parts += ["changes " + ", ".join(changed)] if changed else []
    parts += ["keeps " + " ".join(kept)] if kept else []
    level = logging.WARNING if changed or lost else logging.INFO
    log.log(level, "%s: %s", donor.who, "; ".join(parts))


def brief(value: Any) -> str:
    """A value as it is typed, the beginning of a long one."""
    text = word(value)
    return text if len(text) <= 40 else text[:37] + "..."


def options(config: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys of what both environments were made with, where they are the same one."""
    if inside(config, "env.id") != inside(theirs, "env.id"):
        return []
    named = {**(inside(theirs, OPTIONS) or {}), **(inside(config, OPTIONS) or {})}
    return [f"{OPTIONS}.{name}" for name in named]


def taken(pairs: list[Pair], duals: list[str], same: bool, base: bool) -> str:
    """What of the donor is taken."""
    if not same:
        return "its base" if base else "its deployed policy"
    filled = [f"{pair.name} from its {pair.origin}" for pair in pairs if pair.name != pair.origin]
    return ", ".join(["all its networks", *filled, *duals]) + ", optimisers and counters anew"


def loosely(donor: Donor) -> list[str]:
    """What the donor's deployment adds to the policy that is taken over."""
    node, added = donor.config["algo"], []
    steer = node.get("steer") or {}
    if node.get("deploy_candidates", 1) > 1:
        added.append(f"the best of {node['deploy_candidates']} samples by its critic")
    if steer.get("n", 1) > 1 or set(steer.get("words", ())) - {"best", "soft"}:
        added.append(f"its chain algo.steer={','.join(steer['words'])} (n={steer['n']})")
    if "keep" in node:
        how = "guided by its critic" if node.get("proposals") == "svdd" else ""
        text = f"the best of {node['samples']} samples after {node['rounds']} steps up Q"
        added.append(f"{text}, {how}" if how else text)
    first = donor.config["policy"].get("steps", 0) - node.get("tuned_steps", 0)
    if "tuned_steps" in node and first > 0:
        added.append(f"its base, which took the first {first} of its denoising steps")
    return added
