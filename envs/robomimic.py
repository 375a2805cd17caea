"""robomimic HDF5: data/demo_i/{obs/*, actions, rewards, dones, next_obs/*}, attrs env_args.

Layout as in ARISE-Initiative/robomimic, docs/datasets/overview.md.
"""

import re
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from .containers import hdf5_attributes
from .record import Fault, Part, Reading, Recording, Refused, Sizes, differing, refuse, stack
from .successors import believed

ARM = ("eef_pos", "eef_quat", "gripper_qpos")
LOW_DIM = [*(f"robot0_{name}" for name in ARM), "object"]
SECOND_ARM = [f"robot1_{name}" for name in ARM]


def is_robomimic(file: h5py.File) -> bool:
    """Whether there is a group `data` of groups with actions."""
    data = file.get("data")
    return isinstance(data, h5py.Group) and "observations" not in file


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts demo_2 before demo_10."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]


class Robomimic:
    """Low-dimensional observations side by side, in the order of `obs_keys`.

    Without obs_keys these are the arm, the gripper and `object` (of both arms where there are
    two), or else every 2-D float key in sorted order. A demonstration ended by the task where
    `dones` is set at its last step and the reward there, if any are stored, is positive: robomimic
    sets dones at the end of failed demonstrations too.
    """

    def __init__(self, path: str, file: h5py.File, reading: Reading) -> None:
        data = file["data"]
        assert isinstance(data, h5py.Group)
        self.path, self.attributes = path, hdf5_attributes(data)
        groups = {name: data.get(name) for name in sorted(map(str, data), key=natural)}
        self.demos = {k: g for k, g in groups.items() if isinstance(g, h5py.Group)}
        if not self.demos:
            raise refuse(path, "empty: no demonstrations; fetch or write it again", "data")
        first = next(iter(self.demos.values()))
        held = self.tables(first)
        self.images = sorted(k for k, table in held.items() if table.ndim >= 4)
        self.keys = self.choose(reading.obs_keys, held)
        faults = [f for i, demo in enumerate(self.demos.values()) for f in self.wrong(i, demo)]
        if faults:
            raise Refused(path, faults)
        self.widths = [held[key].shape[1] for key in self.keys]
        self.action_dim = array(first, "actions").shape[1]
        self.reward = all("rewards" in demo for demo in self.demos.values())

    @staticmethod
    def tables(demo: h5py.Group, group: str = "obs") -> dict[str, h5py.Dataset]:
        """The arrays of a demonstration's observations, or next observations."""
        held = demo.get(group)
        names = map(str, held) if isinstance(held, h5py.Group) else ()
        items = {name: demo.get(f"{group}/{name}") for name in names}
        return {key: item for key, item in items.items() if isinstance(item, h5py.Dataset)}

    def choose(self, obs_keys: list[str] | None, held: dict[str, h5py.Dataset]) -> list[str]:
        """The observation keys that are read. Raises Refused for one that cannot be."""
        usable = sorted(k for k, t in held.items() if t.ndim == 2 and t.dtype.kind == "f")
        if obs_keys is None:
            if not usable:
                text = f"no low-dimensional observations; it holds {', '.join(held) or 'nothing'}"
                raise refuse(self.path, text, "obs")
            arms = [*LOW_DIM[:-1], *SECOND_ARM, LOW_DIM[-1]]
            chosen = [key for key in arms if key in usable]
            return chosen if set(LOW_DIM) <= set(usable) else usable
        for key in obs_keys:
            if key not in usable:
                what = "an image" if key in self.images else "not there"
                text = f"{what}; source.obs_keys can name {', '.join(usable)}"
                raise refuse(self.path, text, f"obs/{key}")
        if not obs_keys:
            raise refuse(self.path, "names no key; leave it out for the usual ones", "obs_keys")
        return obs_keys

    def wrong(self, index: int, demo: h5py.Group) -> Iterator[Fault]:
        """What keeps a demonstration from being read: keys, shapes and lengths."""
        needed = {"actions": demo.get("actions")}
        needed |= {f"obs/{key}": self.tables(demo).get(key) for key in self.keys}
        optional = {k: demo[k] for k in ("rewards", "dones") if k in demo}
        after = self.tables(demo, "next_obs")
        optional |= {f"next_obs/{key}": after[key] for key in self.keys if key in after}
        steps = None
        for key, item in (needed | optional).items():
            wanted = 1 if key in ("rewards", "dones") else 2
            if item is None:
                yield fault(key, index, f"missing in {name_of(demo)}; leave it out or mend it")
                continue
            if not isinstance(item, h5py.Dataset) or item.ndim != wanted:
                shape = getattr(item, "shape", "a group")
                yield fault(key, index, f"{name_of(demo)} has {shape}, expected {wanted} axes")
                continue
            steps = item.shape[0] if steps is None else steps
            if item.shape[0] != steps or not steps:
                text = f"{name_of(demo)} has {item.shape[0]} rows and {steps} actions"
                yield fault(key, index, f"{text}; every step needs one of each")
            like = next(iter(self.demos.values())).get(key.replace("next_obs/", "obs/"))
            width = getattr(like, "shape", ())[1:]
            if wanted == 2 and item.shape[1:] != width:
                text = f"{name_of(demo)} has rows of shape {item.shape[1:]}, the first one"
                yield fault(key, index, f"{text} {width}")

    def following(self, demo: h5py.Group) -> list[h5py.Dataset] | None:
        """next_obs of the keys that are read; None where one is missing."""
        held = self.tables(demo, "next_obs")
        return [held[k] for k in self.keys] if set(self.keys) <= set(held) else None

    def sizes(self) -> Sizes:
        """See Layout."""
        steps = sum(array(demo, "actions").shape[0] for demo in self.demos.values())
        known = sum(self.following(demo) is not None for demo in self.demos.values())
        obs_dim = sum(self.widths)
        return Sizes(steps, len(self.demos), known, obs_dim, self.action_dim, self.reward)

    def read(self, storage: str) -> Recording:
        """See Layout. A demonstration is an episode, so time_limit has no part."""
        parts = map(self.part, self.demos.values())
        recording = stack(self.path, parts, self.sizes(), storage, self.about())
        return believed(recording, np.empty(0, np.int64), "next_obs")

    def part(self, demo: h5py.Group) -> Part:
        """One demonstration."""
        held = self.tables(demo)
        obs = np.concatenate([held[key][()] for key in self.keys], axis=1)
        following = self.following(demo)
        successor, jumps = None, np.empty(0, np.int64)
        if following is not None:
            after = np.concatenate([table[()] for table in following], axis=1)
            successor, jumps = after[-1], differing(after[:-1], obs[1:])
        reward = array(demo, "rewards")[()] if "rewards" in demo else None
        done = "dones" in demo and bool(array(demo, "dones")[-1])
        done = done and (reward is None or bool(reward[-1] > 0))
        return Part(obs, array(demo, "actions")[()], reward, done, successor, jumps)

    def about(self) -> dict[str, Any]:
        """What the file says of itself."""
        args = self.attributes.get("env_args")
        args = args if isinstance(args, dict) else {}
        rate = (args.get("env_kwargs") or {}).get("control_freq")
        about = {"format": "robomimic", "path": self.path, "env_id": args.get("env_name")}
        about |= {"obs_keys": self.keys, "demos": list(self.demos)}
        about |= {"dt": 1 / rate} if rate else {}
        about |= {"env_args": args} if args else {}
        bounds = ("action_low", "action_high")  # attributes that a user may add
        about |= {key: self.attributes[key] for key in bounds if key in self.attributes}
        return about | ({"left_out": self.images} if self.images else {})


def array(demo: h5py.Group, key: str) -> Any:
    """A dataset of a demonstration."""
    return demo[key]


def name_of(demo: h5py.Group) -> str:
    """demo_3"""
    return str(demo.name).rpartition("/")[2]


def fault(key: str, index: int, text: str) -> Fault:
    """An error of one demonstration."""
    return Fault("error", key, index, None, None, text)
