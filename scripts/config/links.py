"""Links of a configuration, `${a.b}`: each becomes what it names, in one walk over the tree.

They mean what they mean to OmegaConf, whose own resolution ends at the first link that leads
nowhere: to be told all of them takes the square of the time, and a file of somebody else's minutes.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from rheo.errors import RheoError, nearest

from .top import TOP, walk
from .yamls import LINK

IN_TEXT = re.compile(r"(\\*)" + LINK.pattern)  # `\${a}` is no link but this text
ABSENT, UNDER_WAY, UNSET = object(), object(), "???"


class Links:
    """Follows the links of a tree, whose texts have no others (`yamls.RESOLVER`).

    lost: the links that lead nowhere, by their places. unset: places that follow what is not set.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree, self.known = tree, dict[str, Any]()
        self.lost, self.unset = dict[str, str](), set[str]()

    def plain(self, node: Any, place: str = "") -> Any:
        """A copy of a node in which all links are followed; those that lead nowhere are None.

        Raises RheoError for one that leads back to itself, and for a group or list in a text.
        """
        if isinstance(node, Mapping):
            start = f"{place}." if place else ""
            return {key: self.plain(value, f"{start}{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self.plain(value, f"{place}[{index}]") for index, value in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        whole = LINK.fullmatch(node)
        if whole:
            return self.value(whole[1], place)

        def written(found: re.Match[str]) -> str:
            slashes, link = found[1], found[2]
            if len(slashes) % 2:
                return f"{slashes[: len(slashes) // 2]}${{{link}}}"
            value = self.value(link, place)
            if isinstance(value, dict | list):
                raise RheoError(f"{place}: ${{{link}}} is more than a text can hold")
            return f"{slashes[: len(slashes) // 2]}{value}"

        return IN_TEXT.sub(written, node)

    def value(self, link: str, place: str) -> Any:
        """What a link at a place stands for; None where that is nothing, which is noted."""
        if link not in self.known:
            self.known[link] = UNDER_WAY
            node = self.behind(link, place, frozenset())
            self.known[link] = node if node is ABSENT else self.plain(node, link)
        found = self.known[link]
        if found is UNDER_WAY:
            raise circle(link, place)
        if found is ABSENT:
            self.lost[place] = link
        elif found == UNSET:
            self.unset.add(place)
        return None if found is ABSENT or found == UNSET else deepcopy(found)

    def behind(self, link: str, place: str, passed: frozenset[str]) -> Any:
        """The node that a link names, links on its way followed; ABSENT where there is none.

        passed: the links that are being followed.
        """
        if link in passed:
            raise circle(link, place)
        node: Any = self.tree
        passed |= {link}
        for key in link.split("."):
            while on := LINK.fullmatch(node) if isinstance(node, str) else None:
                node = self.behind(on[1], place, passed)
                passed |= {on[1]}
            if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, Mapping) and key in node:
                node = node[key]
            else:
                return ABSENT
        return node


def unlinked(tree: Mapping[str, Any]) -> list[str]:
    """What is said of top-level keys of no part of a configuration, which no link names either.

    A file may name values of its own for its links; one that nothing reads is a mistake.
    """
    leaves = [leaf for _, leaf in walk(dict(tree)) if isinstance(leaf, str)]
    linked = {link.partition(".")[0] for leaf in leaves for link in LINK.findall(leaf)}
    odd = sorted(key for key in tree if key not in TOP and key not in linked)
    return [f"{key}: nothing reads this key{nearest(key, TOP)}" for key in odd]


def circle(link: str, place: str) -> RheoError:
    """The error for a link that leads back to itself."""
    return RheoError(f"{place}: ${{{link}}} leads back to itself; write the value")
