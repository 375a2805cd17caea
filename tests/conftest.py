"""One thread per test: small products are slower on several, and sums keep their order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

FLOW = ["policy.net.width=16", "policy.net.depth=1", "policy.net.encoder_depth=1", "policy.steps=2"]
REPLAY = [
    *("env=inverted_pendulum", "env.num_envs=2", "critic.width=16", "critic.depth=1"),
    *("source.batch_size=16", "source.warmup=40", "source.capacity=250"),
]
CRITIC = ["critic.width=16", "critic.depth=1", "source.batch_size=16"]
VALUE = ["algo.value.width=16", "algo.value.depth=1"]
GAUSSIAN = ["policy.width=16", "policy.depth=1"]
WORDS = {
    "awm": [*FLOW, *CRITIC, *VALUE],
    "bc": [*FLOW, "source.batch_size=16"],
    "bc_gaussian": [*GAUSSIAN, "source.batch_size=16"],
    "dql": [*FLOW, *CRITIC],
    "fql": [*FLOW, *CRITIC],
    "iql": [*FLOW, *CRITIC, *VALUE],
    "iql_gaussian": [*GAUSSIAN, *CRITIC, *VALUE],
    "meanflow": [*FLOW, "source.batch_size=16"],
    "rfm": [*FLOW, *REPLAY, "algo.particles=4", "algo.policy_batch=8"],
    "rfm_offline": [*FLOW, *CRITIC, *VALUE, "algo.reverse.particles=4", "algo.policy_batch=8"],
    "sac": [*REPLAY, *GAUSSIAN],
    "shortcut": [*FLOW, "source.batch_size=16"],
    "td3bc": [*GAUSSIAN, *CRITIC],
}
ONLINE = ("rfm", "sac")


def write_episodes(path: Path, lengths: list[int], obs_dim: int = 3, action_dim: int = 2) -> Path:
    """A dataset of random episodes."""
    rng, steps = np.random.default_rng(0), sum(lengths)
    np.savez(
        path,
        observations=rng.normal(size=(steps, obs_dim)),
        actions=rng.uniform(-1, 1, (steps, action_dim)),
        rewards=rng.normal(size=steps),
        episode_ends=np.cumsum(lengths),
    )
    return path


@pytest.fixture(autouse=True)
def normal_numbers() -> None:
    """Training sets the processor to flush small numbers; no test starts with that left on."""
    torch.set_flush_denormal(False)


@pytest.fixture
def episodes() -> Callable[..., Path]:
    """Writes a dataset of random episodes: `episodes(path, lengths, obs_dim, action_dim)`."""
    return write_episodes


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Words of a run that takes a second, `tiny(algo, name, *more)`; the test works in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def words(algo: str, name: str, *more: str) -> list[str]:
        data = []
        if algo not in ONLINE:
            data = [f"data={write_episodes(tmp_path / 'data.npz', [9, 30, 25, 40])}"]
        periods = ["steps=200", "log_every=20", "eval_every=100", "save_every=60", "episodes=2"]
        return [f"algo={algo}", *WORDS[algo], *data, *periods, f"name={name}", *more]

    return words
