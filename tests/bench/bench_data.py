"""Batches out of a million transitions, replayed and recorded; checks of many small arrays."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from rheo.envs.batch import Batch
from rheo.envs.buffer import Buffer
from rheo.envs.data.faults import faults
from rheo.envs.data.read import AUTO, load
from rheo.envs.data.recording import Reading, Recording
from rheo.envs.data.writing import write
from rheo.envs.datasets import Transitions
from rheo.scripts.limits import SIZES, transitions
from rheo.scripts.paired import Goal, Plan, Row, alternate, shorter

ROWS = 256
CHUNK = 4  # Ta and Tp of the recorded chunks
EPISODE = 1000
REPLAY_GOAL = (Goal("ratio", "<=", 0.25),)
LOADER_GOAL, GATHER_GOAL = (Goal("ratio", "<=", 0.5),), (Goal("ratio", "<=", 1.3),)
CHECK_GOAL = (Goal("ratio", "<=", 1.3),)
SHAPES = ((1000, 1), (100, 20))  # demonstrations of three steps, observation keys
TENSORS, LOADER, GATHER = "five indexed tensors", "per-index loader", "raw tensor gather"
PASS = "plain h5py pass"


def measure(plan: Plan) -> Iterator[Row]:
    """The replay's rows and the data set's."""
    steps = 10_000 if plan.quick else 1_000_000
    yield replay_row(plan, steps)
    with tempfile.TemporaryDirectory() as folder:
        yield from dataset_rows(plan, steps, Path(folder))
        for demos, keys in ((20, 1), (5, 4)) if plan.quick else SHAPES:
            yield check_row(plan, demos, keys, Path(folder) / f"demos_{keys}.hdf5")


def replay_row(plan: Plan, capacity: int) -> Row:
    """A batch of transitions, against a gather from each of five tensors."""
    generator = torch.Generator().manual_seed(3)
    buffer = Buffer(capacity, SIZES.obs_dim, 1, SIZES.action_dim, "cpu")
    data = transitions(capacity, generator)
    valid = torch.ones(capacity // 10, dtype=torch.bool)
    for parts in zip(*(x.split(len(valid)) for x in data.columns), strict=True):
        buffer.add(Batch(*parts), valid)

    def gather() -> Batch:
        index = torch.randint(capacity, (ROWS,), generator=generator)
        return Batch(*(x[index] for x in data.columns))

    sides = {"ours": lambda: buffer.sample(ROWS, generator), TENSORS: gather}
    row = Row(f"replay of {capacity:,}, batch {ROWS}", "us", 0.0, goals=REPLAY_GOAL)
    return shorter(row, alternate(plan, sides, cpu=True), TENSORS)


def dataset_rows(plan: Plan, steps: int, folder: Path) -> Iterator[Row]:
    """Chunks of recorded episodes, against a loader that visits indices and a bare gather."""
    data = recorded(steps, folder / "steps.npz")
    generator = data.generator
    ahead = torch.arange(CHUNK)

    def bare() -> tuple[Any, ...]:
        step = torch.randint(steps - CHUNK, (ROWS,), generator=generator)
        action = data.action[step[:, None] + ahead]
        obs, after = data.obs[step], data.obs[step + CHUNK]
        return obs, action, data.reward[step], data.discount[step], after

    def visit() -> Batch:
        chosen = torch.randint(len(data.train_steps), (ROWS,), generator=generator)
        rows = [item(data, int(data.train_steps[i])) for i in chosen]
        return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))

    sides = {"ours": lambda: data.next(None), LOADER: visit, GATHER: bare}
    times = alternate(plan, sides, cpu=True)
    name = f"recorded chunks of {CHUNK}, {steps:,} steps, batch {ROWS}"
    yield shorter(Row(name, "us", 0.0, goals=LOADER_GOAL), times, LOADER)
    yield shorter(Row(name, "us", 0.0, goals=GATHER_GOAL), times, GATHER)


def check_row(plan: Plan, demos: int, keys: int, file: Path) -> Row:
    """`rheo data check` of short demonstrations, against reading the same arrays with h5py."""
    names = [f"{group}/{key}" for key in range(keys) for group in ("obs", "next_obs")]
    names += ["actions", "rewards", "dones"]
    rng = np.random.default_rng(0)
    with h5py.File(file, "w") as out:
        for demo in range(demos):
            for key in range(keys):
                obs = rng.standard_normal((4, 3))
                out[f"data/demo_{demo}/obs/{key}"] = obs[:-1]
                out[f"data/demo_{demo}/next_obs/{key}"] = obs[1:]
            out[f"data/demo_{demo}/actions"] = 2 * rng.random((3, 4)) - 1
            for name in ("rewards", "dones"):
                out[f"data/demo_{demo}/{name}"] = np.arange(3) == 2

    def check() -> None:
        assert all(f.level == "note" for f in faults(load(str(file), Reading(storage=AUTO))))

    def bare() -> None:
        with h5py.File(file, "r", locking=False) as held:
            data: Any = held["data"]
            for demo in data:
                for name in names:
                    data[demo][name][()]

    times = alternate(plan, {"ours": check, PASS: bare}, cpu=True)
    name = f"check of {demos:,} demonstrations, {len(names)} arrays each"
    return shorter(Row(name, "ms", 0.0, goals=CHECK_GOAL), times, PASS, unit=1e3)


def item(data: Transitions, step: int) -> tuple[torch.Tensor, ...]:
    """One transition as a loader of single items makes it."""
    last = int(data.last[step])
    end = min(step + CHUNK, last + 1)
    action = data.action[step:end]
    if len(action) < CHUNK:
        action = torch.cat([action, action[-1:].expand(CHUNK - len(action), -1)])
    row = int(data.after[step])
    return data.obs[step], action, data.reward[step], data.discount[step], data.obs[row]


def recorded(steps: int, file: Path) -> Transitions:
    """Random episodes, through a file as a user's would come."""
    rng, count = np.random.default_rng(0), steps // EPISODE
    size = (steps + count, SIZES.obs_dim)
    recording = Recording(
        rng.standard_normal(size, dtype=np.float32),
        2 * rng.random((steps, SIZES.action_dim), dtype=np.float32) - 1,
        rng.standard_normal(steps, dtype=np.float32),
        np.zeros(steps, bool),
        np.arange(1, count + 1) * EPISODE,
        steps + np.arange(count),
        {},
    )
    write(recording, file)
    return Transitions(
        torch.Generator().manual_seed(4),
        CHUNK,
        path=str(file),
        batch_size=ROWS,
        holdout=0.0,
        obs_steps=1,
        on_bad="refuse",
        action_scale="auto",
        big=False,
        storage="ram",
        obs_keys=None,
        filter=None,
        time_limit=None,
        execute=CHUNK,
        n_step=1,
        gamma=0.99,
        reward_norm="none",
    )
