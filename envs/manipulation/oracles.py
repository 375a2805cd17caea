"""Scripts of OGBench's cubes, scene and puzzles (arXiv:2410.20092).

Which part of a task comes next is decided here; the package's own oracles move the hand there. Of
its two kinds these are the Markov ones, whose action follows from what is seen, noise or none.
"""

import importlib
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from .plans import Plan, Script, Seen

SOLVED = 0.04  # m between a thing and its goal up to which OGBench takes it for solved
CLEAR = 0.08  # m of the hand above a thing that was moved, before the next one's turn
PACE = 0.2  # of the hand, at least, as OGBench's oracles measure it; their own 0.4 upsets stacks
OPEN = 0.1  # of a hand whose closing is at most 1: below it is open
PATIENCE, RETREAT = 100, 10  # steps of a turn; of going up after so many without success
WIDTH = 0.04  # of a cube, m
APART = 0.1  # between cubes and a place where one is put aside, m
DRAWER_FLOOR = 0.05  # height above which a cube's goal in the scene is inside its drawer, m
DROP = 0.7  # of the drawer's way, from a cube's goal, where it is let go; it slides to the front
OPENED, UNLOCKED = -0.16, 1  # the scene's drawer, and the button that lets it move
LOCKS = {"drawer": 0, "window": 1}  # what slides -> its button


class Aim(NamedTuple):
    """A part of a task, as it stands."""

    told: dict[str, Any]  # what its oracle is told of it
    at: NDArray  # where its thing is, [3]
    reached: bool


class Turn(NamedTuple):
    """What is done next."""

    kind: str  # of the oracle
    aim: Callable[[Seen], Aim]
    how: dict[str, Any] = {}  # keyword arguments of the oracle


def sees(env: gymnasium.Env) -> Seen:
    """What OGBench's oracles read, and the goals, which its single tasks do not tell."""
    task: Any = env.unwrapped
    data, seen = task.data, {"env": env, **task.compute_ob_info()}
    if hasattr(task, "_cube_target_mocap_ids"):
        seen["cubes"] = np.stack(
            [seen[f"privileged/block_{i}_pos"] for i in range(task._num_cubes)]
        )
        seen["cube_goals"] = data.mocap_pos[task._cube_target_mocap_ids].copy()
    if hasattr(task, "_button_site_ids"):
        seen["tops"] = data.site_xpos[task._button_site_ids].copy()
        seen["button_goals"] = task._target_button_states.copy()
    if hasattr(task, "_num_rows"):
        seen["board"] = task._num_rows, task._num_cols
    for what in LOCKS if hasattr(task, "_drawer_site_id") else ():
        seen[f"{what}_axis"] = data.joint(f"{what}_slide").xaxis.copy()
        seen[f"{what}_goal"] = getattr(task, f"_target_{what}_pos")
    return seen


def cube(i: int, goal: NDArray) -> Turn:
    """Cube i goes to `goal` [3]."""

    def aim(now: Seen) -> Aim:
        told = {"target_block": i, "target_block_pos": goal, "target_block_yaw": np.zeros(1)}
        at = now["cubes"][i]
        return Aim(told, at, far(at, goal) <= SOLVED)

    return Turn("cube", aim)


def button(i: int, state: int, **how: Any) -> Turn:
    """Button i is pressed until it has that state."""

    def aim(now: Seen) -> Aim:
        top = now["tops"][i]
        told = {"target_button": i, "target_button_state": state, "target_button_top_pos": top}
        return Aim(told, top, now["button_states"][i] == state)

    return Turn("button", aim, how)


def slide(what: str, goal: float) -> Turn:
    """The scene's drawer or window is moved along its axis until its joint is at `goal`."""

    def aim(now: Seen) -> Aim:
        handle, left = now[f"privileged/{what}_handle_pos"], goal - now[f"privileged/{what}_pos"]
        told = {f"target_{what}_handle_pos": handle + left * now[f"{what}_axis"]}
        return Aim(told, handle, abs(left.item()) <= SOLVED)

    return Turn(what, aim)


def far(a: NDArray, b: NDArray) -> Any:
    """Distances along the last axis."""
    return np.linalg.norm(a - b, axis=-1)


def next_cube(seen: Seen) -> Turn | None:
    """Of cubes that can be taken and whose place is ready the nearest one; else one is put aside.

    A place is ready when nothing stands there, and what belongs below it is there. Where none is
    (cubes that change places), a cube that is in another's way goes where it is in nobody's.
    """
    at, goals = seen["cubes"], seen["cube_goals"]
    off = far(at, goals) > SOLVED
    one, other = np.arange(len(at))[:, None], np.arange(len(at))
    near = far(at[:, None, :2], at[:, :2]) < WIDTH
    covered = near & (at[:, 2] > at[:, None, 2] + WIDTH / 2)  # [i, j]: j stands on i
    column = far(goals[:, None, :2], at[:, :2]) < WIDTH
    in_place = ~off & (goals[:, 2] < goals[:, None, 2])
    taken = column & ~in_place & (one != other)  # [i, j]: j stands where i belongs
    below = far(goals[:, None, :2], goals[:, :2]) < WIDTH / 2
    waits = below & (goals[:, 2] < goals[:, None, 2]) & off  # [i, j]: j belongs below i
    free = ~covered.any(axis=1)
    ready = np.flatnonzero(off & free & ~(taken | waits).any(axis=1))
    if ready.size:
        i = nearest(seen, at, ready)
        return cube(i, goals[i])
    blocking = np.flatnonzero(free & (off[:, None] & (covered | taken)).any(axis=0))
    if not blocking.size:
        return None
    i = nearest(seen, at, blocking)
    return cube(i, aside(seen, i))


def nearest(seen: Seen, at: NDArray, some: NDArray) -> int:
    """Which of `some` things at `at` [n, 3] is nearest to the hand."""
    return int(some[far(at[some], seen["proprio/effector_pos"]).argmin()])


def aside(seen: Seen, i: int) -> NDArray:
    """Where cube i is in nobody's way, [3]: the nearest place APART from all others and goals."""
    low, high = seen["env"].unwrapped._target_sampling_bounds
    axes = [np.arange(start, end, WIDTH / 2) for start, end in zip(low, high, strict=True)]
    places = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    held = np.concatenate([np.delete(seen["cubes"], i, axis=0), seen["cube_goals"]])[:, :2]
    room = np.minimum(far(places[:, None], held).min(axis=1), APART)
    best = np.lexsort((far(places, seen["cubes"][i][:2]), -room))[0]
    return np.append(places[best], WIDTH / 2)


def next_in_scene(seen: Seen) -> Turn | None:
    """The cube, if need be into the opened drawer; what slides, unlocked first; the buttons."""
    states, opened = seen["button_states"], seen["privileged/drawer_pos"] - seen["drawer_goal"]
    (at,), (goal,) = seen["cubes"], seen["cube_goals"]
    inside = goal[2] > DRAWER_FLOOR
    goal = goal + inside * DROP * opened * seen["drawer_axis"]
    off = far(at, goal) > SOLVED
    wanted = {what: seen[f"{what}_goal"] for what in LOCKS}
    if off and not inside:
        return cube(0, goal)
    if off:
        wanted["drawer"] = OPENED
    for what, position in wanted.items():
        if abs(seen[f"privileged/{what}_pos"].item() - position) > SOLVED:
            lock = LOCKS[what]
            return slide(what, position) if states[lock] == UNLOCKED else button(lock, UNLOCKED)
        if off:
            return cube(0, goal)
    wrong = np.flatnonzero(states != seen["button_goals"])
    return button(int(wrong[0]), seen["button_goals"][wrong[0]]) if wrong.size else None


def next_press(seen: Seen) -> Turn | None:
    """Of the fewest presses that solve the puzzle, the nearest one."""
    states = seen["button_states"]
    presses = fewest((states ^ seen["button_goals"]).reshape(seen["board"]))
    left = np.flatnonzero(presses)
    if not left.size:
        return None
    i = nearest(seen, seen["tops"], left)
    return button(i, 1 - states[i], gripper_always_closed=True)


def fewest(wrong: NDArray) -> NDArray:
    """The fewest presses [R, C] that change the lights `wrong` [R, C] and no other.

    A press changes its light and those beside it, so whatever is wrong in a row above is for the
    row below to press: the first row's presses decide all others, and all 2^C of them are tried.
    """
    before: Any = 0
    rows = [np.array(list(product((0, 1), repeat=wrong.shape[1])))]  # [2^C, C] each
    for lights in wrong:
        beside = np.pad(rows[-1], ((0, 0), (1, 1)))
        left = lights ^ rows[-1] ^ beside[:, :-2] ^ beside[:, 2:] ^ before
        before = rows[-1]
        rows.append(left)
    *presses, left = rows
    solving = np.stack(presses, axis=1)[~left.any(axis=1)]
    return solving[solving.sum(axis=(1, 2)).argmin()]


def toward(seen: Seen, turn: Turn) -> Plan:
    """As its oracle does until a thing is where it should be, and the hand above it.

    A hand that does not get there is stuck: it opens and goes up, turning, to begin anew.
    """
    module = importlib.import_module(f"ogbench.manipspace.oracles.markov.{turn.kind}_markov")
    kind = getattr(module, f"{turn.kind.title()}MarkovOracle")
    oracle = kind(env=seen["env"], min_norm=PACE, **turn.how)
    oracle.reset(None, seen)
    aim = turn.aim(seen)
    for _ in range(PATIENCE):
        told = {f"privileged/{key}": value for key, value in aim.told.items()}
        action = oracle.select_action(None, {**seen, **told})
        opening = action[4] < 0 and seen["proprio/gripper_opening"] > OPEN
        if turn.kind == "cube" and aim.reached and opening:
            action[:4] = 0  # a hand that leaves before it is open takes the cube along
        seen = yield action
        aim = turn.aim(seen)
        above = seen["proprio/effector_pos"][2] - aim.at[2] > CLEAR
        if oracle.done or (aim.reached and above):
            return seen
    away = np.array([0, 0, 1, np.random.uniform(-1, 1), -1])  # noqa: NPY002 - as the oracles
    for _ in range(RETREAT):
        seen = yield away
    return seen


NEXT = {"cube": next_cube, "scene": next_in_scene, "puzzle": next_press}
NAMES = f"OGBench's {', '.join(f'{family}-*' for family in NEXT)}"


def script_of(env_id: str) -> Script | None:
    """The script of one of OGBench's manipulation tasks; None of others."""
    choose = NEXT.get(env_id.partition("-")[0])
    if choose is None:
        return None

    def plan(seen: Seen) -> Plan:
        while True:
            turn = choose(seen)
            if turn is None:
                seen = yield np.zeros(5)  # all is done
            else:
                seen = yield from toward(seen, turn)

    return Script(plan, (1, 1, 1, 1, 0), sees)
