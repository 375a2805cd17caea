"""YAML of other people, looked through before it is read: no file takes long, or the memory.

The parser of libyaml tells what is in a text without making anything of it.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from rheo.errors import RheoError

from .top import walk

LARGEST = 1 << 20  # bytes
DEEPEST = 50
MOST = 10_000  # values, keys and lists
LINK = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")  # another key of the configuration
RESOLVER = re.compile(r"\$\{(?!\w+(?:\.\w+)*\})")  # anything else may call a function
PLAIN = (str, int, float, bool, type(None))
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def text_of(file: Path) -> str:
    """A file's text, once it is known to be a small tree. Raises RheoError naming what it is else.

    Anchors are refused: a few lines of them name the same list a billion times. Raises OSError and
    yaml.YAMLError for a file that cannot be read.
    """
    size = os.stat(file).st_size
    if size > LARGEST:
        raise RheoError(f"{file}: {size:,} bytes; a configuration has {LARGEST:,} at most")
    text = file.read_text(encoding="utf-8")
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        if getattr(event, "anchor", None) is not None:
            line = event.start_mark.line + 1
            raise RheoError(
                f"{file}, line {line}: &{event.anchor} and *{event.anchor} are not read in a "
                "configuration; write the values out"
            )
        if RESOLVER.search(str(getattr(event, "value", ""))):
            line = event.start_mark.line + 1
            raise RheoError(f"{file}, line {line}: resolvers are not evaluated; write the value")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or count > MOST:
            what = f"{DEEPEST} levels deep" if depth > DEEPEST else f"of {MOST:,} values"
            raise RheoError(f"{file}: a configuration is {what} at most")
    return text


def read(file: Path) -> Any:
    """What a file holds: numbers, texts, switches and nothing, in lists and by keys.

    As OmegaConf reads it, in a tenth of the time. Raises as `text_of`, and ValueError.
    """
    tree = yaml.load(text_of(file), Loader=Reader)
    for place, leaf in walk(tree):
        if not isinstance(leaf, PLAIN):
            raise RheoError(f"{file}: {place} is a {type(leaf).__name__}, no value of YAML's own")
    return tree


class Reader(LOADER):
    """OmegaConf's rules on libyaml's parser: 1e-3 is a number, a date is text, no key comes twice.

    Python's own parser takes seconds for a megabyte.
    """

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping. Raises ConstructorError for a key that comes twice, or is no plain one."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        found = super().construct_mapping(node, deep=deep)
        odd = [key for key in found if key is None or not isinstance(key, PLAIN)]
        if twice is not None or odd:
            what = f"found duplicate key {twice}" if twice is not None else f"{odd[0]!r} is no key"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return found


def refuse_growth(tree: Mapping[str, Any]) -> None:
    """Raises RheoError for links (${a.b}) that unfold to more than a configuration holds."""
    try:
        grown = weight(tree, tree, {}) > MOST
    except RecursionError:
        grown = True
    if grown:
        raise RheoError(f"links (${{key}}) unfold to more than {MOST:,} values; write them out")


def weight(node: Any, tree: Mapping[str, Any], known: dict[str, int]) -> int:
    """How many values a node has with its links followed; a text is one for 100 characters.

    known: of links that were met. One that leads back to itself is OmegaConf's to refuse.
    """
    if isinstance(node, Mapping):
        return 1 + sum(weight(value, tree, known) for value in node.values())
    if isinstance(node, list):
        return 1 + sum(weight(value, tree, known) for value in node)
    if not isinstance(node, str):
        return 1
    total = 1 + len(node) // 100
    for link in LINK.findall(node):
        if link not in known:
            known[link] = 0
            known[link] = weight(behind(link, tree), tree, known)
        total += known[link]
    return total


def behind(link: str, tree: Any) -> Any:
    """What a link names; None where there is nothing."""
    for key in link.split("."):
        if isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
