"""The vector-environment contract: N environments, torch tensors in and out, same-step reset.

`VectorEnv` is the contract and the part every backend shares; `GymnasiumVector` steps any
registered Box environment in a loop. The fast backend for MuJoCo's own tasks is `native.py`.
"""

import contextlib
import functools
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError
from .batch import Step
from .guard import own, refuse_non_finite, told
from .mujoco.physics import mujoco
from .pixels import Images

log = logging.getLogger("rheo")


class VectorEnv(ABC):
    """N copies of one environment behind tensors.

    id: gymnasium id. obs_dim Do, action_dim Da. max_steps: time limit or None. action_low and
    action_high [Da]: physical bounds; actions given to `step` live in [-1, 1] and are mapped onto
    them affinely (exactly the identity when the bounds are [-1, 1]). They are not clipped: the
    simulator treats values outside its bounds as it would have anyway.
    counters: `physics_resets` (episodes that MuJoCo reset inside a step) and `bad_obs` (episodes
    cut for a non-finite observation or reward), and what else a backend counts. Rows cut this way
    are truncated and not valid.
    device: None where tensors are on the host, which may look into them; else they stay on this
    one, and no step asks it for a number.
    obs_parts: the named parts of an observation with their widths, in order; None without names.
    obs_images: heights and widths of those that are images, its last ones (`pixels`).
    costs: whether steps tell what they cost beside their reward.
    imagined: whether a learned model takes the place of the environment.
    """

    backend: str
    costs: bool = False
    imagined: bool = False
    device: torch.device | None = None
    obs_parts: dict[str, int] | None = None
    obs_images: Images = {}

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        obs_dim: int,
        action_space: spaces.Space,
        max_steps: int | None,
        dtype: torch.dtype,
    ) -> None:
        box = bounded(action_space, env_id)
        self.id, self.num_envs, self.obs_dim = env_id, num_envs, obs_dim
        self.action_dim, self.max_steps, self.dtype = box.shape[0], max_steps, dtype
        self.action_low = box.low.astype(np.float64)
        self.action_high = box.high.astype(np.float64)
        self._numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        self._centre = (self.action_high + self.action_low) / 2
        self._half = (self.action_high - self.action_low) / 2
        self._identity = bool((self.action_low == -1).all() and (self.action_high == 1).all())
        if not self._identity:
            pairs = np.unique(np.stack([self.action_low, self.action_high], 1), axis=0)
            say(f"{env_id}: actions in [-1, 1] are mapped to the bounds {pairs.tolist()}")
        self._shape = (num_envs, self.action_dim)
        self._limit = np.iinfo(np.int64).max if max_steps is None else max_steps
        self._elapsed = np.zeros(num_envs, np.int64)  # steps of the running episodes
        self._started = False
        self._counters: dict[str, int] = {"physics_resets": 0, "bad_obs": 0}

    @property
    def counters(self) -> dict[str, int]:
        """Faults so far, by name."""
        return self._counters

    def refused(self) -> Tensor | None:
        """How many rows met an action that is not finite, 0-d on the device.

        None where `step` raises NonFiniteAction before anything moves. On a device it cannot: such
        a row is driven by 0 and cut, and whoever reads this number next calls `refuse`.
        """
        return None

    def refuse(self) -> None:
        """Raises NonFiniteAction for the first row that `refused` counts."""
        raise NotImplementedError(f"{self.backend} refuses such actions in the step itself")

    @abstractmethod
    def reset(self, seed: int | None = None) -> Tensor:
        """Start N new episodes -> obs [N, Do].

        Environment i is seeded with seed + i; without a seed every environment's own generator
        goes on.
        """

    @abstractmethod
    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        """Advance the active rows (all when None) by action [N, Da] in [-1, 1].

        A row that ends is reset within the step: `obs` is the new episode's first observation and
        `final_obs` the ended one's last; when no row ended the host's are one tensor. Inactive rows
        are left alone: obs unchanged, reward 0, flags False, valid False. The time limit sets
        `truncated` also where `terminated` is set, as gymnasium does. `success` says which rows the
        step solved, and is None as long as the environment has reported no success of any kind.
        Raises NonFiniteAction (a device's: see `refused`).
        """

    def ahead(
        self, action: Tensor, active: Tensor | None = None, last: int | None = None
    ) -> list[Step] | None:
        """The steps of whole chunks [N, K, Da], where all at once is cheaper than one by one.

        As `step` for one action after the other, where a row that ends takes no further part; they
        end with the last row. last: how many of each row's latest successors are looked at, all
        when None; the images of those before need not be there. None: nothing is gained by it, and
        nothing was done.
        """
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything the next steps depend on, generators included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        """Continue where `state_dict` was taken.

        Where the running episodes could not be saved, new ones are begun and their first
        observations [N, Do] are returned; else None.
        """

    def unbranched(self) -> str | None:
        """Why rows cannot go on from a state that was taken of another one; None: they can."""
        return f"what the backend {self.backend} steps is not saved row by row"

    def take(self, row: int) -> dict[str, Any]:
        """Everything that the next steps of a row depend on, copied."""
        raise NotImplementedError(self.unbranched())

    def branch(self, states: Sequence[dict[str, Any]]) -> Tensor:
        """Each row goes on from one of `states`, N that `take` returned -> obs [N, Do].

        They may be taken of other environments with the same settings, and one may be given
        several times: the same actions lead to the same numbers, bit for bit.
        """
        raise NotImplementedError(self.unbranched())

    @abstractmethod
    def close(self) -> None:
        """Free what the environments hold open."""

    def _physical(self, action: Tensor, rows: NDArray | None) -> NDArray:
        """Checked and mapped action [N, Da], float64."""
        self._ready(action)
        value = action.detach().cpu().numpy()
        refuse_non_finite(value, rows, self.id, self._elapsed)
        if self._identity:
            return value
        return value * self._half + self._centre

    def _ready(self, action: Tensor) -> None:
        """Raises for a step before the first reset, or actions of another shape."""
        if not self._started:
            raise RuntimeError(f"{self.id}: step was called before reset")
        if action.shape != self._shape:
            raise ValueError(
                f"{self.id}: action has shape {tuple(action.shape)}, expected {self._shape}"
            )

    def _tensor(self, value: NDArray) -> Tensor:
        """A copy of an array in the type that the outside sees."""
        return torch.from_numpy(value.astype(self._numpy_dtype))

    def _common_state(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "backend": self.backend,
            "num_envs": self.num_envs,
            "started": self._started,
            "elapsed": self._elapsed.copy(),
            "counters": dict(self.counters),
        }

    def _load_common(self, state: dict[str, Any]) -> None:
        for key, mine in (("id", self.id), ("backend", self.backend), ("num_envs", self.num_envs)):
            if state[key] != mine:
                raise EnvError(
                    f"environment state has {key} {state[key]!r} but this environment has {mine!r}:"
                    " resume with the settings the state was saved under"
                )
        self._started = bool(state["started"])
        self._elapsed[:] = state["elapsed"]
        self.counters.update(state["counters"])


@functools.cache
def say(text: str) -> None:
    """Once per process, however many copies are made."""
    log.info("%s", text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No deprecation notes about models and task versions: Rheo supports them on purpose.

    MuJoCo's log file is switched off for good: it would appear in every working directory.
    """
    config_of = getattr(mujoco, "MjLogConfig", None)  # since MuJoCo 3.17
    console = None
    if config_of is not None:
        config = config_of.get()
        console, config.logto_console, config.logto_file = config.logto_console, False, False
        config.set()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if config_of is not None:
            config = config_of.get()
            config.logto_console = console
            config.set()


def gymnasium_make(
    env_id: str, options: dict[str, Any], remedy: Callable[[], str] = str
) -> gymnasium.Env:
    """gymnasium.make without its step checker; EnvError for whatever making it raises.

    remedy: what to add to the message about a package that does not work.
    """
    try:
        with _quiet():
            return gymnasium.make(env_id, disable_env_checker=True, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        text = f"{env_id} cannot be made: it needs a package that is not installed: {error}"
        raise EnvError(text + newer(env_id)) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"{env_id} cannot be made: {error}{newer(env_id)}") from error
    except ImportError as error:
        raise EnvError(f"{env_id} cannot be made: {told(error)}{newer(env_id)}") from error
    except (TypeError, KeyError, OSError) as error:
        if not options:
            raise EnvError(unmade(env_id, options, error) + remedy()) from error
        raise EnvError(f"{env_id} refuses its options {options}: {told(error)}") from error
    except BaseException as error:  # an environment is somebody else's code
        if not own(error):
            raise
        raise EnvError(unmade(env_id, options, error) + remedy()) from error


def unmade(env_id: str, options: dict[str, Any], error: BaseException) -> str:
    """The message about a constructor that raised."""
    given = f" with the options {options}" if options else ""
    return f"{env_id} cannot be made{given}: it raised {told(error)}"


def newer(env_id: str) -> str:
    """'; use Hopper-v5 or Hopper-v4' for the later versions of an id, the newest first."""
    stem, _, version = env_id.rpartition("-v")
    if not stem or not version.isdecimal():
        return ""
    family = [spec for spec in gymnasium.registry.values() if spec.id.rpartition("-v")[0] == stem]
    later = {spec.version or 0: spec.id for spec in family}
    names = [later[number] for number in sorted(later, reverse=True) if number > int(version)]
    return f"; use {' or '.join(names[:2])}" if names else ""


def bounded(space: spaces.Space, env_id: str) -> spaces.Box:
    """The action space when it is a bounded 1-D Box; EnvError with the remedy otherwise."""
    if not isinstance(space, spaces.Box):
        raise EnvError(
            f"{env_id} has the action space {space}, but Rheo's policies are continuous: choose an "
            "environment with a bounded Box action space, for example InvertedPendulum-v5"
        )
    if len(space.shape) != 1:
        raise EnvError(
            f"{env_id} has actions of shape {space.shape}, not one vector: wrap the environment "
            "so that its action space is a 1-D Box, and register the wrapped one"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise EnvError(
            f"{env_id} has unbounded actions ({space}): register it wrapped so that the bounds are "
            "finite, for example in gymnasium.wrappers.RescaleAction or TransformAction"
        )
    if not (space.low < space.high).all():
        raise EnvError(
            f"{env_id} has an action bound with low >= high: {space}; correct the bounds"
        )
    return space
