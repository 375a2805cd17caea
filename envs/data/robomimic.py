"""robomimic HDF5: data/demo_i/{obs/*, actions, rewards, dones, next_obs/*}, attrs env_args.

Layout as in ARISE-Initiative/robomimic, docs/datasets/overview.md. Files of ten thousands of short
demonstrations are common, so each array is opened once, and of headers only those of `actions`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..memory import size_text
from ..parts import listed
from ..pixels import SUFFIX, is_image, pack
from . import trees
from .bulk import TEXT
from .catalogue import ROBOSUITE
from .columns import choose
from .containers import hdf5_attributes
from .demos import DONES
from .episodes import LEAVE_OUT, fault, misfits, upright
from .recording import Fault, Part, Reading, Recording, Sizes, differing, refuse, stack
from .successors import believed
from .told import NUMBER, TABLE, TEXTS, within

SAMPLED = 16  # demonstrations, evenly spread, whose headers tell what the others should hold
RAW = (
    "robosuite's raw demonstrations: states and actions, no observations; robomimic makes them: "
    "`python -m robomimic.scripts.conversion.convert_robosuite --dataset FILE`, then "
    "`python -m robomimic.scripts.dataset_states_to_obs --dataset FILE --output_name low_dim.hdf5 "
    "--done_mode 2`"
)


def is_robomimic(file: h5py.File) -> bool:
    """Whether there is a group `data` of groups with actions."""
    data = file.get("data")
    return isinstance(data, h5py.Group) and "observations" not in file


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts demo_2 before demo_10."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]


class Robomimic:
    """Observations side by side: columns [T, D] or [T] of any kind of number, then images.

    Which, and in which order, `columns.choose` says; parts of nested groups are named a/b. Images
    (uint8 [T, H, W, 3]) are read when they are named, and packed (`pixels`), one demonstration
    after the other. A demonstration ended by the task where `dones` is set at its last step and the
    reward there, if any are stored, is positive: robomimic sets dones at the end of failed
    demonstrations too, and `demos.py`, whose files say so, does not.
    `filter` and `held` of the reading name lists of demonstrations in the file's group `mask`.
    """

    def __init__(self, path: str, file: h5py.File, reading: Reading) -> None:
        data = file["data"]
        assert isinstance(data, h5py.Group)
        self.path, self.reading, self.attributes = path, reading, hdf5_attributes(path, data)
        self.data = data.id
        members = ((name, trees.member(self.data, name)) for name in trees.names(self.data))
        every = sorted((name for name, item in members if trees.is_group(item)), key=natural)
        if not every:
            raise refuse(path, "empty: no demonstrations; fetch or write it again", "data")
        self.filters = filter_keys(file)
        self.demos = self.filtered(every)
        self.survey()

    def filtered(self, every: list[str]) -> list[str]:
        """The demonstrations of the filter key and of the one that validates; all without."""
        chosen = [key for key in (self.reading.filter, self.reading.held) if key is not None]
        for key in chosen:
            if key not in self.filters:
                there = f"there are {', '.join(self.filters)}" if self.filters else "it has none"
                raise refuse(self.path, f"no such filter key; {there}", f"mask/{key}")
        if self.reading.filter is None:
            return every
        wanted = {demo for key in chosen for demo in self.filters[key]}
        if not wanted & set(every):
            raise refuse(self.path, "names no demonstration of the file", f"mask/{chosen[0]}")
        return sorted(wanted, key=natural)

    def survey(self) -> None:
        """Keys and widths, as most of some demonstrations have them, and what of it is read."""
        places = np.linspace(0, len(self.demos) - 1, SAMPLED).round().astype(int)
        members = [trees.member(self.data, self.demos[i]) for i in np.unique(places)]
        picked = [demo for demo in members if trees.is_group(demo)]
        seen: dict[str, Counter[tuple[Any, ...]]] = {}
        for key, item in [leaf for demo in picked for leaf in trees.leaves(demo)]:
            tail = item.shape[1:] if item.shape else None
            seen.setdefault(key, Counter())[tail, item.dtype] += 1
        held = {key: columns(tables, len(picked)) for key, tables in sorted(seen.items())}
        obs = {key[4:]: what for key, what in held.items() if key.startswith("obs/")}
        if not obs:
            text = f"no observations; its demonstrations hold {', '.join(held) or 'nothing'}"
            raise refuse(self.path, RAW if {"states", "actions"} <= set(held) else text, "obs")
        shown = {key: image_of(seen[f"obs/{key}"]) for key in obs}
        images = {key: size for key, size in shown.items() if size is not None}
        widths = {key: what for key, what in obs.items() if isinstance(what, int)}
        texts = {key: what for key, what in obs.items() if isinstance(what, str)}
        other = {key: what for key, what in texts.items() if key not in images}
        told = self.attributes.get("obs_keys") or ()  # as `demos.py` writes
        name = within(self.path, self.env_args(), "env_name", TEXTS)
        self.keys = choose(self.path, widths, images, other, self.reading, name, told)
        self.images = {key: images[key] for key in self.keys if key in images}
        self.columns = [key for key in self.keys if key not in images]
        widths |= {key: height * width for key, (height, width) in images.items()}
        action = held.get("actions", "missing")
        if not isinstance(action, int):
            raise refuse(self.path, f"{action}; numbers [steps, dims] are needed", "actions")
        self.widths = {"actions": action} | {f"obs/{key}": widths[key] for key in self.columns}
        self.reward = isinstance(held.get("rewards"), int)
        self.widths |= {"rewards": 1} if self.reward else {}
        self.followed = f"next_obs/{self.keys[0]}" in held
        optional = {f"next_obs/{key}": widths[key] for key in self.columns} | {"dones": 1}
        self.optional = {key: width for key, width in optional.items() if key in held}
        self.obs_widths = [widths[key] for key in self.keys]
        unread = {key: texts.get(key, "") for key in obs if key not in self.keys}
        self.left_out = {key: unread[key] for key in (*widths, *other) if key in unread}
        used = {"actions", "dones"} | ({"rewards"} if self.reward else set())
        self.unread = [k for k in held if k not in used and not k.startswith(("obs/", "next_obs/"))]
        self.known = levels(obs)

    @cached_property
    def steps(self) -> int:
        """Actions of all demonstrations, as their headers say."""
        return sum(trees.count(self.data, f"{name}/actions") for name in self.demos)

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        known = len(self.demos) * self.followed
        dims = sum(self.obs_widths), self.widths["actions"]
        return Sizes(self.steps, len(self.demos), known, *dims, self.reward)

    def read(self, storage: str) -> Recording:
        """See Layout. A demonstration is an episode, so time_limit has no part."""
        parts = map(self.part, range(len(self.demos)))
        recording = stack(self.path, parts, self.sizes, storage, self.about)
        about = recording.about | {"left_out": listed(self.left_out)}
        return believed(recording._replace(about=about), np.empty(0, np.int64), "next_obs")

    def part(self, index: int) -> Part | list[Fault]:
        """One demonstration, or what keeps it from being read."""
        name = self.demos[index]
        demo = trees.member(self.data, name)
        if not trees.is_group(demo):
            return [fault("mask", index, f"names {name}, which is not there; {LEAVE_OUT}")]
        self.notice(demo, name)
        told: dict[str, Any] = {key: trees.header(demo, key) for key in self.widths}
        more = {key: trees.header(demo, key) for key in self.optional}
        told |= {key: item for key, item in more.items() if item is not None}
        found = list(misfits(index, name, told, self.widths | self.optional, more=""))
        pictures = {key: trees.header(demo, f"obs/{key}") for key in self.images}
        found = found or [*self.blind(index, name, "obs", pictures, len(told["actions"]))]
        if found:
            return found
        held: dict[str, Any] = {key: item.values() for key, item in told.items()}
        shown = {key: item.values() for key, item in pictures.items() if item is not None}
        last = {key: trees.tail(demo, f"next_obs/{key}") for key in self.images}
        there = {key: image for key, image in last.items() if image is not None}
        found = [*self.blind(index, name, "next_obs", there, 1)]
        if found:
            return found
        obs, after = self.beside(held, "obs/"), self.beside(held, "next_obs/")
        action, reward, done = (held.get(key) for key in ("actions", "rewards", "dones"))
        assert obs is not None and action is not None
        successor, jumps = None, np.empty(0, np.int64)
        if after is not None:
            jumps = differing(after[:-1], obs[1:])
            if len(there) == len(last):
                successor = np.concatenate([after[-1:], *map(pack, there.values())], 1)[0]
        if shown:
            obs = np.concatenate(
                [obs, *(pack(image) for image in shown.values() if image is not None)], 1
            )
        ended = done is not None and bool(done.flat[-1])
        if not self.ours:
            ended = ended and (reward is None or bool(reward.flat[-1] > 0))
        reward = None if reward is None else reward.reshape(-1)
        return Part(obs, upright(action), reward, ended, successor, jumps)

    def blind(
        self, index: int, name: str, group: str, shown: Mapping[str, Any], steps: int
    ) -> Iterator[Fault]:
        """Faults of one demonstration's images: missing, or of another size, type or number."""
        for key, table in shown.items():
            size = (steps, *self.images[key], 3)
            if table is None:
                yield fault(f"{group}/{key}", index, f"missing in {name}; {LEAVE_OUT}")
            elif table.shape != size or table.dtype != np.uint8:
                text = f"{name} has {table.shape} {table.dtype}, expected images {size} uint8"
                yield fault(f"{group}/{key}", index, f"{text}; {LEAVE_OUT}")

    def beside(self, held: Mapping[str, NDArray | None], group: str) -> NDArray | None:
        """The columns that are read [T, Ds]; None where one is missing."""
        tables = [held.get(group + key) for key in self.columns]
        whole = [upright(table) for table in tables if table is not None]
        if len(whole) < len(tables):
            return None
        if not whole:
            return np.empty((len(held["actions"]), 0), np.float32)  # type: ignore[arg-type]
        return whole[0] if len(whole) == 1 else np.concatenate(whole, axis=1)

    def notice(self, demo: Any, name: str) -> None:
        """Adds to what is left out the observations that no demonstration of the survey has."""
        for group, known in self.known.items():
            inside = trees.member(demo, f"obs/{group}".rstrip("/"))
            for new in set(trees.names(inside)) - known if trees.is_group(inside) else ():
                self.left_out.setdefault(
                    f"{group}/{new}".lstrip("/"), f"(not in all, {name} has it)"
                )

    @property
    def ours(self) -> bool:
        """Whether `demos.py` wrote it."""
        return self.attributes.get("dones_are") == DONES

    def env_args(self) -> dict[str, Any]:
        """What robomimic builds the environment from."""
        return self.attributes.get("env_args") or {}

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the file says of itself."""
        args = self.env_args()
        kwargs = within(self.path, args, "env_kwargs", TABLE) or {}
        rate = within(self.path, kwargs, "control_freq", NUMBER)
        name = within(self.path, args, "env_name", TEXTS)
        env_id = f"robosuite/{name}-v0" if name in ROBOSUITE else name
        about = {"format": "robomimic", "path": self.path, "env_id": env_id}
        about |= {"obs_keys": self.keys, "obs_widths": self.obs_widths}
        images = {key: [*size] for key, size in self.images.items()}
        about |= {"obs_images": images} if images else {}
        about |= {"demos": self.demos, "left_out": listed(self.left_out), "unread": self.unread}
        about |= {"dt": 1 / rate} if rate else {}
        about |= {"env_args": args} if args else {}
        if name in ROBOSUITE:
            about |= {"env_options": self.env_options(args)}
        elif self.ours:
            about |= {"env_options": self.as_read(kwargs)}
        units = ("action_low", "action_high", "action_scale")  # attributes that a user may add
        about |= {key: self.attributes[key] for key in units if key in self.attributes}
        return about | (self.told_filters() if self.filters else {})

    def env_options(self, args: dict[str, Any]) -> dict[str, Any]:
        """What makes robosuite's environment observe what is read here."""
        options: dict[str, Any] = {"env_args": args}
        if self.reading.obs_keys is not None or self.images:
            options["obs_keys"] = self.keys
        sizes = {tuple(size) for size in self.images.values()}
        return options | ({"size": list(*sizes)} if len(sizes) == 1 else {})

    def as_read(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of an environment that makes it observe what is read here, where keys choose."""
        if self.reading.obs_keys is None:
            return options
        seen = [key.removesuffix(SUFFIX) for key in self.images]
        drawn = {"cameras": seen, "size": options.get("size")} if seen else {}
        kept = {key: options[key] for key in options if key not in ("cameras", "size")}
        return {**kept, **drawn, "obs_keys": self.keys}

    def told_filters(self) -> dict[str, Any]:
        """The file's filter keys, and which of its demonstrations are read."""
        read = f"{self.reading.filter} is" if self.reading.filter else "all are"
        held = f", {self.reading.held} validates" if self.reading.held else ""
        return {"filters": self.filters, "filtered": f"{read} read{held}"}


def filter_keys(file: h5py.File) -> dict[str, list[str]]:
    """Lists of demonstrations by their name in the file's group `mask`."""
    mask = file.get("mask")
    tables = {key: mask[key] for key in map(str, mask)} if isinstance(mask, h5py.Group) else {}
    found = {}
    for key, table in tables.items():
        if isinstance(table, h5py.Dataset) and table.ndim == 1 and table.dtype.kind in "SUO":
            if table.nbytes > TEXT:
                raise refuse(file.filename, f"names of {size_text(table.nbytes)}", f"mask/{key}")
            names = (
                one.decode(errors="replace") if isinstance(one, bytes) else str(one)
                for one in table[()]
            )
            found[key] = list(names)
    return found


def columns(tables: Counter[tuple[Any, ...]], demos: int) -> int | str:
    """Columns of an array as most of its demonstrations have it, or why they cannot be read."""
    tail, dtype = tables.most_common(1)[0][0]
    if tail is None or len(tail) > 1 or 0 in tail or dtype.kind not in trees.NUMBERS:
        kind = "text" if dtype.kind in "SUO" else dtype
        return f"{'a single one' if tail is None else tail or ''} {kind}".strip()
    rare = 2 * tables.total() < demos
    return f"(in {tables.total()} of {demos} demonstrations)" if rare else (*tail, 1)[0]


def image_of(tables: Counter[tuple[Any, ...]]) -> tuple[int, int] | None:
    """Height and width of an array of images, as most of its demonstrations have it."""
    tail, dtype = tables.most_common(1)[0][0]
    return tuple(map(int, tail[:2])) if is_image(tail, dtype) else None  # type: ignore[return-value]


def levels(paths: Iterable[str]) -> dict[str, set[str]]:
    """The names in every group of a tree: "" -> {"a"}, "a" -> {"b"} for a/b."""
    found: dict[str, set[str]] = {}
    for path in paths:
        names = path.split("/")
        for depth, name in enumerate(names):
            found.setdefault("/".join(names[:depth]), set()).add(name)
    return found
