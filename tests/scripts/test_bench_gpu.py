"""`rheo bench gpu`, on the CPU: its rows, what they compare, and that it ends."""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tape import TapeRecorder

from rheo.errors import RheoError
from rheo.scripts import bench, paired
from rheo.scripts.graph import Recorded
from rheo.scripts.paired import Plan, Row
from rheo.scripts.watching import Asked, Watcher

pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")

from rheo.scripts import gpu

QUICK = Plan(repeats=2, seconds=0.0, quick=True)


def named(rows: Any) -> dict[str, Row]:
    found = {row.name: row for row in rows}
    for row in found.values():
        numbers = [row.ours, row.other, row.ratio, row.share, row.limit]
        assert all(math.isfinite(number) for number in numbers if number is not None), row
    return found


def test_the_backend_is_right_before_it_is_fast() -> None:
    rows = named(gpu.right(QUICK, "Hopper-v5"))
    with_goals = {name for name, row in rows.items() if row.goals}
    assert with_goals == {
        "Hopper-v5: difference of beginnings", "Hopper-v5: difference after 1",
        "Hopper-v5: difference after 10", "Hopper-v5: rows that a broken world spoils",
        "Hopper-v5: host reads of 10 steps",
    }  # fmt: skip
    assert all(rows[name].met() for name in with_goals), rows
    assert 0 < rows["Hopper-v5: difference after 10"].ours < 1e-4


def test_a_world_that_is_not_cut_is_a_row_that_misses_its_goal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rheo.envs.mujoco.warp.LARGEST", 1e13)
    rows = named(gpu.right(QUICK, "Hopper-v5"))
    row = rows["Hopper-v5: rows that a broken world spoils"]
    assert row.ours > 0 and row.met() is False


def test_steps_stand_beside_native_ones_and_physics_alone() -> None:
    rows = named(gpu.stepping(QUICK, "Hopper-v5", 4))
    step = rows["Hopper-v5 x 4: whole step"]
    assert step.versus.startswith("native x 4, ") and step.other is not None
    assert step.limit_unit == step.unit == "frames/s" and step.share is not None
    assert rows["Hopper-v5 x 4: in chunks of 4"].versus == "single steps"
    recorded = rows["Hopper-v5 x 4: recorded physics"]
    assert recorded.goals == (gpu.RECORDED,) and recorded.ratio is not None and recorded.ratio > 2
    assert 5 < rows["Hopper-v5 x 4: memory of a world"].ours < 100


def test_native_rows_count_their_own_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of eight environments, with times that are known."""
    monkeypatch.setattr(gpu, "NATIVE", 2)

    def alternate(plan: Plan, sides: Any, **_: Any) -> Any:
        return {name: np.array([2.0, 2.0]) for name in sides}

    monkeypatch.setattr(gpu, "alternate", alternate)
    step = named(gpu.stepping(QUICK, "Hopper-v5", 8))["Hopper-v5 x 8: whole step"]
    assert (step.ours, step.other, step.ratio) == (4.0, 1.0, 4.0)
    assert step.versus.startswith("native x 2")
    assert (step.limit, step.share) == (40.0, 0.1)  # ten steps in as much time as one
    rows = named(gpu.learning(QUICK, "PPO", 8))
    acting, both = (rows[f"PPO, Hopper x 8: {what}"] for what in ("acting", "acting and learning"))
    assert (acting.ours, acting.other, acting.ratio) == (16.0, 4.0, 4.0)  # rollouts of 4 decisions
    assert (both.ours, both.other, both.ratio) == (8.0, 2.0, 4.0)


@pytest.mark.parametrize("name", ["ReinFlow", "DSRL"])
def test_who_learns_there_is_measured_whole_and_its_host_reads_are_counted(name: str) -> None:
    rows = named(gpu.learning(QUICK, name, 4))
    acting = rows[f"{name}, Hopper x 4: acting"]
    assert acting.share is not None and acting.ratio is not None
    assert rows[f"{name}, Hopper x 4: acting and learning"].ours < acting.ours
    reads = rows[f"{name}, Hopper x 4: host reads of acting"]
    assert reads.ours == 1 and reads.met() is True
    assert rows[f"{name}, Hopper x 4: an update"].unit == "ms"


def kinds(tape: Any) -> set[torch.dtype]:
    """The types of what a tape's operations give."""
    return {each.dtype for *_, results in tape.calls for each in results}


def test_where_updates_can_be_recorded_the_recorded_one_stands_beside_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = TapeRecorder()
    monkeypatch.setattr(gpu, "GRAPHS", ("cpu",))
    monkeypatch.setattr("rheo.scripts.fast.recorded", lambda algo: Recorded(algo, recorder))
    rows = named(gpu.learning(QUICK, "RFM", 4))
    for way in gpu.WAYS:
        row = rows[f"RFM, Hopper x 4: an update, {way}"]
        assert row.versus == "run" and row.ratio is not None and row.ours != row.other
    assert len(recorder.tapes) == 4 and recorder.played >= 4
    rough = {tape: torch.bfloat16 in kinds(tape) for tape in recorder.tapes}
    assert list(rough.values()) == [False, False, True, True]


def test_nothing_is_begun_late_and_what_is_left_out_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "LAST", -1.0)
    with caplog.at_level(logging.WARNING, logger="rheo"):
        assert list(gpu.rows(QUICK)) == []
    assert "left out: Hopper-v5, right, Hopper-v5 x 16, Hopper-v5 x 64, PPO x 16" in caplog.text
    whole = [name for name, _ in gpu.parts(Plan(worlds=(8, 2)))]
    assert whole[:6] == [
        f"{t}{n}" for t in ("Hopper-v5", "HalfCheetah-v5") for n in (", right", " x 8", " x 2")
    ]
    assert whole[6] == "PPO x 8" and whole[10] == "Ant-v5, right" and whole[-1] == "DSRL x 2"
    assert len(whole) == len(set(whole)) == 3 * 3 + 2 * 4


def test_the_command_writes_its_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Plan] = []

    def rows(plan: Plan) -> Any:
        seen.append(plan)
        yield Row("a row", "frames/s", 1.0)

    monkeypatch.setattr(gpu, "rows", rows)
    words = ["gpu", "device=cpu", "worlds=8,16", f"json={tmp_path / 'b.json'}"]
    assert bench.main(bench.asked(words)) == 0
    assert (seen[0].device, seen[0].worlds) == ("cpu", (8, 16))
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["rows"][0]["name"] == "a row" and content["machine"]["warp-lang"] != "-"
    assert "GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpu", "worlds=0"], "worlds=0: a positive whole number"),
        (["gpu", "worlds=8;16"], "a positive whole number"),
        (["act", "worlds=8"], "worlds=.*of rheo bench gpu alone"),
        (["device=cuda"], "device=cuda: it is of rheo bench gpu alone"),
        (["gpu", "device=cuda:9"], "device=cuda:9: torch sees 0 GPUs"),
    ],
)
def test_mistakes_are_refused_before_measuring(words: list[str], message: str) -> None:
    if torch.cuda.is_available() and "cuda:9" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(RheoError, match=message):
        bench.main(bench.asked(words))


def test_without_its_engine_it_is_refused_and_without_its_name_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bench.GROUPS["gpu"] not in bench.asked([])[0]
    monkeypatch.setattr(bench, "engine_lacks", lambda _: "pip install 'rheo-rl[warp]'")
    assert len(bench.asked([])[0]) > 3
    with pytest.raises(RheoError, match="bench gpu: pip install"):
        bench.asked(["gpu"])


def test_a_clock_of_a_gpu_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert paired.clock_of("cpu") is paired.perf_counter
    paired.alternate(Plan(1, 0.0), {"ours": lambda: waited.append("call")}, device="cuda:1")
    assert waited == ["cuda:1", "call", "cuda:1"]


def moved(target: torch.Tensor, source: torch.Tensor) -> list[str]:
    """What is noted of a copy, which is not done."""

    class Copy:
        overloadpacket = SimpleNamespace(__name__="copy_")

        def __call__(self, *_: Any) -> torch.Tensor:
            return target

    watcher = Watcher()
    Asked(watcher).__torch_dispatch__(Copy(), (), (target, source))
    return watcher.reads


def test_what_is_taken_out_of_a_gpu_is_one_read_however_it_travels() -> None:
    with Watcher() as watcher:
        torch.ones(3).cpu().tolist()
        torch.ones(()).item()
    assert watcher.reads == ["cpu", "tolist", "_local_scalar_dense"]
    far, near = torch.ones(2, device="meta"), torch.ones(2)  # the first as if on a GPU
    assert moved(near, far) == ["copy_"]
    assert moved(near, near) == moved(far, near) == moved(far, far) == []
