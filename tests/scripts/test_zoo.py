"""The zoo: policies that are made by a recipe, once, and are whole or not there."""

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import rheo
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.completion import follow
from rheo.scripts.config import verbs
from rheo.scripts.config.compose import compose
from rheo.scripts.store import zoo
from rheo.scripts.store.where import reached
from rheo.scripts.zoo import trained

SMALL = "env=inverted_pendulum episodes=1 log_every=20 eval_every=1000 source.batch_size=8"
SAC = f"train algo=sac {SMALL} critic.width=16 policy.width=16 source.warmup=20"
BC = f"train algo=bc {SMALL} policy.net.width=16 policy.steps=2"
RECIPES = f"""
expert:
  about: Teaches.
  kind: from scratch
  field: locomotion
  task: InvertedPendulum-v5
  metric: return
  stages:
    policy: {SAC} steps=60 save_every=20
pupil:
  about: Learns.
  kind: clone
  field: locomotion
  task: InvertedPendulum-v5
  metric: return
  stages:
    demos.npz: "collect {{expert}} steps=100"
    policy: "{BC} data={{demos.npz}} steps=20"
  expected:
    figures: {{return: 12.0, return_low: 10.0, return_high: 14.0}}
    minutes: 0.5
    where: two cores
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A zoo of two small recipes in place of ours; called with a text, another one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RHEO_ZOO", str(tmp_path / "built"))
    monkeypatch.setattr(zoo, "FILE", tmp_path / "zoo.yaml")

    def write(text: str) -> None:
        zoo.FILE.write_text(text)
        zoo.recipes.cache_clear()

    write(RECIPES)
    yield write
    zoo.recipes.cache_clear()


def test_a_policy_is_built_once_with_what_it_goes_on_from_and_acts(small, capsys) -> None:
    policy = rheo.load("zoo/pupil")
    assert policy.act(np.zeros(4, np.float32)).shape == (1,)
    told = capsys.readouterr().out
    assert "zoo/expert: 1 of 1: rheo train" in told and "zoo/pupil: 2 of 2: rheo train" in told
    assert zoo.recipe("expert").ready and zoo.recipe("pupil").ready
    card = zoo.recipe("pupil").card()
    assert card["step"] == 20 and card["episodes"] == 100 and card["seed"] == 200_000
    assert card["figures"]["return_low"] <= card["figures"]["return"]
    assert card["seconds"]["policy"] > 0 and list(card["data"]) == ["demos.npz"]
    assert card["versions"]["torch"]
    rheo.load("zoo/pupil")
    assert "1 of" not in capsys.readouterr().out
    assert main(["eval", "zoo/pupil", "episodes=1"]) == 0
    assert "1 episodes" in capsys.readouterr().out
    assert main(["zoo"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("zoo/pupil"))
    assert "12 [10, 14]" in line and f"{card['figures']['return']:.0f} [" in line.split("14]")[1]
    assert main(["zoo", "zoo/pupil"]) == 0
    text = capsys.readouterr().out
    assert "goes on from zoo/expert" in text and "rheo collect {expert} steps=100" in text
    assert "in 0.5 minutes: two cores" in text and "built here:     return" in text


def test_a_changed_recipe_is_another_policy_and_so_is_one_that_goes_on_from_it(small) -> None:
    before = {name: one.folder for name, one in zoo.recipes().items()}
    small(RECIPES.replace("about: Learns.", "about: Learns well.").replace("12.0", "13.0"))
    assert before == {name: one.folder for name, one in zoo.recipes().items()}
    small(RECIPES.replace("steps=60", "steps=80"))
    after = {name: one.folder for name, one in zoo.recipes().items()}
    assert after["expert"] != before["expert"] and after["pupil"] != before["pupil"]


def test_one_that_is_half_built_is_refused_and_gone_on_with(small, capsys) -> None:
    assert main(["eval", "zoo/expert"]) == 2
    assert "zoo/expert is not built yet: rheo zoo build expert" in capsys.readouterr().err
    small(RECIPES.replace("steps=60", "steps=1000"))
    one = zoo.recipe("expert")
    cut = threading.Thread(target=stop_when_saved, args=(one.folder / "policy" / "ckpt",))
    cut.start()
    assert main(["zoo", "build", "expert"]) == 75
    cut.join()
    text = "zoo/expert was stopped while it was built; go on: rheo zoo build expert"
    assert text in capsys.readouterr().err
    assert not one.ready and not (one.folder / "lock").exists()
    assert main(["eval", "zoo/expert"]) == 2
    assert "zoo/expert is half built: rheo zoo build expert" in capsys.readouterr().err
    with pytest.raises(RheoError, match="half built"):
        one.card()
    assert main(["zoo"]) == 0 and "zoo/expert" in capsys.readouterr().out
    assert main(["zoo", "build", "expert"]) == 0
    starts = json.loads((one.folder / "policy" / "run.json").read_text())["starts"]
    assert starts[0]["step"] == 0 and starts[1]["step"] > 0 and len(starts) == 2


def stop_when_saved(folder: Path) -> None:
    """Sends this process the signal of a scheduler once a checkpoint is there."""
    until = time.monotonic() + 120
    while not list(folder.glob("*/manifest.json")) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_cut_between_two_stages_is_not_done_twice(small) -> None:
    assert main(["zoo", "build", "pupil"]) == 0
    one = zoo.recipe("pupil")
    data, run = one.folder / "demos.npz", one.folder / "policy" / "run.json"
    kept = data.stat().st_mtime_ns, run.stat().st_mtime_ns
    (one.folder / "card.json").unlink()
    assert main(["zoo", "build", "pupil"]) == 0
    assert kept == (data.stat().st_mtime_ns, run.stat().st_mtime_ns) and one.ready
    # of a stage that was cut, what is there of it is made anew
    file = one.folder / "stages.json"
    done = json.loads(file.read_text())
    done["demos.npz"]["whole"] = False
    file.write_text(json.dumps(done))
    (one.folder / "card.json").unlink()
    data.write_bytes(b"half")
    assert main(["zoo", "build", "pupil"]) == 0
    assert np.load(data)["observations"].shape == (100, 4)


def test_a_stage_that_cannot_be_gone_on_with_is_set_aside_and_told(small, tmp_path, caplog) -> None:
    folder = tmp_path / "policy"
    words = SAC.split()[1:]
    assert trained([*words, "steps=40", "save_every=20"], folder) == 0
    assert trained([*words, "steps=60", "save_every=20"], folder) == 0
    lost = tmp_path / "policy.lost.0"
    assert (reached(lost), reached(folder)) == (40, 60)
    assert f"what was there is kept in {lost}" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pupl"], "zoo/pupl: there is no such recipe; did you mean 'pupil'?"),
        (["build"], "usage: rheo zoo"),
        (["expert", "pupil"], "usage: rheo zoo"),
        (["build", "zoo/x"], "zoo/x: there is no such recipe"),
    ],
)
def test_a_word_that_names_no_recipe_is_answered(small, capsys, words, message) -> None:
    assert main(["zoo", *words]) == 2
    assert message in capsys.readouterr().err


def test_every_recipe_of_ours_is_made_of_commands_that_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, episodes: Callable[..., Path], capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RHEO_ZOO", str(tmp_path))
    data = episodes(tmp_path / "data.npz", [9, 30], 11, 3)
    assert len(zoo.recipes()) >= 10
    assert {one.kind for one in zoo.recipes().values()} >= {"clone", "tuned", "steered"}
    for one in zoo.recipes().values():
        assert list(one.stages)[-1] == "policy" and one.field in ("locomotion", "manipulation")
        for name in one.before:
            assert zoo.recipe(name)
        for product, text in one.stages.items():
            verb, *words = shlex.split(text)
            if verb == "collect":
                verbs.collect([*words, f"out={product}"])
                continue
            assert verb == "train"
            kept = [word for word in words if not word.startswith(("data=", "init="))]
            given = [word.partition("=")[0] for word in words if word not in kept]
            stand = {"data": [f"data={data}"], "init": ["init=scratch"]}
            config = compose([*kept, "env=hopper", *(w for key in given for w in stand[key])])
            assert config["steps"] <= 300_000
    assert follow(["zoo"], "pick", []) == ["pick-clone", "pick-tuned", "pick-steered"]
    for name in zoo.recipes():
        assert main(["zoo", name]) == 0
    assert "not built: rheo zoo build pendulum" in capsys.readouterr().out
