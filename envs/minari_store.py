"""Minari data sets (`minari:mujoco/hopper/medium-v0`) from the package's local store."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .record import Part, Reading, Recording, Sizes, refuse, stack

# What damaged or foreign stores make the package raise; its own errors have no common base.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AssertionError, ImportError)


class Minari:
    """Episodes of L steps with L + 1 observations, so every successor is known.

    Of dictionary observations `obs_keys` are put side by side; without it, all their 1-D float
    entries in sorted order. Its bounds are those that actions are recorded in.
    """

    def __init__(self, path: str, reading: Reading) -> None:
        self.path, self.id = path, path.partition(":")[2]
        try:
            minari = importlib.import_module("minari")
        except ImportError as error:
            raise refuse(path, "the minari package is missing; `pip install minari`") from error
        try:
            self.data = minari.load_dataset(self.id, download=False)
        except FileNotFoundError as error:
            text = f"not in Minari's local store; `minari download {self.id}`"
            raise refuse(path, text) from error
        except UNREADABLE as error:
            text = f"Minari cannot open it ({' '.join(str(error).split())})"
            raise refuse(path, f"{text}; `minari download {self.id}` again") from error
        if not int(self.data.total_episodes) or not int(self.data.total_steps):
            raise refuse(path, f"empty: no episodes; `minari download {self.id}` again")
        self.keys = self.choose(reading.obs_keys)
        box = self.data.spec.action_space
        if getattr(box, "shape", None) is None or len(box.shape) != 1 or not hasattr(box, "low"):
            raise refuse(path, f"a Box of actions [Da] is needed, it has {box}", "actions")
        self.low, self.high = box.low.astype(np.float64), box.high.astype(np.float64)
        self.obs_dim = self.table(next(iter(self.data.iterate_episodes([0])))).shape[1]

    def choose(self, obs_keys: list[str] | None) -> list[str] | None:
        """Entries of dictionary observations that are read; None where observations are arrays."""
        spaces = getattr(self.data.spec.observation_space, "spaces", None)
        if not isinstance(spaces, dict):
            if obs_keys is not None:
                raise refuse(self.path, "its observations have no keys; leave it out", "obs_keys")
            return None
        usable = sorted(k for k, s in spaces.items() if s.shape is not None and len(s.shape) == 1)
        for key in obs_keys or []:
            if key not in usable:
                text = f"not there; source.obs_keys can name {', '.join(usable)}"
                raise refuse(self.path, text, f"observations/{key}")
        if not usable:
            raise refuse(self.path, f"no 1-D entries; it holds {', '.join(spaces)}", "observations")
        return obs_keys or usable

    def table(self, episode: Any) -> NDArray:
        """Observations [L + 1, Do]."""
        held = episode.observations
        table = held if self.keys is None else np.concatenate([held[k] for k in self.keys], axis=1)
        if getattr(table, "ndim", 0) != 2 or table.dtype.kind not in "fiu":
            shape = getattr(table, "shape", type(table).__name__)
            raise refuse(self.path, f"{shape}, expected numbers [steps, dims]", "observations")
        return table

    def sizes(self) -> Sizes:
        """See Layout."""
        steps, episodes = int(self.data.total_steps), int(self.data.total_episodes)
        return Sizes(steps, episodes, episodes, self.obs_dim, len(self.low), True)

    def read(self, storage: str) -> Recording:
        """See Layout. Episodes are kept apart, so time_limit has no part."""
        return stack(self.path, self.parts(), self.sizes(), storage, self.about())

    def parts(self) -> Iterator[Part]:
        """The episodes."""
        for index, episode in enumerate(self.data.iterate_episodes()):
            obs, action = self.table(episode), episode.actions
            if len(obs) != len(action) + 1 or not len(action):
                text = f"episode {index} has {len(obs)} observations and {len(action)} actions"
                raise refuse(self.path, f"{text}, expected one more", "observations")
            ended = bool(episode.terminations[-1])
            jumps = np.empty(0, np.int64)
            yield Part(obs[:-1], action, episode.rewards, ended, obs[-1], jumps)

    def about(self) -> dict[str, Any]:
        """What the data set says of itself."""
        spec = getattr(self.data.spec, "env_spec", None)
        about = {"format": "minari", "path": self.path, "env_id": getattr(spec, "id", None)}
        if np.isfinite(self.low).all() and np.isfinite(self.high).all():
            about |= {"action_low": self.low.tolist(), "action_high": self.high.tolist()}
        return about | ({"obs_keys": self.keys} if self.keys is not None else {})
