"""Absurd sizes are answered before anything is allocated, with key, value and remedy."""

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import ALGOS, config

from rheo.errors import RheoError
from rheo.scripts import budget, ending
from rheo.scripts.assemble import Sizes, assemble, make_algo, prepare
from rheo.scripts.breaks import Watch
from rheo.scripts.cli import main
from rheo.scripts.config import sizes
from rheo.scripts.config.compose import compose
from rheo.scripts.store import checkpoint
from rheo.scripts.store.where import found

SAC = ["algo=sac", "env=inverted_pendulum", "steps=60", "source.warmup=10"]
PPO = ["algo=ppo", "env=inverted_pendulum", "steps=60"]
BRANCH = ["algo=branch", "init=scratch", "env=inverted_pendulum"]
RFM = ["algo=rfm", "env=inverted_pendulum", "steps=60"]
LONG = "a" * 100_000
ABSURD = {  # what is refused, and what is said
    "threads=100000": "this machine has",
    "env.threads=100000": "this machine has",
    "env.workers=100000": "this machine has",
    "env.num_envs=100000000": "environments 410.00 GB",
    "env.obs_steps=1000000000": "lower env.obs_steps",
    "policy.width=1000000000": "lower policy.width",
    "critic.width=1000000000": "lower critic.width",
    "policy.depth=1000000000": "at most 1000",
    "critic.members=1000000000": "at most 10000",
    "horizon=100000000": "lower horizon",
    "source.batch_size=10000000000": "lower source.batch_size",
    "source.n_step=1000000000": "at most 1000",
    "episodes=1000000000": "at most 100000",
    f"policy.width={'9' * 100}": "more than anybody has run",
    f"policy.width={'9' * 5000}": "no such number can be meant",
    f"policy.width={'[' * 3000}{']' * 3000}": "3000 brackets inside each other; at most 50",
    f"policy.width={'{a:' * 3000}": "3000 brackets inside each other; at most 50",
    f"{LONG}=1": "unknown option",
    f"critic.{LONG}=1": "unknown key",
    f"name={LONG}": "longer than a file's name can be",
    f"init={LONG}": "longer than a file's name can be",
    f"data={LONG}": "longer than a file's name can be",
    "init=.": "no such run",
}


@pytest.fixture(autouse=True)
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No test may take much memory; each works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("word", ABSURD, ids=lambda word: word[:30])
def test_an_absurd_value_is_answered_in_one_line(word: str, capsys: Any) -> None:
    known = word.partition("=")[0] != LONG
    assert main(["train", *SAC, word] if known else ["train", word, *SAC]) == 2
    error = capsys.readouterr().err
    if known:
        assert ABSURD[word] in error
        assert error.count("\n") == 1
    assert len(error) < 500 and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*RFM, "algo.particles=1000000000"], "lower algo.particles"),
        ([*BRANCH, "algo.branches=1000000000"], "lower algo.branches"),
        ([*BRANCH, "algo.pool=1000000000"], "lower algo.pool"),
        ([*RFM, "policy.net.width=1000000000"], "lower policy.net.width"),
        ([*RFM, "policy.steps=100000000"], "at most 100000"),
        ([*PPO, "source.decisions=1000000000000"], "lower source.decisions"),
        ([*PPO, "algo.value.width=1000000000"], "lower algo.value.width"),
        ([*SAC, "source.capacity=10000000000000", "steps=10000000000000"], "lower source.capacity"),
    ],
)
def test_what_no_memory_holds_is_refused_by_its_key(
    words: list[str], said: str, capsys: Any
) -> None:
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "are free" in error or "at most" in error


@pytest.mark.parametrize("verb", ["eval", "resume", "compare", "export", "play", "replay"])
def test_a_name_of_a_hundred_thousand_letters_is_answered_by_every_verb(
    verb: str, capsys: Any
) -> None:
    assert main([verb, LONG]) == 2
    error = capsys.readouterr().err
    assert "(100000 letters)" in error and len(error) < 500


def test_a_sweep_of_a_billion_seeds_is_counted_no_further_than_what_is_allowed(capsys: Any) -> None:
    words = ["name=s", *SAC]
    assert main(["sweep", *words, "seed=range(0,1000000000)"]) == 2
    assert "10001 or more runs" in capsys.readouterr().err
    assert main(["sweep", *words, "seed=range(0,200)", "algo.policy_lr=range(1,101)"]) == 2
    assert "20000 runs (seed 200, algo.policy_lr 100 values)" in capsys.readouterr().err


@pytest.mark.parametrize("algo", ALGOS)
def test_an_estimate_of_networks_is_below_what_is_made(algo: str) -> None:
    """So nothing is refused that could have run."""
    cfg = config(algo)
    made = make_algo(cfg, Sizes(3, 2), 10)
    parts = {name: part for name, part in vars(made).items() if isinstance(part, torch.nn.Module)}
    numbers = sum(p.numel() for part in parts.values() for p in part.parameters())
    told = sum(share.size for share in sizes.networks(cfg, 3, 2))
    layers = 100 * sizes.LAYER
    assert 0 < told <= sizes.KEPT * sizes.NUMBER * numbers + layers


def test_the_memory_of_a_run_is_known_to_a_factor(monkeypatch: Any) -> None:
    """A machine with less than the networks and the replay refuses, one with more does not."""
    words = [*SAC, "steps=200000", "source.capacity=200000"]
    cfg = compose(words)
    replay = 4 * 200_000 * (2 * 4 + 1 + 2)  # of pendulums
    with monkeypatch.context() as patch:
        patch.setattr(budget, "available", lambda: replay // 2)
        with pytest.raises(RheoError, match=r"source\.capacity=200000") as caught:
            assemble(cfg)
        assert caught.value.code == 3 and "observations of 4" in str(caught.value)
    monkeypatch.setattr(budget, "available", lambda: 12 * replay)
    assemble(cfg)


def forged(name: str, **changed: Any) -> None:
    """Writes a checkpoint anew with other sizes, and right digests."""
    folder = Path("runs", name, "ckpt")
    tree = checkpoint.read(found(folder)[0])
    tree["sizes"] |= changed
    checkpoint.write(folder, 20, tree, 1)


@pytest.mark.parametrize("verb", ["eval", "resume"])
@pytest.mark.parametrize("value", [10**9, 10**30, -1, "many"])
def test_sizes_that_a_forged_checkpoint_claims_allocate_nothing(
    tiny: Any, verb: str, value: Any, capsys: Any
) -> None:
    assert main(["train", *tiny("bc", "a", "steps=20")]) == 0
    forged("a", obs_dim=value)
    capsys.readouterr()
    more = ["steps=40"] if verb == "resume" else ["env=inverted_pendulum"]
    code = main([verb, "a", *more])
    error = capsys.readouterr().err
    if verb == "eval":
        assert code == 3 and ("sizes.obs_dim is" in error or "are free" in error)
    else:  # which looks at the data, and takes no size from a file
        assert code in (0, 3)


def test_memory_that_runs_out_names_its_largest_users(
    tiny: Any, monkeypatch: Any, capsys: Any
) -> None:
    meant, calls = Watch.__call__, []

    def run_out(self: Watch, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return meant(self, batch)

    monkeypatch.setattr(ending.Watch, "__call__", run_out)
    assert main(["train", *tiny("sac", "a")]) == 3
    error = capsys.readouterr().err
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)" in error
    assert "the network policy at least" in error and "rheo resume" in error
    assert "lower " in error and "source.capacity" in error


def test_threads_of_a_larger_machine_are_no_more_than_this_one_can_use(monkeypatch: Any) -> None:
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    prepare({"threads": 100_000, "fast": "off"})
    assert asked[0] <= 4 * (torch.multiprocessing.cpu_count()) and before == 1
