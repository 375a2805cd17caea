"""Whose code a run calls: programs of others (`policy.path`) and classes of a --config-dir folder.

A run folder may come from anybody, so what it calls runs only when its user has named it: with
`--program FILE|SHA256`, by typing `policy.path=FILE`, or, for classes, with --config-dir. Digests
are kept in the configuration (`policy.sha256`, `programs`), so that a file that was changed since
is named. ONNX is no code (rheo.policies.programs): only its digest is compared.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rheo.envs.paths import exists, expanded
from rheo.errors import RheoError
from rheo.files import sha256
from rheo.policies.formats import is_code

from . import schema
from .top import inside, walk

FLAG = "--program"
EXPORTED = "rheo.policies.exported.Exported"
DIGEST = re.compile(r"[0-9a-f]{64}")
named: set[str] = set()  # digests that the user has named in this process


def trust(name: str) -> None:
    """Takes a file, or a SHA-256, for one whose code may run. Raises RheoError for neither."""
    if DIGEST.fullmatch(name):
        named.add(name)
    elif expanded(name).is_file():
        named.add(sha256(expanded(name)))
    else:
        raise RheoError(f"{FLAG} {name}: no such file, and no SHA-256 of one (64 digits)")


def as_flags() -> list[str]:
    """The words that name again what was named here."""
    return [word for digest in sorted(named) for word in (FLAG, digest)]


def typed_again(tree: Mapping[str, Any]) -> list[str]:
    """The words that name the programs of a configuration, for a command that goes on with it."""
    files = [node["path"] for _, node in nodes(tree) if is_code(node["path"])]
    return [word for file in files for word in (FLAG, file)]


def nodes(tree: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a configuration that reads a program, with its place."""
    if not isinstance(tree, dict):
        return
    if tree.get("_target_") == EXPORTED:
        yield place, tree
    for key, value in tree.items():
        yield from nodes(value, f"{place}.{key}" if place else key)


def settle(tree: dict[str, Any], given: bool) -> None:
    """Writes into a new run's configuration the digests of what it calls.

    given: whether its user named the program (`policy.path=FILE`); a run that it starts from may
    name one too. Raises RheoError for one that nobody named, and for one of another digest.
    """
    for place, node in nodes(tree):
        node["path"] = str(expanded(node["path"]).absolute())
        if given and is_code(node["path"]):
            trust(node["path"])
        look(place, node, f"init={tree.get('init')}")
    tree["programs"] = classes(tree)


def compare(tree: dict[str, Any], run: str | Path, typed: bool) -> None:
    """Lets a stored run call what its user has named, if that is what it was.

    typed: whether `policy.path=FILE` was. Raises RheoError that says what to type.
    """
    for place, node in nodes(tree):
        if typed and exists(node["path"]) and is_code(node["path"]):
            trust_same(node)
        look(place, node, str(run))
    before, now = tree.get("programs") or {}, classes(tree)
    for name, digest in now.items():
        if before and before.get(name) != digest and digest not in named:
            raise RheoError(
                f"{run}: {name} of --config-dir is not what the run was made with (sha256 "
                f"{digest}, and it was {before.get(name)}); bring it back or, if you mean this "
                f"one, add {FLAG} {place_of(name)}"
            )
    tree["programs"] = now or before


def trust_same(node: Mapping[str, Any]) -> None:
    """Takes a typed file for the run's own program where it is that."""
    digest = sha256(expanded(node["path"]))
    if node.get("sha256") in (None, digest):
        named.add(digest)


def look(place: str, node: dict[str, Any], who: str) -> None:
    """Writes the digest of a program into its node. Raises RheoError unless it may be read."""
    path = node["path"]
    if not exists(path):
        raise RheoError(f"{place}.path={path}: there is no such file")
    digest, before = sha256(expanded(path)), node.get("sha256")
    if before not in (None, digest) and digest not in named:
        raise RheoError(
            f"{place}.path={path}: another program than the run's (sha256 {digest}, and the run's "
            f"is {before}); bring that back or, if you mean this one, add {FLAG} {path}"
        )
    if is_code(path) and digest not in named:
        raise RheoError(
            f"{who} calls the program {path} (sha256 {digest}); if you trust it add {FLAG} {path}"
        )
    node["sha256"] = digest


# ---- classes of --config-dir ---------------------------------------------------------------------


def classes(tree: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the source files of a --config-dir that a configuration calls, by their names
    there, with those that they import from it.
    """
    found: dict[str, str] = {}
    todo = [file for target in targets(tree) for file in source_of(target)]
    while todo:
        file = todo.pop()
        name = name_of(file)
        if name is not None and name not in found:
            found[name] = sha256(file)
            todo += imported(file)
    return dict(sorted(found.items()))


def targets(tree: Mapping[str, Any]) -> list[str]:
    """What a configuration names that may lie in a --config-dir: classes, and an environment's
    module.
    """
    leaves = [leaf for place, leaf in walk(tree) if place.rpartition(".")[2] == "_target_"]
    module, colon, _ = str(inside(tree, "env.id")).partition(":")
    return [str(leaf) for leaf in leaves] + [f"{module}.Id"] * bool(colon)


def source_of(target: str) -> list[Path]:
    """The file of a class; none for what is not there, which is said elsewhere."""
    try:
        return [schema.find(target)[1]]
    except RheoError:
        return []


def name_of(file: Path) -> str | None:
    """A file below the --config-dir that holds it; None for one of ours."""
    homes = [root for root in schema.allowed if file.resolve().is_relative_to(root)]
    return str(file.resolve().relative_to(homes[0])) if homes else None


def place_of(name: str) -> Path:
    """The file of a name."""
    return next(root / name for root in schema.allowed if (root / name).is_file())


def imported(file: Path) -> list[Path]:
    """The files that a source imports from a --config-dir; none of one that is broken."""
    try:
        statements = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return []
    return [
        found
        for root, parts in modules(file, statements)
        if (found := schema.module_file(root, parts)) is not None
    ]


def modules(file: Path, statements: Sequence[ast.AST]) -> Iterator[tuple[Path, list[str]]]:
    """Where imports may find their modules: a folder, and the parts of a name in it."""
    for one in statements:
        if isinstance(one, ast.Import):
            names = [alias.name.split(".") for alias in one.names]
        elif isinstance(one, ast.ImportFrom):
            stem = one.module.split(".") if one.module else []
            names = [*([stem] if stem else []), *([*stem, each.name] for each in one.names)]
        else:
            continue
        level = one.level if isinstance(one, ast.ImportFrom) else 0
        roots = [file.parents[level - 1]] if level else schema.allowed
        yield from ((root, parts) for root in roots for parts in names)
