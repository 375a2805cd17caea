"""The speed table: its rows, its goals, and that both sides of a row do the same work."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped import skip_where_it_cannot_run

from rheo.errors import RheoError
from rheo.scripts import bench, hosting, limits
from rheo.scripts.config.compose import compose
from rheo.scripts.paired import Goal, Plan, Row, alternate, faster, gigaflop, shorter

WITH_GOALS = {
    "Ant-v5 x 64", "act, batch 1", "act, batch 256", "BC flow, batch 256", "BC flow, batch 1024",
    "RFM, 16 proposals", "RFM, 64 proposals",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """Rows of a short pass, and the folder with its files."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["quick=true", f"json={folder / 'b.json'}", f"csv={folder / 'b.csv'}"]
    assert bench.main(bench.asked(words, bench.GROUPS)) == 0
    return json.loads((folder / "b.json").read_text())["rows"], folder


def test_every_row_has_positive_finite_numbers(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, _ = table
    for row in rows:
        limited = () if "workers" in row["name"] else ("reached", "limit", "share")
        present = [row[key] for key in ("ours", *limited)]
        if row["versus"]:
            present += [row[key] for key in ("other", "ratio", "low", "high")]
            assert row["low"] <= row["ratio"] <= row["high"], row
        assert all(math.isfinite(value) and value > 0 for value in present), row


def test_rows_carry_their_goals(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, _ = table
    by_name = {row["name"]: row for row in reversed(rows)}
    assert set(by_name) >= WITH_GOALS
    assert all(
        by_name[name]["goal"] and by_name[name]["met"] in (True, False) for name in WITH_GOALS
    )
    assert by_name["Ant-v5 x 64"]["goal"] == "share >= 0.85"
    assert by_name["act, batch 1"]["goal"] == "ratio <= 0.35"


def test_a_step_of_lift_takes_less_than_in_robosuites_loop() -> None:
    skip_where_it_cannot_run("lift")
    row = next(hosting.loops(Plan(repeats=3, seconds=0.1)))
    assert row.name.startswith("robosuite/Lift") and row.versus == "robosuite's loop"
    assert row.ratio is not None and row.ratio > 1.3, row


def test_the_files_hold_the_same_rows(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, folder = table
    with (folder / "b.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    assert [float(line["ours"]) for line in lines] == [row["ours"] for row in rows]


def test_both_samplers_give_the_same_actions() -> None:
    algo = limits.fresh(limits.composed([*limits.BC, "policy.steps=4"]))
    torch.nn.init.normal_(algo.average.net.outlet.weight, std=0.05)
    for rows in (1, 256):
        obs, generator = torch.randn(rows, 17), torch.Generator()
        sides = limits.samplers(algo, "precision", obs, generator)
        actions = []
        for side in sides:
            generator.manual_seed(5)
            actions.append(side())
        torch.testing.assert_close(*actions, atol=1e-5, rtol=1e-5)
        assert actions[0].std() > 0.01


def test_both_copies_of_an_update_start_from_the_same_numbers() -> None:
    cfg = compose(limits.RFM)
    one, two = (limits.fresh(cfg) for _ in range(2))
    batch = limits.transitions(256, torch.Generator().manual_seed(1))
    first, second = one.update(batch), two.update(batch)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ratios_are_taken_within_a_repetition() -> None:
    times = {"ours": np.array([1.0, 10.0, 2.0]), "other": np.array([2.0, 30.0, 8.0])}
    rates = faster(Row("r", "calls/s", 0.0), times, "other")
    assert (rates.low, rates.ratio, rates.high) == (2.0, 3.0, 4.0)
    assert rates.ours == 0.5
    spans = shorter(Row("r", "us", 0.0), times, "other")
    assert (spans.low, spans.ratio, spans.high) == (0.25, 1 / 3, 0.5)
    assert (spans.ours, spans.other) == (2e6, 8e6)


def test_sides_alternate_in_whole_blocks() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in ("ours", "other")}
    times = alternate(Plan(repeats=4, seconds=0.0), sides, block=3)
    assert all(len(values) == 4 for values in times.values())
    measured = order[-4 * 2 * 3 :]
    runs = [measured[i : i + 3] for i in range(0, len(measured), 3)]
    assert [run[0] for run in runs] == ["ours", "other", "other", "ours"] * 2
    assert all(len(set(run)) == 1 for run in runs)


def test_a_row_meets_its_goals_only_when_all_are_met() -> None:
    goals = (Goal("ratio", ">=", 2.5), Goal("share", ">=", 0.85))
    assert Row("r", "", 1.0, ratio=2.6, share=0.9, goals=goals).met() is True
    assert Row("r", "", 1.0, ratio=2.6, share=0.8, goals=goals).met() is False
    assert Row("r", "", 0.2, goals=(Goal("ours", "<=", 0.3),)).met() is True
    assert Row("r", "", 1.0).met() is None


def test_useful_work_counts_matrix_products() -> None:
    a = torch.randn(8, 16)
    assert gigaflop(lambda: a @ a.T) == pytest.approx(2 * 8 * 8 * 16 / 1e9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["updates"], "did you mean 'update'"),
        (["cvs=x"], "did you mean 'csv'"),
        (["quick=maybe"], "true or false"),
        (["act", "fast=turbo"], "fast=turbo"),
        (["act", "json=/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_refused_before_measuring(words: list[str], message: str) -> None:
    with pytest.raises(RheoError, match=message):
        bench.main(bench.asked(words))


def test_an_installed_library_says_that_comparisons_are_of_a_clone() -> None:
    assert "actor" in bench.offered()
    with pytest.raises(RheoError, match="bench actor: comparisons run in a clone"):
        bench.asked(["actor"], bench.GROUPS)


def test_a_save_writes_the_new_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.main(bench.asked(["save", "quick=true", "json=b.json"])) == 0
    stall, size = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert stall["goal"] == "ours <= 500" and stall["ours"] > 0 and stall["share"] > 0
    rows = size["ours"] * 1e6 / 432  # the second save takes those of the first with it
    assert rows == pytest.approx(5000, rel=0.01) and 0.09 < size["ratio"] < 0.11
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]
    assert "of limit" in capsys.readouterr().out
