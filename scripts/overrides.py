"""Words of the command line -> choices of files and values of keys.

Hydra's grammar reads each word, so quoting and numbers are what its users know. Sweeps, deletions
and Hydra's own settings are refused: a run is one configuration.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RheoError, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RESOLVER = re.compile(r"\$\{[^{}$]*:")  # ${name:...} calls a function; ${key} is only a link


def flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Folders of --config-dir, and the other words. Raises RheoError for other flags."""
    folders, words = [], []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--config-dir":
            folder = value if equals else next(rest, "")
            if not folder:
                raise RheoError("--config-dir needs a folder")
            folders.append(folder)
        elif word.startswith("-"):
            remedy = nearest(name, ["--config-dir"]) if word.startswith("--c") else ""
            raise RheoError(f"unknown flag {word}{remedy}; values are set as key=value")
        else:
            words.append(word)
    return folders, words


def parse(words: list[str], errors: list[str]) -> "list[Override]":
    """Hydra overrides of the words that are ones."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, overrides = OverridesParser.create(), []
    for word in words:
        try:
            one = parser.parse_override(word)
        except HydraException:
            errors.append(f"{word}: not of the form key=value (quote values with special signs)")
            continue
        if one.is_sweep_override():
            errors.append(f"{word}: names several values; start one run for each")
        elif one.key_or_group.split(".")[0].split("/")[0] == "hydra":
            errors.append(f"{word}: Hydra's own settings are fixed")
        elif one.key_or_group == "config_dir":
            errors.append(f"{word}: name the folder with --config-dir")
        elif one.is_delete():
            errors.append(f"{word}: nothing can be removed; set {one.key_or_group}=null")
        elif RESOLVER.search(word):
            errors.append(f"{word}: resolvers are not evaluated; write the value itself")
        else:
            overrides.append(one)
    return overrides


def is_group(one: "Override", roots: list[Path]) -> bool:
    """Whether an override chooses a file rather than a value."""
    key = one.key_or_group
    return "/" in key or "." not in key and any((root / key).is_dir() for root in roots)


def options(group: str, roots: list[Path]) -> list[str]:
    """The files of a group."""
    return sorted({file.stem for root in roots for file in (root / group).glob("*.yaml")})


def known_option(one: "Override", roots: list[Path], errors: list[str]) -> bool:
    """Whether Hydra can compose the choice; adds an error when there is no such file."""
    group, value = one.key_or_group, one.value()
    if value is None:
        return False  # an empty group is a value
    known = options(group, roots)
    if not known:
        errors.append(f"{one.input_line}: unknown group{nearest(group, groups_of(roots))}")
    elif str(value) not in known:
        errors.append(f"{one.input_line}: no such {group}{nearest(str(value), known)}")
    return str(value) in known


def groups_of(roots: list[Path]) -> set[str]:
    """Names of all groups."""
    return {path.name for root in roots for path in root.iterdir() if any(path.glob("*.yaml"))}


def put(tree: dict[str, Any], one: "Override", roots: list[Path], errors: list[str]) -> None:
    """Sets one value. New keys are taken inside nodes with a `_target_` only."""
    *path, last = one.key_or_group.split(".")
    node, owned = tree, False
    for depth, part in enumerate([*path, last]):
        owned = owned or "_target_" in node
        if part not in node and not owned:
            known = set(node) | (groups_of(roots) if depth == 0 else set())
            place = ".".join([*path, last][: depth + 1])
            errors.append(f"{place}: unknown key{nearest(part, known)}")
            return
        if depth < len(path):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                errors.append(f"{one.input_line}: {'.'.join(path[: depth + 1])} is not a group")
                return
    node[last] = one.value()
