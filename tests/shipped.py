"""What ships, found in its files, and the words that make it small enough for a test."""

import hashlib
import importlib.util
import json
import os
import tempfile
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.envs.packages import home
from rheo.files import put_text
from rheo.scripts.config.compose import HOME, compose

ENVS = sorted(file.stem for file in (HOME / "env").glob("*.yaml"))
# files that name no task, or ask for one or for a run
BLANK = ("base", "gym", "imagined", "metaworld", "none", "ogbench")
TASKS = [name for name in ENVS if name not in BLANK]
ALGOS = sorted(file.stem for file in (HOME / "algo").glob("*.yaml"))
# sources of recorded data
READING = ("dataset", "transitions", "plans", "pairs", "labels", "waypoints")
# the largest value of a key anywhere in a small run's configuration
SMALL = {
    "width": 16, "depth": 1, "encoder_depth": 1, "batch_size": 16, "policy_batch": 8,
    "particles": 16, "warmup": 40, "capacity": 250, "decisions": 16, "epochs": 2, "minibatch": 12,
    "tuned_steps": 1, "gate": 0, "branches": 4, "pool": 8, "first_updates": 2, "tune_updates": 2,
    "judge_updates": 2, "reward_updates": 10, "classifier_updates": 10, "update_ratio": 0.25,
    "pair_batches": 6,
}  # fmt: skip
POLICY = {"steps": 2}  # where the key means something else beyond the policy
PLACE = ["env=inverted_pendulum", "env.num_envs=2"]


def text(algo: str) -> str:
    """An algorithm's file."""
    return (HOME / "algo" / f"{algo}.yaml").read_text()


ACTING = [name for name in ALGOS if "/policy: none" not in text(name)]  # who have a policy


def reads(algo: str) -> bool:
    """Whether it learns from recorded data as it ships."""
    return any(f"/source: {source}" in text(algo) for source in READING)


def pairs_at(place: Path) -> Path:
    """A file of random pairs at a place, of the sizes of the tests' recordings."""
    if not place.exists():
        draws = np.random.default_rng(0)
        obs, (better, worse) = draws.normal(size=(20, 3)), draws.uniform(-1, 1, (2, 20, 1, 2))
        np.savez(place, observations=obs, chosen=better, rejected=worse)
    return place


def env_id(env: str) -> str:
    """The id that an environment's file names."""
    return (HOME / "env" / f"{env}.yaml").read_text().partition("\nid: ")[2].split()[0]


def skip_where_it_cannot_run(env: str) -> None:
    """Skips a test of an environment whose package is missing."""
    named = env_id(env)
    if importlib.util.find_spec(home(named)[0]) is None:
        pytest.skip(f"{home(named)[0]} is not installed")


def compares(algo: str) -> bool:
    """Whether it learns from pairs as it ships, whose chunks are as long as they were recorded."""
    return "/source: pairs" in text(algo)


def aims(algo: str) -> bool:
    """Whether it learns under goals, whose columns nobody but the user knows."""
    return "/source: waypoints" in text(algo)


def tunes(algo: str) -> bool:
    """Whether it asks for a base."""
    return "\ninit:" in text(algo)


def needs(algo: str, data: Path | str) -> list[str]:
    """The words that an algorithm cannot do without; pairs are put beside the recording."""
    if compares(algo):
        data = pairs_at(Path(data).with_name("pairs.npz"))
    given = [f"data={data}"] * reads(algo) + ["init=scratch"] * tunes(algo)
    given += ["source.goal=[1]", "source.achieved=[0]", "source.tolerance=0.5"] * aims(algo)
    return [f"algo={algo}", *given]


def config(algo: str) -> dict[str, Any]:
    """The configuration of an algorithm's file, from nothing but what it cannot do without."""
    return deepcopy(composed(algo))


@lru_cache
def composed(algo: str) -> dict[str, Any]:
    """As `config`, which gives every test its own; composed once for all processes of the tests."""
    kept = shelf() / f"{algo}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "data.npz")
            rows = np.zeros((4, 3)), np.zeros((4, 2))
            np.savez(file, observations=rows[0], actions=rows[1], episode_ends=[4])
            tree = compose(needs(algo, file))
        put_text(kept, json.dumps(tree))
    return json.loads(kept.read_text())


@lru_cache
def shelf() -> Path:
    """Where composed configurations of these very sources lie."""
    rooms = (HOME.parent / room for room in ("policies", "algos", "envs", "scripts"))
    sources = sorted([*HOME.rglob("*.yaml"), *(f for room in rooms for f in room.rglob("*.py"))])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    place = Path(tempfile.gettempdir(), f"rheo-tests-{os.getuid()}-{digest[:16]}")
    place.mkdir(mode=0o700, exist_ok=True)
    return place


@lru_cache
def small(algo: str) -> tuple[str, ...]:
    """Words that make a run of an algorithm take a second."""
    tree = config(algo)
    words = shrunk(tree, "", SMALL) + shrunk({"policy": tree["policy"]}, "", POLICY)
    place = [] if reads(algo) else PLACE
    horizon = ["horizon=2"] if "actor" in tree["algo"] else []  # plans, where noise is acted
    return (*words, *place, *horizon)


def shrunk(node: Any, place: str, most: dict[str, int]) -> list[str]:
    """A word for every number of a configuration that is larger than it may be."""
    words = []
    for key, value in node.items() if isinstance(node, dict) else ():
        inner = f"{place}.{key}" if place else key
        if isinstance(value, (int, float)) and value > most.get(key, value):
            words.append(f"{inner}={most[key]}")
        words += shrunk(value, inner, most)
    return words
