"""Keys [S, ...] end to end: npz and D4RL's layout, and our own files."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import env_by_name
from .record import Column, Reading, Recording, Sizes, allocate, differing, fill, pieces, refuse

log = logging.getLogger("rheo")


class Flat:
    """Keys [S, ...] end to end: D4RL's layout, our own, and npz files with the same keys.

    observations [S, Do] and actions [S, Da] are needed. rewards, terminals and timeouts [S],
    next_observations [S, Do], episode_ends [E] and action_low, action_high [Da] are used where
    present; our own files add successor_known [E]. Rewards and flags may also be [S, 1]. A step
    with terminals set always ends its episode. Where no timeout and no episode_ends tell the other
    ends, `time_limit` steps do, and the end of the file is one.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        columns: dict[str, Column],
        attributes: dict[str, Any],
        reading: Reading,
    ) -> None:
        self.path, self.kind, self.columns, self.attributes = path, kind, columns, attributes
        self.reading = reading
        if reading.obs_keys is not None:
            text = f"obs_keys={reading.obs_keys} is for robomimic and Minari"
            raise refuse(path, f"{text}; here it is `observations`")
        obs, action = (self.table(key) for key in ("observations", "actions"))
        self.steps, self.obs_dim, self.action_dim = len_(action), obs.shape[1], action.shape[1]
        if not len_(obs) and not len_(action):
            raise refuse(path, "empty: no steps; fetch or write it again", "observations")
        lengths = ["observations", "rewards", "terminals", "timeouts", "next_observations"]
        for key in filter(columns.__contains__, lengths):
            count = len_(columns[key])
            if count != self.steps:
                text = f"{count} rows but {self.steps} actions; every step needs one of each"
                raise refuse(path, text, key)
        if "next_observations" in columns:
            after = self.table("next_observations")
            if after.shape != obs.shape:
                text = f"shape {after.shape}, expected that of observations, {obs.shape}"
                raise refuse(path, text, "next_observations")

    def table(self, key: str) -> Column:
        """A needed column of numbers [steps, dims]."""
        if key not in self.columns:
            held = ", ".join(sorted(self.columns)) or "nothing"
            text = f"no key {key!r}; it holds {held}; store it under that name"
            raise refuse(self.path, text, key)
        column = self.columns[key]
        if len(column.shape) != 2 or column.dtype.kind not in "fiu" or not column.shape[1]:
            text = f"has shape {column.shape} and type {column.dtype}"
            raise refuse(self.path, f"{text}, expected numbers [steps, dims]", key)
        return column

    def series(self, key: str) -> Column:
        """A column of one number per row."""
        column = self.columns[key]
        flat = len(column.shape) == 1 or (len(column.shape) == 2 and column.shape[1] == 1)
        if not flat or column.dtype.kind not in "fiub":
            text = f"has shape {column.shape} and type {column.dtype}"
            raise refuse(self.path, f"{text}, expected a list of numbers", key)
        return column

    def vector(self, key: str, length: int | None = None) -> NDArray | None:
        """A small column [length], or None where the file has none."""
        if key not in self.columns:
            return None
        column = self.series(key)
        if length is not None and column.shape[0] != length:
            raise refuse(self.path, f"has {column.shape[0]} numbers, expected {length}", key)
        values = [block.reshape(-1) for block in column.blocks()]
        return np.concatenate(values) if values else np.empty(0, column.dtype)

    def flags(self, key: str) -> NDArray | None:
        """A column [S] of yes and no."""
        values = self.vector(key, self.steps)
        if values is None:
            return None
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            step = int(np.flatnonzero(~np.isfinite(values))[0])
            raise refuse(self.path, f"row {step} is not a number; mend it", key, str(values[step]))
        return values != 0

    def sizes(self) -> Sizes:
        """See Layout."""
        ends = self.columns.get("episode_ends")
        episodes = min(len_(ends), self.steps) if ends else 0
        reward = "rewards" in self.columns
        known = episodes if "next_observations" in self.columns else 0
        return Sizes(self.steps, episodes, known, self.obs_dim, self.action_dim, reward)

    def read(self, storage: str) -> Recording:
        """See Layout."""
        terminals = self.flags("terminals")
        terminated = np.zeros(self.steps, bool) if terminals is None else terminals
        ends = self.ends(terminated, self.reading.time_limit)
        known = self.known(len(ends))
        successor = np.where(known, self.steps + np.cumsum(known) - 1, -1)
        obs = allocate(self.path, (self.steps + int(known.sum()), self.obs_dim), storage)
        fill(obs[: self.steps], self.columns["observations"])
        jumps = self.successors(obs, ends, known)
        about = self.about() | ({"jumps": jumps} if len(jumps) else {})
        action = allocate(self.path, (self.steps, self.action_dim), storage)
        fill(action, self.columns["actions"])
        self.to_unit(action)
        reward = None
        if "rewards" in self.columns:
            reward = np.empty(self.steps, np.float32)
            fill(reward, self.series("rewards"))
        return Recording(obs, action, reward, terminated, ends, successor, about)

    def ends(self, terminated: NDArray, time_limit: int | None) -> NDArray:
        """Exclusive episode ends [E]."""
        last = terminated.copy()
        given, timeouts = self.vector("episode_ends"), self.flags("timeouts")
        if timeouts is not None:
            last |= timeouts
        if given is not None:
            last[self.rising(given) - 1] = True
        marked = given is not None or (timeouts is not None and bool(timeouts.any()))
        if time_limit is not None and marked:
            log.warning("data=%s marks its episode ends; time_limit is not used", self.path)
        elif time_limit is not None:
            first = np.zeros(self.steps, np.int64)
            first[1:][last[:-1]] = np.flatnonzero(last[:-1]) + 1
            place = np.arange(self.steps) - np.maximum.accumulate(first)
            last |= (place + 1) % time_limit == 0
        elif not last.any():
            text = "no step is terminal, a timeout or an episode's end, so there are no episodes"
            raise refuse(self.path, f"{text}; give source.time_limit=N", "timeouts")
        last[-1] = True
        return np.flatnonzero(last) + 1

    def rising(self, ends: NDArray) -> NDArray:
        """Checked `episode_ends`."""
        if ends.dtype.kind not in "iu":
            text = f"must be a list of whole numbers, got {ends.dtype}"
            raise refuse(self.path, text, "episode_ends")
        ends = ends.astype(np.int64)
        if not len(ends) or ends[-1] != self.steps or (np.diff(ends, prepend=0) < 1).any():
            got = " ".join(np.array2string(ends, threshold=8).split())
            text = f"must rise strictly from above 0 to {self.steps}, the number of steps; got"
            raise refuse(self.path, f"{text} {got}", "episode_ends")
        return ends

    def known(self, episodes: int) -> NDArray:
        """Episodes [E] whose last step's successor the file holds."""
        if "next_observations" not in self.columns:
            return np.zeros(episodes, bool)
        marked = self.vector("successor_known", episodes)
        return np.ones(episodes, bool) if marked is None else marked != 0

    def successors(self, obs: NDArray, ends: NDArray, known: NDArray) -> NDArray:
        """Fills obs[S:] and returns the steps [J] after which an episode end is missing."""
        jumps, row, place = [], 0, self.steps
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

    def to_unit(self, action: NDArray) -> None:
        """Maps physical actions [S, Da] of a file that tells their bounds to [-1, 1], in place."""
        bounds = self.bounds()
        if bounds is None or self.attributes.get("action_scale") == "unit":
            return
        low, high = bounds
        if (low == -1).all() and (high == 1).all():
            return
        centre, half = (high + low) / 2, (high - low) / 2
        for _, rows in pieces(action):
            rows[:] = (rows - centre) / half
        log.info("data=%s: actions are mapped from their bounds to [-1, 1]", self.path)

    def bounds(self) -> tuple[NDArray, NDArray] | None:
        """action_low and action_high [Da] of the file, None where it tells none."""
        found = []
        for key in ("action_low", "action_high"):
            value = self.vector(key) if key in self.columns else self.attributes.get(key)
            if value is None:
                return None
            found.append(np.asarray(value, np.float64).reshape(-1))
        low, high = found
        if not low.size == high.size == self.action_dim:
            text = f"{low.size} and {high.size} bounds for {self.action_dim} action dimensions"
            raise refuse(self.path, text, "action_low")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            text = f"bounds {low.tolist()} to {high.tolist()} are no finite ranges; mend them"
            raise refuse(self.path, text, "action_low")
        return low, high

    def about(self) -> dict[str, Any]:
        """What the file says of itself."""
        told = {k: v for k, v in self.attributes.items() if k not in ("format", "version")}
        env_id = told.pop("env_id", None) or env_by_name(self.path)
        bounds = self.bounds()
        if bounds is not None:
            told |= {"action_low": bounds[0].tolist(), "action_high": bounds[1].tolist()}
        return {"format": self.kind, "path": self.path, "env_id": env_id, **told}


def len_(column: Column) -> int:
    """Rows of a column."""
    return column.shape[0] if column.shape else 0
