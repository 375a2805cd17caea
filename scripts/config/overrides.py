"""Words of the command line -> choices of files and values of keys.

Hydra's grammar reads each word, so quoting and numbers are what its users know; values that name
files and runs are taken as they stand (words.py). Sweeps, deletions and Hydra's own settings are
refused: a run is one configuration.
"""

import difflib
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException

from rheo.envs.paths import absolute
from rheo.errors import nearest

from ..store.where import run_path
from . import annotations, schema
from .top import BESIDE, TOP
from .words import is_literal, literal
from .yamls import RESOLVER

SCRATCH = "scratch"  # init=scratch: random weights for what is made to tune trained ones
SEVERAL = ("tracker",)  # groups of which a run may have more than one: tracker=[wandb,mlflow]


def parse(words: list[str], errors: list[str]) -> list[Override]:
    """Hydra overrides of the words that are ones."""
    parser, overrides = OverridesParser.create(), []
    for word in words:
        key, equals, text = word.partition("=")
        if RESOLVER.search(word):
            errors.append(f"{word}: resolvers are not evaluated; write the value itself")
            continue
        if equals and is_literal(key):
            overrides += as_it_stands(key, text, word, errors)
            continue
        try:
            one = parser.parse_override(word)
        except (HydraException, RecursionError):
            errors.append(f"{word}: not of the form key=value (quote values with special signs)")
            continue
        if one.is_sweep_override():
            errors.append(f"{word}: names several values; `rheo sweep` starts a run for each")
        elif one.key_or_group.split(".")[0].split("/")[0] == "hydra":
            errors.append(f"{word}: Hydra's own settings are fixed")
        elif one.key_or_group == "config_dir":
            errors.append(f"{word}: name the folder with --config-dir")
        elif one.key_or_group == "programs":
            errors.append(f"{word}: name the file with --program")
        else:
            overrides.append(one)
    return overrides


def as_it_stands(key: str, text: str, word: str, errors: list[str]) -> list[Override]:
    """The override of a key whose value names something (words.literal).

    Data and runs are found from any working folder: paths of what is there are made absolute.
    """
    if not text:
        errors.append(f"{word}: nothing follows the sign; leave the word out, or {key}=null")
        return []
    value = literal(key, text)
    if key in ("data", *BESIDE) and value is not None:
        many = isinstance(value, list)
        value = [absolute(item) for item in value] if many else absolute(value)
    if key in ("init", "env.model") and value not in (None, SCRATCH):
        value = run_path(str(value))
    return [Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value, input_line=word)]


def is_group(one: Override, roots: list[Path]) -> bool:
    """Whether an override chooses a file rather than a value."""
    key = one.key_or_group
    return "/" in key or "." not in key and any((root / key).is_dir() for root in roots)


def options(group: str, roots: list[Path]) -> list[str]:
    """The files of a group."""
    return sorted({file.stem for root in roots for file in (root / group).glob("*.yaml")})


def choice(one: Override, roots: list[Path], errors: list[str]) -> list[str]:
    """The choice as Hydra can compose it; adds an error when there is no such file.

    Then the nearest one stands in for it, so that the other words are judged too.
    """
    group, value = one.key_or_group, one.value()
    if one.is_delete():
        remedy = f"{group}=none" if "none" in options(group, roots) else f"{group}=NAME"
        errors.append(f"{one.input_line}: nothing can be removed; set {remedy}")
        return []
    if one.value() is None:
        return []  # an empty group is a value
    known = options(group, roots)
    names = list(map(str, value)) if isinstance(value, list) else [str(value)]
    if isinstance(value, list) and group not in SEVERAL:
        errors.append(f"{one.input_line}: one {group} is meant")
        return []
    wrong = [name for name in names if name not in known]
    if not wrong:
        return [str(one.input_line)]
    if not known:
        errors.append(f"{one.input_line}: unknown group{nearest(group, groups_of(roots))}")
        return []
    value = wrong[0]
    errors.append(f"{one.input_line}: no such {group}{nearest(value, known)}")
    if group in SEVERAL:
        return []
    close = difflib.get_close_matches(value.lower(), known, n=1, cutoff=0.55)
    return [f"{group}={name}" for name in close]


def groups_of(roots: list[Path]) -> set[str]:
    """Names of all groups."""
    return {path.name for root in roots for path in root.iterdir() if any(path.glob("*.yaml"))}


def put(
    tree: dict[str, Any], one: Override, roots: list[Path], errors: list[str], algo: str
) -> None:
    """Sets one value. New keys are taken inside nodes with a `_target_` only."""
    *path, last = one.key_or_group.split(".")
    node, owned = tree, False
    for depth, part in enumerate([*path, last]):
        owned = owned or "_target_" in node
        if part not in node and not owned:
            known = set(node) | (groups_of(roots) if depth == 0 else set())
            place = ".".join([*path, last][: depth + 1])
            remedy = nearest(part, known)
            if depth and path[0] in SEVERAL and part in options(path[0], roots):
                remedy = f"; it is there with {path[0]}={part}"
            errors.append(f"{place}: unknown key{remedy}")
            return
        if depth < len(path):
            node = node.setdefault(part, {})
            place = ".".join(path[: depth + 1])
            if not isinstance(node, dict):
                errors.append(f"{one.input_line}: {place} is not a group")
                return
            if node.get("_target_", "") is None and last != "_target_":
                errors.append(f"{one.input_line}: {algo} has no {place} here ({place}=none)")
                return
    if one.is_delete():
        text = f"{one.input_line}: nothing can be removed"
        errors.append(f"{text}; {instead(node, last, '.'.join([*path, last]))}")
        return
    node[last] = one.value()


def instead(node: dict[str, Any], key: str, place: str) -> str:
    """What to set where somebody wanted a value to go: nothing or zero where that is allowed."""
    target, annotation = node.get("_target_"), TOP.get(key, "Any") if key == place else "Any"
    if target is not None:
        annotation = schema.from_source(target).keys.get(key, "int")
    for value in (None, 0):
        if not annotations.coerce(annotation, value)[1]:
            return f"set {place}={'null' if value is None else value}"
    return f"set another value, it is {node.get(key)!r} here"
