"""Normalised scores against D4RL's own table."""

import json
import os
from pathlib import Path

import pytest

from rheo.envs.scores import REFERENCES, normalized_score

DATA = Path(os.environ.get("RHEO_DATA", Path(__file__).parents[3] / "shared" / "data"))


def test_random_is_zero_and_expert_is_a_hundred():
    for name, (low, high) in REFERENCES.items():
        assert normalized_score(name, low) == 0.0
        assert normalized_score(name, high) == 100.0
        assert normalized_score(name, (low + high) / 2) == pytest.approx(50.0)


def test_no_score_is_made_up_for_other_tasks():
    assert normalized_score("Hopper-v5", 3000.0) is None
    assert normalized_score("InvertedPendulum-v5", 1000.0) is None
    assert normalized_score("AdroitHandPen-v1", 1000.0) is None  # another time limit than D4RL's
    assert normalized_score("PointMaze_UMaze-v3", 100.0) is None  # another reward
    assert normalized_score("AntMaze_UMaze-v4", 1.0) is None


def test_the_references_are_those_of_d4rl():
    file = DATA / "d4rl_ref_scores.json"
    if not file.is_file():
        pytest.skip(f"no reference table at {file}")
    table = json.loads(file.read_text())["scores"]
    for name, (low, high) in REFERENCES.items():
        task = name.rpartition("-")[0].removeprefix("AdroitHand").lower()
        recorded = f"{task}-human-v1" if name.startswith("Adroit") else f"{task}-medium-v2"
        if name.startswith("kitchen/"):
            recorded = f"{task.replace('/', '-')}-v0"
        assert [low, high] == table[recorded]
