"""From a file of pairs to a tuned policy: what is composed, kept, resumed and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import assert_equal_runs, rows, stop_at

from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.run import Run

SHORT = ["steps=60", "log_every=10", "eval_every=30", "save_every=25", "episodes=2"]


def write(name: str, horizon: int = 1, **more: Any) -> None:
    """Chunks at forty observations of a pendulum, four at each."""
    rng = np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, (40, 4, horizon, 1)).astype(np.float32)
    obs = rng.normal(size=(40, 4)).astype(np.float32)
    whole = {"observations": obs, "chunks": chunks, "returns": chunks[:, :, 0, 0]}
    labels = {"observations": obs, "chosen": chunks[:, 0], "rejected": chunks[:, 1]}
    np.savez(name, **(labels if more.pop("labels", False) else whole), **more)


@pytest.fixture
def base(tiny: Any, episodes: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """A clone `base` of a pendulum's data, a file of pairs, and the words that name both."""
    words = tiny("bc", "base", "policy.obs_norm.kind=gaussian", "env=inverted_pendulum")
    episodes(Path("data.npz"), [9, 30, 25, 40], obs_dim=4, action_dim=1)
    assert main(["train", *words]) == 0
    write("pairs.npz")
    capsys.readouterr()
    return ["data=pairs.npz", "init=base", *SHORT]


def saved(name: str) -> Any:
    tree = Run.open(name).load()
    assert tree is not None
    return tree


@pytest.mark.parametrize("algo", ["crd", "dpo", "d3po"])
def test_pairs_tune_a_base_in_its_environment_and_its_units(base: Any, algo: str) -> None:
    assert main(["train", f"algo={algo}", *base, "name=tuned"]) == 0
    config = Run.open("tuned").config
    assert config["algo"]["_target_"] == "rheo.algos.prefer_offline.PreferOffline"
    assert config["env"]["id"] == "InvertedPendulum-v5" and not config["critic"]["_target_"]
    tuned, first = saved("tuned")["algo"], saved("base")["algo"]
    held = [key for key in tuned["policy"] if "norm" in key]
    assert held and all(torch.equal(tuned["policy"][key], first["average"][key]) for key in held)
    assert any(not torch.equal(tuned["policy"][key], tuned["base"][key]) for key in tuned["base"])
    found = [row for row in rows("tuned") if "val/accuracy" in row]
    assert [row["step"] for row in found] == [0, 30, 60] and found[0]["val/accuracy"] == 0.5
    assert "eval/return" in found[-1] and not any("critic" in key for key in found[-1])
    assert main(["eval", "tuned", "episodes=2"]) == 0


def test_a_run_on_pairs_resumes_exactly(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", "algo=dpo", *base, "name=straight"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 37)
        assert main(["train", "algo=dpo", *base, "name=stopped"]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def test_a_resumed_run_finds_its_pairs_where_they_are_now(base: Any, capsys: Any) -> None:
    assert main(["train", "algo=dpo", *base, "name=moved", "steps=20"]) == 0
    Path("pairs.npz").rename("there.npz")
    assert main(["resume", "moved", "steps=30"]) == 2
    assert "pairs.npz': no such file" in capsys.readouterr().err
    assert main(["resume", "moved", "steps=30", "data=there.npz"]) == 0
    write("there.npz", labels=True)
    assert main(["resume", "moved", "steps=40", "data=there.npz"]) == 2
    assert "content changed" in capsys.readouterr().err


def test_branches_of_a_run_tune_it(tiny: Any) -> None:
    words = tiny("rfm", "acting", "steps=60", "env=hopper", "env.num_envs=2")
    assert main(["train", *words]) == 0
    asked = ["states=12", "width=3", "steps=5", "num_envs=2", "policy.deploy_scale=1"]
    assert main(["collect", "branches", "acting", *asked, "out=tried.npz"]) == 0
    assert main(["train", "algo=dpo", "data=tried.npz", "init=acting", *SHORT, "name=tuned"]) == 0
    assert main(["train", "algo=dpo", "data=tried.npz", "data.chunks=all", "data.holdout=0",
                 "init=tuned", *SHORT, "name=again"]) == 0  # fmt: skip
    again, tuned = saved("again")["algo"], saved("tuned")["algo"]
    assert all(torch.equal(again["base"][key], tuned["policy"][key]) for key in again["base"])


def test_the_source_is_named_or_follows_from_the_file(base: Any) -> None:
    write("labels.npz", labels=True)
    ways = [(data, more) for data in ("pairs.npz", "labels.npz") for more in ([], ["source=pairs"])]
    trees = [compose(["algo=dpo", f"data={data}", "init=base", *more]) for data, more in ways]
    for tree in trees:
        assert tree["source"]["_target_"] == "rheo.envs.compared.Comparisons"
        assert tree["source"]["path"] == tree["data"] and "critic_lr" not in tree["algo"]
    assert compose(["algo=dpo", "init=base"])["source"]["_target_"].endswith(".Replay")
    mixed = compose(["algo=dpo", "init=base", "source=mixed", "data=data.npz"])
    assert mixed["algo"]["_target_"] == "rheo.algos.prefer.Prefer"


LEARN = "which are no episodes of steps; of such pairs learn algo=crd, algo=dpo and algo=d3po"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=iql", "data=pairs.npz"], LEARN),
        (["algo=bc", "data=pairs.npz"], LEARN),
        (["algo=sac", "data=pairs.npz"], LEARN),
        (["algo=dpo", "init=base", "source=mixed", "data=pairs.npz"], LEARN),
        (
            ["algo=iql", "source=pairs", "data=pairs.npz"],
            "source=pairs: algo=crd, d3po, dpo, gendrive learn",
        ),
        (["algo=dpo", "init=base", "source=pairs", "data=data.npz"], "no key 'chosen'; it holds"),
        (["algo=dpo", "init=base", "data=data.npz"], "algo=dpo does not read recorded data"),
        (["algo=dpo", "init=base", "source=pairs"], "data: has to be set (data=FILE)"),
        (["algo=dpo", "data=pairs.npz"], "init: has to be set (init=RUN)"),
        (
            ["algo=dpo", "init=base", "data=pairs.npz", "algo.particles=4"],
            "algo.particles: not used where data are pairs, whose chunks are recorded; leave it",
        ),
        (["algo=dpo", "init=base", "data=pairs.npz", "critic.width=8"], "has no critic here"),
        (["algo=dpo", "init=base", "data=long.npz"], "its chunks are of 3 actions"),
        (["algo=dpo", "init=base", "data=wide.npz"], "observation and action sizes differ"),
        (["algo=d3po", "init=base", "data=pairs.npz", "policy.eta=0"], "policy.eta=0 with"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused_in_a_line(
    base: Any, capsys: Any, words: list[str], message: str
) -> None:
    write("long.npz", horizon=3)
    np.savez("wide.npz", observations=np.zeros((4, 7)), chosen=np.ones((4, 1, 1)),
             rejected=np.zeros((4, 1, 1)))  # fmt: skip
    assert main(["train", *words, "name=no"]) == 2
    told = capsys.readouterr().err
    assert message in told and "errors in the configuration" not in told
    assert not Path("runs/no").exists()
