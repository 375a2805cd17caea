"""Recorded episodes as batches: windows for cloning, transitions for learning from rewards."""

from collections.abc import Callable
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..ranges import Count, Rate
from .batch import Batch, Windows
from .chunk import ChunkEnv
from .data.read import read
from .data.recording import Reading, Recording
from .encoded import See
from .pixels import Images
from .recorded import (
    Sampler,
    discounted,
    fingerprint,
    following,
    held_out_episodes,
    largest,
    refuse_share,
    refuse_unrewarded,
    scale_of,
    stage_of,
)
from .shift import Shift, shifted

HELD_WINDOWS = 8192  # at most so many validation windows: a validation is one batch
HELD_BYTES = 1 << 28  # and no more memory than this for their observations
STARTS = 1024  # first steps of episodes that a policy is judged at, at most
PIECE = 256  # observations that are encoded at a time
AnyBatch = TypeVar("AnyBatch", Batch, Windows)


@dataclass(eq=False)
class Dataset(Sampler):
    """Chunk windows of recorded episodes: one for every step, none lost at an episode's end.

    S steps, F known successors, To history, Tp chunk. Histories before an episode's start repeat
    its first observation, chunks past its end repeat its last action and say so in `inside`.

    Which episodes validate is fixed, whatever the run's seed. Units of actions are
    `units.in_unit`'s, by the run's environment `env`. features: how many numbers a trained encoder
    makes of a step's images, which `encode` puts in their place; None: these stay.

    Args:
        path: File, folder or name of a data set (`rheo info data` lists layouts), or a list of
            several, which are joined.
        batch_size: Rows per update: each step of a recording begins one, an observation history
            with the actions that follow.
        holdout: Share of the episodes kept for validation (0: none, else at least one), or a filter
            key whose demonstrations validate.
        obs_steps: Observations of history that a policy sees, the latest included.
        on_bad: What broken numbers or actions outside [-1, 1] lead to: refuse the file, drop those
            episodes, or clip actions a little outside.
        action_scale: Unit of the file's actions: unit ([-1, 1]), physical (the environment's or
            file's bounds), extremes (their own), recorded (as the file says), or auto.
        storage: Where large arrays are held: ram, or mmap, a temporary file on disk.
        obs_keys: Observations that are read of a file that names several; null: those of the
            environment, else the usual ones.
        filter: Filter key (robomimic's mask/NAME) whose demonstrations alone are read; null: all.
        time_limit: Steps after which an episode is cut where the file marks no end; null: nowhere.
        big: Whether a file may become more than 1 GB and 100 times its size on disk, in memory.
    """

    gives = Windows  # the kind of its batches

    generator: torch.Generator
    horizon: int
    env: InitVar[ChunkEnv | None] = None
    features: Callable[[Images], int] | None = None
    _: KW_ONLY
    path: str | list[str]
    batch_size: Count
    holdout: float | str
    obs_steps: Count
    on_bad: Literal["refuse", "drop", "clip"]
    action_scale: Literal["auto", "unit", "physical", "extremes", "recorded"]
    storage: Literal["ram", "mmap"]
    obs_keys: list[str] | None
    filter: str | None
    time_limit: Count | None
    big: bool

    def __post_init__(self, env: ChunkEnv | None) -> None:
        named = isinstance(self.holdout, str)
        if not named:
            refuse_share(float(self.holdout))
        self.updates, device = 0, self.generator.device
        self.shift: Shift | None = None  # of images, before they are learned from
        how = {name: getattr(self, name) for name in Reading._fields if hasattr(self, name)}
        recording = read(
            self.path,
            **how,
            held=self.holdout if named else None,
            stage=stage_of(env),
            env_parts=None if env is None else env.env.obs_parts,
        )
        self.about = recording.about
        self.obs_images = recording.images
        self.state_dim = recording.state.shape[1]
        self.digest = fingerprint(recording)
        self.obs = torch.from_numpy(recording.obs).to(device)  # [S + F, Do]
        self.action = torch.from_numpy(recording.action).to(device)  # [S, Da]
        self.width = self.obs.shape[1]  # of an observation, as it is learned from
        if self.features is not None and self.obs_images:
            self.width = self.state_dim + self.features(self.obs_images)
        ends, lengths = map(torch.from_numpy, (recording.ends, recording.lengths))
        held = held_out_episodes(recording, self.holdout).repeat_interleave(lengths)
        small = torch.int32 if len(self.obs) < 2**31 else torch.int64
        first = (ends - lengths).to(small).repeat_interleave(lengths)
        last = (ends - 1).to(small).repeat_interleave(lengths)
        usable = self.prepare(recording, first, last)
        self.first, self.last = first.to(device), last.to(device)  # [S] of the step's episode
        steps = torch.arange(len(held), dtype=small)
        self.train_steps = steps[usable & ~held].to(device)
        self.held_steps = steps[usable & held].to(device)
        if not len(self.train_steps):
            raise ValueError(f"data={self.path}: no step can be trained on; lower data.holdout")

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        """What a subclass adds to the tables; which steps [S] bool it can use."""
        return torch.ones(len(last), dtype=torch.bool)

    @property
    def obs_size(self) -> int:
        """Size of an observation history, as it is learned from."""
        return self.width * self.obs_steps

    @property
    def row_size(self) -> int:
        """Numbers of observations that a row holds."""
        return self.obs_size

    @torch.no_grad()
    def encode(self, see: See) -> None:
        """Puts features in the place of all images, where there are to be some; once."""
        if self.width == self.obs.shape[1]:
            return
        obs = torch.empty(len(self.obs), self.width, device=self.obs.device)
        for start in range(0, len(obs), PIECE):
            obs[start : start + PIECE] = see(self.obs[start : start + PIECE])
        self.obs = obs

    @property
    def action_dim(self) -> int:
        """Action dimensions."""
        return self.action.shape[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Training observations [S, To*Do] and actions [S, Da], for fitting normalisers.

        Every place of a history holds the same observation, so that all get the same scale. Of
        observations with images only what stands before these.
        """
        state = self.obs[:, : self.state_dim]
        return state[self.train_steps].repeat(1, self.obs_steps), self.action[self.train_steps]

    def beginning(self, count: int) -> Tensor:
        """Observation histories of the first training steps, [count, To*Do] at most."""
        return self.rows(self.train_steps[:count]).obs

    def next(self, act: Any) -> Any:
        """A batch of training rows; `act` is not needed."""
        self.updates += 1
        count, device = (self.batch_size,), self.generator.device
        pick = torch.randint(len(self.train_steps), count, generator=self.generator, device=device)
        return shifted(self.drawn(self.train_steps[pick]), self.shift, self.generator)

    def held_out(self) -> Any:
        """The validation rows, evenly spaced ones where there are many; None without any.

        At most HELD_WINDOWS, whose observations take at most HELD_BYTES.
        """
        count = len(self.held_steps)
        if not count:
            return None
        most = min(HELD_WINDOWS, max(HELD_BYTES // (self.obs.element_size() * self.row_size), 1))
        stride = -(-count // most)
        return self.rows(self.held_steps[::stride])

    def starts(self) -> Tensor:
        """Observation histories where episodes begin that validate, [N, To*Do].

        Evenly spaced ones of more than STARTS. Raises ValueError without any.
        """
        held = self.held_steps
        begin = held[self.first[held.long()] == held]
        if not len(begin):
            raise ValueError(
                f"data={self.path}: no episode is held out whose beginning a policy could be "
                f"judged at; set source.holdout=0.1 (it is {self.holdout})"
            )
        begin = begin[:: -(-len(begin) // STARTS)]
        return self.history(begin, self.first[begin])

    def drawn(self, step: Tensor) -> Any:
        """The batch of the steps [B] that training draws."""
        return self.rows(step)

    def rows(self, step: Tensor) -> Any:
        """The batch of the steps [B]."""
        return self.windows(step)

    def windows(self, step: Tensor) -> Windows:
        """The windows that start at the steps [B]."""
        last = self.last[step]
        ahead = torch.arange(self.horizon, device=step.device, dtype=step.dtype)
        future = step[:, None] + ahead
        inside = future <= last[:, None]
        action = self.action[torch.minimum(future, last[:, None])]
        return Windows(self.history(step, self.first[step]), action, inside)

    def history(self, row: Tensor, first: Tensor) -> Tensor:
        """Observation histories [B, To*Do] that end at the rows [B] of `obs`."""
        if self.obs_steps == 1:
            return self.obs[row]
        back = torch.arange(1 - self.obs_steps, 1, device=row.device, dtype=row.dtype)
        return self.obs[torch.maximum(row[:, None] + back, first[:, None])].flatten(1)


@dataclass(eq=False)
class Transitions(Dataset):
    """Transitions between the decisions of a policy that executes Ta actions of every chunk.

    For a step s with n = min(n_step Ta, steps left) the batch holds sum_k gamma^k r_{s+k} over the
    n steps, gamma^n (1 - terminated) and the observation n steps on, so an n-step target is `reward
    + discount * value(next_obs)`; a cut episode keeps its bootstrap, and its last decisions are
    left out only where the recording does not hold the observation after its end. Where the file
    tells costs the batch holds the largest of the n steps.

    reward_norm "return_range" multiplies rewards by RETURN_RANGE / (best - worst return), as in
    arXiv:2110.06169; sparse rewards (a goal's 0 and 1) have a range that is that of one step, and
    "auto" leaves them.

    Args:
        batch_size: Transitions per update.
        execute: Actions of each chunk that are executed before the next decision; as env.execute.
        n_step: Decisions whose rewards a transition sums before its bootstrap: 1 is one-step TD,
            more spread rewards faster but favour the recorded behaviour.
        gamma: Discount per environment step; nearer to 1 looks further ahead; as env.gamma.
        reward_norm: Scale of rewards: none leaves them, return_range makes returns span 1000, auto
            does so where rewards are dense.
    """

    gives = Batch  # the kind of its batches

    _: KW_ONLY
    execute: Count
    n_step: Count
    gamma: Rate
    reward_norm: Literal["auto", "none", "return_range"]

    def __post_init__(self, env: ChunkEnv | None) -> None:
        if self.execute > self.horizon:
            text = f"env.execute={self.execute} is above horizon={self.horizon}; lower it"
            raise ValueError(text)
        self.span = self.execute * self.n_step
        super().__post_init__(env)

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        refuse_unrewarded(recording, self.path, "use algo=bc")
        assert recording.reward is not None
        step = torch.arange(len(recording.reward), dtype=last.dtype)
        frames, after = following(recording, last, self.span)
        self.reward_scale = scale_of(recording, self.reward_norm, self.path)
        total = discounted(torch.from_numpy(recording.reward), frames, self.gamma)
        at_end = step + frames > last
        terminated = at_end & torch.from_numpy(recording.terminated)[last]
        usable = (after >= 0) | terminated
        device = self.generator.device
        powers = torch.tensor([self.gamma**n for n in range(self.span + 1)])
        self.reward = (total * self.reward_scale).to(device)  # [S]
        self.discount = (powers[frames] * ~terminated).to(device)  # [S]
        self.after = torch.where(after < 0, step, after).to(device)  # [S] row of the successor
        self.cost = None  # [S]
        if recording.cost is not None:
            self.cost = largest(torch.from_numpy(recording.cost), frames).to(device)
        return usable

    @property
    def costs(self) -> bool:
        """Whether batches tell costs."""
        return self.cost is not None

    def rows(self, step: Tensor) -> Batch:
        """Transitions from the steps [B]. (index_select: half the time of indexing by a tensor.)"""
        step = step.long()
        reward, discount = self.reward.index_select(0, step), self.discount.index_select(0, step)
        after = self.after.index_select(0, step)
        if self.obs_steps == 1:
            obs, next_obs = self.obs.index_select(0, step), self.obs.index_select(0, after)
        else:
            first = self.first[step]
            obs, next_obs = self.history(step, first), self.next_history(step, after, first)
        cost = None if self.cost is None else self.cost.index_select(0, step)
        return Batch(obs, self.chunk(step), reward, discount, next_obs, cost)

    def chunk(self, step: Tensor) -> Tensor:
        """Actions [B, Tp, Da] from the steps on, the last one repeated past an episode's end."""
        if self.horizon == 1:
            return self.action.index_select(0, step)[:, None]
        ahead = torch.arange(self.horizon, device=step.device)
        future = torch.minimum(step[:, None] + ahead, self.last.index_select(0, step)[:, None])
        action = self.action.index_select(0, future.flatten())
        return action.unflatten(0, (len(step), self.horizon))

    def next_history(self, step: Tensor, after: Tensor, first: Tensor) -> Tensor:
        """Histories that end at the successors, whose rows do not follow on at episodes' ends."""
        last = self.last[step]
        newest = torch.where(after > last, last + 1, after)  # counted as if the rows went on
        newest = torch.maximum(newest, step)
        back = torch.arange(1 - self.obs_steps, 1, device=step.device, dtype=step.dtype)
        rows = torch.maximum(newest[:, None] + back, first[:, None])
        return self.obs[torch.where(rows > last[:, None], after[:, None], rows)].flatten(1)
