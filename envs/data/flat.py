"""Keys [S, ...] end to end: npz and D4RL's layout, and our own files."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import env_by_name, fits
from .columns import EndToEnd, limit_in, refuse_rows, table, values
from .containers import scalar
from .ends import OTHERS, PER_STEP, Marks, exclusive, named, settled
from .recording import Column, Reading, Recording, Sizes, refuse, remark
from .told import KNOWN, allowed, decoded, some

NAMED = ("observations", "rewards", "costs", "next_observations")
ROWS = (*NAMED, *PER_STEP)  # one a step
PARTS = ("obs_keys", "obs_widths", "obs_images")
SHORT = 10_000  # entries that are read in any case, so that a message can say what is wrong
ENDS = ("episode_ends", "episode_lengths", "episode_starts")
PREFERRED = (("chosen", "rejected"), ("chunks", "returns"))  # what `pairs` reads
HELD = ("format", "version", "env_id", "action_low", "action_high")  # attributes read by name


class Flat:
    """Keys [S, ...] end to end: D4RL's layout, our own, and npz files with the same keys.

    observations [S, Do] and actions [S, Da] are needed. rewards, costs, terminals and timeouts [S],
    next_observations [S, Do], episode_ends [E] and action_low, action_high [Da] are used where
    present; our own files add successor_known [E]. Other names of these, and other columns that
    mark ends, are in `ends.SYNONYMS`. Rewards and flags may also be [S, 1]; scalars of an npz file
    are attributes. A step with terminals set always ends its episode. `time_limit` steps end one
    too, and so does the end of the file.

    others: names of what the file holds besides columns, which is not read.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        columns: dict[str, Column],
        attributes: dict[str, Any],
        reading: Reading,
        others: Sequence[str] = (),
    ) -> None:
        scalars = {} if kind != "npz" else {k: c for k, c in columns.items() if plain(c)}
        known = {key: c for key, c in scalars.items() if key in KNOWN}
        said = {key: decoded(scalar(path, c, key)) for key, c in known.items()} | attributes
        self.path, self.kind, self.attributes = path, kind, allowed(path, said)
        strange = [f"attribute {key}" for key in {**scalars, **attributes} if key not in KNOWN]
        rest = {key: column for key, column in columns.items() if key not in scalars}
        self.columns, self.names, self.twins, unread = named(rest)
        self.unread = [*unread, *others, *strange]
        self.reading = reading
        for key in ("observations", "actions", "next_observations"):
            if key in self.columns:
                table(path, self.columns[key], self.names[key])
            elif key != "next_observations":
                there = some(sorted([*self.names.values(), *self.unread])) or "nothing"
                text = f"no key {key!r}; it holds {there}; store it under that name"
                compared = next((two for two in PREFERRED if {*two} <= {*self.unread}), None)
                if compared is not None:
                    text = f"{' and '.join(compared)}, which are no episodes of steps; of such "
                    text += "pairs learn algo=crd, algo=dpo and algo=d3po, without another source="
                raise refuse(path, text, key)
        obs, after = self.columns["observations"], self.columns.get("next_observations")
        self.steps, self.action_dim = self.columns["actions"].shape
        self.obs_dim = obs.shape[1]
        every = [(name, self.columns[key]) for key, name in self.names.items() if key in ROWS]
        for name, column in every + [twin[1:] for twin in self.twins]:
            refuse_rows(path, column, self.steps, name)
        if after is not None and after.shape != obs.shape:
            text = f"shape {after.shape}, expected that of observations, {obs.shape}"
            raise refuse(path, text, self.names["next_observations"])
        self.refuse_long()
        self.refuse_parts()

    def refuse_long(self) -> None:
        """Raises Refused for lists that are far longer than they can be, before they are read."""
        for key in filter(self.columns.__contains__, (*ENDS, *OTHERS)):
            count = math.prod(self.columns[key].shape)
            if count > max(self.steps, SHORT):
                text = f"has {count:,} entries, and there are {self.steps:,} steps"
                raise refuse(self.path, text, self.names[key])

    def refuse_parts(self) -> None:
        """Raises Refused where the parts that the file tells of do not make up an observation."""
        keys, widths, images = (self.attributes.get(key) for key in PARTS)
        if keys and widths and (len(keys) != len(widths) or sum(widths) != self.obs_dim):
            text = f"{len(keys)} parts of {sum(widths):,} numbers, and {self.obs_dim} are observed"
            raise refuse(self.path, f"{text}; mend obs_keys and obs_widths", "obs_widths")
        shown = dict(zip(keys or (), widths or (), strict=False))
        if images and (
            list(shown.values())[-len(images) :] != [*map(math.prod, images.values())]
            or list(shown)[-len(images) :] != list(images)
        ):
            text = f"{', '.join(images)} are no last parts of {', '.join(shown) or 'none'}"
            raise refuse(self.path, f"{text}, of their sizes; mend it", "obs_images")

    def vector(self, key: str) -> NDArray | None:
        """A small column, or None where the file has none."""
        column = self.columns.get(key)
        return None if column is None else values(self.path, column, self.names[key])

    def flags(self, key: str) -> NDArray | None:
        """A column [S] of yes and no, and its twins, which have to say the same."""
        if key not in self.columns:
            return None
        mark = self.yes(self.columns[key], self.names[key])
        for _, name, column in filter(lambda twin: twin[0] == key, self.twins):
            other = self.yes(column, name)
            if (mark != other).any():
                row = int(np.flatnonzero(mark != other)[0])
                text = f"differs from {self.names[key]}, which means the same, at row {row}"
                raise refuse(self.path, f"{text}; leave out the wrong one", name)
        return mark

    def yes(self, column: Column, name: str) -> NDArray:
        """The flags [S] bool of a column."""
        told = values(self.path, column, name)
        if told.dtype.kind == "f" and not np.isfinite(told).all():
            step = int(np.flatnonzero(~np.isfinite(told))[0])
            raise refuse(self.path, f"row {step} is not a number; mend it", name, str(told[step]))
        if name == "masks" and not np.isin(told, (0, 1)).all():
            row = int(np.flatnonzero(~np.isin(told, (0, 1)))[0])
            text = f"row {row} is neither 0 (the task ended) nor 1; rename it if it is none"
            raise refuse(self.path, text, name, str(told[row]))
        return told != 0

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        held = next((self.columns[key] for key in ENDS if key in self.columns), None)
        episodes = min((*held.shape, 0)[0], self.steps) if held else 0
        told = "rewards" in self.columns, "costs" in self.columns
        known = episodes if "next_observations" in self.columns else 0
        return Sizes(self.steps, episodes, known, self.obs_dim, self.action_dim, *told)

    def read(self, storage: str) -> Recording:
        """See Layout."""
        about = dict(self.about)
        terminated, last = self.marked(about)
        if self.reading.time_limit is None and not last.any():
            text = "no step is terminal, a timeout or an episode's end, so there are no episodes"
            text += f" (not read: {some(self.unread)})" if self.unread else ""
            raise refuse(self.path, f"{text}; give data.time_limit=N", "timeouts")
        last[-1] = True
        ends, said = np.flatnonzero(last) + 1, (self.path, self.columns, about, self.reading)
        return EndToEnd(*said, ends, terminated, self.names).read(storage)

    def marked(self, about: dict[str, Any]) -> tuple[NDArray, NDArray]:
        """Steps [S] that ended by the task, and marked last steps [S]."""
        given = [(key, self.vector(key)) for key in ENDS if key in self.columns]
        told = np.zeros(self.steps, bool) if given else None
        for key, marks in given:
            assert told is not None and marks is not None
            told[exclusive(self.path, key, marks, self.steps, self.names[key]) - 1] = True
        marks = Marks(**{key: self.flags(key) for key in PER_STEP}, told=told)
        if all(mark is None for mark in marks):
            return np.zeros(self.steps, bool), np.zeros(self.steps, bool)
        return settled(self.path, marks, self.names, limit_in(about, self.reading)[1], about)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the file says of itself, and what of it is not read."""
        said = {k: v for k, v in self.attributes.items() if k not in HELD}
        env_id = self.attributes.get("env_id")
        if not env_id:
            env_id = env_by_name(self.path)
            env_id = env_id if fits(env_id, self.obs_dim, self.action_dim) else None
        about = {**said, "format": self.kind, "path": self.path, "env_id": env_id}
        for key in ("action_low", "action_high"):
            bounds = self.vector(key)
            held = self.attributes.get(key) if bounds is None else bounds.tolist()
            about |= {} if held is None else {key: held}
        for key, name in self.names.items():
            if key in ("actions", *NAMED) and key != name:
                remark(about, name, f"read as {key}")
        if self.unread:
            remark(about, "", f"not read: {some(self.unread)}")
        return about


def plain(column: Column) -> bool:
    """Whether a column is one number or text."""
    return not column.shape and column.dtype.kind in "USfiub"
