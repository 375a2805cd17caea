"""Recorded transitions under goals that were reached later: hindsight (HER, arXiv:1707.01495)."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ranges import Count, NonNegative, Share
from .batch import Aimed, Batch
from .chunk import ChunkEnv
from .data.recording import Recording
from .datasets import Transitions
from .recorded import following


class Goals(NamedTuple):
    """The goals that rows of a batch are given."""

    goal: Tensor  # [B, Dg]
    later: Tensor  # [B] int64: steps until the recording was there; 0: it is no later step's


@dataclass(eq=False)
class Hindsight(Transitions):
    """Transitions whose goal is mostly one that the recording came to later.

    An observation tells a goal in the columns `goal`, and in `achieved` where it is itself, in the
    same units. A row of a batch is given what a later step of its episode achieved, each later step
    as likely (share `future`); what any step achieved (`random`); or it keeps its own goal. All
    steps of a history are given the same. A goal is reached where the two lie no further apart than
    `tolerance`.

    The rewards are those of reaching it, recorded ones are not read: gamma^k for a transition in
    which it is reached after k steps, 0 being at once, and then nothing is bootstrapped. So the
    value of a state is gamma^d, d the steps that its goal takes. An episode's end by the task ends
    every goal that is not reached by then.

    Args:
        goal: Columns of the observation that name the goal, counted from 0.
        achieved: Columns that tell what is achieved, in the order and the units of goal.
        tolerance: Distance up to which a goal is reached, in units of its columns.
        future: Share of a batch's rows whose goal is what a later step of their episode achieved.
        random: Share of a batch's rows whose goal is what any recorded step achieved.
        reward_norm: Scale of rewards: none, since they are those of goals.
    """

    _: KW_ONLY
    goal: list[int]
    achieved: list[int]
    tolerance: NonNegative
    future: Share
    random: Share

    def __post_init__(self, env: ChunkEnv | None) -> None:
        if self.future + self.random > 1:
            raise ValueError(
                f"source.future={self.future:g} with source.random={self.random:g}: shares of one "
                "batch, which add up to more than 1; lower one of them"
            )
        if self.reward_norm != "none":
            raise ValueError(
                f"source.reward_norm={self.reward_norm}: rewards are those of goals that are "
                "reached, which nothing scales; set it to none"
            )
        super().__post_init__(env)

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        self.refuse_columns(self.state_dim)
        about = {key: value for key, value in recording.about.items() if key != "undecided"}
        none = np.zeros(len(recording.action), np.float32)
        usable = super().prepare(recording._replace(reward=none, about=about), first, last)
        frames, _ = following(recording, last, self.span)
        lengths = torch.from_numpy(recording.lengths)
        final = torch.from_numpy(recording.successor).repeat_interleave(lengths)
        device = self.generator.device
        self.place = self.obs[:, self.achieved].clone()  # [S + F, Dg] what is achieved in a row
        self.frames = frames.long().to(device)  # [S] of the transition
        self.final = final.to(device)  # [S] row behind the episode's last step; -1: not recorded
        return usable

    def refuse_columns(self, size: int) -> None:
        """Raises ValueError for columns that are not there, or do not go together."""
        for key, columns in (("goal", self.goal), ("achieved", self.achieved)):
            if not columns or any(not 0 <= column < size for column in columns):
                raise ValueError(
                    f"source.{key}={columns}: an observation has the columns 0 to {size - 1}; "
                    "name those"
                )
        if len(self.goal) != len(self.achieved) or len({*self.goal, *self.achieved}) != 2 * len(
            self.goal
        ):
            raise ValueError(
                f"source.goal={self.goal} source.achieved={self.achieved}: name as many columns, "
                "each once"
            )

    def statistics(self) -> tuple[Tensor, Tensor]:
        """As of all data; goals are those that are given, which are what steps achieved."""
        obs, action = super().statistics()
        return self.aiming(obs, self.where(self.train_steps)), action

    def where(self, row: Tensor) -> Tensor:
        """What the rows [...] of `obs` achieved, [..., Dg]."""
        return self.place[row.long()]

    def drawn(self, step: Tensor) -> Any:
        """Transitions of the steps [B] under goals that are drawn."""
        return self.aimed(step.long(), self.generator)

    def rows(self, step: Tensor) -> Any:
        """Transitions of the steps [B] under goals that are the same each time."""
        fixed = torch.Generator(self.generator.device).manual_seed(0)
        return self.aimed(step.long(), fixed)

    def aimed(self, step: Tensor, generator: torch.Generator) -> Any:
        """Transitions of the steps [B] under goals of this generator."""
        return self.under(step, self.goals(step, generator).goal)

    def goals(self, step: Tensor, generator: torch.Generator) -> Goals:
        """Goals of the steps [B]."""
        count, device = len(step), generator.device
        which, part = torch.rand((2, count), generator=generator, device=device)
        other = torch.randint(len(self.train_steps), (count,), generator=generator, device=device)
        left = self.last[step] - step + (self.final[step] >= 0)  # later steps that are recorded
        later = torch.where(left > 0, 1 + (part * left).long().clamp(max=left - 1), 0)
        future = (which < self.future) & (left > 0)
        anywhere = (which >= self.future) & (which < self.future + self.random)
        goal = self.obs[step][:, self.goal]
        goal = torch.where(anywhere[:, None], self.where(self.train_steps[other]), goal)
        goal = torch.where(future[:, None], self.where(self.ahead(step, later)), goal)
        return Goals(goal, later * future)

    def ahead(self, step: Tensor, later: Tensor) -> Tensor:
        """The row of `obs` so many steps later, of the same episode, [B]."""
        row = step + later
        return torch.where(row > self.last[step], self.final[step], row)

    def under(self, step: Tensor, goal: Tensor) -> Batch:
        """Transitions of the steps [B] under goals [B, Dg]."""
        batch, frames = super().rows(step), self.frames[step]
        after = self.after.index_select(0, step).long()
        k = torch.arange(self.span + 1, device=step.device)
        visited = torch.where(k < frames[:, None], step[:, None] + k, after[:, None])
        gap = (self.where(visited) - goal[:, None]).norm(dim=-1)
        hit = gap <= self.tolerance
        reached = hit.any(1)
        reward = self.gamma ** hit.int().argmax(1).clamp(max=self.span) * reached
        obs, next_obs = (self.aiming(seen, goal) for seen in (batch.obs, batch.next_obs))
        discount = batch.discount * ~reached
        return batch._replace(
            obs=obs, reward=reward.to(obs.dtype), discount=discount, next_obs=next_obs
        )

    def aiming(self, obs: Tensor, goal: Tensor) -> Tensor:
        """Observation histories [B, To*Do] under goals [B, Dg]."""
        rows = obs.unflatten(-1, (self.obs_steps, -1)).clone()
        rows[..., self.goal] = goal[..., None, :]
        return rows.flatten(-2)


@dataclass(eq=False)
class Waypoints(Hindsight):
    """Transitions under goals, with what was achieved on the way there.

    A row whose goal is a later step's is told what was achieved `way_steps` on, or the goal if
    that is nearer (arXiv:2602.02722); others lead nowhere.

    Args:
        way_steps: Steps after which what is achieved is a waypoint; fewer are easier to reach and
            further from the goal.
    """

    gives = Aimed  # the kind of its batches

    _: KW_ONLY
    way_steps: Count

    def aimed(self, step: Tensor, generator: torch.Generator) -> Aimed:
        """Transitions of the steps [B] and waypoints."""
        goal, later = self.goals(step, generator)
        near = later.clamp(max=self.way_steps)
        way = self.where(self.ahead(step, near))
        return Aimed(*self.under(step, goal)[:5], way, later > 0)
