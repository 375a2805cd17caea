"""One thread per test: small products are slower on several, and sums keep their order."""

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped import needs, reads, small
from torch import nn

from rheo.envs import cameras
from rheo.envs.mujoco import starts
from rheo.errors import EnvError
from rheo.policies.fewstep import FewStepPolicy
from rheo.policies.normalize import Normalizer
from rheo.scripts import grace
from rheo.scripts.store.stamps import LINE, sealed

torch.set_num_threads(1)
LONGEST = (  # files of tests, by the processor's seconds with no kernel compiled yet
    *("tests/faults/test_faults.py", "tests/scripts/test_ranks.py"),
    *("tests/test_resume.py", "tests/envs/mujoco/test_warp.py"),
    *("tests/envs/mujoco/test_warp_physics.py", "tests/scripts/test_configs.py"),
    *("tests/scripts/test_export.py", "tests/scripts/test_config.py"),
    *("tests/scripts/test_bench_gpu.py", "tests/bench/test_bench.py"),
    *("tests/scripts/test_sweep.py", "tests/test_docs.py"),
    *("tests/scripts/test_serve.py", "tests/algos/test_rfm.py"),
    *("tests/algos/test_awm_q.py", "tests/envs/test_demonstrations.py"),
    *("tests/algos/test_recorded.py", "tests/envs/mujoco/test_native.py"),
    *("tests/test_offline_runs.py", "tests/algos/test_offline.py"),
    *("tests/scripts/test_environment_faults.py", "tests/scripts/test_seams.py"),
    *("tests/scripts/test_vouch.py", "tests/scripts/test_pairs_runs.py"),
    *("tests/policies/test_exported.py", "tests/scripts/test_images.py"),
    *("tests/scripts/test_start.py", "tests/scripts/test_full_disk.py"),
    *("tests/scripts/test_train.py", "tests/scripts/test_health.py"),
    *("tests/scripts/test_worker_runs.py",),
)
FEW = 4  # workers; with more the longest file alone would take longer than all the others


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Few workers get whole files, whose fixtures and runs are then made once, as files come."""
    from xdist.scheduler import LoadFileScheduling

    if config.option.dist != "load" or len(config.option.tx) > FEW:
        return None  # as it was asked for, or test by test
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no worker is left alone with one at the end."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def same_beginning():
    """Every test draws the same numbers, whichever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A loaded machine may take longer to stop than a run is given; the tests go on."""
    monkeypatch.setattr(grace, "leave", lambda code: None)


@pytest.fixture(scope="module")
def drawing() -> None:
    """Skips where nothing can be rendered, as the message of `Cameras` says."""
    try:
        cameras.context()
    except EnvError as error:
        pytest.skip(str(error))


def write_episodes(path: Path, lengths: list[int], obs_dim: int = 3, action_dim: int = 2) -> Path:
    """A dataset of random episodes."""
    rng, steps = np.random.default_rng(0), sum(lengths)
    np.savez(
        path,
        observations=rng.normal(size=(steps, obs_dim)),
        actions=rng.uniform(-1, 1, (steps, action_dim)),
        rewards=rng.normal(size=steps),
        costs=np.arange(steps) % 3 == 0,
        episode_ends=np.cumsum(lengths),
    )
    return path


class ExactJumps(nn.Module):
    """The average velocity of the flow to actions a ~ N(mu, s^2); an embedding is [t, length].

    The flow's map from t to e is affine, x_e = e mu + (d_e / d_t) (x_t - t mu) with
    d_t = sqrt(t^2 s^2 + (1 - t)^2), the deviation at t; u is its displacement over e - t, and
    mu + d_t' / d_t (x_t - t mu) where e = t. `slip` adds that many times x (e - t): an error.
    """

    horizon = action_dim = 1

    def __init__(self, mu: float, spread: float, slip: float):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))
        self.spread, self.slip = spread, slip

    def encode(self, obs: torch.Tensor) -> torch.Tensor:
        return obs

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t, torch.zeros_like(t)], -1)

    def deviation(self, t: torch.Tensor) -> torch.Tensor:
        return (t**2 * self.spread**2 + (1 - t) ** 2).sqrt()

    def forward(self, x: torch.Tensor, emb: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        t, length = emb[..., None, None].unbind(-3)
        ratio = self.deviation(t + length) / self.deviation(t)
        slope = (t * self.spread**2 - (1 - t)) / self.deviation(t) ** 2
        pull = torch.where(length > 0, (ratio - 1) / length.clamp_min(1e-12), slope)
        return self.mu + pull * (x - t * self.mu) + self.slip * length * x


class Length(nn.Module):
    """The part of an exact field's embedding that tells the length of a step."""

    def forward(self, d: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros_like(d), d], -1)


@pytest.fixture
def exact_jumps() -> Callable[..., FewStepPolicy]:
    """Few-step policies that know the answer for Gaussian actions: `exact_jumps(mu, spread)`."""

    def make(mu: float = 0.4, spread: float = 0.5, slip: float = 0.0) -> FewStepPolicy:
        policy = FewStepPolicy(
            ExactJumps(mu, spread, slip), path="linear", levels=None, prediction="v", steps=1,
            sampler="euler", eta=0.0, clip_x=False, clip_a=False, squash="clip",
            obs_norm=Normalizer(1, kind="none"), action_norm=Normalizer(1, kind="none"),
        )  # fmt: skip
        policy.jump = Length()  # type: ignore[assignment]
        return policy

    return make


@pytest.fixture(autouse=True)
def normal_numbers() -> None:
    """Training sets the processor to flush small numbers; no test starts with that left on."""
    torch.set_flush_denormal(False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes disks of so many bytes, `small_disk(200_000)`; skips where none may be mounted."""
    mounted: list[Path] = []

    def disk(size: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("a disk can be mounted by root alone")
        mounted.append(place)
        return place

    yield disk
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def episodes() -> Callable[..., Path]:
    """Writes a dataset of random episodes: `episodes(path, lengths, obs_dim, action_dim)`."""
    return write_episodes


@pytest.fixture(autouse=True, scope="session")
def hangups() -> Iterator[None]:
    """SIGHUP as in a terminal, also where the tests were started by nohup, which has it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, scope="session")
def quick_kernels() -> None:
    """Warp's kernels unoptimised, where tests of them were collected: a few steps are all they do.

    Compiling them takes a hundred times as long as running them, optimised twice as long as this.
    """
    warp: Any = sys.modules.get("warp")
    if warp is not None:
        warp.config.optimization_level = 0


@pytest.fixture(autouse=True)
def few_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank of beginnings for worlds on a device that is drawn in no time."""
    monkeypatch.setattr(starts, "BANK", 64)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Words of a run that takes a second, `tiny(algo, name, *more)`; the test works in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def words(algo: str, name: str, *more: str) -> list[str]:
        data = tmp_path / "data.npz"
        if reads(algo):
            write_episodes(data, [9, 30, 25, 40])
        periods = ["steps=200", "log_every=20", "eval_every=100", "save_every=60", "episodes=2"]
        given = any(word.startswith(("init=", "policy=exported")) for word in more)
        base = [word for word in needs(algo, data) if not (given and word == "init=scratch")]
        return [*base, *small(algo), *periods, f"name={name}", *more]

    return words


@pytest.fixture
def unvouched() -> Callable[[Path], None]:
    """Makes a run folder like one of an earlier version: manifests tell nothing of the run."""

    def strip(folder: Path) -> None:
        for file in folder.glob("ckpt/*/manifest.json"):
            manifest = json.loads(file.read_bytes())
            del manifest["sha256"], manifest["run"]
            file.write_bytes(sealed(manifest))
        settings = folder / "config.yaml"
        settings.write_text(settings.read_text().partition(LINE)[0])

    return strip
