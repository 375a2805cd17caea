"""Beginnings of a task's episodes, drawn once on the host and kept where the simulations are.

A task's reset draws with numpy's generators and may reject what it drew, which a device cannot. So
a device takes the beginnings of its episodes from a bank of them, by a fixed rule and without a
generator: what a world begins with next depends only on how many episodes it has begun.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.utils import seeding
from torch import Tensor

from ..memory import cores
from .physics import INTEGRATION, mujoco
from .tasks import Array, Options, Task

BANK = 4096  # beginnings in a bank: a power of two, see STRIDE
# Where geoms are: MuJoCo Warp computes once where those are that no joint moves, so a reset that
# places some has to say it.
PLACED = ("geom_xpos", "geom_xmat")
STRIDE = 2531  # odd, as every even number more: each world meets the whole bank before it repeats


class Starts(NamedTuple):
    """M beginnings of episodes, float32."""

    qpos: Tensor  # [M, nq]
    qvel: Tensor  # [M, nv]
    obs: Tensor  # [M, Do]
    position: Tensor  # [M] what progress is measured on; zeros where nothing is
    memory: dict[str, Tensor]  # [M, ...] each: what else the next steps depend on (`remembered`)

    def rows(self, index: Tensor) -> "Starts":
        """Those of an index [N]."""
        memory = {name: column.index_select(0, index) for name, column in self.memory.items()}
        qpos, qvel, obs, position = (column.index_select(0, index) for column in self[:4])
        return Starts(qpos, qvel, obs, position, memory)


class Maker:
    """Draws beginnings as the batched backend of the host does, on one MjData in float64.

    Those of tasks that simulate what they drew are shared among threads, an MjData each: MuJoCo
    lets others run meanwhile. No bit of them depends on how many there are.
    """

    def __init__(self, kind: type[Task], template: Any, settings: Options, obs_dim: int) -> None:
        self.parts = kind, template, settings, obs_dim
        self.model = copy.copy(template.model)  # in which a reset places things
        self.data = mujoco.MjData(self.model)
        self.row = np.empty(mujoco.mj_stateSize(self.model, INTEGRATION))
        names = ("qpos", "qvel", "ctrl", *kind.derived(settings))
        views = {name: getattr(self.data, name)[None] for name in names}
        views |= {name: getattr(self.model, name)[None] for name in kind.own}
        self.task, self.obs_dim = kind(template, settings, views), obs_dim

    def draw(self, generators: list[np.random.Generator], device: torch.device) -> Starts:
        """One beginning of each generator in turn, which may be the same one."""
        rows = self.shared(generators) if self.task.rests else self.begun(generators)

        def column(values: Iterable[Any]) -> Tensor:
            return torch.from_numpy(np.asarray(list(values), np.float32)).to(device)

        qpos, qvel, obs, position = (column(row[k] for row in rows) for k in range(4))
        memory = {name: column(row[4][name] for row in rows) for name in rows[0][4]}
        return Starts(qpos, qvel, obs, position, memory)

    def shared(self, generators: list[np.random.Generator]) -> list[tuple[Any, ...]]:
        """As `begun`, on all cores."""
        apart, count = [self.ahead(generator) for generator in generators], cores()
        makers = [Maker(*self.parts) for _ in range(count)]
        ends = [k * len(apart) // count for k in range(count + 1)]
        shares = [apart[start:end] for start, end in pairwise(ends)]
        with ThreadPoolExecutor(count) as pool:
            found = pool.map(Maker.begun, makers, shares)
            return [row for share in found for row in share]

    def ahead(self, generator: np.random.Generator) -> np.random.Generator:
        """A copy of a generator, which itself goes on to where the next beginning is drawn."""
        held = copy.deepcopy(generator)
        self.task.skim(generator)
        return held

    def begun(self, generators: Sequence[np.random.Generator]) -> list[tuple[Any, ...]]:
        """One beginning after another."""
        return [self.begin(generator) for generator in generators]

    def begin(self, generator: np.random.Generator) -> tuple[Any, ...]:
        """What `Starts` has a column of, for one beginning."""
        data, obs = self.data, np.zeros((1, self.obs_dim))
        mujoco.mj_resetData(self.model, data)
        self.task.begin(0, self.row, generator)
        if self.task.whole:
            mujoco.mj_setState(self.model, data, self.row, INTEGRATION)
        mujoco.mj_forward(self.model, data)
        self.task.settle(np.zeros(1, np.int32))
        self.task.observe(obs)
        position = self.task.position()
        first = np.zeros(()) if position is None else position[0].copy()
        held = remembered(self.task, lambda name: getattr(data, name)[None])
        memory = {name: value[0].copy() for name, value in held.items()}
        return data.qpos.copy(), data.qvel.copy(), obs[0], first, memory

    def from_seed(self, seed: int, count: int, device: torch.device) -> Starts:
        """What environments 0 ... count - 1 of every other backend begin with under a seed."""
        return self.draw([seeding.np_random(seed + i)[0] for i in range(count)], device)

    def bank(self, seed: int, device: torch.device) -> Starts:
        """BANK beginnings, drawn from a stream of their own."""
        return self.draw([np.random.default_rng([seed, BANK])] * BANK, device)


def remembered(task: Task, bind: Callable[[str], Array]) -> dict[str, Array]:
    """What the next steps depend on beside the state, by name, live; bind: an array of MjData."""
    placed = PLACED if task.own else ()
    return {**task.memory(), **{name: bind(name) for name in placed}}


def bank_row(world: Tensor, episode: Tensor) -> Tensor:
    """Which row of a bank world i begins its next episode with, after e from the bank.

    (i + e (STRIDE + 2 (i div BANK))) mod BANK: worlds that begin with the same row part at once.
    """
    return (world + episode * (STRIDE + 2 * (world // BANK))) % BANK
