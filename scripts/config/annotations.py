"""The types that a YAML value may have, as annotations write them.

int, float, bool, str, None, Literal[...], list[...], dict, unions of those, and Any. An annotation
is text here, because it comes from source as often as from an imported object.
"""

import ast
from functools import lru_cache
from typing import Any

UNKNOWN = "?"
PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "None": type(None)}


@lru_cache
def parsed(annotation: str) -> ast.expr | None:
    """The annotation's syntax, or None when it is not an expression."""
    try:
        return ast.parse(annotation.strip(), mode="eval").body
    except SyntaxError:
        return None


def known(annotation: str) -> bool:
    """Whether YAML can carry a value of this annotation."""
    node = parsed(annotation)
    return node is not None and recognised(node)


def recognised(node: ast.expr) -> bool:
    """Whether every part of an annotation is one of ours."""
    match node:
        case ast.Constant(value=None):
            return True
        case ast.Name(id=name):
            return name in PLAIN or name in ("dict", "list", "Any")
        case ast.Attribute(attr=name):
            return name == "Any"
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return recognised(left) and recognised(right)
        case ast.Subscript():
            name, items = subscript(node)
            if name == "Literal":
                return all(isinstance(item, (ast.Constant, ast.UnaryOp)) for item in items)
            return name in ("list", "dict", "Optional", "Union") and all(map(recognised, items))
    return False


def subscript(node: ast.Subscript) -> tuple[str, list[ast.expr]]:
    """Name and arguments of `name[...]`."""
    name = ast.unparse(node.value).rsplit(".", 1)[-1]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return name, list(items)


def coerce(annotation: str, value: Any) -> tuple[Any, str]:
    """The value in the annotated type, and what is wrong with it (empty when nothing is).

    An int serves as a float, and a whole float as an int (`steps=1e6`); nothing else is converted.
    """
    node = parsed(annotation)
    if node is None:
        return value, ""
    try:
        return fit(node, value), ""
    except TypeError:
        hint = "; quote it twice, as in \"'1'\"" if wants_text(annotation, value) else ""
        return value, f"must be {annotation}, got {describe(value)}{hint}"


def wants_text(annotation: str, value: Any) -> bool:
    """Whether a number stands where text is due: the command line reads digits as a number."""
    return annotation.startswith("str") and isinstance(value, (int, float))


def describe(value: Any) -> str:
    """A value with its type, for a message."""
    return "nothing (null)" if value is None else f"{value!r} ({type(value).__name__})"


def fit(node: ast.expr, value: Any) -> Any:
    """The value as `node` wants it. Raises TypeError when it is something else."""
    match node:
        case ast.Constant(value=None):
            return plain("None", value)
        case ast.Name(id="Any") | ast.Attribute(attr="Any"):
            return value
        case ast.Name(id="list" | "dict" as name):
            return container(name, [], value)
        case ast.Name(id=name) if name in PLAIN:
            return plain(name, value)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return first([left, right], value)
        case ast.Subscript():
            name, items = subscript(node)
            if name == "Literal":
                return literal(items, value)
            if name == "Optional":
                items = [*items, ast.Constant(value=None)]
            if name in ("Optional", "Union"):
                return first(items, value)
            return container(name, items, value)
    return value


def plain(name: str, value: Any) -> Any:
    """A scalar of the named type."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "float" and number:
        return float(value)
    if name == "int" and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not PLAIN[name]:
        raise TypeError
    return value


def first(items: list[ast.expr], value: Any) -> Any:
    """The value in the first type of a union that takes it, exact types before converted ones."""
    fitting = []
    for item in items:
        try:
            fitting.append(fit(item, value))
        except TypeError:
            continue
    if not fitting:
        raise TypeError
    return next((one for one in fitting if type(one) is type(value)), fitting[0])


def literal(items: list[ast.expr], value: Any) -> Any:
    """One of the listed constants, of the same type."""
    options = [ast.literal_eval(item) for item in items]
    if not any(type(value) is type(option) and value == option for option in options):
        raise TypeError
    return value


def container(name: str, items: list[ast.expr], value: Any) -> Any:
    """A list or dict whose members are of the given types."""
    if name == "list" and isinstance(value, list):
        return [fit(items[0], member) for member in value] if items else value
    if name == "dict" and isinstance(value, dict):
        return {k: fit(items[1], v) for k, v in value.items()} if len(items) == 2 else value
    raise TypeError
