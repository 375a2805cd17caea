"""ManiSkill's HDF5: traj_i/{obs, actions, rewards, terminated, success}, env_info in a JSON file.

Layout as in haosulab/ManiSkill, docs/source/user_guide/datasets/demos.md. Trajectories of L steps
hold L + 1 observations, so every successor is known.
"""

import logging
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from . import trees
from .aloha import numbers_only, tables
from .columns import beside, chosen, left_out
from .episodes import misfits, upright
from .recording import Fault, Part, Reading, Recording, Sizes, json_of, refuse, stack
from .told import LIST, TABLE, TEXTS, typed, within

log = logging.getLogger("rheo")
ARRAY = "obs"  # the key of observations that are one array
CAMERAS = ("sensor_data", "sensor_param", "image", "pointcloud")
NO_STATE = {"env_states", "env_init_state"}
REPLAY = (
    "replay it with observations: `python -m mani_skill.trajectory.replay_trajectory "
    "--traj-path FILE -o state --save-traj`"
)


def is_maniskill(file: h5py.File) -> bool:
    """Whether the root holds groups traj_0, traj_1, ..."""
    return bool(trajectories(file))


def trajectories(file: h5py.File) -> list[str]:
    """The names of the groups traj_0, traj_1, ... in the order of their numbers."""
    found = [name for name in map(str, file) if re.fullmatch(r"traj_\d{1,9}", name)]
    found = [name for name in found if isinstance(file.get(name), h5py.Group)]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


def env_info(path: Path) -> dict[str, Any]:
    """The JSON file of the same name beside a file, {} where there is none. Raises Refused."""
    return typed(path.with_suffix(".json"), "", json_of(path.with_suffix(".json"), "fetch"), TABLE)


class ManiSkill:
    """The trajectories of a file, in the order of their numbers, as the first of them is made."""

    def __init__(self, path: str, file: h5py.File, reading: Reading) -> None:
        self.path = path
        self.names = trajectories(file)
        first: Any = file[self.names[0]]
        self.usable, self.others = observations(first)
        if not self.usable and not self.others:
            text = "a ManiSkill file without observations (obs_mode none)"
            raise refuse(path, f"{text}; {REPLAY.replace('FILE', path)}", f"{self.names[0]}/obs")
        asked, usual = reading.obs_keys, list(self.usable)
        self.keys = chosen(path, asked, usual, self.usable, self.others)
        self.beyond = sorted({str(key) for key in first} & NO_STATE)
        actions = first.get("actions")
        if not isinstance(actions, h5py.Dataset) or actions.ndim != 2 or not len(actions):
            what = "has no actions [steps, dims]; an action of several parts cannot be read"
            raise refuse(path, f"{self.names[0]} {what}", "actions")
        self.trajectories = [file[name].id for name in self.names]
        self.seen = {key: "obs" if key == ARRAY else f"obs/{key}" for key in self.keys}
        self.widths = {"actions": actions.shape[1]}
        self.widths |= {self.seen[key]: (*self.usable[key].shape[1:], 1)[0] for key in self.keys}
        self.reward = all(trees.member(one, "rewards") for one in self.trajectories)
        self.widths |= {"rewards": 1} if self.reward else {}

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        steps, count = (
            sum(trees.count(one, "actions") for one in self.trajectories),
            len(self.names),
        )
        dims = sum(self.widths[place] for place in self.seen.values()), self.widths["actions"]
        return Sizes(steps, count, count, *dims, self.reward)

    def read(self, storage: str) -> Recording:
        """See Layout. A trajectory is an episode, so time_limit has no part."""
        self.early = 0
        parts = map(self.part, range(len(self.names)))
        recording = stack(self.path, parts, self.sizes, storage, self.about)
        if self.early:
            text = (
                "data=%s: %d trajectories go on after a step that is terminated; their last counts"
            )
            log.info(text, self.path, self.early)
        return recording

    def part(self, index: int) -> Part | list[Fault]:
        """One trajectory, or what keeps it from being read."""
        one = self.trajectories[index]
        told: dict[str, Any] = {key: trees.header(one, key) for key in self.widths}
        found = list(misfits(index, self.names[index], told, self.widths, more="obs"))
        if found:
            return found
        ends = (trees.header(one, key) for key in ("terminated", "success"))
        marks = next((mark for mark in ends if mark is not None), None)
        found = (
            []
            if marks is None
            else list(
                misfits(
                    index,
                    self.names[index],
                    {"actions": told["actions"], "terminated": marks},
                    self.widths | {"terminated": 1},
                    more="obs",
                )
            )
        )
        if found:
            return found
        flags = np.zeros(1, bool) if marks is None else marks.values().ravel() != 0
        held = {key: one.values() for key, one in told.items()}
        self.early += bool(flags[:-1].any())
        obs = beside([held[place] for place in self.seen.values()])
        reward = held["rewards"].reshape(-1) if self.reward else None
        none = np.empty(0, np.int64)
        return Part(obs[:-1], upright(held["actions"]), reward, bool(flags[-1]), obs[-1], none)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the two files tell of all trajectories."""
        file, told = Path(self.path).with_suffix(".json"), env_info(Path(self.path))
        info = within(file, told, "env_info", TABLE) or {}
        episodes = within(file, told, "episodes", LIST) or []
        found = [within(file, one, "control_mode", TEXTS) for one in episodes]
        modes = {mode for mode in found if mode}
        kwargs = within(file, info, "env_kwargs", TABLE) or {}
        if not modes and (mode := within(file, kwargs, "control_mode", TEXTS)):
            modes = {mode}
        if len(modes) > 1:
            text = f"its trajectories have several control modes ({', '.join(sorted(modes))}), so"
            raise refuse(self.path, f"{text} actions have several meanings; split the file")
        about = {
            "format": "ManiSkill",
            "path": self.path,
            "env_id": within(file, info, "env_id", TEXTS),
        }
        about |= {"obs_keys": self.keys, "demos": self.names}
        about |= {"left_out": [*left_out(self.keys, self.usable, self.others), *self.beyond]}
        return about | ({"control_mode": next(iter(modes))} if modes else {})


def observations(trajectory: h5py.Group) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
    """Observations of a trajectory that can be read, and why others cannot be."""
    held = trajectory.get("obs")
    if isinstance(held, h5py.Group):
        return tables(held, CAMERAS)
    if isinstance(held, h5py.Dataset) and held.ndim == 2 and numbers_only(held):
        return {ARRAY: held}, {}
    return {}, {}
