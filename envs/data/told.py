"""What a file says of itself: an allow-list of names, each with the type that it has to have.

Names that are not in the list are never read, so a file cannot speak for its reader (path, format).
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .bulk import TEXT
from .recording import refuse

LONG, WIDE = 4096, 10**9  # letters of a name, numbers of a step
SHOWN, FEW = 60, 20  # letters of a value, and names, that a message shows


class Kind(NamedTuple):
    """A type of what files say: what it is, and the value as it is used (None: of another type)."""

    what: str
    read: Callable[[Any], Any]


def one(value: Any) -> Any:
    """The only entry of a list of one; all else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def as_text(value: Any) -> str | None:
    """A name or a word."""
    value = one(value)
    return value if isinstance(value, str) and len(value) <= LONG else None


def as_number(value: Any) -> float | None:
    """A number, which may be infinite."""
    value = one(value)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) < 2**63 or value in (math.inf, -math.inf) else None


def as_positive(value: Any) -> float | None:
    """A finite number above 0, whose inverse is one too."""
    value = as_number(value)
    return value if value is not None and 1e-9 < value < 1e9 else None


def as_count(value: Any) -> int | None:
    """A whole number from 0 on."""
    value = as_number(value)
    whole = value is not None and math.isfinite(value) and value == int(value) and value >= 0
    return int(value) if whole and value is not None else None


def as_flag(value: Any) -> bool | None:
    """Yes or no."""
    value = one(value)
    return bool(value) if isinstance(value, bool) or value in (0, 1) else None


def as_numbers(value: Any) -> list[float] | None:
    """Numbers, in a list or alone."""
    listed = value if isinstance(value, list) else [value]
    return listed if listed and all(as_number(entry) is not None for entry in listed) else None


def as_names(value: Any) -> list[str] | None:
    """A list of different names."""
    named = isinstance(value, list) and all(as_text(entry) for entry in value)
    return value if named and len(set(value)) == len(value) and value else None


def as_shape(value: Any) -> list[int] | None:
    """Sizes of an array along its axes."""
    found = [as_count(entry) for entry in value] if isinstance(value, list) else [None]
    return None if None in found else [entry for entry in found if entry is not None]


def as_widths(value: Any) -> list[int] | None:
    """A list of numbers of columns."""
    found = as_shape(value)
    return found if found and all(0 < entry <= WIDE for entry in found) else None


def as_sizes(value: Any) -> dict[str, list[int]] | None:
    """Heights and widths of images by name."""
    if not isinstance(value, dict):
        return None
    found = {key: as_widths(size) for key, size in value.items()}
    fine = all(size is not None and len(size) == 2 for size in found.values())
    return {key: size for key, size in found.items() if size is not None} if fine else None


def as_table(value: Any) -> dict[str, Any] | None:
    """Names with values, as JSON has them."""
    return value if isinstance(value, dict) else None


TEXTS, NUMBER = Kind("a word", as_text), Kind("a positive number", as_positive)
SHAPE = Kind("a list of whole numbers", as_shape)
LIST = Kind("a list", lambda value: value if isinstance(value, list) else None)
COUNT, TABLE = Kind("a whole number", as_count), Kind("a table of names and values", as_table)
BOUNDS = Kind("a list of numbers", as_numbers)
KNOWN = {
    **dict.fromkeys(("format", "env_id", "action_scale", "dones_are", "robot"), TEXTS),
    **dict.fromkeys(("control_mode", "stopped"), TEXTS),
    **dict.fromkeys(("dt", "fps", "hz", "control_freq"), NUMBER),
    **dict.fromkeys(("action_low", "action_high"), BOUNDS),
    **dict.fromkeys(("env_options", "env_args", "env_cost", "versions"), TABLE),
    "version": COUNT,
    "sim": Kind("yes or no", as_flag),
    "obs_keys": Kind("a list of names", as_names),
    "obs_widths": Kind("a list of whole numbers", as_widths),
    "obs_images": Kind("heights and widths by name", as_sizes),
}


def allowed(path: str | os.PathLike, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a file says, what is in the list. Raises Refused for a value of another type."""
    return {
        key: typed(path, key, attributes[key], kind)
        for key, kind in KNOWN.items()
        if attributes.get(key) is not None
    }


def typed(path: str | os.PathLike, key: str, value: Any, kind: Kind) -> Any:
    """A value as it is used. Raises Refused for one of another type."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RecursionError):
        found = kind.read(value)
        if found is not None:
            return found
    text = f"is {short(value)}, expected {kind.what}; mend it, or leave it out"
    raise refuse(path, text, key)


def within(path: str | os.PathLike, tree: Any, key: str, kind: Kind) -> Any:
    """What a JSON object says under a key, None where it says nothing. Raises Refused."""
    tree = typed(path, "", tree, TABLE)
    return None if tree.get(key) is None else typed(path, key, tree[key], kind)


def short(value: Any) -> str:
    """A value for a message."""
    with contextlib.suppress(RecursionError, ValueError):
        text = repr(value)
        return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
    return f"a {type(value).__name__}"


def some(names: Sequence[str]) -> str:
    """Names for a message: a few, none of them long."""
    listed = [name if len(name) <= SHOWN else f"{name[:SHOWN]}..." for name in names[:FEW]]
    more = len(names) - FEW
    return ", ".join(listed) + (f" and {more:,} more" if more > 0 else "")


def decoded(value: Any) -> Any:
    """An attribute as a Python value; text that holds JSON is parsed."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, list):
        value = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
    if isinstance(value, str) and value[:1] in ("{", "[") and len(value) <= TEXT:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value
