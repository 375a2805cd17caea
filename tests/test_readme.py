"""The README's worked example runs as it is printed."""

import re
from pathlib import Path

import pytest

from rheo.scripts.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks():
    """Code blocks of the README that name a file, by that name."""
    found = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", README, re.DOTALL)
    return dict(found)


@pytest.mark.parametrize("what", ["algo=greedy", "policy=theirs"])
def test_a_worked_example_trains_and_evaluates(tmp_path, monkeypatch, capsys, what):
    monkeypatch.chdir(tmp_path)
    for name, text in blocks().items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    command = re.search(rf"^rheo (train --config-dir mine {what} .*)$", README, re.MULTILINE)
    assert command
    words = [w for w in command[1].split() if not w.startswith(("steps=", "source.warmup="))]
    small = ["steps=600", "source.warmup=200", "episodes=2", "log_every=200", "eval_every=300"]
    assert main([*words, *small, "name=example"]) == 0
    assert main(["eval", "example", "--config-dir", "mine", "episodes=3"]) == 0
    assert "3 episodes" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "eval", "resume", "doctor", "bench"])
def test_every_verb_that_the_readme_shows_exists(verb):
    from rheo.scripts.cli import VERBS

    assert re.search(rf"^rheo {verb}\b", README, re.MULTILINE)
    assert verb in VERBS


def test_every_shipped_algorithm_has_a_row_in_the_methods_table():
    algos = {file.stem for file in (Path(__file__).parents[1] / "configs" / "algo").glob("*.yaml")}
    table = README.partition("## Methods")[2].partition("## Add")[0]
    assert all(f"algo={name}" in table for name in algos)
