"""Beginnings of a task's episodes, drawn once on the host and kept where the simulations are.

A task's reset draws with numpy's generators and may reject what it drew, which a device cannot. So
a device takes the beginnings of its episodes from a bank of them, by a fixed rule and without a
generator: what a world begins with next depends only on how many episodes it has begun.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from .physics import mujoco
from .tasks import Options, Task

BANK = 4096  # beginnings in a bank: a power of two, see STRIDE
STRIDE = 2531  # odd, as every even number more: each world meets the whole bank before it repeats


class Starts(NamedTuple):
    """M beginnings of episodes, float32."""

    qpos: Tensor  # [M, nq]
    qvel: Tensor  # [M, nv]
    obs: Tensor  # [M, Do]
    position: Tensor  # [M] what progress is measured on; zeros where nothing is

    def rows(self, index: Tensor) -> "Starts":
        """Those of an index [N]."""
        return Starts(*(column.index_select(0, index) for column in self))


class Maker:
    """Draws beginnings as the batched backend of the host does, on one MjData in float64."""

    def __init__(self, kind: type[Task], template: Any, settings: Options, obs_dim: int) -> None:
        self.model, self.data = template.model, mujoco.MjData(template.model)
        names = ("qpos", "qvel", "ctrl", *kind.derived(settings))
        views = {name: getattr(self.data, name)[None] for name in names}
        self.task, self.obs_dim = kind(template, settings, views), obs_dim

    def draw(self, generators: list[np.random.Generator], device: torch.device) -> Starts:
        """One beginning of each generator in turn, which may be the same one."""
        rows = [self.begin(generator) for generator in generators]
        columns = (np.asarray(column, np.float32) for column in zip(*rows, strict=True))
        return Starts(*(torch.from_numpy(column).to(device) for column in columns))

    def begin(self, generator: np.random.Generator) -> tuple[NDArray, ...]:
        """The columns of one beginning."""
        data, obs = self.data, np.zeros((1, self.obs_dim))
        mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:] = self.task.reset_state(generator)
        mujoco.mj_forward(self.model, data)
        self.task.observe(obs)
        position = self.task.position()
        first = np.zeros(()) if position is None else position[0].copy()
        return data.qpos.copy(), data.qvel.copy(), obs[0], first

    def from_seed(self, seed: int, count: int, device: torch.device) -> Starts:
        """What environments 0 ... count - 1 of every other backend begin with under a seed."""
        return self.draw([seeding.np_random(seed + i)[0] for i in range(count)], device)

    def bank(self, seed: int, device: torch.device) -> Starts:
        """BANK beginnings, drawn from a stream of their own."""
        return self.draw([np.random.default_rng([seed, BANK])] * BANK, device)


def bank_row(world: Tensor, episode: Tensor) -> Tensor:
    """Which row of a bank world i begins its next episode with, after e from the bank.

    (i + e (STRIDE + 2 (i div BANK))) mod BANK: worlds that begin with the same row part at once.
    """
    return (world + episode * (STRIDE + 2 * (world // BANK))) % BANK
