"""Scripts that solve a task: own ones of robosuite's Lift and can and of Fetch; with the policies
of their packages Meta-World's, and OGBench's (`oracles.py`).

A plan is a generator: it is given what is seen, yields an action in [-1, 1] and is sent what is
seen next. Its stages follow one another as its lines do.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvError
from . import oracles
from .plans import Plan, Script, Seen

Gap = Callable[[Seen], NDArray]  # where the hand should go, from where it is [3], m
OPEN, CLOSED = -1.0, 1.0  # robosuite's gripper
OSC_STEP = 0.05  # m that a whole action of robosuite's controller moves the hand
GAIN = 0.8  # share of a gap that a step is told to close
CAN_BIN = np.array([0.1975, 0.4025, 0.8])  # middle of the can's bin, in the world's frame
CARRY = 1.12  # height at which a can passes between the bins
FETCH_GAIN = 10.0  # actions per metre
FETCH_CLOSED = -1.0
BEHIND, LOW = 0.085, 0.005  # where Fetch's hand pushes from: m behind and below the block's middle


def osc(gap: NDArray, grip: float) -> NDArray:
    """robosuite's action [7] that closes a gap [3] between hand and goal, without turning."""
    action = np.zeros(7)
    action[:3], action[6] = np.clip(gap / OSC_STEP * GAIN, -1, 1), grip
    return action


def go(seen: Seen, gap: Gap, grip: float, near: NDArray | float) -> Plan:
    """Moves robosuite's hand until all of a gap is below `near`."""
    while (np.abs(gap(seen)) >= near).any():
        seen = yield osc(gap(seen), grip)
    return seen


def grasp(seen: Seen, what: str, above: float, depth: float, near: float, steps: int) -> Plan:
    """Moves over an object, down to it and closes the gripper for some steps.

    what: the part that is its place. above, depth: heights of the hand over it, m.
    """

    def over(height: float) -> Gap:
        return lambda now: now[what] - now["robot0_eef_pos"] + [0, 0, height]

    seen = yield from go(seen, over(above), OPEN, np.array([0.01, 0.01, 0.03]))
    seen = yield from go(seen, over(depth), OPEN, near)
    for _ in range(steps):
        seen = yield osc(over(depth)(seen), CLOSED)
    return seen


def lift(seen: Seen) -> Plan:
    """robosuite's Lift: takes the cube and goes up."""
    seen = yield from grasp(seen, "cube_pos", above=0.06, depth=-0.005, near=0.009, steps=6)
    while True:
        seen = yield osc(np.array([0, 0, 0.12]), CLOSED)


def can(seen: Seen) -> Plan:
    """robosuite's can: takes it, carries it over its bin, lowers and drops it."""
    seen = yield from grasp(seen, "Can_pos", above=0.10, depth=0.015, near=0.012, steps=9)

    def up(now: Seen) -> NDArray:
        return np.array([0, 0, CARRY - now["robot0_eef_pos"][2]])

    def across(now: Seen) -> NDArray:
        return np.append(CAN_BIN[:2], CARRY) - now["robot0_eef_pos"]

    def down(now: Seen) -> NDArray:
        return np.array([0, 0, CAN_BIN[2] + 0.12 - now["robot0_eef_pos"][2]])

    seen = yield from go(seen, up, CLOSED, 0.03)
    seen = yield from go(seen, across, CLOSED, np.array([0.02, 0.02, 0.1]))
    seen = yield from go(seen, down, CLOSED, 0.03)
    while True:
        seen = yield osc(np.zeros(3), OPEN)


def fetch(move: NDArray, grip: float) -> NDArray:
    """Fetch's action [4]."""
    return np.clip(np.append(move, grip), -1, 1)


def reach(seen: Seen) -> Plan:
    """Fetch reach: straight to the goal."""
    while True:
        gap = seen["desired_goal"] - seen["observation"][:3]
        seen = yield fetch(FETCH_GAIN * gap, FETCH_CLOSED)


def pick_and_place(seen: Seen) -> Plan:
    """Fetch pick-and-place: over the block, down, close, to the goal."""

    def gap(now: Seen, height: float = 0.0) -> NDArray:
        return now["observation"][3:6] - now["observation"][:3] + [0, 0, height]

    for height, near in ((0.06, 0.02), (0.0, 0.012)):
        while np.linalg.norm(gap(seen, height)) >= near:
            seen = yield fetch(FETCH_GAIN * gap(seen, height), 1)
    for _ in range(3):
        seen = yield fetch(np.zeros(3), FETCH_CLOSED)
    while True:
        left = seen["desired_goal"] - seen["observation"][3:6]
        seen = yield fetch(FETCH_GAIN * left, FETCH_CLOSED)


class Push(NamedTuple):
    """Fetch's hand, block and goal as pushing needs them."""

    hand: NDArray  # [3]
    block: NDArray  # [3]
    left: float  # distance of block and goal in the plane
    way: NDArray  # [2] unit vector from the block to the goal

    @classmethod
    def of(cls, seen: Seen) -> "Push":
        """What is seen."""
        hand, block = seen["observation"][:3], seen["observation"][3:6]
        way = seen["desired_goal"][:2] - block[:2]
        left = float(np.linalg.norm(way))
        return cls(hand, block, left, way / max(left, 1e-6))

    @property
    def start(self) -> NDArray:
        """Where a push starts from, [2]."""
        return self.block[:2] - BEHIND * self.way

    @property
    def ahead(self) -> float:
        """How far the hand is before the block's middle, along the way; behind it negative."""
        return float((self.hand[:2] - self.block[:2]) @ self.way)

    @property
    def side(self) -> NDArray:
        """How far the hand is beside the way, [2]."""
        return self.hand[:2] - self.block[:2] - self.ahead * self.way

    def to(self, height: float) -> NDArray:
        """From the hand to where a push starts from, at a height over the block's middle, [3]."""
        return np.append(self.start, self.block[2] + height) - self.hand


def push(seen: Seen) -> Plan:
    """Fetch push: high behind the block, down, and along the way; anew when it slips aside."""
    while True:
        while np.linalg.norm((gap := Push.of(seen).to(0.08))[:2]) >= 0.012:
            seen = yield fetch(FETCH_GAIN * gap, FETCH_CLOSED)
        while abs((now := Push.of(seen)).hand[2] - now.block[2]) >= 0.015:
            seen = yield fetch(FETCH_GAIN * now.to(-LOW), FETCH_CLOSED)
        while np.linalg.norm((now := Push.of(seen)).side) <= 0.025 and now.ahead <= -0.02:
            plane = 12 * min(now.left, 0.06) * now.way - 6 * now.side
            move = np.append(plane, FETCH_GAIN * now.to(-LOW)[2])
            seen = yield fetch(move if now.left >= 0.015 else np.zeros(3), FETCH_CLOSED)


def metaworld(task: str) -> Callable[[Seen], Plan]:
    """The plan of one of Meta-World's tasks: the package's own policy."""
    known = importlib.import_module("metaworld.policies").ENV_POLICY_MAP

    def plan(seen: Seen) -> Plan:
        policy = known[task]()
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that its actions are clipped
                action = policy.get_action(seen["flat"])
            seen = yield np.clip(action, -1, 1)

    return plan


ARM, HAND = (1, 1, 1, 0.2, 0.2, 0.2, 0), (1, 1, 1, 0)
SCRIPTS = {
    "robosuite/Lift-v0": Script(lift, ARM),
    "robosuite/PickPlaceCan-v0": Script(can, ARM),
    "FetchReach-v4": Script(reach, HAND),
    "FetchPush-v4": Script(push, HAND),
    "FetchPickAndPlace-v4": Script(pick_and_place, HAND),
}


def script_of(env_id: str) -> Script:
    """The script of an environment. Raises EnvError where there is none."""
    suite, _, task = env_id.partition("/")
    if suite == "metaworld":
        return Script(metaworld(task), (1, 1, 1, 1))
    script = SCRIPTS.get(env_id) or oracles.script_of(env_id)
    if script is None:
        there = ", ".join([*SCRIPTS, "metaworld/TASK", oracles.NAMES])
        raise EnvError(f"env.id={env_id}: there is no script that solves it; there are {there}")
    return script
