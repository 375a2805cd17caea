"""Sources of batches: each has `next(act)`, `progress`, `state_dict` and `load_state_dict`.

A training loop asks a source for the next batch until `progress` reaches the run's length:
environment frames for a source that acts, updates for one that reads a dataset. Where a frame is
not an update, `updates_in(steps)` says how many updates a run makes.

A source that acts keeps the whole planned chunk of Tp actions, although only the first Ta are
executed: a policy's chunk, a critic's input and a stored action have one shape, and a reward does
not depend on the rest of the plan.
"""

import logging
import math
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import ranks
from ..errors import EnvError, Halted
from ..ranges import Count, Natural, Positive
from .acting import Acting
from .batch import Batch, Choice, Coded, Rollout
from .buffer import Buffer
from .chunk import ChunkEnv
from .encoded import Encoded
from .memory import available, size_text
from .nstep import Pending
from .shift import shifted

log = logging.getLogger("rheo")
ROLLOUT_SHARE = 0.5  # of free memory: an update needs as much again


class Act(Protocol):
    """Exploring behaviour: obs [N, O] -> action chunk [N, T, Da] in [-1, 1]."""

    def __call__(self, obs: Tensor, /) -> Tensor | Coded: ...


class Remember(Protocol):
    """What to keep beside transitions: N of them -> [N, M, Da]."""

    def __call__(self, batch: Batch, /) -> Tensor: ...


class Choose(Protocol):
    """Behaviour on policy: obs [N, O] -> action chunk and what its update needs of it."""

    def __call__(self, obs: Tensor, /) -> Choice: ...


class Replay(Acting):
    """Off-policy experience: acts in the environments and samples from everything seen.

    Of several ranks frames are those of all, batches and transitions those of each. What an
    algorithm keeps in a chunk's place is a `Coded`; what more than one decision until the bootstrap
    biases is in `envs.nstep`.

    Args:
        capacity: Transitions that the replay keeps; beyond that the oldest are overwritten.
        batch_size: Transitions per update.
        warmup: Environment frames before the first update, acted on at random unless warmup_policy
            is set; 0: none.
        update_ratio: Updates per environment frame after the warm-up, exact up to those that one
            decision pays for.
        warmup_policy: Whether the algorithm's own actions fill the warm-up, instead of uniformly
            random ones.
        kept_rows: Rows that the replay keeps of an action, where the algorithm keeps codes in their
            place (dsrl_sac); null: horizon.
        n_step: Decisions whose rewards a transition sums before its bootstrap: 1 is one-step TD,
            more spread rewards faster but favour old behaviour.
    """

    gives = Batch  # the kind of its batches

    def __init__(
        self,
        env: ChunkEnv,
        generator: torch.Generator,
        horizon: int,
        *,
        capacity: Count,
        batch_size: Count,
        warmup: Natural,
        update_ratio: Positive,
        warmup_policy: bool = False,
        kept_rows: Count | None = None,
        n_step: Count = 1,
    ) -> None:
        if update_ratio <= 0:
            raise ValueError(f"source.update_ratio={update_ratio} must be positive")
        if warmup < 0:
            raise ValueError(f"source.warmup={warmup} must not be negative")
        if capacity < env.num_envs:
            raise ValueError(
                f"source.capacity={capacity} cannot hold one step of {env.num_envs} environments; "
                "raise it"
            )
        super().__init__(env, generator, horizon)
        self.batch_size, self.warmup, self.update_ratio = batch_size, warmup, update_ratio
        self.warmup_policy = warmup_policy
        device, rows = str(generator.device), kept_rows or horizon
        refuse_large(env, capacity)
        self.costs = env.env.costs  # whether batches tell them
        sizes = env.obs_dim, rows, env.action_dim
        self.buffer = Buffer(capacity, *sizes, device, costs=self.costs)
        self.pending = Pending(n_step)
        self.remember: Remember | None = None
        self.warm_frames = 0  # frames when the warm-up ended
        self.batches = 0

    def updates_in(self, steps: int) -> int:
        """Batches of a run of so many frames, which ends with the first batch at its last frame.

        Exact up to the batches that one decision pays for: an episode may end within a chunk.
        """
        decision = ranks.size() * self.env.num_envs * self.env.execute
        warm = max(math.ceil(self.warmup / decision), self.pending.size) * decision
        later = max(steps - 1 - warm, 0) // decision * decision
        return 1 + math.floor(later * self.update_ratio + 1e-9)

    def next(self, act: Act) -> Batch:
        """The next batch; steps the environments first when the update ratio asks for it."""
        while self.frames < self.warmup or self.empty():
            self.collect(act if self.warmup_policy else self.random_action)
            self.warm_frames = self.frames
            self.pause()
        while self.batches >= self.owed():
            self.collect(act)
            self.pause()
        self.batches += 1
        batch = self.buffer.sample(self.batch_size, self.generator)
        return shifted(batch, self.shift, self.generator)

    def pause(self) -> None:
        """Raises Halted where it is time to stop."""
        if self.halt():
            raise Halted

    def empty(self) -> bool:
        """Whether some rank has no transition yet."""
        return self.batches == 0 and ranks.largest(int(self.buffer.size == 0)) > 0

    def owed(self) -> int:
        """Batches that the frames since the warm-up pay for (counted anew: no rounding adds up)."""
        return math.floor((self.frames - self.warm_frames) * self.update_ratio + 1e-9)

    def collect(self, act: Act) -> None:
        """One decision in every environment."""
        obs, before = self.seen(), self.frames
        choice = act(obs)
        action, kept = choice if isinstance(choice, Coded) else (choice, choice)
        step = self.step(action)
        batch = Batch(obs, kept, step.reward, step.discount, step.next_obs, step.cost)
        joined = self.pending.add(batch, step.terminated | step.truncated, step.valid)
        sound = None
        if self.on_device:
            (sound,) = self.asked(step.frames, step.valid if joined is None else joined[1])
        self.count_all(before)
        if joined is not None:
            batch, valid = joined
            if self.remember is not None:
                batch = batch._replace(memo=self.remember(batch))
            self.buffer.add(batch, valid, sound)

    def memorise(self, rows: int, remember: Remember) -> None:
        """From now on keeps beside each transition `rows` rows of actions: what `remember` returns.

        Computed once, as the transition is stored. Raises ValueError when there are some already,
        or not enough memory.
        """
        if self.buffer.size > 0:
            raise ValueError("a replay that is not empty cannot begin to remember")
        old = self.buffer
        width, device = old.splits[0], str(old.rows.device)
        sizes = width, old.horizon, old.action_dim
        self.buffer = Buffer(old.capacity, *sizes, device, rows, old.costs)
        self.remember = remember

    def random_action(self, obs: Tensor) -> Tensor:
        """Uniform actions in the box, [N, T, Da]."""
        shape = (len(obs), self.horizon, self.env.action_dim)
        uniform = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return 2.0 * uniform - 1.0

    def state_dict(self) -> dict[str, Any]:
        """The experience and the counters too."""
        return super().state_dict() | {
            "buffer": self.buffer.state_dict(),
            "pending": self.pending.state_dict(),
            "warm_frames": self.warm_frames,
            "batches": self.batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what `state_dict` returned."""
        self.buffer.load_state_dict(state["buffer"])
        self.pending.load_state_dict(state["pending"], self.generator.device)
        self.warm_frames, self.batches = state["warm_frames"], state["batches"]
        begun = super().load_state_dict(state)
        if begun:  # the decisions that waited belong to episodes that are lost
            self.pending.window.clear()
        return begun


def columns(recorded: Any) -> dict[str, Tensor]:
    """What is kept of recorded steps."""
    return {"data_obs": recorded.obs, "data_action": recorded.action}


def refuse_large(env: ChunkEnv, capacity: int) -> None:
    """Says what a replay of images takes. Raises EnvError where that is more than there is.

    Memory is touched as a replay fills, so that the machine itself refuses too late.
    """
    if not env.env.obs_images or isinstance(env.env, Encoded):
        return
    needed, free = 8 * capacity * env.obs_dim, available()
    text = f"replay: {capacity} transitions of images take {size_text(needed)}"
    if free is not None and needed > free:
        raise EnvError(
            f"{text}, and {size_text(free)} of memory are free; lower source.capacity, or keep "
            "what a trained encoder makes of them (init=RUN eye.frozen=true)"
        )
    log.info(text)


class Rollouts(Acting):
    """On-policy experience: a number of chunks (S) in every environment per call.

    A rollout lives until the next call, which writes over it. Actions are clipped to [-1, 1] where
    they are executed, not where they are kept. Images are shifted before they are acted on and kept
    so: the policy that learns from a decision sees what the one that took it saw.

    dataset: recorded data, of which a step (observation and plan) is drawn beside every decision,
    `data_obs` and `data_action` of what is kept; its batch size is set here.

    Args:
        decisions: Decisions in every environment per rollout; a decision executes one chunk of
            env.execute actions.
    """

    gives = Rollout  # the kind of its batches

    def __init__(
        self,
        env: ChunkEnv,
        generator: torch.Generator,
        horizon: int,
        dataset: Any = None,
        *,
        decisions: Count,
    ) -> None:
        if decisions < 1:
            raise ValueError(f"source.decisions={decisions} must be at least 1")
        super().__init__(env, generator, horizon)
        self.decisions = decisions
        self.store: Rollout | None = None
        self.made = 0  # decisions of the running rollout
        if dataset is not None:
            self.read(dataset)

    def read(self, dataset: Any) -> None:
        """From now on recorded steps come beside decisions."""
        self.dataset, dataset.batch_size = dataset, self.env.num_envs
        self.obs_size, self.action_dim = dataset.obs_size, dataset.action_dim
        self.obs_images, self.obs_steps = dataset.obs_images, dataset.obs_steps
        self.statistics, self.encode = dataset.statistics, dataset.encode

    def beside(self, choice: Choice) -> Choice:
        """A choice with recorded steps beside it, where there are data."""
        if not hasattr(self, "dataset"):
            return choice
        return Choice(choice.action, {**choice.kept, **columns(self.dataset.next(None))})

    def example(self) -> dict[str, Tensor]:
        """A row of what comes beside a choice."""
        if not hasattr(self, "dataset"):
            return {}
        return columns(self.dataset.rows(self.dataset.train_steps[:1]))

    def next(self, act: Choose) -> Rollout:
        """The next rollout, [S, N, ...]."""
        before, first, shift = self.frames, self.made, self.shift
        for s in range(first, self.decisions):
            if s > first and self.halt():
                self.count(before, first, s)
                raise Halted
            obs = self.seen()
            obs = obs if shift is None else shift(obs, self.generator)
            choice = self.beside(act(obs))
            if self.store is None:
                self.store = self.reserve(choice)
            step = self.step(choice.action.clamp(-1, 1))
            row = (
                *(obs, choice.action, step.reward, step.discount, step.next_obs),
                *(step.terminated | step.truncated, step.valid, step.frames),
            )
            columns: Any = self.store[:-1]  # all but `kept`
            for column, value in zip(columns, row, strict=True):
                column[s] = value
            for name, value in choice.kept.items():
                self.store.kept[name][s] = value
            self.made = s + 1
        self.count(before, first, self.decisions)
        self.made = 0
        assert self.store is not None
        if not self.on_device and not self.store.valid.any():
            raise EnvError(self.unsound())
        return self.store

    def count(self, before: int, first: int, end: int) -> None:
        """Counts the frames of these decisions."""
        assert self.store is not None
        if self.on_device:
            self.asked(self.store.frames[first:end])
        self.count_all(before)

    def state_dict(self) -> dict[str, Any]:
        """The decisions of a rollout that was cut too."""
        begun: dict[str, Tensor] = {}
        if self.made:
            assert self.store is not None
            columns = self.store._asdict()
            begun = {**columns.pop("kept"), **{f"rollout.{k}": v for k, v in columns.items()}}
            begun = {name: value[: self.made].clone() for name, value in begun.items()}
        data = {"dataset": self.dataset.state_dict()} if hasattr(self, "dataset") else {}
        return super().state_dict() | {"begun": begun} | data

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restores what `state_dict` returned."""
        begun = super().load_state_dict(state)
        if hasattr(self, "dataset"):
            self.dataset.load_state_dict(state["dataset"])
        rows = dict(state.get("begun") or {})
        if not rows:
            return begun
        self.made = len(rows["rollout.obs"])
        place = self.generator.device
        held = {
            name: torch.zeros((self.decisions, *value.shape[1:]), dtype=value.dtype, device=place)
            for name, value in rows.items()
        }
        for name, value in rows.items():
            held[name][: self.made] = value
        fields = [held.pop(f"rollout.{name}") for name in Rollout._fields[:-1]]
        self.store = Rollout._make([*fields, held])
        if begun:  # what follows is no successor of the last decision
            self.store.boundary[self.made - 1] = True
        return begun

    def reserve(self, choice: Choice) -> Rollout:
        """Memory for rollouts of such choices, said aloud. Raises EnvError when it lacks."""
        lead = (self.decisions, self.env.num_envs)
        device, obs = self.generator.device, (self.env.obs_dim,)
        bools, real = torch.bool, self.env.env.dtype
        shapes = [
            (obs, real), (choice.action.shape[1:], real), ((), real), ((), real), (obs, real),
            ((), bools), ((), bools), ((), torch.int64),
        ]  # fmt: skip
        kept = {**choice.kept, **self.example()}
        shapes += [(value.shape[1:], value.dtype) for value in kept.values()]
        rows = math.prod(lead)
        needed = sum(rows * math.prod(shape) * kind.itemsize for shape, kind in shapes)
        text = f"rollout: {lead[0]} decisions of {lead[1]} environments take {size_text(needed)}"
        free = available() if device.type == "cpu" else None
        if free is not None and ROLLOUT_SHARE * free < needed:
            raise EnvError(
                f"{text}, and {size_text(free)} of memory are free; lower source.decisions or "
                "env.num_envs"
            )
        log.info(text)
        columns: Any = [
            torch.zeros((*lead, *shape), dtype=kind, device=device) for shape, kind in shapes
        ]
        return Rollout._make([*columns[:8], dict(zip(kept, columns[8:], strict=True))])
