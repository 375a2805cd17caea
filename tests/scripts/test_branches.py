"""`rheo collect branches RUN`: pairs of chunks, where they come from, and what has none."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rheo.envs.data.pairs import Pairs, read_pairs
from rheo.scripts import branches
from rheo.scripts.cli import main

Collect = Callable[..., tuple[int, Pairs | None, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that most tests look at is kept."""
    return tmp_path_factory.mktemp("trained") / "mine"


@pytest.fixture
def collect(tiny: Any, trained: Path, capsys: pytest.CaptureFixture[str]) -> Collect:
    """Runs the verb on a run `mine` of sac, which is trained once, unless another is named."""
    words = tiny("sac", "runs/mine", "steps=60", "env.num_envs=2")
    if not trained.exists():
        assert main(["train", *words]) == 0
        shutil.copytree("runs/mine", trained)
    shutil.copytree(trained, "runs/mine", dirs_exist_ok=True)

    def run(*words: str, name: str = "mine", out: str = "pairs.npz"):
        capsys.readouterr()
        code = main(["collect", "branches", name, *words, f"out={out}"])
        printed = capsys.readouterr()
        return code, read_pairs(out) if code == 0 else None, printed.out + printed.err

    return run


def card_of(out: str = "pairs.npz") -> dict[str, Any]:
    return json.loads(Path(f"{out}.card.json").read_text())


SMALL = ("act=explored", "states=12", "width=3", "steps=9", "num_envs=3")


def test_a_file_tells_what_it_is_and_the_same_seed_makes_the_same(collect: Collect) -> None:
    code, pairs, printed = collect(*SMALL)
    assert code == 0 and pairs is not None and pairs.chunks is not None, printed
    card, about = card_of(), pairs.about
    assert card["sha256"] == hashlib.sha256(Path("pairs.npz").read_bytes()).hexdigest()
    count = len(pairs.obs)
    assert 0 < count == card["pairs"] == 12 - card["ties"] - card["broken"]
    assert pairs.obs.shape == (count, 4) and pairs.chunks.shape == (count, 3, 1, 1)
    assert pairs.scores is not None and (pairs.scores.max(1) > pairs.scores.min(1)).all()
    assert about["env_id"] == "InvertedPendulum-v5" and about["dt"] == pytest.approx(0.04)
    assert about["discount"] == 0.99 and about["steps"] == 9 and about["execute"] == 1
    assert about["act"] == "explored" and about["deployment"] == {"algo.deploy_mean": True}
    manifest = max(Path("runs/mine/ckpt").glob("*/manifest.json"))
    assert about["checkpoint_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert "explored policy" in printed and "no value added behind" in printed
    # at most one a step, discounted
    assert pairs.scores.max() <= (1 - 0.99**10) / 0.01 + 1e-5
    with np.load("pairs.npz") as file:
        assert len(file["episode"]) == len(file["step"]) == count
        assert len({*zip(file["episode"], file["step"], strict=True)}) == count
    assert collect(*SMALL, out="again.npz")[0] == 0
    assert Path("again.npz").read_bytes() == Path("pairs.npz").read_bytes()
    other = collect(*SMALL, "seed=1", out="other.npz")[1]
    assert other is not None and not np.array_equal(other.obs[:3], pairs.obs[:3])


def test_how_many_are_tried_at_a_time_changes_no_number(
    collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = collect(*SMALL)[1]
    monkeypatch.setattr(branches, "ROWS", 15)  # groups of five states, and two are left over
    few = collect(*SMALL, out="few.npz")[1]
    assert pairs is not None and few is not None
    assert all(np.array_equal(few.arrays[key], array) for key, array in pairs.arrays.items())


def test_a_signal_keeps_what_was_tried(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, calls = branches.branch, []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return tried(*given)

    monkeypatch.setattr(branches, "branch", interrupted)
    monkeypatch.setattr(branches, "ROWS", 12)
    code, _, printed = collect(*SMALL)
    assert code == 75 and "stopped by SIGINT\nWhat was tried until then is in pairs.npz" in printed
    assert len(read_pairs("pairs.npz").obs) == 8 - card_of()["ties"] and card_of()["stopped"]
    calls.clear()
    calls.extend([None, None])
    code, _, printed = collect(*SMALL, out="none.npz")
    assert code == 75 and "no branch was tried; nothing is written" in printed
    assert not Path("none.npz").exists()


class Remembering(gymnasium.Wrapper):
    """Something of somebody else's around a task."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["states=5"], "the deployed policy has no noise, so that all chunks of a state are one"),
        (["states=5"], "; add act=explored\n"),
        (["act=explored", "env=gym", "env.id=RheoWrappedPendulum-v0"], "cannot go on from a saved"),
        (["act=explored", "env=gym", "env.id=RheoWrappedPendulum-v0"], "its wrapper Remembering"),
        (["act=explored", "env=hopper"], "has 11 observations and 3 actions"),
        (["width=1"], "width=1: a whole number from 2 on is needed"),
        (["states=0"], "states=0: a positive whole number is needed"),
        (["act=both"], "act=both: not known"),
        (["env.workers=2"], "env.workers=2: branches are stepped in this process; leave it out"),
        (["wdith=3"], "unknown option 'wdith'; did you mean 'width'?"),
        (["states=1000000000000"], "of memory, and"),
    ],
)
def test_what_has_no_branches_is_refused(collect: Collect, words: list[str], message: str) -> None:
    if "RheoWrappedPendulum-v0" not in gymnasium.registry:
        made: Any = lambda: Remembering(gymnasium.make("InvertedPendulum-v5"))  # noqa: E731
        gymnasium.register("RheoWrappedPendulum-v0", made)
    code, _, printed = collect(*words)
    assert code == (3 if "memory" in message else 2) and message in printed, printed
    assert not list(Path().glob("pairs.npz*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: rheo collect branches"),
        (["nosuch", "out=a.npz"], "no run at"),
        (["mine"], "out=FILE has to be given"),
        (["mine", "out=a.hdf5"], "out=a.hdf5: pairs are written to a .npz"),
        (["mine", "out=taken.npz"], "out=taken.npz: exists; choose another name"),
    ],
)
def test_a_bad_line_is_refused(collect: Collect, capsys: Any, words: list[str], message: str):
    Path("taken.npz").write_text("mine")
    assert main(["collect", "branches", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_flow_is_branched_as_it_is_deployed_and_without_noise_refused(
    collect: Collect, tiny: Any
) -> None:
    more = ("horizon=3", "env.execute=2", "env.obs_steps=2", "steps=60", "env.num_envs=2")
    assert main(["train", *tiny("rfm", "runs/flow", *more)]) == 0
    words = ("states=6", "width=2", "steps=5", "algo.deploy_candidates=1")
    code, pairs, printed = collect(*words, name="flow")
    assert code == 0 and pairs is not None and pairs.chunks is not None, printed
    assert pairs.obs.shape[1] == 8 and pairs.chunks.shape[1:] == (2, 3, 1)
    assert pairs.about["deployment"]["algo.deploy_candidates"] == 1
    assert pairs.about["execute"] == 2 and pairs.about["horizon"] == 3
    still = ("policy.deploy_scale=0", "algo.deploy_candidates=1")
    code, _, printed = collect(*still, "states=6", name="flow", out="still.npz")
    assert code == 2 and "add act=explored or policy.deploy_scale=1" in printed


def test_corrections_of_a_base_are_refused(collect: Collect, tiny: Any) -> None:
    base = ("horizon=2", "env.execute=2", "steps=60", "env.num_envs=2")
    assert main(["train", *tiny("rfm", "runs/base", *base)]) == 0
    assert main(["train", *tiny("resip", "runs/res", "init=base", "steps=60")]) == 0
    code, _, printed = collect("act=explored", name="res")
    assert code == 2 and "corrects the plans of a base" in printed
