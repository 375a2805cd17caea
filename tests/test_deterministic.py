"""The same seed gives the same run, another seed another one."""

import json
from pathlib import Path

import pytest
import torch

from rheo.scripts.cli import main
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import tensors


def rows(name):
    """Metrics without what a clock measures."""
    found = Journal(Path("runs", name, "metrics.jsonl")).rows()
    return [{k: v for k, v in row.items() if k[:5] != "time/"} for row in found]


@pytest.mark.parametrize("algo", ["bc", "rfm", "sac"])
def test_the_same_seed_twice_gives_the_same_metrics_and_weights(tiny, algo):
    for name in ("a", "b"):
        torch.rand(7)  # the global generator must not matter
        assert main(["train", *tiny(algo, name, "seed=3")]) == 0
    assert len(rows("a")) >= 12 and rows("a") == rows("b")
    first, second = (Run.open(name).load() for name in ("a", "b"))
    assert first is not None and second is not None
    pairs = list(zip(tensors(first, ""), tensors(second, ""), strict=True))
    assert len(pairs) > 20
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize("algo", ["bc", "rfm", "sac"])
def test_another_seed_gives_other_weights_and_the_same_evaluation_starts(tiny, algo):
    for name, seed in (("a", 3), ("b", 4)):
        assert main(["train", *tiny(algo, name, f"seed={seed}", "steps=60")]) == 0
    trees = [Run.open(name).load() for name in ("a", "b")]
    weights = [tree["algo"]["policy"] for tree in trees if tree is not None]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    if algo != "bc":
        saved = [json.loads(Path(f"runs/{n}/eval/{0:012d}.json").read_text()) for n in ("a", "b")]
        seeds = [[episode["seed"] for episode in one["episodes"]] for one in saved]
        assert seeds[0] == seeds[1] == [100_000, 100_001]
