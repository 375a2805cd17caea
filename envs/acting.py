"""Acting in environments, as sources of batches do: steps, frames, and ended episodes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ranks
from ..errors import EnvError
from .chunk import ChunkEnv, ChunkStep
from .episodes import EpisodeStats
from .shift import Shift

BARREN = 1000  # frames without a sound one after which environments are given up


def to_device(step: ChunkStep, device: torch.device) -> ChunkStep:
    """The step's tensors where the policy is; free when they are there already."""
    if device.type == "cpu":
        return step
    moved: Any = (value if value is None else value.to(device) for value in step)
    return ChunkStep(*moved)


def placed(obs: Tensor, device: torch.device) -> Tensor:
    """Observations where the policy is, in torch's own memory.

    Environments and checkpoints return memory of any alignment, on which the last bit of a matrix
    product may depend; torch aligns its own, so that a run that was resumed sees the same bits.
    """
    return obs.to(device, copy=True)


class Acting:
    """What a source does that acts: it steps the environments, counts frames and ended episodes.

    halt: asked between decisions; where it says true, `next` raises Halted. The next call of `next`
    goes on where that one was.

    Raises ValueError when more actions are executed than planned.
    """

    def __init__(self, env: ChunkEnv, generator: torch.Generator, horizon: int) -> None:
        if env.execute > horizon:
            raise ValueError(
                f"env.execute={env.execute} is above horizon={horizon}: no more actions can be "
                "executed than are planned; lower env.execute or raise horizon"
            )
        self.env, self.generator, self.horizon = env, generator, horizon
        self.frames = 0
        self.obs: Tensor | None = None
        self.shift: Shift | None = None  # of images, before they are learned from
        self.on_device = env.env.device is not None
        self.barren = 0  # frames since the last that was sound; not known of those on a device
        self.finished = EpisodeStats(env.env.device)
        self.halt: Callable[[], bool] = lambda: False

    @property
    def progress(self) -> int:
        """Environment frames so far, of all ranks."""
        return self.frames

    def count_all(self, before: int) -> None:
        """Counts what others stepped since this rank had counted so many frames."""
        self.frames = before + ranks.total(self.frames - before)

    def seen(self) -> Tensor:
        """Where to act, [N, O]; the first call starts the episodes."""
        if self.obs is None:
            self.obs = placed(self.env.reset(), self.generator.device)
        return self.obs

    def step(self, action: Tensor) -> ChunkStep:
        """One decision in every environment, told where the policy is.

        Frames of environments on a device are left to be counted by whoever asks it (`asked`).
        """
        step = to_device(self.env.step(action), self.generator.device)
        self.obs = placed(step.obs, self.generator.device)
        if not self.on_device:
            frames = int(step.frames.sum())
            self.frames += frames
            self.barren = 0 if step.valid.any() else self.barren + frames
            if self.barren >= BARREN:
                raise EnvError(self.unsound())
        self.finished.add(step)
        return step

    def unsound(self) -> str:
        """What is said of environments that give nothing to learn from."""
        faults = ", ".join(f"{name} {n}" for name, n in self.env.env.counters.items() if n)
        return (
            f"{self.env.env.id}: not one of the last {self.barren} frames can be learned from "
            f"(in all: {faults}): its observations or rewards are not finite, or its physics broke"
        )

    def asked(self, frames: Tensor, *more: Tensor) -> list[int]:
        """Counts frames; returns the sums of further tensors. All in one read of the device.

        Raises NonFiniteAction where one was given to the environments since they were last asked.
        """
        world = self.env.env
        refused = world.refused()
        sums = [frames.sum(), *(each.sum() for each in more)]
        numbers = torch.stack(sums if refused is None else [*sums, refused.to(frames)]).tolist()
        if refused is not None and numbers.pop():
            world.refuse()
        self.frames += numbers[0]
        return numbers[1:]

    def metrics(self) -> dict[str, float]:
        """Returns and lengths of the episodes finished since the last call, and fault counts."""
        counters = {f"env/{name}": float(count) for name, count in self.env.env.counters.items()}
        return self.finished.drain() | counters

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs, the environments included."""
        return {
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "frames": self.frames,
            "obs": self.obs,
            "finished": self.finished.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what `state_dict` returned; whether new episodes had to be begun."""
        begun = self.env.load_state_dict(state["env"])
        self.generator.set_state(state["generator"])
        self.frames = state["frames"]
        obs = state["obs"] if begun is None else begun
        self.obs = None if obs is None else placed(obs, self.generator.device)
        self.finished.load_state_dict(state["finished"])
        return begun is not None
