"""Keys [S, ...] end to end: npz and D4RL's layout, and our own files."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import env_by_name, fits, limit_of
from .containers import decoded
from .ends import PER_STEP, Marks, every_nth, exclusive, is_list, named, settled
from .recording import (
    Column,
    Reading,
    Recording,
    Sizes,
    allocate,
    behind,
    differing,
    fill,
    refuse,
    remark,
)
from .successors import believed

ENDS = ("episode_ends", "episode_lengths", "episode_starts")
HELD = ("format", "version", "env_id", "action_low", "action_high")  # attributes read by name


class Flat:
    """Keys [S, ...] end to end: D4RL's layout, our own, and npz files with the same keys.

    observations [S, Do] and actions [S, Da] are needed. rewards, terminals and timeouts [S],
    next_observations [S, Do], episode_ends [E] and action_low, action_high [Da] are used where
    present; our own files add successor_known [E]. Other names of these, and other columns that
    mark ends, are in `ends.SYNONYMS`. Rewards and flags may also be [S, 1]; scalars of an npz file
    are attributes. A step with terminals set always ends its episode. `time_limit` steps end one
    too, and so does the end of the file.

    groups: names of what the file holds besides columns, which is not read.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        columns: dict[str, Column],
        attributes: dict[str, Any],
        reading: Reading,
        groups: Sequence[str] = (),
    ) -> None:
        scalars = {} if kind != "npz" else {k: c for k, c in columns.items() if plain(c)}
        told = {key: decoded(next(iter(c.blocks()))) for key, c in scalars.items()}
        self.path, self.kind, self.attributes = path, kind, told | attributes
        rest = {key: column for key, column in columns.items() if key not in scalars}
        self.columns, self.names, self.twins, unread = named(rest)
        self.unread = [*unread, *(f"{group}/" for group in groups)]
        self.reading = reading
        obs, action = (self.table(key) for key in ("observations", "actions"))
        self.steps, self.obs_dim, self.action_dim = len_(action), obs.shape[1], action.shape[1]
        if not len_(obs) and not len_(action):
            raise refuse(path, "empty: no steps; fetch or write it again", "observations")
        for key in filter(self.columns.__contains__, ("observations", "rewards", *PER_STEP)):
            self.refuse_length(self.columns[key], self.names[key])
        for _, name, column in self.twins:
            self.refuse_length(column, name)
        if "next_observations" in self.columns:
            after, name = self.table("next_observations"), self.names["next_observations"]
            self.refuse_length(after, name)
            if after.shape != obs.shape:
                text = f"shape {after.shape}, expected that of observations, {obs.shape}"
                raise refuse(path, text, name)

    def refuse_length(self, column: Column, name: str) -> None:
        """Raises Refused for a column that has not one row a step."""
        if len_(column) != self.steps:
            text = f"{len_(column)} rows but {self.steps} actions; every step needs one of each"
            raise refuse(self.path, text, name)

    def table(self, key: str) -> Column:
        """A needed column of numbers [steps, dims]."""
        if key not in self.columns:
            held = ", ".join(sorted([*self.names.values(), *self.unread])) or "nothing"
            text = f"no key {key!r}; it holds {held}; store it under that name"
            raise refuse(self.path, text, key)
        column = self.columns[key]
        if len(column.shape) != 2 or column.dtype.kind not in "fiu" or not column.shape[1]:
            text = f"has shape {column.shape} and type {column.dtype}"
            raise refuse(self.path, f"{text}, expected numbers [steps, dims]", self.names[key])
        return column

    def series(self, column: Column, name: str) -> Column:
        """A column of one number per row."""
        if not is_list(column):
            text = f"has shape {column.shape} and type {column.dtype}"
            raise refuse(self.path, f"{text}, expected a list of numbers", name)
        return column

    def values(self, column: Column, name: str) -> NDArray:
        """A small column of one number per row, in memory."""
        blocks = [block.reshape(-1) for block in self.series(column, name).blocks()]
        return np.concatenate(blocks) if blocks else np.empty(0, column.dtype)

    def vector(self, key: str, length: int | None = None) -> NDArray | None:
        """A small column [length], or None where the file has none."""
        if key not in self.columns:
            return None
        values = self.values(self.columns[key], self.names[key])
        if length is not None and len(values) != length:
            text = f"has {len(values)} numbers, expected {length}"
            raise refuse(self.path, text, self.names[key])
        return values

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
        values = self.values(column, name)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            step = int(np.flatnonzero(~np.isfinite(values))[0])
            raise refuse(self.path, f"row {step} is not a number; mend it", name, str(values[step]))
        if name == "masks" and not np.isin(values, (0, 1)).all():
            row = int(np.flatnonzero(~np.isin(values, (0, 1)))[0])
            text = f"row {row} is neither 0 (the task ended) nor 1; rename it if it is none"
            raise refuse(self.path, text, name, str(values[row]))
        return values != 0

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        held = next((self.columns[key] for key in ENDS if key in self.columns), None)
        episodes = min(len_(held), self.steps) if held else 0
        reward = "rewards" in self.columns
        known = episodes if "next_observations" in self.columns else 0
        return Sizes(self.steps, episodes, known, self.obs_dim, self.action_dim, reward)

    def read(self, storage: str) -> Recording:
        """See Layout."""
        about, stage = dict(self.about), self.reading.stage
        env_id = about["env_id"] or (stage and stage.env_id)
        limit = self.reading.time_limit or limit_of(env_id)
        about |= {"limit": (env_id, limit)} if limit else {}
        terminated, last = self.marked(about, limit)
        cuts = self.cuts(last)
        known = self.known(last, cuts)
        ends = np.flatnonzero(last) + 1
        obs = allocate(self.path, (self.steps + int(known.sum()), self.obs_dim), storage)
        fill(obs[: self.steps], self.columns["observations"])
        jumps = self.successors(obs, ends, known)
        about |= {"jumps": jumps} if len(jumps) else {}
        action = allocate(self.path, (self.steps, self.action_dim), storage)
        fill(action, self.columns["actions"])
        reward = None
        if "rewards" in self.columns:
            reward = np.empty(self.steps, np.float32)
            fill(reward, self.series(self.columns["rewards"], self.names["rewards"]))
        successor = behind(known, self.steps)
        recording = Recording(obs, action, reward, terminated, ends, successor, about)
        if "successor_known" in self.columns and not len(cuts):
            return recording
        return believed(recording, cuts, self.names.get("next_observations", ""))

    def marked(self, about: dict[str, Any], limit: int | None) -> tuple[NDArray, NDArray]:
        """Steps [S] that ended by the task, and marked last steps [S]."""
        given = [(key, self.vector(key)) for key in ENDS if key in self.columns]
        told = np.zeros(self.steps, bool) if given else None
        for key, values in given:
            assert told is not None and values is not None
            told[exclusive(self.path, key, values, self.steps, self.names[key]) - 1] = True
        marks = Marks(**{key: self.flags(key) for key in PER_STEP}, told=told)
        if all(mark is None for mark in marks):
            return np.zeros(self.steps, bool), np.zeros(self.steps, bool)
        return settled(self.path, marks, self.names, limit, about)

    def cuts(self, last: NDArray) -> NDArray:
        """Steps [J] that the time limit cuts; closes `last` [S] there and at the file's end."""
        limit, cuts = self.reading.time_limit, np.empty(0, np.int64)
        if limit is not None:
            cuts = every_nth(last, limit)
            last[cuts] = True
        elif not last.any():
            text = "no step is terminal, a timeout or an episode's end, so there are no episodes"
            text += f" (not read: {', '.join(self.unread)})" if self.unread else ""
            raise refuse(self.path, f"{text}; give data.time_limit=N", "timeouts")
        last[-1] = True
        return cuts[cuts < self.steps - 1]

    def known(self, last: NDArray, cuts: NDArray) -> NDArray:
        """Episodes [E] whose last step's successor the file holds, at least as the row behind."""
        known = np.full(self.steps, "next_observations" in self.columns)
        known[cuts] = False
        if known.any():
            marked = self.vector("successor_known", int((last & known).sum()))
            if marked is not None:
                known[np.flatnonzero(last & known)] = marked != 0
        known[cuts] = True
        return known[last]

    def successors(self, obs: NDArray, ends: NDArray, known: NDArray) -> NDArray:
        """Fills obs[S:] and returns the steps [J] after which an episode end is missing."""
        jumps, row, place = [], 0, self.steps
        if "next_observations" not in self.columns:
            obs[self.steps :] = obs[ends[known]]  # behind the cuts of a time limit
            return np.empty(0, np.int64)
        if not known.any():
            return np.empty(0, np.int64)
        inside, wanted = np.ones(self.steps, bool), np.zeros(self.steps, bool)
        inside[ends - 1] = False
        wanted[ends[known] - 1] = True
        for block in self.columns["next_observations"].blocks():
            after = row + len(block)
            with np.errstate(over="ignore", invalid="ignore"):
                block = block.astype(np.float32, copy=False)
            last = block[wanted[row:after]]
            obs[place : place + len(last)] = last
            place += len(last)
            # obs[S] stands behind the last step, which is an end: whatever it holds is left out.
            steps = row + differing(block, obs[row + 1 : after + 1])
            jumps.append(steps[inside[steps]])
            row = after
        return np.concatenate(jumps)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the file says of itself, and what of it is not read."""
        told = {k: v for k, v in self.attributes.items() if k not in HELD}
        env_id = self.attributes.get("env_id")
        if not env_id or not isinstance(env_id, str):
            env_id = env_by_name(self.path)
            env_id = env_id if fits(env_id, self.obs_dim, self.action_dim) else None
        about = {"format": self.kind, "path": self.path, "env_id": env_id, **told}
        for key in ("action_low", "action_high"):
            values = self.vector(key)
            held = self.attributes.get(key) if values is None else values.tolist()
            about |= {} if held is None else {key: held}
        for key, name in self.names.items():
            if key in ("observations", "actions", "rewards", "next_observations") and key != name:
                remark(about, name, f"read as {key}")
        if self.unread:
            remark(about, "", f"not read: {', '.join(self.unread)}")
        return about


def plain(column: Column) -> bool:
    """Whether a column is one number or text."""
    return not column.shape and column.dtype.kind in "USfiub"


def len_(column: Column) -> int:
    """Rows of a column."""
    return column.shape[0] if column.shape else 0
