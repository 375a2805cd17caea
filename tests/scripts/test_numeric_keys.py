"""Every number of every shipped configuration with values that nobody means: taken because it is
meant, or refused in one line before any work, never a traceback, a hang or a huge allocation.

What is composed is checked as `rheo train` checks it; nothing is built.
"""

import math
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from types import FrameType
from typing import Any

import pytest
from shipped import ALGOS
from shipped import config as shipped

from rheo.errors import RheoError
from rheo.scripts.config.compose import HOME, finish
from rheo.scripts.config.intent import Typed
from rheo.scripts.config.overrides import parse
from rheo.scripts.config.top import inside, walk

VALUES = ("0", "-1", "inf", "nan")
SECONDS = 5.0  # of the processor, for a configuration


class Late(BaseException):
    """What was called has used up its time; no `except Exception` keeps it in."""


@contextmanager
def limited() -> Iterator[None]:
    """Inside, nothing takes long or much."""

    def late(number: int, frame: FrameType | None) -> None:
        raise Late

    handler = signal.signal(signal.SIGPROF, late)
    space = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, space[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, space)


def numbers(tree: dict[str, Any]) -> list[str]:
    """The keys of all numbers, but for switches."""
    leaves = [(place, leaf) for place, leaf in walk(tree) if "[" not in place]
    return [place for place, leaf in leaves if type(leaf) in (int, float)]


def changed(tree: dict[str, Any], word: str) -> dict[str, Any]:
    """A composed configuration with one more word, checked as that of `rheo train`.

    Interpolations have been followed: what has the value of another key keeps it.
    """
    return finish(deepcopy(tree), parse([word], []), [HOME], [], (), Typed({}, {}, "this"))


def wrong_with(tree: dict[str, Any], place: str, value: str) -> str:
    """What is not as it should be where a key has a value; empty: all is."""
    word = f"{place}={value}"
    try:
        with limited():
            changed(tree, word)
    except RheoError as error:
        text = str(error)
        named = place.rpartition(".")[2] in text and any(v in text for v in (value, "-1.0", "0.0"))
        return "" if named and "\n" not in text else f"{word}: said {text!r}"
    except Late:
        return f"{word}: took over {SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - the finding itself
        return f"{word}: {type(error).__name__}: {error}"
    unreached = place.startswith("limits.") and value == "inf"  # as null: there is no such limit
    return "" if unreached or math.isfinite(float(value)) else f"{word}: was taken"


@lru_cache
def shares() -> dict[str, list[str]]:
    """Algorithm -> the numbers that are tried in its configuration: each key of each class once."""
    seen, found = set[tuple[Any, str]](), dict[str, list[str]]()
    for algo in ALGOS:
        tree = shipped(algo)
        own = {place: (owner(tree, place), place.rpartition(".")[2]) for place in numbers(tree)}
        found[algo] = [place for place, key in own.items() if key not in seen]
        seen |= set(own.values())
    return found


def owner(tree: dict[str, Any], place: str) -> Any:
    """The class that a key is of, or its group's name."""
    group = place.rpartition(".")[0]
    return inside(tree, f"{group}._target_") or group if group else ""


def test_every_number_is_tried_somewhere() -> None:
    assert sum(map(len, shares().values())) > 250


@pytest.mark.parametrize("algo", ALGOS)
def test_no_number_of_an_algorithm_s_configuration_is_a_trap(algo: str) -> None:
    tree = shipped(algo)
    tried = [(place, value) for place in shares()[algo] for value in VALUES]
    assert [found for each in tried if (found := wrong_with(tree, *each))] == []
