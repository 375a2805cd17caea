"""The types that a YAML value may have: int, float, bool, str, None, Literal[...], list[...], dict,
unions of those, numbers with a range (Annotated[int, Range(ge=1)]), and Any.

An annotation is text here, as it stands in a source file: `meaning` makes the type of it without
running anything.
"""

import ast
import math
import re
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

from rheo.ranges import HOLDS, Range

UNKNOWN = "?"
NAMES: dict[str, Any] = {
    **{"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict},
    **{"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union},
    "Annotated": Annotated,
}
RANGED = re.compile(r"Annotated\[(\w+), [^]]*\]")


class OutOfRange(ValueError):
    """What a number must be that lies outside its range."""


@lru_cache
def meaning(annotation: str) -> Any:
    """The type that an annotation names; None for one whose values YAML cannot carry."""
    try:
        return made(ast.parse(annotation.strip(), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ValueError):
        return None


def made(node: ast.expr) -> Any:
    """The type of an annotation's syntax. Raises KeyError and such for another than ours."""
    match node:
        case ast.Constant(value=None):
            return NoneType
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return NAMES[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[made(left), made(right)]  # noqa: UP007 - `|` takes no special forms
        case ast.Subscript(value=value, slice=inner):
            items = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            outer = made(value)
            read = ast.literal_eval if outer is Literal else made
            types = [read(item) for item in items]
            return outer[tuple(types)] if len(types) > 1 else outer[types[0]]
        case ast.Call(func=ast.Name(id="Range"), args=[], keywords=bounds):
            return Range(**{str(one.arg): ast.literal_eval(one.value) for one in bounds})
    raise ValueError(ast.unparse(node))


def known(annotation: str) -> bool:
    """Whether YAML can carry a value of this annotation."""
    return meaning(annotation) is not None


def plain(annotation: str) -> str:
    """An annotation as it is shown: without ranges."""
    return RANGED.sub(r"\1", annotation)


def shown(annotation: str) -> str:
    """An annotation for a reader: "int, at least 1", "fixed | spread", "float, above 0 | null"."""
    return in_words(meaning(annotation))


def in_words(kind: Any) -> str:
    """A type as it is told to a reader."""
    inner = get_args(kind)
    if kind is NoneType:
        return "null"
    if get_origin(kind) is Literal:
        return " | ".join("null" if each is None else str(each) for each in inner)
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(in_words(each) for each in inner)
    if get_origin(kind) is list:
        return f"list of {in_words(inner[0])}"
    if get_origin(kind) is Annotated:
        bounds = zip(HOLDS, kind.__metadata__[0], strict=True)
        return ", ".join([in_words(inner[0]), *(f"{w} {x}" for w, x in bounds if x is not None)])
    return getattr(kind, "__name__", str(kind))


def coerce(annotation: str, value: Any) -> tuple[Any, str]:
    """The value in the annotated type, and what is wrong with it (empty when nothing is), as it
    follows the key: "=0: must be at least 1" or ": must be int, got 'x' (str)".

    An int serves as a float, and a whole float as an int (`steps=1e6`); nothing else is converted.
    """
    try:
        return fit(meaning(annotation), value), ""
    except OutOfRange as error:
        shown = f"{value:g}" if isinstance(value, (int, float)) else value
        return value, f"={shown}: must be {error}"
    except TypeError:
        digits = annotation.startswith("str") and isinstance(value, (int, float))
        hint = "; quote it twice, as in \"'1'\"" if digits else ""  # the line reads a number
        return value, f": must be {plain(annotation)}, got {describe(value)}{hint}"


def describe(value: Any) -> str:
    """A value with its type, for a message."""
    return "nothing (null)" if value is None else f"{value!r} ({type(value).__name__})"


def fit(kind: Any, value: Any) -> Any:
    """The value as a type wants it. Raises TypeError when it is something else, and OutOfRange."""
    outer, items = get_origin(kind), get_args(kind)
    if kind is Any or kind is None:
        return value
    if outer is Annotated:
        number = fit(items[0], value)
        problem = items[1].problem(number)
        if problem:
            raise OutOfRange(problem)
        return number
    if outer in (Union, UnionType):
        return first(items, value)
    if outer is Literal and any(type(value) is type(x) and value == x for x in items):
        return value
    if outer is list and type(value) is list:
        return [fit(items[0], member) for member in value]
    if outer is dict and type(value) is dict:
        return {key: fit(items[1], member) for key, member in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is float and not math.isfinite(value):
        raise OutOfRange("a finite number")
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not kind:
        raise TypeError
    return value


def first(kinds: tuple[Any, ...], value: Any) -> Any:
    """The value in the first type of a union that takes it, exact types before converted ones."""
    fitting, outside = [], None
    for kind in kinds:
        try:
            fitting.append(fit(kind, value))
        except OutOfRange as error:
            outside = error
        except TypeError:
            continue
    if not fitting:
        raise outside or TypeError
    return next((one for one in fitting if type(one) is type(value)), fitting[0])
