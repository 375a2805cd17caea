"""What OGBench's scripts do next, and that a seed decides all of it."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rheo.envs.manipulation import oracles
from rheo.scripts.cli import main

BOUNDS = SimpleNamespace(_target_sampling_bounds=np.array([[0.3, -0.3], [0.55, 0.3]]))
HAND = np.array([0.4, 0.0, 0.2])
A, B, C = [0.4, 0.1, 0.02], [0.4, -0.1, 0.02], [0.5, 0.0, 0.02]


def pressed(presses: NDArray) -> NDArray:
    """What presses [..., R, C] change."""
    padded = np.pad(presses, [(0, 0)] * (presses.ndim - 2) + [(1, 1), (1, 1)])
    middle, low, high = slice(1, -1), slice(None, -2), slice(2, None)
    around = ((middle, middle), (low, middle), (high, middle), (middle, low), (middle, high))
    return np.bitwise_xor.reduce([padded[..., y, x] for y, x in around])


@pytest.mark.parametrize("size", [(3, 3), (4, 4)])
def test_no_other_presses_solve_a_puzzle_with_fewer(size: tuple[int, int]) -> None:
    every = np.array(list(product((0, 1), repeat=size[0] * size[1]))).reshape(-1, *size)
    boards, counts = pressed(every), every.sum(axis=(1, 2))
    rng = np.random.default_rng(0)
    for wrong in boards[rng.integers(len(boards), size=10)]:
        found = oracles.fewest(wrong)
        np.testing.assert_array_equal(pressed(found), wrong)
        assert found.sum() == counts[(boards == wrong).all(axis=(1, 2))].min()


def test_large_puzzles_are_solved() -> None:
    rng = np.random.default_rng(0)
    for size in ((4, 5), (4, 6)):
        wrong = pressed(rng.integers(2, size=size))
        np.testing.assert_array_equal(pressed(oracles.fewest(wrong)), wrong)


def up(place: list[float], height: int) -> list[float]:
    """A place so many cubes higher."""
    return [*place[:2], place[2] + height * oracles.WIDTH]


def moved(at: list[Any], goals: list[Any]) -> tuple[int, NDArray] | None:
    """Which cube is moved, and where to."""
    seen = {"cubes": np.array(at), "cube_goals": np.array(goals), "proprio/effector_pos": HAND}
    turn = oracles.next_cube({**seen, "env": SimpleNamespace(unwrapped=BOUNDS)})
    if turn is None:
        return None
    told = turn.aim(seen).told
    return told["target_block"], told["target_block_pos"]


@pytest.mark.parametrize(
    ("at", "goals", "next_one"),
    [
        ([A, B], [A, C], (1, C)),
        ([A, C], [C, B], (1, B)),  # its place has to be left first
        ([A, B], [up(C, 1), C], (1, C)),  # stacks grow from below
        ([A, C], [up(C, 1), C], (0, up(C, 1))),
        ([A, up(A, 1), up(A, 2)], [C, B, [0.5, 0.2, 0.02]], (2, [0.5, 0.2, 0.02])),
        ([A, B], [A, B], None),
    ],
)
def test_a_cube_is_moved_when_it_is_free_and_its_place_is_ready(
    at: list[Any], goals: list[Any], next_one: tuple[int, list[float]] | None
) -> None:
    found = moved(at, goals)
    if next_one is None or found is None:
        assert found is next_one
        return
    assert found[0] == next_one[0]
    np.testing.assert_allclose(found[1], next_one[1])


@pytest.mark.parametrize(
    ("at", "goals", "which"),
    [
        ([A, B], [B, A], (0, 1)),
        ([A, B, C], [B, C, A], (0, 1, 2)),
        ([A, up(A, 1), up(A, 2)], [up(A, 2), up(A, 1), A], (2,)),  # which covers the others
        ([A, up(A, 1)], [B, up(A, 1)], (1,)),  # though it is where it belongs
    ],
)
def test_a_cube_in_anothers_way_is_put_where_nothing_is(
    at: list[Any], goals: list[Any], which: tuple[int, ...]
) -> None:
    found = moved(at, goals)
    assert found is not None and found[0] in which
    held = np.array([*np.delete(at, found[0], axis=0), *goals])
    assert oracles.far(held[:, :2], found[1][:2]).min() >= oracles.APART
    assert found[1][2] == oracles.WIDTH / 2


CLOSED, LOCKED = 0.0, 0
IN_DRAWER = np.array([0.33, -0.356, 0.066])


def scene(**changed: Any) -> tuple[str, dict[str, Any]] | None:
    """The next oracle and what it is told, where all is as it should be but for what `changed`."""
    seen = {
        **{"privileged/drawer_pos": np.zeros(1), "privileged/window_pos": np.zeros(1)},
        **{"privileged/drawer_handle_pos": np.zeros(3), "drawer_axis": np.array([0.0, -1, 0])},
        **{"privileged/window_handle_pos": np.zeros(3), "window_axis": np.array([1.0, 0, 0])},
        **{"drawer_goal": CLOSED, "window_goal": CLOSED, "tops": np.zeros((2, 3))},
        **{"button_states": np.zeros(2, int), "button_goals": np.zeros(2, int)},
        **{"cubes": np.array([C]), "cube_goals": np.array([C])},
    }
    seen |= changed
    turn = oracles.next_in_scene(seen)
    return None if turn is None else (turn.kind, turn.aim(seen).told)


def test_in_a_scene_what_is_locked_is_unlocked_and_what_is_done_is_left() -> None:
    assert scene() is None
    for what, lock in oracles.LOCKS.items():
        locked, open_ = scene(**{f"{what}_goal": 0.1}), np.eye(2, dtype=int)[lock]
        assert locked is not None and locked[0] == "button"
        assert (locked[1]["target_button"], locked[1]["target_button_state"]) == (lock, 1)
        moves = scene(**{f"{what}_goal": 0.1, "button_states": open_})
        assert moves is not None and moves[0] == what
        lock_again = scene(button_states=open_)
        assert lock_again is not None and lock_again[1]["target_button"] == lock
        assert lock_again[1]["target_button_state"] == LOCKED


def test_a_cube_goes_into_the_opened_drawer_which_is_closed_then() -> None:
    opened, unlocked = np.array([oracles.OPENED]), np.array([1, 0])
    there = {"cube_goals": IN_DRAWER[None], "button_states": unlocked}
    first = scene(**there)
    assert first is not None and first[0] == "drawer"
    np.testing.assert_allclose(first[1]["target_drawer_handle_pos"], [0, 0.16, 0])
    there["privileged/drawer_pos"] = opened
    second = scene(**there)
    assert second is not None and second[0] == "cube"
    place = second[1]["target_block_pos"]
    np.testing.assert_allclose(place, IN_DRAWER + [0, 0.16 * oracles.DROP, 0])
    third = scene(**there, cubes=place[None])
    assert third is not None and third[0] == "drawer"
    np.testing.assert_allclose(third[1]["target_drawer_handle_pos"], [0, -0.16, 0])


def hand(**changed: Any) -> dict[str, Any]:
    """A hand that holds a cube at A, and what else OGBench's oracle of cubes reads."""
    bounds = SimpleNamespace(_arm_sampling_bounds=np.array([[0.3, -0.3, 0.2], [0.5, 0.3, 0.3]]))
    return {
        **{"proprio/effector_pos": np.array(A), "proprio/effector_yaw": np.zeros(1)},
        **{"proprio/gripper_opening": np.array([0.5]), "proprio/gripper_contact": np.ones(1)},
        **{"privileged/block_0_pos": np.array(A), "privileged/block_0_yaw": np.zeros(1)},
        **{"cubes": np.array([A]), "env": SimpleNamespace(unwrapped=bounds)},
        **changed,
    }


def test_a_hand_opens_before_it_leaves_a_cube() -> None:
    pytest.importorskip("ogbench")
    there = oracles.cube(0, np.array(A))
    np.testing.assert_array_equal(next(oracles.toward(hand(), there)), [0, 0, 0, 0, -1])
    free = {"proprio/gripper_opening": np.zeros(1), "proprio/gripper_contact": np.zeros(1)}
    action = next(oracles.toward(hand(**free), there))
    assert action[2] > 0 and action[4] == -1


def test_a_turn_is_over_when_the_hand_is_above_what_it_moved() -> None:
    pytest.importorskip("ogbench")
    plan = oracles.toward(hand(), oracles.cube(0, np.array(A)))
    next(plan)
    low, high = (A + np.array([0, 0, oracles.CLEAR + more]) for more in (-0.01, 0.01))
    plan.send(hand(**{"proprio/effector_pos": low}))
    with pytest.raises(StopIteration):
        plan.send(hand(**{"proprio/effector_pos": high}))


def test_a_hand_that_is_stuck_opens_goes_up_and_begins_anew() -> None:
    pytest.importorskip("ogbench")
    seen = hand()
    plan = oracles.toward(seen, oracles.cube(0, np.array(B)))
    actions = [next(plan)]
    with pytest.raises(StopIteration):
        while True:
            actions.append(plan.send(seen))
    assert len(actions) == oracles.PATIENCE + oracles.RETREAT
    assert all(action[4] == 1 for action in actions[: oracles.PATIENCE])
    for action in actions[oracles.PATIENCE :]:
        np.testing.assert_array_equal(action[[0, 1, 2, 4]], [0, 0, 1, -1])


def test_a_seed_gives_the_same_file_whatever_was_drawn_before(tmp_path: Path) -> None:
    pytest.importorskip("ogbench")
    words = ["set=scripted", "env=puzzle-3x3-singletask-task1-v0", "episodes=2", "noise=0.1"]
    for name in ("a.npz", "b.npz"):
        np.random.seed(len(name) + ord(name[0]))  # noqa: NPY002 - which the oracles draw from
        assert main(["collect", *words, f"out={tmp_path / name}"]) == 0
    a, b = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
