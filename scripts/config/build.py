"""build(node, **given): the constructor's signature is the schema of its YAML node."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rheo.errors import RheoError

from . import schema


def build(node: Mapping[str, Any], /, *, key: str = "", **given: Any) -> Any:
    """Calls the node's `_target_` with its values and with those of `given` that it names.

    `given` is what only the run knows: dimensions, modules, device, generators; what the target
    has no parameter for is left out. Nested nodes are built first, with the same `given`, and
    fill the parameter they are named after. `key` is the node's place in the configuration.
    Raises RheoError for an unknown, missing or mistyped key, named in full (`algo.clip`), and for
    a target outside the allow-list.
    """
    target = target_of(node, key)
    wanted = schema.from_source(node["_target_"])
    for name in [name for name in wanted.keys if name in given and name not in node]:
        del wanted.keys[name]
        wanted.required.discard(name)
        wanted.slots[name] = True
    values, errors = schema.check(node, wanted, key)
    if errors:
        raise RheoError("\n  ".join(errors))
    passed = {name: given[name] for name in wanted.slots if name in given}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and "_target_" in value and name not in wanted.keys
        passed[name] = build(value, key=f"{key}.{name}".lstrip("."), **given) if nested else value
    lacking = [name for name, required in wanted.slots.items() if required and name not in passed]
    if lacking:
        names = ", ".join(lacking)
        raise TypeError(f"{key}: the run has to give {node['_target_']} its {names}")
    return target(**passed)


def offer(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """`build`, with a constructor's ValueError as a message for the user."""
    try:
        return build(node, key=key, **given)
    except ValueError as error:
        raise RheoError(str(error)) from error


def target_of(node: Mapping[str, Any], key: str = "") -> Any:
    """The class or function that a node names. Raises RheoError."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RheoError(f"{key or 'node'}: has no _target_, so there is nothing to build")
    try:
        return resolve(node["_target_"])
    except RheoError as error:
        raise RheoError(f"{key}._target_: {error}".lstrip(".")) from error


def resolve(target: str) -> Any:
    """The class or function that a target names, from the very file that was checked."""
    module, file, name = schema.find(target)
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise RheoError(f"{target!r} cannot be imported: {error}") from error
    home = getattr(loaded, "__file__", None)
    if home is None or not Path(home).samefile(file):
        raise RheoError(f"{target!r}: another module of that name is installed; rename {file}")
    value = getattr(loaded, name, None)
    if not callable(value) or getattr(value, "__module__", None) != module:
        raise RheoError(f"{target!r}: {module} defines no such class or function")
    return value
