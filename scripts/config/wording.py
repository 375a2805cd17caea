"""Errors of a configuration, led by what the user typed or has to type."""

import re
from typing import Any

from . import schema
from .intent import Typed, normalizers
from .top import inside

ELSEWHERE = {  # of an algorithm that learns from pairs: what it is where it acts
    "rheo.algos.prefer_offline.PreferOffline": "rheo.algos.prefer.Prefer"
}
TOLD = 100  # errors of a configuration that are told


def covered(error: str, judged: set[str]) -> bool:
    """Whether a check complains of what is known to be wrong already."""
    match = re.match(r"[\w.]+", error)
    place = match[0] if match else ""
    inside, around = f"{place}.", tuple(f"{one}." for one in judged)
    led = inside.startswith(around) or any(one.startswith(inside) for one in around)
    return led or any(found in judged for found in re.findall(r"([\w.]+)=", error))


def worded(
    place: str, error: str, tree: dict[str, Any], followed: dict[str, str], typed: Typed
) -> str:
    """An error of the schema, led by what the user typed or has to type."""
    origin, group = followed.get(place), place.partition(".")[0]
    unknown = "unknown key" in error
    other = ELSEWHERE.get(str(inside(tree, "algo._target_")))
    if unknown and group == "algo" and other and place[5:] in schema.from_source(other).keys:
        return f"{place}: not used where data are pairs, whose chunks are recorded; leave it out"
    if unknown and group in typed.groups and place not in typed.given:
        return foreign(place, typed)
    if place in typed.keys:
        return error.replace(place, typed.keys[place], 1)
    if origin is None or unknown:
        return error
    if inside(tree, origin) is None:
        remedy = f"{origin}: has to be set ({origin}={'FILE' if origin == 'data' else '...'}): "
        return f"{remedy}{typed.algo} reads it as {place}" + on_line(origin, place, tree, typed)
    return f"{error.replace(place, origin, 1)}; {place} follows it"


def foreign(place: str, typed: Typed) -> str:
    """The message for a setting of the algorithm's file that a chosen group does not know."""
    group = place.partition(".")[0]
    word = typed.groups[group]
    why = f"its file sets {place}, which is not known there"
    return f"{word}: does not go with {typed.algo}: {why}; leave {group} to the algorithm"


def on_line(origin: str, place: str, tree: dict[str, Any], typed: Typed) -> str:
    """How an algorithm that learns from recorded rewards goes without them, where it can."""
    target = str(inside(tree, "source._target_"))
    if origin != "data" or not target.endswith(".Transitions"):
        return ""
    parts = ("policy", "critic", "algo")
    places = [place for part in parts for place in normalizers(tree.get(part), part)]
    words = " ".join(["source=replay env=NAME", *(f"{place}.kind=none" for place in places)])
    return f"; without recorded data it learns on line: rheo train {typed.algo} {words}"


def report(errors: list[str]) -> str:
    """One message of all errors."""
    if len(errors) == 1:
        return errors[0]
    told = errors[:TOLD] + [f"and {len(errors) - TOLD} more"] * (len(errors) > TOLD)
    return f"{len(errors)} errors in the configuration\n  " + "\n  ".join(told)
