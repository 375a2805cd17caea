"""Observations of several named parts: which are read, and in which order.

One rule for recorded data and for environments. A part is a column or columns of numbers; parts of
nested groups are named a/b.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

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


def displaced(parts: Mapping[str, int], env: Mapping[str, int]) -> str:
    """Both orders and the first part that lies elsewhere in the other; "" where none does."""
    here, there = places(parts), places(env)
    moved = [name for name in here if name in there and here[name] != there[name]]
    orders = f"{listed_parts(parts)}, the environment observes {listed_parts(env)}"
    return f"{orders}: {moved[0]} lies elsewhere" if moved else ""


def resized(parts: Mapping[str, int], env: Mapping[str, int]) -> str:
    """The first part that has another size in the other; "" where none has."""
    both = [name for name in parts if name in env and parts[name] != env[name]]
    return f"{both[0]} has {parts[both[0]]} numbers, and {env[both[0]]} there" if both else ""


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
