"""`dry=true`: what would run, and nothing left of it."""

import re

import pytest
from omegaconf import OmegaConf

from rheo.scripts.cli import main


def test_a_dry_run_shows_what_would_run_and_leaves_nothing(tiny, tmp_path, capsys):
    words = tiny("rfm", "a", "env=inverted_pendulum", "env.num_envs=2", "source.warmup=20")
    assert main(["train", *words, "dry=true"]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    shown = OmegaConf.create(text.partition("\nrun ")[0])
    told = dict(re.findall(r"^(\w+) +(.*)$", text[text.index("\nrun ") :], re.M))
    assert main(["train", *words]) == 0
    assert shown == OmegaConf.load(tmp_path / "runs" / "a" / "config.yaml")
    assert told["sizes"] == "observation 4, action 1" and told["run"] == "runs/a"
    rows = (tmp_path / "runs" / "a" / "metrics.jsonl").read_text()
    assert "InvertedPendulum-v5, 2 x native, episodes of 1000 steps" in told["environment"]
    assert "200 frames" in told["work"] and '"step": 200' in rows
    assert main(["train", *words, "dry=true"]) == 0
    assert "there is one: choose another name=" in capsys.readouterr().out
    assert main(["train", *words, "dry=maybe"]) == 2


@pytest.mark.parametrize("algo", ["bc", "iql", "ppo"])
def test_a_dry_run_counts_the_work_of_every_kind(tiny, capsys, algo):
    assert main(["train", *tiny(algo, "a"), "dry=true"]) == 0
    work = re.search(r"^work +(.*)$", capsys.readouterr().out, re.M)
    kinds = {"bc": "200 updates", "iql": "200 updates", "ppo": "200 frames, in rollouts of"}
    assert work is not None and work[1].startswith(kinds[algo])
