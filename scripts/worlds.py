"""Where a run's policy acts: as its run was saved, or in another environment than the run's own."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rheo.envs.chunk import ChunkEnv
from rheo.envs.imagined import IMAGINED
from rheo.envs.parts import displaced, names, read_parts
from rheo.envs.pixels import listed_images
from rheo.envs.suites import choose
from rheo.errors import RheoError

from .assemble import Sizes, sizes_of
from .config.compose import compose
from .config.top import IMAGINING, STEPPING
from .store.where import existing, stored

log = logging.getLogger("rheo")
# options that decide what a policy observes and what its actions do
OBSERVED = ("env_args", "obs_keys", "cameras", "size")
ACTED = ("num_envs", "execute", "obs_steps", "gamma")  # how an environment is acted in


def as_saved(cfg: Mapping[str, Any], tree: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The configuration under which a checkpoint's environments go on.

    Where a version before this one stepped them in a loop and `auto` would take a batch now, they
    stay in the loop, whose state it is.
    """
    node, held = cfg["env"] or {}, (tree or {}).get("source", {})
    held = held.get("replay", held)
    while "backend" not in held and "env" in held:
        held = held["env"]
    saved, keys = held.get("backend"), ("backend", "options", "workers")
    if node.get("id") is None or saved != "gymnasium" or node["backend"] != "auto":
        return cfg
    if choose(node["id"], *(node[key] for key in keys)) == saved:
        return cfg
    log.info(
        "%s: this run began with its environments stepped in a loop, and goes on so; new runs step "
        "them in a batch", node["id"],
    )  # fmt: skip
    return {**cfg, "env": {**node, "backend": saved}}


def elsewhere(
    node: Mapping[str, Any], words: Sequence[str], flagged: Sequence[str]
) -> dict[str, Any]:
    """A run's environment with the one that env=NAME, env.id=ID, env.options.X=Y name in its place.

    How it is acted in (chunks, histories, discount) stays the run's, and what steps it (STEPPING),
    unless typed. Options are kept unless a file was named; of the same environment what decides its
    observations is kept then too. An imagined one has other keys than all others. flagged: the
    --config-dir words. Raises RheoError.
    """
    keys = {".".join(word.partition("=")[0].split(".")[:2]) for word in words}
    for word in words:
        if word == "env.backend=warp" or word.startswith("env.randomise"):
            raise RheoError(
                f"{word}: episodes are evaluated and recorded in MuJoCo itself and the model as it "
                "ships; leave it out"
            )
    named, chosen = "env" in keys, bool({"env", "env.id"} & keys)
    start = [] if named else ["env=gym"] if chosen else ["env=hopper"]
    if node.get("id") == IMAGINED and not chosen:
        start = [f"env={IMAGINED}", f"env.model={node['model']}"]
    other = compose(["algo=sac", *start, *words, *flagged])["env"]
    if node.get("id") == IMAGINED and not chosen:
        return {**node, **{key: other[key] for key in IMAGINING if f"env.{key}" in keys}}
    if IMAGINED in (node.get("id"), other["id"]):
        return {**other, **{key: node[key] for key in ACTED if key in node}}
    kept = dict(node.get("options") or {})
    if named:
        same = other["id"] == node.get("id")
        kept = {key: kept[key] for key in OBSERVED if key in kept and same}
    moved = {"id": other["id"], "backend": other["backend"]} if chosen else {}
    moved |= {key: other[key] for key in ("backend", "cost", *STEPPING) if f"env.{key}" in keys}
    return {**node, **moved, "options": {**kept, **other["options"]}}


def real(node: Mapping[str, Any]) -> dict[str, Any]:
    """The environment that an imagined one is of, as its model's run tells; acted in alike.

    Empty where that run is not there, or was not told. Any other is what it is.
    """
    if node.get("id") != IMAGINED:
        return dict(node)
    try:
        other = stored(existing(node["model"]))["env"] or {}
    except RheoError:
        return {}
    return {**other, **{key: node[key] for key in ACTED}} if other.get("id") else {}


def refuse_other_world(env: ChunkEnv, sizes: Sizes, run: Any) -> None:
    """Raises RheoError for an environment that a run's policy cannot act in."""
    here = sizes_of(env)
    if not here.fits(sizes):
        raise RheoError(
            f"env.id={env.env.id} has {env.obs_dim} observations and {env.action_dim} actions"
            f"{here.images_text}, but the policy of {run.path} takes {sizes.obs_dim} and gives "
            f"{sizes.action_dim}{sizes.images_text} (with its history); choose an environment of "
            "these sizes and this order"
        )
    if list(here.images) != list(sizes.images):
        seen, learned = (listed_images(each.images) for each in (here, sizes))
        text = "images are %s here, and %s in %s: taken to be the same"
        log.warning(text, seen, learned, run.path)
    refuse_other_order(env, run)


def refuse_other_order(env: ChunkEnv, run: Any) -> None:
    """Raises RheoError where the data of a run had the environment's parts at other places."""
    clash = displaced(read_parts(run.meaning()), env.env.obs_parts or {})
    if clash:
        raise RheoError(
            f"env.id={env.env.id}: the policy of {run.path} was trained on {clash}; train it with "
            f"data.obs_keys={names(env.env.obs_parts or {})}, the environment's order"
        )
