"""What `rheo zoo` was asked."""

from collections.abc import Sequence
from typing import NamedTuple

from rheo.errors import RheoError

from ..store.zoo import PREFIX, Recipe, recipe
from .words import flags

USAGE = {
    "zoo": """\
usage: rheo zoo                 policies made by a recipe, with what they are known to reach
       rheo zoo NAME            its card: commands, data, minutes, score
       rheo zoo build NAME...   makes it, evaluates it and writes its card; the same command goes on
                                with one that was cut
       a policy that is built is the run zoo/NAME: rheo play zoo/NAME, rheo.load("zoo/NAME")"""
}


class Wanted(NamedTuple):
    """Recipes, and whether they are built or shown; none: the list."""

    recipes: list[Recipe]
    build: bool


def zoo(argv: Sequence[str]) -> Wanted:
    """`rheo zoo`: what is shown or built. Raises RheoError."""
    folders, words = flags(argv)
    build = words[:1] == ["build"]
    names = words[1:] if build else words
    if folders or (build and not names) or (not build and len(names) > 1):
        raise RheoError(USAGE["zoo"])
    return Wanted([recipe(name.removeprefix(PREFIX)) for name in names], build)
