"""What a checkpoint has to hold, whoever made it: right digests say only that nothing was lost."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rheo.errors import RheoError

from .state import tensors
from .tree import Broken

LARGEST = 2**31  # of a size
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def sound(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint's tree, whose parts are what they should be. Raises Broken for another one."""
    problem = odd(tree)
    if problem:
        raise Broken(f"{path}: not a checkpoint of a run, {problem}")
    return tree


def odd(tree: Mapping[str, Any]) -> str:
    """What of a checkpoint is missing or of another kind; empty where nothing is."""
    for name in ("algo", "source", "sizes", "loop", "run", "ranks"):
        if name in tree and not isinstance(tree[name], dict):
            return f"{name} is a {type(tree[name]).__name__}"
    return clock(tree.get("run")) or sizes(tree) or loop(tree.get("loop"))


def clock(run: Mapping[str, Any] | None) -> str:
    """What is wrong with the time that a run has taken."""
    wall = 0.0 if run is None else run.get("wall")
    return "" if isinstance(wall, int | float) and 0 <= wall < 1e12 else f"run.wall is {wall!r}"


def sizes(tree: Mapping[str, Any]) -> str:
    """What is wrong with the sizes of observations and actions."""
    found = tree.get("sizes")
    if found is None:
        return ""
    counts = {key: found.get(key) for key in ("obs_dim", "action_dim")}
    counts |= {"obs_steps": found.get("obs_steps", 1)}
    for key, value in counts.items():
        if not is_count(value, 1) or value > LARGEST:
            return f"sizes.{key} is {value!r}"
    images = found.get("images", {})
    if not isinstance(images, dict) or not all(map(is_size, images.values())):
        return f"sizes.images is {images!r}"
    more = set(found) - {*counts, "images"}
    if more:
        return f"sizes has no place for {min(map(str, more))}"
    numbers = sum(tensor.numel() for _, tensor in tensors(tree.get("algo"), ""))
    if numbers and not images and counts["obs_dim"] > numbers:  # each has a weight of its own
        return f"sizes.obs_dim is {counts['obs_dim']} for networks of {numbers} numbers"
    return ""


def loop(found: Mapping[str, Any] | None) -> str:
    """What is wrong with where the training loop was."""
    if found is None:
        return ""
    latest, since = found.get("latest"), found.get("since")
    if not isinstance(latest, dict) or not all(map(is_number, latest.values())):
        return "loop.latest is no metrics"
    if not all(isinstance(name, str) for name in latest):
        return "loop.latest has metrics without a name"
    if not isinstance(found.get("fresh"), bool):
        return f"loop.fresh is {found.get('fresh')!r}"
    return "" if since is None or is_count(since, 0) else f"loop.since is {since!r}"


def is_count(value: Any, least: int) -> bool:
    """A whole number that is at least so large."""
    return type(value) is int and value >= least


def is_size(value: Any) -> bool:
    """Height and width of an image."""
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(is_count(each, 1) and each <= LARGEST for each in value)


def is_number(value: Any) -> bool:
    """A metric."""
    return isinstance(value, int | float) or isinstance(value, Tensor) and value.dim() == 0


def refuse_partial(tree: Mapping[str, Any], where: object, *names: str) -> None:
    """Raises Broken for a checkpoint that lacks one of its parts."""
    lacking = [name for name in names if name not in tree]
    if lacking:
        raise Broken(f"{where}: not a checkpoint of a run, it lacks {', '.join(lacking)}")


@contextmanager
def fitting(where: object) -> Iterator[None]:
    """Inside, what a checkpoint's state does to those who take it is one line, not a traceback.

    Their own messages stay, and so do numbers that break. Whoever takes a state checks no more of
    it than it needs: one that was made to look like another may fail anywhere in there.
    """
    try:
        yield
    except (RheoError, FloatingPointError, torch.OutOfMemoryError):
        raise
    except MISFITS as error:
        what = " ".join(str(error).split())[:300] or "no reason"
        raise Broken(f"{where}: its state does not fit ({type(error).__name__}: {what})") from error
