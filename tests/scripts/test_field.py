"""The table of the field: every command in it runs, every test that it names is there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import write_episodes
from shipped import ALGOS

from rheo.scripts.assemble import assemble
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose

HOME = Path(__file__).resolve().parents[2]
FIELD = yaml.safe_load((HOME / "docs" / "methods" / "field.yaml").read_text())
RUN = [row for row in FIELD if "run" in row]
TRAINED = [row["run"].split()[2:] for row in RUN if row["run"].startswith("rheo train ")]
COPIED = [row["run"].split()[1:] for row in RUN if row["run"].startswith("rheo data ")]
STEERED = [row["run"].split()[3:] for row in RUN if row["run"].startswith("rheo eval ")]
GIVEN = ("algo", "data", "init", "env")  # words that a small run has others for


def key(word: str) -> str:
    return word.partition("=")[0]


def test_every_system_has_a_command_and_a_test_or_a_reason():
    for row in FIELD:
        assert ("why" in row) != ("run" in row and "test" in row), row["name"]
        assert set(row) <= {"name", "year", "run", "test", "why", "note"}
        assert "test" not in row or (HOME / row["test"]).is_file(), row["test"]
    names = [row["name"] for row in FIELD]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("words", TRAINED, ids=" ".join)
def test_what_trains_learns_a_few_updates(tiny: Any, words: list[str]) -> None:
    """In a small form: the command's own words on a task and networks of a second."""
    algo = dict(word.split("=", 1) for word in words)["algo"]
    assert algo in ALGOS
    small = tiny(algo, "r")
    for name in ("data", "init"):  # a base or a recording is named where one is needed
        assert any(key(w) == name for w in words) or not any(key(w) == name for w in small)
    own = [word for word in words if key(word) not in GIVEN]
    if "data=FILE" in words and not any(key(word) == "data" for word in small):
        write_episodes(Path("data.npz"), [9, 30, 25, 40], obs_dim=4, action_dim=1)
        own.append("data=data.npz")
    if "env=imagined" in words:
        assert main(["train", *tiny("world", "world")]) == 0
        own = ["env.model=world" if word == "env.model=WORLD" else word for word in own]
        small = ["env=imagined" if key(word) == "env" else word for word in small]
    if "source=mixed" in words:  # the replay is a part of it
        small = [re.sub(r"^source\.(?!batch_size)", "source.replay.", word) for word in small]
    if "data=PAIRS.npz" in words:  # of the pendulum that `tiny` tunes in
        draws = np.random.default_rng(0)
        obs, (better, worse) = draws.normal(size=(20, 4)), draws.uniform(-1, 1, (2, 20, 1, 1))
        np.savez("pairs.npz", observations=obs, chosen=better, rejected=worse)
        acted = ("critic.", "source.", "algo.")  # keys of what learns from its own actions
        small = [word for word in small if not word.startswith(acted)]
        own.append("data=pairs.npz")
    made, source, _, _ = assemble(compose([*small, *own]))
    for _ in range(2):
        metrics = made.update(source.next(made.act))
        assert metrics and all(bool(value.isfinite().all()) for value in metrics.values())


def test_what_steers_acts(tiny: Any) -> None:
    assert main(["train", *tiny("qsm", "r")]) == 0
    for words in STEERED:
        assert main(["eval", "r", "episodes=1", *(w.replace("BASE", "r") for w in words)]) == 0


@pytest.mark.parametrize("words", COPIED, ids=" ".join)
def test_what_copies_data_copies(tmp_path: Path, words: list[str]) -> None:
    source, out = tmp_path / "in.npz", tmp_path / "out.npz"
    ends = np.arange(40) % 10 == 9
    rows = np.random.default_rng(0).normal(size=(40, 3))
    np.savez(source, observations=rows, actions=rows[:, :2] / 9, terminals=ends, timeouts=0 * ends)
    files = {"IN.npz": str(source), "OUT.npz": str(out)}
    small = ["--updates", "2"] if words[1] == "repair" else []
    assert main([*(files.get(word, word) for word in words), *small]) == 0 and out.exists()
