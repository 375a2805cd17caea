"""Several ranks are one run: two processes that talk by gloo, as torchrun starts them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_episodes
from rank_worker import STATES, VALUES, words
from shipped import ACTING, ALGOS, small
from test_resume import assert_equal_runs, differences, rows

from rheo import ranks
from rheo.envs.memory import cores
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.run import Run
from rheo.scripts.together import on_host
from rheo.shared import lacking

WORKER = Path(__file__).parents[1] / "rank_worker.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SCENES = ["agreed", "met", "states", "joined_batch", "runs", "fault"]
PLACE = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Two ranks of a program, in a folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*TORCHRUN, *words], cwd=folder, env=env, text=True, **pipe)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of all scenes, played once by one pair of ranks, and what each rank returned."""
    folder = tmp_path_factory.mktemp("ranks")
    write_episodes(folder / "data.npz", [9, 30, 25, 40])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trees = {algo: compose(words(algo, "x")[1:-1]) for algo in ALGOS}
    (folder / STATES).write_text(json.dumps(trees))
    ranks_ = start(folder, str(WORKER), str(folder), *SCENES)
    said, _ = ranks_.communicate(timeout=900)
    assert ranks_.returncode == 0, said[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_with_unlike_numbers_agree_on_those_of_all(played):
    one, two = (told["agreed"] for told in played[1])
    for name in ("moments", "spread", "mean", "most", "counts", "tells", "leapt"):
        assert one[name] == two[name], name
    both = torch.cat(VALUES).double()
    square = (both - both.mean()).square().sum()
    np.testing.assert_allclose(one["moments"], [8, float(both.mean()), float(square)])
    np.testing.assert_allclose(one["spread"], [float(both.mean()), float(both.std(correction=0))])
    assert one["mean"] == [[2.5, 1.0], 5.0] and one["most"] == [4.0, 5.0]
    assert one["counts"] == [7, 3] and one["leapt"] is True
    assert one["row"] == {"env/episodes": 3.0, "env/return": 2.0, "q": 0.5}
    told = one["tells"]
    assert told.pop("alike") is False and all(told.values()) and len(told) == 4


def test_sums_in_shared_memory_are_those_of_gloo_which_does_it_where_one_rank_has_none(played):
    one, two = (told["met"] for told in played[1])
    assert one == two
    assert one["shared"] == [lacking() is None, False]
    assert one["equal"] is True and one["total"] == 7


def test_ranks_with_unlike_rows_take_as_many_minibatches_of_one_size(played):
    one, two = (told["agreed"]["parts"] for told in played[1])
    assert [len(part) for part in one] == [len(part) for part in two] == [4, 4, 2]
    assert sorted(i for part in one for i in part) == list(range(10))
    assert {i for part in two for i in part} == set(range(6))


@pytest.mark.parametrize("algo", ALGOS)
def test_what_is_learned_is_equal_on_both_ranks_and_what_is_drawn_is_not(played, algo):
    one, two = (told["states"][algo] for told in played[1])
    assert one["common"] == two["common"]
    learns = "algo.policy" if algo in ACTING else "algo.model"
    assert {learns} < set(one["common"]) and one["progress"] == two["progress"]
    for name, own in one["own"].items():
        assert own != two["own"][name], name


def test_two_ranks_are_one_process_with_the_batches_of_both(played):
    """Three rollouts of PPO, an epoch a minibatch: scaled rewards, advantages, steps."""
    found = played[1][0]["joined_batch"]
    assert found["gap"] < 2e-6 and found["moved"] > 1e-4
    np.testing.assert_allclose(*found["scales"], rtol=1e-6)
    assert len(set(found["frames"])) == 1 and found["frames"][0] == 3 * 16 * 2 * 2


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_a_run_that_one_rank_was_asked_to_stop_goes_on_as_the_straight_one(
    played, algo, monkeypatch
):
    folder, told = played
    for rank, each in enumerate(told):
        codes = [each["runs"][f"{algo}, {name}"][0] for name in ("straight", "stopped", "resumed")]
        assert codes == [0, 75, 0], each["runs"]
        text = each["runs"][f"{algo}, stopped"][1]
        assert ("stopped by SIGTERM and saved" in text) == (rank == 0)
    command = f"torchrun --nproc_per_node=2 $(which rheo) resume runs/{algo}-stopped"
    assert command in told[0]["runs"][f"{algo}, stopped"][1]
    monkeypatch.chdir(folder)
    assert_equal_runs(f"{algo}-straight", f"{algo}-stopped")
    tree = Run.open(f"{algo}-straight").load()
    assert tree is not None and set(tree["ranks"]) == {"1"}
    theirs = tree["ranks"]["1"]["source"]
    assert not torch.equal(theirs["obs"], tree["source"]["obs"])
    assert (
        theirs["frames"] == tree["source"]["frames"] == tree["algo"].get("frames", theirs["frames"])
    )


def test_one_folder_one_voice_and_frames_of_all(played, monkeypatch):
    folder, told = played
    monkeypatch.chdir(folder)
    first, second = (each["runs"]["sac, straight"][1] for each in told)
    assert "2 ranks: 2 environments each, 4 in all; 16 rows a batch each, 32 in all" in first
    assert second == ""
    found = rows("sac-straight")
    steps = [row["step"] for row in found if "critic/loss" in row]
    assert steps[-1] >= 240 and len(set(steps)) == len(steps) > 5
    ended = [row for row in found if "env/episodes" in row]
    assert sum(row["env/episodes"] * row["env/length"] for row in ended) > 150  # of both ranks
    assert len(list(Path("runs/sac-straight/eval").iterdir())) == 3


def test_ranks_that_only_read_data_draw_batches_of_their_own(played, monkeypatch):
    folder, told = played
    monkeypatch.chdir(folder)
    assert [each["runs"]["bc"][0] for each in told] == [0, 0]
    tree = Run.open("bc").load()
    assert tree is not None
    here, there = tree["source"], tree["ranks"]["1"]["source"]
    assert here["updates"] == there["updates"] == 240
    assert not torch.equal(here["generator"], there["generator"])


def test_a_mistake_is_told_once(played):
    first, second = (each["runs"]["again"] for each in played[1])
    assert first[0] == second[0] == 2 and "already holds a run" in first[1]
    assert second[1] == ""


def test_another_number_of_ranks_is_refused_with_the_remedy(played, monkeypatch, capsys):
    folder, _ = played
    monkeypatch.chdir(folder)
    assert main(["resume", "sac-straight", "steps=400"]) == 2
    said = capsys.readouterr().err
    assert "runs/sac-straight was trained by 2 ranks and this is one process" in said
    assert "torchrun --nproc_per_node=2 $(which rheo) resume runs/sac-straight" in said
    assert main(["eval", "sac-straight", "episodes=2"]) == 0  # what was learned is one policy


def test_a_rank_that_fails_is_named_and_the_run_goes_on_from_its_checkpoint(played, monkeypatch):
    folder, told = played
    first, second = (each["fault"]["broke"] for each in told)
    assert first[0] == second[0] == 3
    assert "rank 1 stopped: the simulator broke; all 2 ranks stop; saved at step 60" in first[1]
    assert "go on with: torchrun --nproc_per_node=2 $(which rheo) resume runs/broke" in first[1]
    assert "rank 1: the simulator broke" in second[1]
    assert [each["fault"]["mended"][0] for each in told] == [0, 0]
    monkeypatch.chdir(folder)
    assert_equal_runs("sac-straight", "broke")


def test_weights_that_are_no_longer_alike_are_not_saved(played, monkeypatch):
    folder, told = played
    first, second = (each["fault"]["drifted"] for each in told)
    assert first[0] == second[0] == 3
    assert "algo.policy of rank 1 and of rank 0 are not the same" in first[1]
    assert list((folder / "runs" / "drifted").glob("ckpt/*")) == []


def test_a_rank_that_dies_without_a_word_stops_the_other_and_both_go_on_with_all_their_rows(
    played, tmp_path, monkeypatch
):
    ranks_ = start(tmp_path, str(WORKER), str(tmp_path), "killed")
    said, _ = ranks_.communicate(timeout=900)
    assert "rank 1 is gone without a word (killed?); all 2 ranks stop; saved at step 60" in said
    assert ranks_.returncode == 1 and "exitcode  : 3" in said
    again = start(tmp_path, "-m", "rheo.scripts.cli", "resume", "killed")
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    straight = str(played[0] / "runs" / "sac-straight")
    monkeypatch.chdir(tmp_path)
    trees = [Run.open(name).load() for name in (straight, "killed")]
    for one, two in zip(*map(replays, trees), strict=True):
        assert one["rows"] == two["rows"] and one["size"] == two["size"] > 50
        assert one["cursor"] == two["cursor"]
    here, there = (each["rows"] for each in replays(trees[0]))
    assert here != there
    assert differences(trees[0], trees[1]) == []


def replays(tree: Any) -> list[dict[str, Any]]:
    """What each rank has kept, the first one's first."""
    return [each["source"]["buffer"] for each in (tree, *tree["ranks"].values())]


def test_a_mistake_before_ranks_have_met_is_told_once(tmp_path):
    ranks_ = start(tmp_path, "-m", "rheo.scripts.cli", "train", "algo=sac", "algo.stesp=3")
    said, _ = ranks_.communicate(timeout=900)
    assert said.count("rheo: algo.stesp") == 1 and "exitcode  : 2" in said


def test_a_signal_to_torchrun_saves_on_all_ranks(tmp_path):
    words = ["-m", "rheo.scripts.cli", "train", "algo=sac", *small("sac"), "steps=1000000"]
    ranks_ = start(tmp_path, *words, "log_every=40", "eval_every=1000000", "name=long")
    assert ranks_.stdout is not None
    line = next(line for line in ranks_.stdout if "step 80 /" in line)
    ranks_.send_signal(signal.SIGTERM)
    said, _ = ranks_.communicate(timeout=900)
    assert "stopped by SIGTERM and saved" in said, line + said
    tree = Run.open(str(tmp_path / "runs" / "long")).load()
    assert tree is not None and tree["source"]["frames"] >= 80


# ---- without a second process --------------------------------------------------------------------


def test_alone_nothing_is_asked_of_anybody():
    values = torch.arange(4.0)
    assert ranks.mean(values) == (values,) and ranks.most(values) is values
    assert (ranks.total(3), ranks.largest(3), ranks.gathered("x")) == (3, 3, ["x"])
    count, mean, square = ranks.moments(values)
    assert (count, float(mean), float(square)) == (4, 1.5, 5.0)
    assert ranks.launched("rheo resume x") == "rheo resume x"


def test_the_first_rank_draws_what_a_process_alone_draws(monkeypatch):
    from rheo.scripts.assemble import streams

    alone = np.random.SeedSequence(7).generate_state(4)
    np.testing.assert_array_equal(streams({"seed": 7}).generate_state(4), alone)
    monkeypatch.setattr(ranks, "_place", ranks.Place(1, 2, 1, 2))
    assert not set(streams({"seed": 7}).generate_state(4)) & set(alone)


def test_a_replay_that_is_hardly_filled_is_sent_as_small_as_it_is():
    rows = torch.empty(100_000, 4)
    sent = on_host({"rows": rows[:3], "deep": [(rows[:1],)], "n": 1})
    assert sent["rows"].untyped_storage().nbytes() == 3 * 4 * 4
    assert sent["deep"][0][0].untyped_storage().nbytes() == 4 * 4 and sent["n"] == 1
    assert on_host(rows).data_ptr() == rows.data_ptr()


def test_cores_are_shared_out(monkeypatch):
    mine = cores()
    monkeypatch.setattr(ranks, "_place", ranks.Place(1, 2, 1, 2))
    assert cores() == max(mine // 2, 1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"RANK": ""}, "and RANK are missing"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "and MASTER_ADDR, MASTER_PORT are missing"),
        ({"RANK": "two"}, "must be numbers"),
        ({"RANK": "2"}, "contradict each other"),
    ],
)
def test_half_an_environment_of_torchrun_is_refused(changed, said, monkeypatch, capsys):
    for name, value in {**PLACE, **changed}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "algo=sac"]) == 2
    text = capsys.readouterr().err
    assert said in text and "unset WORLD_SIZE" in text and text.count("\n") == 1


def test_what_one_process_does_is_not_done_by_several(monkeypatch, capsys):
    for name, value in {**PLACE, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", "x"]) == 2
    assert "rheo eval is done by one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "2 ranks on this machine, and torch sees 1 GPUs"), ("cuda:0", "set device=cuda")],
)
def test_each_rank_needs_a_gpu_of_its_own(name, said, monkeypatch):
    from rheo.scripts.assemble import device_of

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setattr(ranks, "_place", ranks.Place(1, 2, 1, 2))
    with pytest.raises(RheoError, match=said):
        device_of(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert name == "cuda:0" or device_of(name) == torch.device("cuda", 1)
