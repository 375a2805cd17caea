"""Minari data sets (`minari:mujoco/hopper/medium-v0`) from the package's local store."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces.utils import flatdim

from ..dicts import image, leaves, numbers, size, table, value
from ..parts import listed
from .bulk import on_disk, refuse_bomb
from .columns import choose, package
from .episodes import LEAVE_OUT, fault, misfits, upright
from .recording import Fault, Part, Reading, Recording, Sizes, json_of, one_line, refuse, stack
from .vetting import vet

# What damaged or foreign stores make the package raise; its own errors have no common base.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AssertionError, ImportError, OverflowError)


class Minari:
    """Episodes of L steps with L + 1 observations, so every successor is known.

    Of dictionary observations the parts that `parts.choose` names are put side by side, as
    gymnasium's FlattenObservation would; parts of inner dictionaries are named a/b. Its bounds are
    those that actions are recorded in.
    """

    def __init__(self, path: str, reading: Reading) -> None:
        self.path, self.id = path, path.partition(":")[2]
        minari = package(path, "minari", "a data set of Minari's store")
        folder = Path(package(path, "minari.storage", "").get_dataset_path(self.id)) / "data"
        look(path, folder, reading)
        try:
            self.data = minari.load_dataset(self.id, download=False)
            self.total, self.steps = int(self.data.total_episodes), int(self.data.total_steps)
        except FileNotFoundError as error:
            text = f"not in Minari's local store; `minari download {self.id}`"
            raise refuse(path, text) from error
        except UNREADABLE as error:
            text = f"Minari cannot open it ({one_line(error)})"
            raise refuse(path, f"{text}; `minari download {self.id}` again") from error
        if self.total < 1 or self.steps < 1:
            raise refuse(path, f"empty: no episodes; `minari download {self.id}` again")
        box = self.data.spec.action_space
        if getattr(box, "shape", None) is None or len(box.shape) != 1 or not hasattr(box, "low"):
            raise refuse(path, f"a Box of actions [Da] is needed, it has {box}", "actions")
        self.low, self.high = box.low.astype(np.float64), box.high.astype(np.float64)
        self.spaces, self.left_out = self.choose(reading)
        self.seen = {key: f"observations/{key}".rstrip("/") for key in self.spaces}
        self.widths = {"actions": len(self.low), "rewards": 1, "terminations": 1}
        self.widths |= {
            self.seen[key]: flatdim(part) if image(part) else numbers(part) or 0
            for key, part in self.spaces.items()
        }

    def choose(self, reading: Reading) -> tuple[dict[str, Any], list[str]]:
        """The spaces of what is read, in order, and what is left out.

        A name is "" where observations are plain arrays.
        """
        space = self.data.spec.observation_space
        if not hasattr(space, "spaces"):
            if reading.obs_keys is not None:
                raise refuse(self.path, "its observations have no keys; leave it out", "obs_keys")
            if numbers(space) is None:
                raise refuse(self.path, f"{space}, expected numbers [dims]", "observations")
            return {"": space}, []
        if not isinstance(space.spaces, dict):
            raise refuse(self.path, f"{space}, expected a Box or a Dict", "observations")
        held = self.recorded()
        images = {name: shown for name, part in held.items() if (shown := image(part))}
        other = {name: str(part) for name, part in held.items() if not numbers(part)}
        widths = {name: flatdim(part) for name, part in held.items() if name not in other}
        strange = {name: what for name, what in other.items() if name not in images}
        keys = choose(self.path, widths, images, strange, reading, self.env_id())
        unread = {name: what for name, what in other.items() if name not in keys}
        unread = {name: "" for name in widths if name not in keys} | unread
        return {key: held[key] for key in keys}, listed(unread)

    def recorded(self) -> dict[str, Any]:
        """The parts of dictionary observations in the order of the environment they come from.

        Minari sorts the space that it gives; its metadata keep the order.
        """
        held = dict(leaves(self.data.spec.observation_space))
        file = Path(self.data.storage.data_path) / "metadata.json"
        told = json_of(file, "download").get("observation_space")
        order = list(paths(json.loads(told))) if told else []
        return {name: held[name] for name in (*order, *held) if name in held}

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        obs_dim = sum(map(size, self.spaces.values()))
        return Sizes(self.steps, self.total, self.total, obs_dim, len(self.low), True)

    def read(self, storage: str) -> Recording:
        """See Layout. Episodes are kept apart, so time_limit has no part."""
        parts = (self.part(index, episode) for index, episode in self.episodes())
        return stack(self.path, parts, self.sizes, storage, self.about)

    def episodes(self) -> Iterator[tuple[int, Any]]:
        """The episodes by number; of one that the package cannot read, its error."""
        index = 0
        while index < self.total:
            try:
                for episode in self.data.iterate_episodes(range(index, self.total)):
                    yield index, episode
                    index += 1
            except UNREADABLE as error:
                yield index, error
                index += 1

    def part(self, index: int, episode: Any) -> Part | list[Fault]:
        """One episode, or what keeps it from being read."""
        name = f"episode {index}"
        if isinstance(episode, Exception):
            text = f"Minari cannot read {name} ({one_line(episode)}); {LEAVE_OUT}"
            return [fault("observations", index, text)]
        held = {"actions": episode.actions, "rewards": episode.rewards}
        held |= {"terminations": episode.terminations}
        held |= {place: value(episode.observations, key) for key, place in self.seen.items()}
        flat = {key: flattened(table) for key, table in held.items()}
        found = list(misfits(index, name, flat, self.widths, more="observations"))
        if found:
            return found
        try:
            tables = [table(part, held[self.seen[key]]) for key, part in self.spaces.items()]
        except ValueError as error:
            return [fault("observations", index, f"{one_line(error)}; {LEAVE_OUT}")]
        obs = np.concatenate(tables, axis=1)
        ended = bool(episode.terminations.flat[-1])
        action = upright(episode.actions)
        reward = episode.rewards.reshape(-1)
        return Part(obs[:-1], action, reward, ended, obs[-1], np.empty(0, np.int64))

    def env_id(self) -> str | None:
        """The environment that it was recorded in."""
        return getattr(getattr(self.data.spec, "env_spec", None), "id", None)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the data set says of itself."""
        about = {"format": "minari", "path": self.path, "env_id": self.env_id()}
        if np.isfinite(self.low).all() and np.isfinite(self.high).all():
            about |= {"action_low": self.low.tolist(), "action_high": self.high.tolist()}
        if "" in self.spaces:
            return about
        about |= {"obs_keys": list(self.spaces), "left_out": self.left_out}
        images = {name: [*shown] for name, part in self.spaces.items() if (shown := image(part))}
        about |= {"obs_images": images} if images else {}
        return about | {"obs_widths": [size(part) for part in self.spaces.values()]}


def look(path: str, folder: Path, reading: Reading) -> None:
    """Raises Refused for a data set that must not reach the package.

    Where its metadata do not tell the spaces, the package would make the environment that they
    describe, of any class with any arguments: whoever wrote them runs code.
    """
    told = json_of(folder / "metadata.json", "download")
    lacking = {"observation_space", "action_space"} - set(told if isinstance(told, dict) else ())
    if (folder / "metadata.json").is_file() and lacking:
        text = f"its metadata do not tell its {' and '.join(sorted(lacking))}, and no environment "
        raise refuse(path, f"{text}is made to ask it; download it again", "metadata.json")
    if folder.is_dir():
        files = [file for file in sorted(folder.rglob("*")) if file.suffix in (".hdf5", ".h5")]
        sizes = {file: vet(file) for file in files}
        for file in (file for file, size in sizes.items() if size is None):
            raise refuse(path, f"{file.name} is no readable HDF5 file; download it again")
        needed = sum(size for size in sizes.values() if size is not None)
        refuse_bomb(path, needed, on_disk(folder), reading.big)


def flattened(values: Any) -> Any:
    """Images [L, H, W, 3] as rows of their numbers, other arrays as they are, None for no array."""
    if not isinstance(values, np.ndarray):
        return None
    return values.reshape(len(values), -1) if getattr(values, "ndim", 0) == 4 else values


def paths(node: Mapping[str, Any], under: str = "") -> Iterator[str]:
    """Names of the parts of a space as Minari writes it."""
    for name, part in node.get("subspaces", {}).items():
        inner = f"{under}{name}"
        yield from paths(part, f"{inner}/") if part.get("type") == "Dict" else [inner]
