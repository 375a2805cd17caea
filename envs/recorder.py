"""Recording what happens in environments, step by step, as episodes."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError, Halted
from .batch import Step
from .chunk import ChunkEnv, ChunkStep
from .data.recording import Recording
from .rollout import Patience, shares
from .vector import VectorEnv


class Act(Protocol):
    """Behaviour to record: obs [N, O] -> action chunk [N, T, Da] in [-1, 1]."""

    def __call__(self, obs: Tensor, /) -> Tensor: ...


SoFar = Callable[[str], Recording | None]  # why it ends -> what there is; None: nothing


class Recorder:
    """A vector environment that remembers every step it takes.

    It stands where the environment stood, also inside a ChunkEnv, so chunks and histories are
    recorded as the single steps that were executed. Actions are clipped to [-1, 1], and the clipped
    ones are both executed and recorded.

    owed: episodes that are wanted of each environment [N]; one that has had them stands still, so
    that no more is kept than is asked for. None: all go on.
    """

    def __init__(self, env: VectorEnv, owed: NDArray | None = None) -> None:
        self.env, self.owed = env, owed
        self.obs = torch.zeros(0)
        self.columns: list[list[NDArray]] = [[] for _ in range(6 + env.costs)]
        self.steps = np.zeros(env.num_envs, np.int64)  # recorded so far, of each environment
        self.finished = np.zeros(env.num_envs, np.int64)  # episodes of each environment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, seed: int | None = None) -> Tensor:
        """New episodes, [N, Do]."""
        self.obs = self.env.reset(seed)
        return self.obs

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        """One step; rows that are not active are not recorded."""
        action = action.clamp(-1.0, 1.0)
        stepped = np.ones(len(action), bool) if active is None else active.numpy().copy()
        if self.owed is not None:
            stepped &= self.finished < self.owed
        whole = stepped.all()
        out = self.env.step(action, None if whole else torch.from_numpy(stepped))
        ended = (out.terminated | out.truncated).numpy()
        good = out.valid.numpy() & stepped
        paid = () if out.cost is None else (out.cost,)
        row = (self.obs, action, out.reward, out.final_obs, *paid)
        values = [value.detach().cpu().numpy().astype(np.float32) for value in row]
        flags = good * 1 + (out.terminated.numpy() & good) * 2 + (ended & stepped) * 4
        kept = np.flatnonzero(stepped)
        for column, value in zip(self.columns[:-1], [*values, flags], strict=True):
            column.append(value[kept])
        self.columns[-1].append(kept)
        self.steps += good
        self.finished += ended & stepped
        self.obs = out.obs
        return out

    def ahead(self, action: Tensor, active: Tensor | None = None, last: int | None = None) -> None:
        """Nothing: every step is recorded as it is taken, its images too."""

    def lacks(self, steps: int | None) -> bool:
        """Whether it has less than so many steps in all, or, None, than the episodes owed."""
        if self.owed is None:
            return steps is not None and self.steps.min() * self.env.num_envs < steps
        return bool((self.finished < self.owed).any())

    def recording(self, steps: int | None, episodes: NDArray | None, **about: Any) -> Recording:
        """Everything so far, environment after environment.

        steps: total number kept; running episodes are cut there, with the observation that follows.
        episodes: number kept of each environment [N]; later steps are left out. A step that broke
        (flag 1 missing) is left out, and its episode ends before it.
        """
        whole = len(self.columns[-1])  # the last to be filled, where another thread asks meanwhile
        columns = [np.concatenate(column[:whole]) for column in self.columns]
        order = np.argsort(columns[-1], kind="stable")
        obs, action, reward, after, *paid, flags, place = (column[order] for column in columns)
        good, terminated, last = ((flags & bit).astype(bool) for bit in (1, 2, 4))
        kept = good.copy()
        if episodes is not None:
            before = np.cumsum(last) - last
            kept &= before - before[first_of(place)] < episodes[place]
        last[:-1] |= ~good[1:]  # the step before a broken one is the last of its episode
        if steps is not None:
            rows = np.flatnonzero(kept)
            number = np.arange(len(rows)) - first_of(place[rows])
            kept[rows] = number < shares(steps, self.env.num_envs)[place[rows]]
        obs, action, reward, after, terminated, last, place = (
            column[kept] for column in (obs, action, reward, after, terminated, last, place)
        )
        last[:-1] |= place[1:] != place[:-1]
        last[-1:] = True
        ends = np.flatnonzero(last) + 1
        successor = len(obs) + np.arange(len(ends))
        obs = np.concatenate([obs, after[last]])
        cost = paid[0][kept] if paid else None
        return Recording(obs, action, reward, terminated, ends, successor, about, cost)


def first_of(place: NDArray) -> NDArray:
    """The first step of each step's environment, for steps that lie environment by environment."""
    return np.searchsorted(place, place)


def collect(
    env: ChunkEnv,
    act: Act,
    *,
    steps: int | None,
    episodes: int | None,
    seed: int,
    halt: Callable[[], str | None] = lambda: None,
    begun: Callable[[SoFar], None] = lambda _: None,
) -> Recording:
    """Records `steps` steps, or exactly `episodes` episodes, of a behaviour.

    Steps are shared out evenly among the environments and episodes are the first ones of each, so
    short episodes are not favoured; with `steps` the last episode of each environment may be cut.
    Where the environment or the behaviour fails midway, or `halt` tells a reason to stop,
    about["stopped"] says why, and what was recorded until then is kept, running episodes as cut
    ones. begun: is told how to get that while the environment does not answer, from another thread.
    Raises ValueError unless one of the two is given, EnvError for an episode that is waited
    for and does not end (`rollout.Patience`), and what failed where nothing was recorded yet.
    """
    if (steps is None) == (episodes is None):
        raise ValueError("give either steps or episodes")
    count = env.num_envs
    owed = None if episodes is None else shares(episodes, count)
    inner = env.env
    recorder, patience = Recorder(inner, owed), Patience(env)
    env.env = recorder  # type: ignore[assignment]  # it answers like the environment it holds
    about: dict[str, Any] = {"env_id": inner.id}

    def so_far(why: str) -> Recording | None:
        known = {**shown(inner), **about, "stopped": why}
        return recorder.recording(steps, owed, **known) if recorder.steps.any() else None

    begun(so_far)
    try:
        obs = env.reset(seed)
        while recorder.lacks(steps):
            step = stepped(env, act, obs, recorder, halt)
            if isinstance(step, str):
                about["stopped"] = step
                break
            obs = step.obs
            if owed is not None:
                patience.wait(step.episode_length, recorder.finished < owed)
    finally:
        env.env = inner
    return recorder.recording(steps, owed, **{**shown(inner), **about})


def stepped(
    env: ChunkEnv, act: Act, obs: Tensor, recorder: Recorder, halt: Callable[[], str | None]
) -> ChunkStep | str:
    """One decision, or why it stops before; raises what failed where nothing was recorded yet."""
    try:
        if recorder.steps.any() and (why := halt()):
            return why
        return env.step(act(obs))
    except (EnvError, FloatingPointError, Halted) as error:
        if not recorder.steps.any():
            raise
        return str(error)


def shown(env: VectorEnv) -> dict[str, Any]:
    """What a recording has to tell of observations with images."""
    if not env.obs_images:
        return {}
    parts = env.obs_parts or {}
    images = {name: list(size) for name, size in env.obs_images.items()}
    return {"obs_keys": [*parts], "obs_widths": [*parts.values()], "obs_images": images}
