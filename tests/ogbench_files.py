"""Small files in the layout of OGBench's sets, stepped as its generators step them."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

LENGTHS = (7, 5, 1, 9)  # rows of the trajectories; of one row there is no step
SOLVED = (2, 3, 6, 10, 14, 19)  # rows in which the task is solved; 6: the last of a trajectory


def record(path: Path, world: str, task: str = "") -> dict[str, Any]:
    """Random trajectories in a world, with rows in which its task is solved, as a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gymnasium.make(f"{world}-singletask{task}-v0", disable_env_checker=True)
        obs, _ = env.reset(seed=0)
        with contextlib.closing(env):
            rows = stepped(env.unwrapped, obs)
            solve(rows, env.unwrapped)
    np.savez_compressed(path, **rows)
    np.savez_compressed(path.with_name(f"{path.stem}-val.npz"), **rows)  # the oracle reads it too
    return rows


def stepped(env: Any, obs: Any) -> dict[str, Any]:
    """The columns of random steps; the next trajectory goes on where one was cut."""
    rng, rows = np.random.default_rng(0), []
    for length in LENGTHS:
        for step in range(length):
            action = rng.uniform(-1, 1, env.action_space.shape)
            after, _, _, _, info = env.step(action)
            states = {key: info[f"prev_{key}"] for key in ("qpos", "qvel")}
            if "button_states" in info:
                states["button_states"] = info["prev_button_states"]
            last = step == length - 1
            rows.append({"observations": obs, "actions": action, "terminals": last, **states})
            obs = after
    types = {"terminals": bool, "button_states": np.int64}
    return {k: np.array([row[k] for row in rows], types.get(k, np.float32)) for k in rows[0]}


def solve(rows: dict[str, Any], env: Any) -> None:
    """Puts what the task is about to its goal in the rows SOLVED; in row 0 a part of it."""
    qpos, goal, some = rows["qpos"], getattr(env, "cur_goal_xy", None), list(SOLVED)
    if goal is not None:
        place = 15 if hasattr(env, "get_agent_ball_xy") else 0
        qpos[some, place : place + 2] = goal
        return
    for cube, target in enumerate(env._data.mocap_pos if hasattr(env, "_num_cubes") else ()):
        at = 14 + 7 * cube
        qpos[some if cube else [0, *some], at : at + 3] = target
    if hasattr(env, "_target_button_states"):
        rows["button_states"][[0, *some]] = env._target_button_states
    if hasattr(env, "_num_buttons") and not hasattr(env, "_target_drawer_pos"):
        rows["button_states"][0, -1] ^= 1
    if hasattr(env, "_target_drawer_pos"):
        qpos[some, -2:] = env._target_drawer_pos, env._target_window_pos
