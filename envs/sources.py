"""Sources of batches: each has `next(act)`, `progress`, `state_dict` and `load_state_dict`.

A training loop asks a source for the next batch until `progress` reaches the run's length:
environment frames for a source that acts, updates for one that reads a dataset.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .batch import Batch
from .chunk import ChunkEnv, ChunkStep


class Act(Protocol):
    """Exploring behaviour: obs [N, O] -> action chunk [N, T, Da] in [-1, 1]."""

    def __call__(self, obs: Tensor, /) -> Tensor: ...


def to_device(step: ChunkStep, device: torch.device) -> ChunkStep:
    """The step's tensors where the policy is; free when they are there already."""
    return step if device.type == "cpu" else ChunkStep(*(value.to(device) for value in step))


class Buffer:
    """Ring of transitions, one packed row each, so that a batch is a single gather.

    A row is obs | action | next_obs | reward | discount in float32; memory is
    4 capacity (2 O + T Da + 2) bytes and is touched only as it fills.
    """

    def __init__(self, capacity: int, obs_size: int, horizon: int, action_dim: int, device: str):
        self.capacity, self.horizon, self.action_dim = capacity, horizon, action_dim
        self.splits = [obs_size, horizon * action_dim, obs_size, 1, 1]
        self.rows = torch.empty(capacity, sum(self.splits), device=device)
        self.size = self.cursor = 0

    def add(self, batch: Batch, valid: Tensor) -> None:
        """Appends the valid rows of a batch, overwriting the oldest when full."""
        packed = torch.cat(
            [
                batch.obs,
                batch.action.flatten(1),
                batch.next_obs,
                batch.reward[:, None],
                batch.discount[:, None],
            ],
            1,
        ).to(self.rows.device)
        packed = packed if bool(valid.all()) else packed[valid.to(packed.device)]
        count = len(packed)
        if count > self.capacity:
            raise ValueError(f"source.capacity={self.capacity} is below one step of {count} rows")
        head = min(count, self.capacity - self.cursor)
        self.rows[self.cursor : self.cursor + head] = packed[:head]
        self.rows[: count - head] = packed[head:]
        self.cursor = (self.cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """`count` transitions drawn uniformly with replacement."""
        index = torch.randint(self.size, (count,), generator=generator, device=generator.device)
        rows = self.rows.index_select(0, index.to(self.rows.device))
        obs, action, next_obs, reward, discount = rows.split(self.splits, 1)
        action = action.unflatten(1, (self.horizon, self.action_dim))
        return Batch(obs, action, reward[:, 0], discount[:, 0], next_obs)

    def state_dict(self) -> dict[str, Any]:
        """The filled rows and the ring's position."""
        return {"rows": self.rows[: self.size], "size": self.size, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned into a buffer of the same layout."""
        self.size, self.cursor = state["size"], state["cursor"]
        self.rows[: self.size] = state["rows"].to(self.rows.device)


class Replay:
    """Off-policy experience: acts in the environments and samples from everything seen.

    batch_size: transitions a batch. capacity: transitions kept. warmup: environment frames of
    uniform random actions before the first batch. update_ratio: batches per environment frame.
    """

    def __init__(
        self,
        env: ChunkEnv,
        generator: torch.Generator,
        *,
        capacity: int,
        batch_size: int,
        warmup: int,
        update_ratio: float,
    ) -> None:
        if update_ratio <= 0:
            raise ValueError(f"source.update_ratio={update_ratio} must be positive")
        self.env, self.generator = env, generator
        self.batch_size, self.warmup, self.update_ratio = batch_size, warmup, update_ratio
        device = str(generator.device)
        self.buffer = Buffer(capacity, env.obs_dim, env.execute, env.action_dim, device)
        self.frames = 0
        self.credit = 0.0  # batches owed for frames collected
        self.obs: Tensor | None = None
        self.finished = EpisodeStats()

    @property
    def progress(self) -> int:
        """Environment frames so far."""
        return self.frames

    def next(self, act: Act) -> Batch:
        """The next batch; steps the environments first when the update ratio asks for it."""
        while self.frames < self.warmup or self.buffer.size == 0:
            self.collect(self.random_action)
            self.credit = 0.0
        while self.credit < 1.0:
            self.collect(act)
        self.credit -= 1.0
        return self.buffer.sample(self.batch_size, self.generator)

    def collect(self, act: Act) -> None:
        """One decision in every environment."""
        if self.obs is None:
            self.obs = self.env.reset().to(self.generator.device)
        action = act(self.obs)
        step = to_device(self.env.step(action), self.generator.device)
        executed = action[:, : self.env.execute]
        batch = Batch(self.obs, executed, step.reward, step.discount, step.next_obs)
        self.buffer.add(batch, step.valid)
        self.obs = step.obs
        frames = int(step.frames.sum())
        self.frames += frames
        self.credit += frames * self.update_ratio
        self.finished.add(step)

    def random_action(self, obs: Tensor) -> Tensor:
        """Uniform actions in the box, [N, T, Da]."""
        shape = (len(obs), self.env.execute, self.env.action_dim)
        uniform = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return 2.0 * uniform - 1.0

    def metrics(self) -> dict[str, float]:
        """Returns and lengths of the episodes finished since the last call, and fault counts."""
        counters = {f"env/{name}": float(count) for name, count in self.env.env.counters.items()}
        return self.finished.drain() | counters

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs, the environments included."""
        return {
            "buffer": self.buffer.state_dict(),
            "env": self.env.state_dict(),
            "generator": self.generator.get_state(),
            "frames": self.frames,
            "credit": self.credit,
            "obs": self.obs,
            "finished": self.finished.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.buffer.load_state_dict(state["buffer"])
        self.env.load_state_dict(state["env"])
        self.generator.set_state(state["generator"])
        self.frames, self.credit, self.obs = state["frames"], state["credit"], state["obs"]
        self.finished.load_state_dict(state["finished"])


class EpisodeStats:
    """Returns and lengths of finished episodes, averaged when they are drained."""

    def __init__(self) -> None:
        self.returns: list[float] = []
        self.lengths: list[float] = []

    def add(self, step: ChunkStep) -> None:
        """Takes the rows of a chunk step that ended."""
        done = step.terminated | step.truncated
        if bool(done.any()):
            self.returns += step.episode_return[done].tolist()
            self.lengths += step.episode_length[done].tolist()

    def drain(self) -> dict[str, float]:
        """Means since the last call; nothing when no episode ended."""
        if not self.returns:
            return {}
        count = len(self.returns)
        means = {
            "env/return": sum(self.returns) / count,
            "env/length": sum(self.lengths) / count,
            "env/episodes": float(count),
        }
        self.returns, self.lengths = [], []
        return means

    def state_dict(self) -> dict[str, Any]:
        """Episodes not yet drained."""
        return {"returns": list(self.returns), "lengths": list(self.lengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.returns, self.lengths = list(state["returns"]), list(state["lengths"])


class Rollout(NamedTuple):
    """On-policy experience: S decisions in each of N environments, in time order.

    `discount` is gamma^n (1 - terminated); `next_obs` is the true successor, so a value there
    bootstraps a truncated episode; `boundary` marks the rows after which the episode does not
    go on, where an advantage recursion must stop.
    """

    obs: Tensor  # [S, N, O]
    action: Tensor  # [S, N, T, Da]
    reward: Tensor  # [S, N]
    discount: Tensor  # [S, N]
    next_obs: Tensor  # [S, N, O]
    boundary: Tensor  # [S, N] bool
    valid: Tensor  # [S, N] bool


class Rollouts:
    """On-policy experience: `decisions` chunks in every environment per call.

    decisions: chunks per environment and rollout (S).
    """

    def __init__(self, env: ChunkEnv, generator: torch.Generator, *, decisions: int) -> None:
        if decisions < 1:
            raise ValueError(f"source.decisions={decisions} must be at least 1")
        self.env, self.generator, self.decisions = env, generator, decisions
        self.frames = 0
        self.obs: Tensor | None = None
        self.finished = EpisodeStats()

    @property
    def progress(self) -> int:
        """Environment frames so far."""
        return self.frames

    def next(self, act: Act) -> Rollout:
        """The next rollout, [S, N, ...]."""
        if self.obs is None:
            self.obs = self.env.reset().to(self.generator.device)
        rows = []
        for _ in range(self.decisions):
            action = act(self.obs)
            step = to_device(self.env.step(action), self.generator.device)
            boundary = step.terminated | step.truncated
            executed = action[:, : self.env.execute]
            transition = (self.obs, executed, step.reward, step.discount, step.next_obs)
            rows.append((*transition, boundary, step.valid))
            self.obs = step.obs
            self.frames += int(step.frames.sum())
            self.finished.add(step)
        return Rollout(*(torch.stack(column) for column in zip(*rows, strict=True)))

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.env.load_state_dict(state["env"])
        self.generator.set_state(state["generator"])
        self.frames, self.obs = state["frames"], state["obs"]
        self.finished.load_state_dict(state["finished"])
