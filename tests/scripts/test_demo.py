"""The demo's second act: demonstrations, a clone, and the clone fine-tuned."""

import json
from pathlib import Path

from rheo.scripts import demo
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose


def test_the_second_act_clones_demonstrations_and_tunes_the_clone(tiny, capsys):
    assert main(["train", *tiny("rfm", "first", "env=inverted_pendulum")]) == 0
    small = ["policy.net.width=16", "episodes=2"]
    tune = [*small, "steps=600", "env.num_envs=4", "source.decisions=16"]
    assert demo.second_act("first", [*small, "steps=20"], tune) == 0
    said = capsys.readouterr().out
    assert "cloned from demonstrations:\nruns/first-cloned" in said
    assert "fine-tuned with ReinFlow:\nruns/first-tuned" in said
    card = json.loads(Path("runs/first/demonstrations.hdf5.card.json").read_text())
    assert card["steps"] >= 20_000 and card["sources"][0]["noise"] == 0.5
    tuned = json.loads(Path("runs/first-tuned/run.json").read_text())
    assert tuned["starts"]
    before = json.loads(Path("runs/first-tuned/eval/000000000000.json").read_text())
    clone = json.loads(sorted(Path("runs/first-cloned/eval").glob("*20.json"))[0].read_text())
    assert before["episodes"] == clone["episodes"]  # it starts as the clone it was given


def test_the_demos_recipes_are_whole_configurations(episodes, tmp_path):
    data = episodes(tmp_path / "data.npz", [9, 30], obs_dim=4, action_dim=1)
    clone = compose(["recipe=demo_clone", f"data={data}"])
    tune = compose(["recipe=demo_tune", "init=scratch"])
    assert clone["env"]["id"] == tune["env"]["id"] == "InvertedPendulum-v5"
    assert clone["policy"]["steps"] == tune["policy"]["steps"]


def test_own_values_change_the_first_act_and_leave_out_the_second(tiny, capsys):
    words = [word for word in tiny("rfm", "own", "env=inverted_pendulum") if "data" not in word]
    assert main(["demo", *words]) == 0
    assert "fine-tuned" not in capsys.readouterr().out
    assert not Path("runs/own-cloned").exists()
