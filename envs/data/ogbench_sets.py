"""OGBench's public sets (arXiv:2410.20092), and what a single task pays in them.

A set holds observations, actions, terminals and the simulator's states (qpos, button_states), and
no rewards: those are a task's. `terminals` marks the last row of a trajectory, which was cut there;
that row is nothing but the successor of the one before it.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import SingleTask, known, single_task, world_of
from .columns import EndToEnd, held, package, refuse_rows, table, taken, together
from .ends import named
from .flat import Flat
from .recording import Column, Reading, Recording, Sizes, refuse, remark

if TYPE_CHECKING:
    import gymnasium

HELD = {"observations", "actions", "terminals"}
STATES = ("qpos", "qvel", "button_states")
PAID_BY = ("qpos", "button_states")  # what rewards are made of


def recognised(columns: Mapping[str, Column]) -> bool:
    """Whether columns are those of such a set, and no others that are read."""
    return set(named(columns).names.values()) == HELD and "qpos" in columns


class OGBench:
    """A set as a layout; `reading.stage` or the name `path` tells the task that pays.

    Raises Refused where they tell different ones.
    """

    def __init__(self, path: str, columns: Mapping[str, Column], reading: Reading) -> None:
        rest = {key: column for key, column in columns.items() if key not in STATES}
        self.flat = Flat(path, "ogbench", rest, {}, reading)
        self.path, self.columns, self.reading = path, columns, reading
        self.task = self.asked()
        last = self.flat.flags("terminals")
        assert last is not None
        last[-1] = True
        self.acted = ~last  # [R] rows that are steps
        self.following = np.append(False, self.acted[:-1])  # [R] rows that are successors
        self.cut = np.append(last[1:], True)[self.acted]  # [S] last steps of trajectories
        if not len(self.cut):
            raise refuse(path, "each row ends a trajectory, so there is no step", "terminals")

    def asked(self) -> SingleTask | None:
        """The task whose rewards are read; None: none is named. Raises Refused."""
        stage = self.reading.stage
        mine, theirs = single_task(self.path), single_task(stage and stage.env_id)
        source = known(self.path)
        if theirs and source and world_of(source) != theirs.world:
            text = f"recorded in {world_of(source)}, and env.id={theirs.name} is another world"
            raise refuse(self.path, f"{text}; name one of the two")
        task = mine or theirs
        if task:  # now, and not after the rest of a program was loaded
            package(self.path, "ogbench", f"the rewards of {task.name}")
        if mine and theirs and number(mine) != number(theirs):
            text = f"its rewards are those of another task than env.id={theirs.name}"
            raise refuse(self.path, f"{text}; leave out env.id, or name that task in data=")
        return task

    @cached_property
    def sizes(self) -> Sizes:
        """See Layout."""
        count = int(self.cut.sum())
        dims = self.flat.obs_dim, self.flat.action_dim
        return Sizes(len(self.cut), count, count, *dims, self.task is not None)

    @cached_property
    def about(self) -> dict[str, Any]:
        """See Layout."""
        about = dict(self.flat.about)
        text = "the last row of a trajectory, which is cut there; no end by the task"
        remark(about, "terminals", text)
        if self.task:
            return about | {"env_id": self.task.name}
        source = known(self.path) or "SET-v0"
        name = f"{source.removesuffix('-v0')}-singletask-task1-v0"
        text = f"OGBench's rewards are a single task's and none is named; data={name} names one"
        text += f", or env=ogbench env.id={name} beside a path"
        remark(about, "rewards", text)
        return about | {"undecided": text}

    def read(self, storage: str) -> Recording:
        """See Layout."""
        table = self.columns["observations"]
        columns = {
            "observations": taken(table, self.acted),
            "next_observations": taken(table, self.following),
            "actions": taken(self.columns["actions"], self.acted),
        }
        ended = np.zeros(len(self.cut), bool)
        if self.task:
            reward, ended = self.paid(self.task)
            columns["rewards"] = held(reward)
        ends = np.flatnonzero(self.cut | ended) + 1
        columns["successor_known"] = held(np.ones(len(ends), bool))
        said = self.path, columns, self.about, self.reading, ends, ended
        return EndToEnd(*said).read(storage)

    def paid(self, task: SingleTask) -> tuple[NDArray, NDArray]:
        """Rewards [S] of a task, and the steps [S] from states in which it is solved."""
        relabel = package(self.path, "ogbench.relabel_utils", task.env_name).relabel_dataset
        reward, ended = np.empty(len(self.cut), np.float32), np.empty(len(self.cut), bool)
        states = {k: taken(self.columns[k], self.acted) for k in PAID_BY if k in self.columns}
        row = 0
        with made(task) as env:
            self.refuse_sizes(task, env)
            for piece in together(states):
                if not np.isfinite(piece["qpos"]).all():
                    raise refuse(
                        self.path, "holds numbers that are not finite; fetch it again", "qpos"
                    )
                relabel(task.env_name, env, piece)
                after = row + len(piece["qpos"])
                reward[row:after], ended[row:after] = piece["rewards"], piece["masks"] == 0
                row = after
        return reward, ended

    def refuse_sizes(self, task: SingleTask, env: "Once") -> None:
        """Raises Refused where the set is not of the task's world."""
        inner: Any = env.unwrapped
        env.reset()
        sizes = {"observations": env.observation_space.shape, "qpos": (inner.model.nq,)}
        sizes |= {"button_states": (inner._num_buttons,)} if hasattr(inner, "_num_buttons") else {}
        for key, shape in sizes.items():
            if key not in self.columns:
                raise refuse(self.path, f"not there, and {task.world} needs it", key)
            column = table(self.path, self.columns[key], key)
            refuse_rows(self.path, column, len(self.acted), key)
            if column.shape[1:] != shape:
                text = f"{column.shape[1]} a row, and {task.world} has {(shape or [0])[0]}"
                raise refuse(self.path, f"{text}; name a task of the world it was recorded in", key)


@contextlib.contextmanager
def made(task: SingleTask) -> Iterator["Once"]:
    """The environment of a task, of an imported package; it draws from a generator of its own."""
    import gymnasium  # only here: `rheo data` answers without it

    from ..seeded import drawing_from

    with drawing_from(np.random.MT19937(0)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing display, and the precision of bounds
        with contextlib.closing(gymnasium.make(task.env_name, disable_env_checker=True)) as env:
            yield Once(env)


class Once:
    """A task that is reset once: its goals are always the same, and a reset takes seconds."""

    def __init__(self, env: "gymnasium.Env") -> None:
        self.env, self.unwrapped, self.answer = env, env.unwrapped, None
        self.observation_space = env.observation_space

    def reset(self) -> Any:
        self.answer = self.answer or self.env.reset()
        return self.answer


def number(task: SingleTask) -> tuple[str, int]:
    """World and number of a task; the usual one has the number that its world gives it."""
    if task.task:
        return task.world, int(task.task[-1])
    with made(task) as env:
        inner: Any = env.unwrapped
        return task.world, inner._reward_task_id
