"""`rheo zoo`: policies that are made by a recipe, each once, with a card of what it reached."""

import json
import logging
import os
import shlex
import textwrap
from pathlib import Path
from time import monotonic
from typing import Any

from rheo.errors import RheoError, command
from rheo.files import put_text, sha256, untaken

from .config import compose, verbs
from .config.words import Words
from .config.zoo import Wanted
from .store.lock import Lock
from .store.where import reached, stored
from .store.zoo import CARD, POLICY, PREFIX, PRODUCT, Recipe, recipe, recipes

EPISODES, SEED = 100, 200_000  # of the card; training evaluates from other initial states
STAGES = "stages.json"
log = logging.getLogger("rheo")
FIGURES = ("return", "success_once", "success_at_end")


def main(wanted: Wanted) -> int:
    """Lists the zoo, shows a card, or builds; returns the exit status."""
    if not wanted.recipes:
        print(listing())
    for one in wanted.recipes:
        if wanted.build:
            build(one)
        print(card(one))
    return 0


def build(one: Recipe) -> Path:
    """The run of a recipe, made where it is not there yet.

    Raises RheoError where a stage is refused, and, with its code, where one was stopped: then the
    same call goes on with it.
    """
    if one.ready:
        return one.folder / POLICY
    for name in one.before:
        build(recipe(name))
    one.folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(one.folder)
    try:
        if not one.ready:  # another process may have made it while this one waited
            make(one)
    finally:
        lock.release()
    return one.folder / POLICY


def make(one: Recipe) -> None:
    """Does what is left of the stages, evaluates the policy and writes the card."""
    file = one.folder / STAGES
    done: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for count, (product, text) in enumerate(one.stages.items(), start=1):
        spent = done.get(product, {"seconds": 0.0, "whole": False})
        if spent["whole"]:
            continue
        print(f"{PREFIX}{one.name}: {count} of {len(one.stages)}: rheo {text}", flush=True)
        begun = monotonic()
        done[product] = spent
        try:
            perform(one, product, text)
            spent["whole"] = True
        finally:
            spent["seconds"] += monotonic() - begun
            put_text(file, json.dumps(done, indent=1) + "\n")
    told = {"seconds": {product: spent["seconds"] for product, spent in done.items()}}
    put_text(one.folder / CARD, json.dumps(measured(one) | told, indent=1) + "\n")


def perform(one: Recipe, product: str, text: str) -> None:
    """One stage, from where it was cut. Raises RheoError."""
    verb, *words = [filled(one, word) for word in shlex.split(text)]
    place = one.folder / product
    code = recorded(words, place) if verb == "collect" else trained(words, place)
    if code:
        again = command("zoo", "build", one.name)
        raise RheoError(f"{PREFIX}{one.name} was stopped while it was built; go on: {again}", code)


def filled(one: Recipe, word: str) -> str:
    """A word with the paths of what it names in braces."""

    def path(name: str) -> Path:
        return one.folder / name if name in one.stages else recipe(name).folder / POLICY

    return PRODUCT.sub(lambda match: str(path(match[1])), word)


def recorded(words: list[str], file: Path) -> int:
    """Collects data anew: a file that is there was not whole."""
    from . import collect

    file.unlink(missing_ok=True)
    return collect.main(verbs.collect([*words, f"out={file}"]))


def trained(words: list[str], folder: Path) -> int:
    """Trains a run to its end, from its last checkpoint where it has one of this configuration."""
    from . import resuming, train

    config = compose.train(words)
    step = reached(folder)
    if step is not None and stored(folder) | {"name": None} == config:
        if step >= config["steps"]:
            return 0
        return resuming.resume(verbs.Resuming(str(folder), Words([], [str(folder)], [])))
    if folder.exists():
        Lock(folder).release()  # raises where somebody else trains it
        set_aside(folder)
    return train.train(config, str(folder))


def set_aside(folder: Path) -> None:
    """Moves a run that cannot be gone on with to FOLDER.lost.N, and says so."""
    lost = untaken(folder.with_name(f"{folder.name}.lost"))
    folder.rename(lost)
    log.warning(
        "%s: cannot be gone on with, so it starts anew; what was there is kept in %s", folder, lost
    )


def measured(one: Recipe) -> dict[str, Any]:
    """The card of a policy: its last checkpoint evaluated, and what that depends on."""
    from .evaluate import evaluate_folder
    from .store.provenance import commit, versions
    from .store.run import Run

    run = Run.open(str(one.folder / POLICY))
    figures = evaluate_folder(run, EPISODES, seed=SEED)
    kept = {
        f"{key}{end}": figures[f"eval/{key}{end}"]
        for key in FIGURES
        for end in ("", "_low", "_high")
        if f"eval/{key}{end}" in figures
    }
    sets = [one.folder / name for name in one.stages if (one.folder / name).is_file()]
    return {
        **{"name": one.name, "digest": one.digest, "stages": one.stages, "metric": one.metric},
        **{"step": figures["step"], "episodes": EPISODES, "seed": SEED, "figures": kept},
        **{"decision_ms": figures["decision_ms"], "data": {x.name: sha256(x) for x in sets}},
        **{"versions": versions(), "commit": commit(), "cpus": os.cpu_count()},
    }


# ---- what is printed -----------------------------------------------------------------------------


def listing() -> str:
    """A line for each recipe."""
    rows = [("recipe", "kind", "task", "known to reach", "built here")]
    for one in recipes().values():
        here = reach(one, one.card()) if one.ready else ""
        rows.append((f"{PREFIX}{one.name}", one.kind, one.task, known(one), here))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def reach(one: Recipe, told: dict[str, Any]) -> str:
    """A figure with its interval."""
    value, low, high = (told["figures"][f"{one.metric}{end}"] for end in ("", "_low", "_high"))
    if one.metric == "return":
        return f"{value:.0f} [{low:.0f}, {high:.0f}]"
    return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def known(one: Recipe) -> str:
    """What was measured in the repository."""
    return "not measured" if one.expected is None else reach(one, one.expected)


def card(one: Recipe) -> str:
    """All that is known of a recipe, and of what was built by it."""
    lines = textwrap.wrap(f"{PREFIX}{one.name}: {one.about}", 98)
    lines += [f"  {one.field}, {one.kind}, {one.task}; recipe {one.digest}"]
    lines += [f"  goes on from {PREFIX}{name}" for name in one.before]
    lines += [f"  {product + ':':12} rheo {text}" for product, text in one.stages.items()]
    protocol = f"{EPISODES} episodes of the last checkpoint, one training, seed {SEED}"
    lines.append(f"  known to reach: {one.metric} {known(one)} ({protocol})")
    if one.expected is not None:
        lines.append(f"    in {one.expected['minutes']:g} minutes: {one.expected['where']}")
    if not one.ready:
        return "\n".join([*lines, f"  not built: {command('zoo', 'build', one.name)}"])
    told = one.card()
    spent = sum(told["seconds"].values()) / 60
    lines.append(f"  built here:     {one.metric} {reach(one, told)}, {told['step']:,} steps")
    lines.append(f"    in {spent:.1f} minutes: {one.folder}")
    return "\n".join(lines)
