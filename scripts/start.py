"""`init=RUN`: what a new run takes of another one, and the line that says so.

The same algorithm goes on: with the networks, and with the duals and scales that belong to them;
optimisers, counters and noise start anew. Another algorithm starts from the deployed policy.
Settings are never taken with weights: they are this run's configuration.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rheo.algos.contract import Algorithm, completed
from rheo.envs.pixels import alike, listed_images
from rheo.errors import RheoError
from rheo.policies.normalize import affine

from .assemble import refuse_mute, twins
from .config.build import target_of
from .config.compose import HOME
from .config.inherit import grown_from, word
from .config.top import AT_WILL, inside
from .config.words import as_flags
from .kept import APART, Donor, Pair, say
from .store.fields import fitting, refuse_partial
from .store.run import Run
from .store.state import other_shape, put
from .store.where import named

log = logging.getLogger("rheo")
BEYOND = ("jump.", "vectors")  # what kinds of policy have that a plain flow has not
SHAPING = ("algo.relative", "horizon", "env.obs_steps")  # what sizes of networks follow too


def start_from(algo: Algorithm, config: dict[str, Any]) -> Run:
    """Starts an algorithm from the run that `init` names, and says what that keeps and changes.

    Returns that run. Raises RheoError naming the tensor or the setting that makes weights mean
    something else, and for a behaviour that the algorithm cannot take over.
    """
    donor = donor_of(config)
    same = goes_on(config, donor.config)
    with fitting(f"{donor.who}, {donor.run.loaded}"):
        refuse_other_images(algo, donor)
        pairs = continued(algo, donor) if same else handed_over(algo, donor, config)
        refuse_other_meaning(algo, pairs, config, donor, same)
        for pair in pairs:
            pair.part.load_state_dict(pair.state)
        duals = carried(algo, config, donor) if same else []
        share_statistics(algo)
    say(pairs, duals, config, donor, same, algo.noisy_steps)
    if untrained(algo, donor, config):
        told = "which every label acts as at first"
        told = "whose jumps begin as its velocity" if algo.policy.jumps else told
        log.info("%s: its policy is a plain flow, %s", donor.who, told)
    return donor.run


def donor_of(config: Mapping[str, Any]) -> Donor:
    """The run to start from. Raises RheoError when it has no checkpoint."""
    who = f"init={named(config['init'])}"
    run = Run.open(config["init"], as_flags(config["config_dir"]))
    tree = run.load()
    if tree is None:
        raise RheoError(f"{who}: that run has no checkpoint yet")
    refuse_partial(tree, run.loaded, "algo", "sizes")
    kind = completed(target_of(run.config["algo"], "algo"))
    with fitting(f"{who}, {run.loaded}"):
        state, images = kind.upgrade(tree["algo"]), tree["sizes"].get("images", {})
    return Donor(who, run, run.config, kind, state, images)


def goes_on(config: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a run takes all of another: its algorithm is the same and nothing else was asked.

    Where one of them keeps its encoder of images and the other does not, what acts is all that both
    have: of several copies of an encoder the deployed policy's is the one to keep.
    """
    same = config["algo"]["_target_"] == theirs["algo"]["_target_"]
    still = bool(inside(config, "eye.frozen")) == bool(inside(theirs, "eye.frozen"))
    return same and still and config.get("init_part", "auto") == "auto"


def modules(algo: Algorithm) -> dict[str, torch.nn.Module]:
    """The networks of an algorithm by attribute."""
    return {k: v for k, v in vars(algo).items() if isinstance(v, torch.nn.Module)}


# ---- which weights go where --------------------------------------------------------------------


def continued(algo: Algorithm, donor: Donor) -> list[Pair]:
    """The networks of the same algorithm: each its own, and copies that the donor had no use for.

    An anchor is the policy of this run's start (`anchors` of the algorithm), not the donor's. Of
    the other copies that the donor lacks, those of the policy start as its deployed one, a target
    or an average as the network that it follows. None is left at its first weights in silence.
    """
    own, saved, pairs = modules(algo), donor.saved, []
    for name, part in own.items():
        origin = name if name in saved else original(part, own, saved)
        if name in algo.anchors:
            origin = "policy"
        elif name not in saved and type(part) is type(algo.policy) and origin is not None:
            origin = deployed(donor)
        if origin is None:
            log.warning("%s: that run has no algo.%s, which starts untrained", donor.who, name)
            continue
        pairs.append(Pair(name, part, weights(part, saved[origin]), origin))
    return pairs


def original(
    part: torch.nn.Module, own: Mapping[str, torch.nn.Module], saved: Mapping[str, Any]
) -> str | None:
    """The network that `part` is a copy of: in a fresh algorithm a copy has its very weights."""
    mine = list(part.parameters())
    for name, other in own.items():
        theirs = list(other.parameters())
        alike = name in saved and type(other) is type(part) and len(mine) == len(theirs) > 0
        if alike and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)):
            return name
    return None


def handed_over(algo: Algorithm, donor: Donor, config: Mapping[str, Any]) -> list[Pair]:
    """The policy and all its copies, from the donor's deployed policy or, if asked, its base."""
    refuse_mute(donor.run)
    if algo.policy is None:
        raise RheoError(
            f"{donor.who}: is a policy's run, which {type(algo).__name__} learns nothing from; "
            "leave it out, or name a run of the same algorithm to go on with"
        )
    base = config.get("init_part", "auto") == "base"
    origin = base_part(donor) if base else deployed(donor)
    if not base and donor.kind.beyond:
        raise RheoError(beyond(donor))
    copies = (algo.policy, *twins(algo))
    named = [(name, part) for name, part in modules(algo).items() if part in copies]
    state = {**untrained(algo, donor, config), **donor.saved[origin]}
    if origin == "head" and config["policy"].get("steps") != 1:
        raise RheoError(
            f"{donor.who}: what it deploys is its head, which acts in one step; set "
            "policy.steps=1, or init_part=base for the flow that it was distilled from"
        )
    return [Pair(name, part, weights(part, state), origin) for name, part in named]


def untrained(algo: Algorithm, donor: Donor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the policy has beyond the plain flow of a donor that it starts as (`grown_from`): its
    jumps, where somebody trains them, or the vectors of its labels. Else nothing.
    """
    if not grown_from(donor.config["policy"], config["policy"]):
        return {}
    if algo.policy.jumps and not getattr(algo, "trains_jumps", False):
        return {}
    return {k: v for k, v in algo.policy.state_dict().items() if k.startswith(BEYOND)}


def deployed(donor: Donor) -> str:
    """The part that acts when the donor is deployed."""
    return donor.kind.deploys or ("average" if "average" in donor.saved else "policy")


def base_part(donor: Donor) -> str:
    """The policy that the donor itself builds on. Raises RheoError where there is none."""
    if donor.kind.beyond:
        return deployed(donor)
    if "base" in donor.saved:
        return "base"
    if deployed(donor) not in ("policy", "average"):
        return "policy"
    raise RheoError(
        f"init_part=base: {donor.who} is a {donor.kind.__name__} run without a base; leave it auto"
    )


def beyond(donor: Donor) -> str:
    """Why the donor's behaviour cannot be taken over by another algorithm, and the ways out."""
    name, first = donor.kind.__name__, donor.config.get("init")
    ways = ["the same algo= goes on with all of it"]
    ways += [f"init={first} starts from the run that it started from"] if first else []
    ways += ["init_part=base takes the base that it holds, without what it learned on top"]
    return (
        f"{donor.who}: what this {name} run deploys is {donor.kind.beyond}, which a single policy "
        f"cannot take over: {'; '.join(ways)}"
    )


def weights(part: torch.nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A saved state, with the part's own value of buffers that are `settings` of a module."""
    mine, kept = part.state_dict(), dict(state)
    for place, inner in part.named_modules():
        for name in getattr(inner, "settings", ()):
            key = f"{place}.{name}" if place else name
            kept[key] = mine[key]
    return kept


def carried(algo: Algorithm, config: Mapping[str, Any], donor: Donor) -> list[str]:
    """Takes over the duals and scales that belong to the networks (`learned` of the algorithm).

    Each with the setting that it starts from, if any: where that differs from the donor's, it was
    asked for and is used. Returns what was done, in words.
    """
    said = []
    for name, key in algo.learned.items():
        mine, theirs = config["algo"].get(key), donor.config["algo"].get(key)
        if key is not None and mine != theirs:
            said.append(f"algo.{key}={word(mine)} as set (it began with {word(theirs)})")
        elif name in donor.saved:
            part, state = vars(algo)[name], donor.saved[name]
            put(part, state) if isinstance(part, Tensor) else part.carry(state)
            said.append(name)
    return said


def share_statistics(algo: Algorithm) -> None:
    """Gives the policy's statistics of observations to networks that have none of their own."""
    given = getattr(algo.policy, "obs_norm", None)
    for part in vars(algo).values():
        norm = getattr(part, "obs_norm", None)
        if given is not None and norm is not None and not norm.ready and norm.kind == given.kind:
            affine(norm).load_state_dict(affine(given).state_dict())


# ---- what weights mean -------------------------------------------------------------------------


def meaning(node: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The settings of a network, by full key, that its weights depend on."""
    settings = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            settings |= meaning(value, f"{place}.{key}")
        elif f"{place}.{key}" not in (*AT_WILL, *APART):
            settings[f"{place}.{key}"] = value
    return settings


def refuse_other_images(algo: Algorithm, donor: Donor) -> None:
    """Raises RheoError for images that the donor's encoders did not learn from.

    Weights of most encoders fit images of any size, and mean something else there.
    """
    images = getattr(getattr(algo.policy, "obs_norm", None), "images", {})
    if not alike(images, donor.images):
        there, here = (listed_images(each) or "none" for each in (donor.images, images))
        raise RheoError(
            f"{donor.who}: its images are {there} and here they are {here}; make data and "
            "environment show the same ones (data.obs_keys, env.options.size)"
        )


def networks(algo: Algorithm, config: Mapping[str, Any], same: bool) -> dict[str, Any]:
    """`meaning` of all networks that are taken over."""
    found = meaning(config["policy"], "policy")
    if hasattr(getattr(algo.policy, "obs_norm", None), "encode"):
        found |= meaning(config.get("eye") or {}, "eye")
    parts = modules(algo) if same else {}
    nodes = {"critic": config["critic"]} if "critic" in parts else {}
    nodes |= {f"algo.{name}": config["algo"].get(name) for name in parts}
    for place, node in nodes.items():
        found |= meaning(node, place) if isinstance(node, Mapping) else {}
    return found


def refuse_other_meaning(
    algo: Algorithm, pairs: list[Pair], config: Mapping[str, Any], donor: Donor, same: bool
) -> None:
    """Raises RheoError where weights do not fit or would mean something else here."""
    here, there = (networks(algo, each, same) for each in (config, donor.config))
    if untrained(algo, donor, config):
        grown = grown_from(donor.config["policy"], config["policy"])
        there |= {f"policy.{key}": value for key, value in grown.items()}
    wrong = next((found for pair in pairs if (found := misfit(pair))), None)
    if wrong is not None:
        for key in SHAPING if same else SHAPING[1:]:
            here[key], there[key] = inside(config, key), inside(donor.config, key)
    # of other networks than the policy older runs may lack a setting that has a default today
    known = [key for key in here if key in there or key.startswith("policy.")]
    differ = [key for key in known if here[key] != there.get(key)]
    if wrong is None and not differ:
        return
    facts = [f"its {k} is {word(there.get(k))} and here it is {word(here[k])}" for k in differ]
    if wrong is None:
        what = f"{', '.join(facts)}, which gives the same weights another meaning"
    else:
        what = "; ".join([f"its networks have another architecture: {wrong}", *facts])
    words = {k: f"{k}={word(there[k])}" for k in differ if k in there and "._target_" not in k}
    if "policy._target_" in differ:  # whose file brings what belongs to it
        words = {k: v for k, v in words.items() if not k.startswith("policy.")}
        words = {"policy": policy_word(algo, donor), **words}
    remedy = " ".join(words.values()) or "the same policy, critic, horizon and env"
    raise RheoError(f"{donor.who}: {what}; set {remedy}{other_way(differ, donor, same)}")


def policy_word(algo: Algorithm, donor: Donor) -> str:
    """The word that chooses the donor's kind of policy. Raises RheoError where it cannot be one."""
    node = donor.config["policy"]
    theirs, mine = target_of(node, "policy"), type(algo.policy)
    if not issubclass(theirs, mine):
        raise RheoError(
            f"{donor.who}: its policy is a {theirs.__name__}, and {type(algo).__name__} has a "
            f"{mine.__name__} here, which cannot take its weights; start from a run of that kind"
        )
    files = sorted((HOME / "policy").glob("*.yaml"))
    lines = ((file.stem, file.read_text().splitlines()) for file in files)
    named = [stem for stem, text in lines if f"_target_: {node['_target_']}" in text]
    return f"policy={named[0] if named else theirs.__name__}"


def misfit(pair: Pair) -> str | None:
    """The first tensor that does not fit, with its place."""
    found = other_shape(pair.part.state_dict(), pair.state)
    prefix = "" if pair.origin in ("policy", "average") else f"algo.{pair.name}."
    return None if found is None else f"{prefix}{found}"


def other_way(differ: list[str], donor: Donor, same: bool) -> str:
    """What else could have been meant by a start that was refused."""
    if not same or any(key.startswith(("policy.", "horizon", "env.")) for key in differ):
        return ""
    part = "base" if donor.kind.beyond else "policy"
    whose = "its base" if part == "base" else "its deployed policy"
    return f", or init_part={part} to start from {whose} alone, all else anew"


# ---- what is said ------------------------------------------------------------------------------
