"""Inputs that are nearly right: bytes changed in files, values changed in trees."""

import copy
from typing import Any

from trials import Random

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, -(2**63), 2**64, 10**30, 1.5, -0.0, 1e308),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "\x00", "\x1b]0;title\x07", "ü\ud800"),
    *(
        "a" * 300,
        "..",
        "/etc/passwd",
        "~",
        "${oc.env:HOME}",
        "${${recipe}:HOME}",
        "${a.b}",
        "[",
        "{",
    ),
    *("null", "true", "1e9", "-1", "cpu", "hopper", "rheo.scripts.cli.main", "os.system"),
    *([], {}, [None], [[]], {"": None}, {"_target_": "os.system"}, {"a": {"b": {"c": [1, 2]}}}),
)
WORDS = (
    b"0",
    b"-",
    b"\n",
    b": ",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\x00",
    b"\xff",
    b"&a ",
    b"*a ",
    b"!!x ",
)


def bent(raw: bytes, draw: Random) -> bytes:
    """Bytes of which some are flipped, taken away, doubled, or of another file's kind."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        at = draw.randrange(len(data)) if data else 0
        kind = draw.randrange(6)
        if not data or kind == 0:
            data[at:at] = draw.choice(WORDS)
        elif kind == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            data[at] = draw.randrange(256)
        elif kind == 3:
            del data[at : at + draw.randrange(1, 50)]
        elif kind == 4:
            data[at:at] = data[at : at + draw.randrange(1, 50)]
        else:
            del data[at:]
    return bytes(data)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a tree of dicts and lists are."""
    if isinstance(tree, dict):
        inner = [found for key, node in tree.items() for found in places(node, (*path, key))]
    elif isinstance(tree, list):
        inner = [found for i, node in enumerate(tree) for found in places(node, (*path, i))]
    else:
        inner = []
    return [*([path] if path else []), *inner]


def odd(tree: Any, draw: Random, values: tuple[Any, ...] = ODD) -> Any:
    """A tree in which a value or two are others, or gone."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 2))):
        every = places(tree)
        if not every:
            return tree
        *path, last = draw.choice(every)
        node = tree
        for key in path:
            node = node[key]
        if draw.random() < 0.2:
            del node[last]
        else:
            node[last] = copy.deepcopy(draw.choice(values))
    return tree
