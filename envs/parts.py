"""Observations of several named parts: which are read, and in which order.

One rule for recorded data and for environments (`usual`), and what a data set does when the
environment that it is read for names parts of its own (`choose`). A part is a column or columns of
numbers; parts of nested groups are named a/b.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from .data.recording import Reading, refuse

GOAL_KEYS = ("achieved_goal", "observation", "desired_goal")
# Environments whose observation holds the achieved goal already (elsewhere it says something new).
REPEATED = ("PointMaze", "Fetch", "HandReach", "HandManipulate")
ARM = ("eef_pos", "eef_quat", "gripper_qpos")
LOW_DIM = [*(f"robot0_{name}" for name in ARM), "object"]
SECOND_ARM = [f"robot1_{name}" for name in ARM]


def usual(names: Iterable[str], env_id: str | None = None) -> list[str]:
    """The parts that make up an observation, in order, of all that there are.

    Of robomimic's these are the arm, the gripper (of both arms where there are two) and `object`.
    Of goal dictionaries: [achieved_goal,] observation, desired_goal. achieved_goal is left out
    where the observation contains it (PointMaze: x, y, their speeds, goal x, goal y). Where it does
    not it comes first, so that AntMaze-v4 begins with the 29 numbers of D4RL's antmaze recordings:
    x, y, 13 joint positions, 14 velocities; the goal's x, y follow. All others stay as they are.
    """
    names = list(names)
    if set(LOW_DIM) <= set(names):
        return [name for name in (*LOW_DIM[:-1], *SECOND_ARM, LOW_DIM[-1]) if name in names]
    if set(names) == set(GOAL_KEYS):
        repeated = (env_id or "").rpartition("/")[2].startswith(REPEATED)
        return list(GOAL_KEYS[1:] if repeated else GOAL_KEYS)
    return names


def choose(
    path: str, widths: Mapping[str, int], other: Mapping[str, str], reading: Reading, env_id: Any
) -> list[str]:
    """The parts of a file that are read, in order: the user's, the environment's, or the usual.

    widths: the parts that can be read, with their columns. other: those that cannot, and what they
    are. Raises Refused for a part that is not there, and where the environment's order differs.
    """
    keys, env = reading.obs_keys, reading.env_parts
    if keys is None and not widths:
        text = f"no low-dimensional observations; it holds {', '.join(listed(other)) or 'none'}"
        raise refuse(path, text, "obs")
    if keys is None:
        keys = list(env) if env else usual(widths, env_id)
        lacking = [key for key in keys if key not in widths]
        if lacking:
            text = (
                f"{', '.join(lacking)} of the environment's {listed_parts(env or {})}: not in the "
                f"data, which hold {listed_parts(widths)}; data.obs_keys=[...] names what stands "
                "for them, in that order"
            )
            raise refuse(path, text, "obs_keys")
    elif not keys:
        raise refuse(path, "names no key; leave it out for the usual ones", "obs_keys")
    for key in keys:
        if key not in widths:
            what = f"{other[key]}, not columns of numbers" if key in other else "not there"
            raise refuse(path, f"{what}; data.obs_keys can name {', '.join(widths)}", f"obs/{key}")
    refuse_clash(path, {key: widths[key] for key in keys}, env)
    return keys


def refuse_clash(path: str, parts: Mapping[str, int], env: Mapping[str, int] | None) -> None:
    """Raises Refused where a part of the data lies elsewhere in the environment's observation.

    Parts of other names are the user's word for it; their sizes are compared later, in all.
    """
    clash = displaced(parts, env or {})
    if env and clash:
        text = f"the data are read as {clash}; data.obs_keys={names(env)} is its order"
        raise refuse(path, text, "obs_keys")


def displaced(parts: Mapping[str, int], env: Mapping[str, int]) -> str:
    """Both orders and the first part that lies elsewhere in the other; "" where none does."""
    here, there = places(parts), places(env)
    moved = [name for name in here if name in there and here[name] != there[name]]
    orders = f"{listed_parts(parts)}, the environment observes {listed_parts(env)}"
    return f"{orders}: {moved[0]} lies elsewhere" if moved else ""


def refuse_filter(path: str, reading: Reading, about: Mapping[str, Any]) -> None:
    """Raises Refused where a filter key is asked of a file that has none."""
    for word, key in (("filter", reading.filter), ("holdout", reading.held)):
        if key is not None and "filters" not in about:
            text = f"source.{word}={key} names a filter key (mask/{key} of a robomimic file)"
            raise refuse(path, f"{text}; this file has none")


def places(parts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Name -> first column and number of columns, side by side."""
    ends = accumulate(parts.values())
    return {name: (end - parts[name], parts[name]) for name, end in zip(parts, ends, strict=True)}


def names(parts: Iterable[str]) -> str:
    """[tip,aim], as the command line takes it."""
    return f"[{','.join(parts)}]"


def listed_parts(parts: Mapping[str, int]) -> str:
    """tip (2), aim (3)"""
    return ", ".join(f"{name} ({width})" for name, width in parts.items())


def listed(other: Mapping[str, str]) -> list[str]:
    """["image (84, 84, 3) uint8", "label text"]"""
    return [f"{name} {what}".strip() for name, what in other.items()]


def read_parts(about: Mapping[str, Any]) -> dict[str, int]:
    """The parts that a recording's observations are made of, in order; {} where it tells none."""
    keys, widths = about.get("obs_keys") or (), about.get("obs_widths") or ()
    return dict(zip(keys, widths, strict=True)) if len(keys) == len(widths) else {}
