"""The schema of a `_target_`: its constructor's signature, read from source.

A target's keyword-only parameters with YAML types are the keys of its node. The others are given
by the run (dimensions, modules, devices, generators); a node may fill such a slot with a nested
node that has a `_target_` of its own. Targets live in rheo.policies, rheo.algos, rheo.envs, or in
a folder that the user named with --config-dir, and are defined where they are named: nothing else
is ever imported or called.
"""

import ast
import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rheo.envs.paths import expanded
from rheo.errors import RheoError, nearest

from .annotations import UNKNOWN, coerce, known, plain

ROOT = Path(__file__).resolve().parents[2]
OURS = ("policies", "algos", "envs", "scripts.store.services")
GIVEN = frozenset({"obs_dim", "action_dim", "device", "dtype", "generator", "run_updates"})
allowed: list[Path] = []  # folders named with --config-dir
trusted: set[str] = set()  # modules whose environments were asked for on the command line


@dataclass
class Schema:
    """What a node may hold.

    keys: annotation text of each YAML key; required: those without a default; slots: parameters
    that the run gives; open: whether any other key is passed on (**kwargs).
    """

    keys: dict[str, str] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    slots: dict[str, bool] = field(default_factory=dict)
    open: bool = False

    def add(self, name: str, annotation: str, required: bool, keyword: bool) -> None:
        """Sorts a parameter into keys or slots, in place of a base class's of that name."""
        self.drop(name)
        if keyword and name not in GIVEN and known(annotation):
            self.keys[name] = annotation
            if required:
                self.required.add(name)
        else:
            self.slots[name] = required

    def drop(self, name: str) -> None:
        """Forgets a parameter."""
        self.keys.pop(name, None)
        self.slots.pop(name, None)
        self.required.discard(name)


def allow(folders: Sequence[str | Path]) -> None:
    """Lets targets come from these folders too, and makes them importable. Raises RheoError."""
    for folder in folders:
        path = expanded(folder).resolve()
        if not path.is_dir():
            raise RheoError(f"--config-dir {folder}: no such folder")
        if path not in allowed:
            allowed.append(path)
        if str(path) not in sys.path:
            sys.path.append(str(path))  # at the end: a folder cannot hide an installed package


def find(target: Any) -> tuple[str, Path, str]:
    """Module name, its file, and the name defined in it. Raises RheoError with the reason."""
    parts = target.split(".") if isinstance(target, str) else []
    plain = all(part.isidentifier() and not part.startswith("_") for part in parts)
    if len(parts) < 2 or not plain:
        raise RheoError(f"{target!r} is not of the form package.module.Name")
    module, name = ".".join(parts[:-1]), parts[-1]
    if parts[0] == "rheo":
        inside = module.startswith(tuple(f"rheo.{place}" for place in OURS))
        file = module_file(ROOT, parts[1:-1]) if inside else None
        remedy = f"targets live in {', '.join('rheo.' + folder for folder in OURS)}"
    else:
        files = [module_file(folder, parts[:-1]) for folder in allowed]
        file = next((file for file in files if file), None)
        remedy = "only rheo's own classes and those in a --config-dir folder are called"
    if file is None:
        raise RheoError(f"{target!r}: no such module here; {remedy}")
    return module, file, name


def module_file(root: Path, parts: list[str]) -> Path | None:
    """The source of a module below `root`, or None."""
    stem = root.joinpath(*parts)
    for file in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            return file
    return None


def from_source(target: str) -> Schema:
    """The schema of a target, without importing it. Raises RheoError."""
    module, file, name = find(target)
    return copy.deepcopy(of_file(file, name, module))  # callers change theirs


@lru_cache
def of_file(file: Path, name: str, module: str) -> Schema:
    """The schema of a class or function of a file. Raises RheoError."""
    tree = parse(file)
    node = next((n for n in tree.body if named(n, name)), None)
    if node is None:
        names = [n.name for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
        raise RheoError(f"'{module}.{name}': {module} defines no {name}{nearest(name, names)}")
    schema = Schema()
    if isinstance(node, ast.FunctionDef):
        read_function(schema, node.args, file, skip=0)
    elif isinstance(node, ast.ClassDef):
        read_class(schema, node, file)
    return schema


def named(node: ast.stmt, name: str) -> bool:
    """Whether a statement defines the class or function `name`."""
    return isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name


@lru_cache
def parse(file: Path) -> ast.Module:
    """The syntax tree of a source file. Raises RheoError."""
    try:
        return ast.parse(file.read_text(), str(file))
    except SyntaxError as error:
        raise RheoError(f"{file}, line {error.lineno}: {error.msg}") from error


def read_class(schema: Schema, node: ast.ClassDef, file: Path) -> None:
    """Adds the parameters of a class's constructor: its own, or its bases' and its fields.

    Bases may be imported from other files. A constructor with **kwargs passes them to its bases.
    """
    init = next((n for n in node.body if named(n, "__init__")), None)
    if isinstance(init, ast.FunctionDef) and (init.args.kwarg is None or not node.bases):
        return read_function(schema, init.args, file, skip=1)
    made = [text for text in map(ast.unparse, node.decorator_list) if "dataclass" in text]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    for base, home in filter(None, (definition(name, file) for name in reversed(bases))):
        if isinstance(base, ast.ClassDef):
            read_class(schema, base, home)
    if isinstance(init, ast.FunctionDef):
        read_passing(schema, init, file)
    elif made:
        read_fields(schema, node, file, keyword="kw_only=True" in made[0])


def read_passing(schema: Schema, init: ast.FunctionDef, file: Path) -> None:
    """Adds the parameters of a constructor with **kwargs to those of its bases.

    What it gives them by name cannot be set. Where none of the bases' source is here any key is.
    """
    unknown = schema.open or not (schema.keys or schema.slots)
    for call in (each for each in ast.walk(init) if isinstance(each, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__":
            for given in call.keywords:
                schema.drop(given.arg or "")
    read_function(schema, init.args, file, skip=1)
    schema.open = unknown


def read_fields(schema: Schema, node: ast.ClassDef, file: Path, keyword: bool) -> None:
    """Adds the fields of a dataclass; `keyword`: whether the first ones are keyword-only too."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if ast.unparse(item.annotation) == "KW_ONLY":
                keyword = True
            elif item.value is not None and "init=False" in ast.unparse(item.value):
                schema.drop(item.target.id)
            else:
                text = spelled(item.annotation, file)
                schema.add(item.target.id, text, item.value is None, keyword)


def read_function(schema: Schema, args: ast.arguments, file: Path, skip: int) -> None:
    """Adds the parameters of a function; `skip` leaves out self."""
    positional = [*args.posonlyargs, *args.args]
    bare = len(positional) - len(args.defaults)
    for index, arg in enumerate(positional):
        if index >= skip:
            schema.add(arg.arg, spelled(arg.annotation, file), index < bare, keyword=False)
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        schema.add(arg.arg, spelled(arg.annotation, file), default is None, keyword=True)
    schema.open = args.kwarg is not None


def spelled(annotation: ast.expr | None, file: Path) -> str:
    """An annotation's text, with the names of other types replaced by their meaning."""
    if annotation is None:
        return UNKNOWN
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(Meaning(file).visit(copy.deepcopy(annotation)))


class Meaning(ast.NodeTransformer):
    """Replaces a name that a module assigns or imports (`Count`) by what is assigned there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802 - as ast calls it
        found = definition(node.id, self.file)
        return found[0].value if found and isinstance(found[0], ast.Assign) else node


@lru_cache
def definition(name: str, file: Path) -> tuple[ast.stmt, Path] | None:
    """The class or assignment behind a name in a module, or in the one it is imported from."""
    for node in parse(file).body:
        match node:
            case ast.ClassDef(name=found) | ast.Assign(targets=[ast.Name(id=found)]):
                if found == name:
                    return node, file
            case ast.ImportFrom(names=names) if name in {alias.name for alias in names}:
                home = imported(node, file)
                return None if home is None else definition(name, home)
    return None


def imported(node: ast.ImportFrom, file: Path) -> Path | None:
    """The file that an import takes names from; None for an installed package."""
    parts = (node.module or "").split(".")
    if node.level:
        return module_file(file.parents[node.level - 1], parts)
    if parts[0] == "rheo":
        return module_file(ROOT, parts[1:])
    return next(filter(None, (module_file(folder, parts) for folder in allowed)), None)


def check(node: Mapping[str, Any], schema: Schema, where: str) -> tuple[dict[str, Any], list[str]]:
    """A node's values in their declared types, and what is wrong with it, all at once.

    `_target_` is left out; nested nodes stay as they are (the caller checks them in turn).
    """
    values, errors = {}, []
    for key, value in node.items():
        if key == "_target_":
            continue
        place = f"{where}.{key}" if where else str(key)
        nested = isinstance(value, Mapping) and "_target_" in value
        if key in schema.keys:
            values[key], problem = coerce(schema.keys[key], value)
            if problem:
                errors.append(f"{place}{problem}")
        elif nested and key in schema.slots or schema.open and key not in schema.slots:
            values[key] = value
        elif key in schema.slots:
            errors.append(f"{place}: is given by the run and cannot be set")
        else:
            errors.append(f"{place}: unknown key{nearest(str(key), schema.keys)}")
    for key in sorted(schema.required - set(node)):
        place, kind = f"{where}.{key}" if where else key, plain(schema.keys[key])
        errors.append(f"{place}: missing; {node.get('_target_')} needs it ({kind})")
    return values, errors
