"""Checkpoints with right digests and a wrong content: one line, whichever verb meets them."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import needs, small

from rheo.scripts.cli import main
from rheo.scripts.store import checkpoint

PERIODS = ["steps=100", "log_every=20", "eval_every=100", "save_every=100", "episodes=1"]
GONE = "(gone)"  # not a value that is given, but nothing
ODD = ["x", -1, None, [], {}, 2**70, 3.5, True, torch.zeros(3), torch.zeros(0), GONE, [{}]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of rfm at its end."""
    home, before = tmp_path_factory.mktemp("forged"), Path.cwd()
    os.chdir(home)
    assert main(["train", *needs("rfm", ""), *small("rfm"), *PERIODS, "name=a"]) == 0
    os.chdir(before)
    yield home / "runs" / "a"


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a tree, of lists the first two."""
    pairs = node.items() if isinstance(node, dict) else []
    if isinstance(node, list | tuple):
        pairs = list(enumerate(node))[:2]
    for key, value in pairs:
        yield (*place, key)
        yield from places(value, (*place, key))


def changed(node: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A tree with another value at a place."""
    key, *rest = place
    copy = dict(node) if isinstance(node, dict) else list(node)
    if rest:
        copy[key] = changed(node[key], tuple(rest), value)
    elif value is GONE:
        del copy[key]
    else:
        copy[key] = value
    return tuple(copy) if isinstance(node, tuple) else copy


def forge(made: Path, place: tuple[Any, ...], value: Any) -> None:
    """A copy of the run as runs/f, whose one checkpoint is changed at a place and sealed anew."""
    shutil.rmtree("runs/f", ignore_errors=True)
    shutil.copytree(made, "runs/f")
    newest = max(Path("runs/f/ckpt").iterdir())
    told = json.loads((newest / "manifest.json").read_text())["run"]
    tree = changed(checkpoint.read(newest), place, value)
    shutil.rmtree("runs/f/ckpt")
    checkpoint.write(Path("runs/f/ckpt"), 100, tree, 2, told)


KNOWN = [  # each was a traceback, or trained on
    *((("algo",), GONE), (("source",), GONE), (("loop",), GONE), (("sizes",), GONE)),
    *((("algo",), []), (("source",), "x"), (("loop",), 3), (("sizes",), [1, 2]), (("run",), None)),
    *((("sizes", "obs_dim"), 10**9), (("sizes", "action_dim"), -1), (("sizes", "more"), 1)),
    *((("loop", "latest"), {"a": "text"}), (("loop", "fresh"), 1), (("loop", "since"), -5)),
    *((("source", "frames"), -100), (("source", "frames"), 99), (("source", "env"), GONE)),
    *((("algo", "policy_opt", "param_groups"), GONE), (("algo", "generator"), "x")),
    (("algo", "policy_opt", "param_groups", 0, "betas"), ["x"]),
    (("algo", "policy_opt", "state", 0, "exp_avg"), None),
    (("algo", "policy_opt", "param_groups", 0, "lr"), 1e6),
    (("algo", "policy_opt", "param_groups", 0, "maximize"), True),
    *((("run", "wall"), "x"), (("ranks",), [])),
]


@pytest.mark.parametrize(("place", "value"), KNOWN, ids=lambda x: str(x)[:40])
def test_a_known_forgery_is_refused_in_one_line(
    made: Path, tmp_path, monkeypatch, capsys, place, value
) -> None:
    monkeypatch.chdir(tmp_path)
    forge(made, place, value)
    assert main(["resume", "f", "steps=120"]) in (2, 3)
    said = capsys.readouterr().err
    assert "Traceback" not in said and "runs/f" in said or "checkpoint part" in said


def test_a_seeded_forgery_anywhere_is_no_traceback(made: Path, tmp_path, monkeypatch) -> None:
    """Of any place of the tree, every verb in turn: whatever it is, `main` answers."""
    monkeypatch.chdir(tmp_path)
    chance, newest = random.Random(7), max((made / "ckpt").iterdir())
    where = list(places(checkpoint.read(newest)))
    tune = ["train", *needs("rfm", ""), *small("rfm"), "init=f", "steps=4", "episodes=1"]
    verbs = [["resume", "f", "steps=110"], ["eval", "f", "episodes=1"], [*tune, "name=g"]]
    for number in range(24):
        place = chance.choice(where if number % 2 else [each for each in where if len(each) < 4])
        forge(made, place, chance.choice(ODD))
        shutil.rmtree("runs/g", ignore_errors=True)
        assert main(verbs[number % 3]) in (0, 2, 3, 4)
