"""ManiSkill's HDF5: traj_i/{obs, actions, rewards, terminated, success}, env_info in a JSON file.

Layout as in haosulab/ManiSkill, docs/source/user_guide/datasets/demos.md. Trajectories of L steps
hold L + 1 observations, so every successor is known.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .aloha import numbers_only, tables
from .columns import beside, chosen, end_to_end, held, left_out
from .flat import Flat
from .recording import Fault, Reading, Refused, json_of, refuse

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
    return any(re.fullmatch(r"traj_\d+", name) for name in map(str, file))


def env_info(path: Path) -> dict[str, Any]:
    """The JSON file of the same name beside a file, {} where there is none. Raises Refused."""
    told = json_of(path.with_suffix(".json"), "fetch")
    return told if isinstance(told, dict) else {}


class ManiSkill:
    """The trajectories of a file, in the order of their numbers."""

    def __init__(self, path: str, file: h5py.File, reading: Reading) -> None:
        self.path, self.reading = path, reading
        names = [name for name in map(str, file) if re.fullmatch(r"traj_\d+", name)]
        self.names = sorted(names, key=lambda name: int(name.rpartition("_")[2]))
        self.trajectories: list[Any] = [file[name] for name in self.names]
        first = self.trajectories[0]
        self.usable, self.others = self.parts(first)
        if not self.usable and not self.others:
            text = "a ManiSkill file without observations (obs_mode none)"
            raise refuse(path, f"{text}; {REPLAY.replace('FILE', path)}", f"{self.names[0]}/obs")
        asked, usual = reading.obs_keys, list(self.usable)
        self.keys = chosen(path, asked, usual, self.usable, self.others)
        faults = [f for i in range(len(self.names)) for f in self.wrong(i)]
        if faults:
            raise Refused(path, faults)
        self.lengths = np.array([len(one["actions"]) for one in self.trajectories])

    @staticmethod
    def parts(trajectory: h5py.Group) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
        """Observations of a trajectory that can be read, and why others cannot be."""
        held = trajectory.get("obs")
        if isinstance(held, h5py.Group):
            return tables(held, CAMERAS)
        if isinstance(held, h5py.Dataset) and held.ndim == 2 and numbers_only(held):
            return {ARRAY: held}, {}
        return {}, {}

    def wrong(self, index: int) -> list[Fault]:
        """What keeps a trajectory from being read."""
        name, one = self.names[index], self.trajectories[index]
        actions, like = one.get("actions"), self.trajectories[0].get("actions")
        if not isinstance(actions, h5py.Dataset) or actions.ndim != 2 or not len(actions):
            what = "has no actions [steps, dims]; an action of several parts cannot be read"
            return [Fault("error", "actions", index, None, None, f"{name} {what}")]
        faults, found = [], self.parts(one)[0]
        if actions.shape[1:] != like.shape[1:]:
            text = f"{name} has rows of shape {actions.shape[1:]}, {self.names[0]}"
            faults.append(("actions", f"{text} {like.shape[1:]}"))
        for key in self.keys:
            table = found.get(key)
            if table is None:
                faults.append((f"obs/{key}", f"missing in {name}; leave that trajectory out"))
            elif len(table) != len(actions) + 1:
                text = f"{name} has {len(table)} observations and {len(actions)} actions"
                faults.append((f"obs/{key}", f"{text}, expected one more"))
            elif table.shape[1:] != self.usable[key].shape[1:]:
                text = f"{name} has rows of shape {table.shape[1:]}, {self.names[0]}"
                faults.append((f"obs/{key}", f"{text} {self.usable[key].shape[1:]}"))
        return [Fault("error", key, index, None, None, text) for key, text in faults]

    def flat(self) -> Flat:
        """The columns under the names that `Flat` reads."""
        steps, ends = int(self.lengths.sum()), np.cumsum(self.lengths)
        width = sum(int(np.prod(self.usable[k].shape[1:], dtype=int)) for k in self.keys)
        actions = self.trajectories[0]["actions"].shape[1]
        columns = {
            "observations": self.table(width, lambda one: self.obs(one)[:-1]),
            "next_observations": self.table(width, lambda one: self.obs(one)[1:]),
            "actions": self.table(actions, lambda one: one["actions"][()]),
            "terminals": held(self.terminals(ends, steps)),
            "episode_ends": held(ends.astype(np.int64)),
        }
        if all("rewards" in one for one in self.trajectories):
            rewards = [one["rewards"][()] for one in self.trajectories]
            columns["rewards"] = held(np.concatenate(rewards))
        return Flat(self.path, "ManiSkill", columns, self.told(), self.reading)

    def table(self, width: int, read: Callable[[Any], NDArray]) -> Any:
        """A table [S, D] of all trajectories."""
        return end_to_end((int(self.lengths.sum()), width), self.trajectories, read)

    def obs(self, trajectory: h5py.Group) -> NDArray:
        """Observations [L + 1, D] of a trajectory."""
        found = self.parts(trajectory)[0]
        return beside([found[key][()] for key in self.keys])

    def terminals(self, ends: NDArray, steps: int) -> NDArray:
        """Steps [S] that ended their trajectory by the task."""
        result, early = np.zeros(steps, bool), 0
        for end, one in zip(ends, self.trajectories, strict=True):
            key = next((key for key in ("terminated", "success") if key in one), None)
            flags = np.zeros(1, bool) if key is None else np.asarray(one[key][()], bool).ravel()
            result[end - 1] = flags[-1]
            early += bool(flags[:-1].any())
        if early:
            text = (
                "data=%s: %d trajectories go on after a step that is terminated; their last counts"
            )
            log.info(text, self.path, early)
        return result

    def told(self) -> dict[str, Any]:
        """What the two files tell of all trajectories."""
        told = env_info(Path(self.path))
        info, episodes = told.get("env_info") or {}, told.get("episodes") or []
        modes = {str(one["control_mode"]) for one in episodes if one.get("control_mode")}
        kwargs = info.get("env_kwargs") or {}
        if not modes and kwargs.get("control_mode"):
            modes = {str(kwargs["control_mode"])}
        if len(modes) > 1:
            text = f"its trajectories have several control modes ({', '.join(sorted(modes))}), so"
            raise refuse(self.path, f"{text} actions have several meanings; split the file")
        beyond = {str(k) for k in self.trajectories[0]} & NO_STATE
        return {
            "env_id": info.get("env_id"),
            "obs_keys": self.keys,
            "left_out": [*left_out(self.keys, self.usable, self.others), *sorted(beyond)],
            "demos": self.names,
            **({"control_mode": next(iter(modes))} if modes else {}),
        }
