"""The speed table: its rows, its goals, and that both sides of a row do the same work."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.errors import RheoError
from rheo.scripts import bench, bench_act, bench_data, bench_estimator, bench_update
from rheo.scripts.bench_measure import Goal, Plan, Row, alternate, faster, gigaflop, shorter
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose

WITH_GOALS = {
    "HalfCheetah-v5 x 1", "Hopper-v5 x 8", "Ant-v5 x 64", "act, batch 1", "act, batch 256",
    "BC flow, batch 256", "BC flow, batch 1024", "RFM, 16 proposals", "RFM, 64 proposals",
    "rfm, update", "rfm_box, update",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """Rows of a short pass, and the folder with its files."""
    folder = tmp_path_factory.mktemp("bench")
    words = ["env", "act", "update", "data", "quick=true"]
    assert main(["bench", *words, f"json={folder / 'b.json'}", f"csv={folder / 'b.csv'}"]) == 0
    return json.loads((folder / "b.json").read_text())["rows"], folder


def test_every_row_has_positive_finite_numbers(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, _ = table
    for row in rows:
        present = [row[key] for key in ("ours", "other", "ratio", "low", "high")]
        assert all(math.isfinite(value) and value > 0 for value in present), row
        assert row["low"] <= row["ratio"] <= row["high"], row
        limits = [row[key] for key in ("reached", "limit", "share") if row["limit_unit"]]
        assert all(math.isfinite(value) and value > 0 for value in limits), row


def test_rows_carry_their_goals(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, _ = table
    by_name = {row["name"]: row for row in reversed(rows)}
    assert set(by_name) >= WITH_GOALS
    assert all(
        by_name[name]["goal"] and by_name[name]["met"] in (True, False) for name in WITH_GOALS
    )
    assert by_name["Ant-v5 x 64"]["goal"] == "ratio >= 2.5; share >= 0.85"
    assert by_name["act, batch 1"]["goal"] == "ratio <= 0.35"


def test_the_files_hold_the_same_rows(table: tuple[list[dict[str, Any]], Path]) -> None:
    rows, folder = table
    with (folder / "b.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert [line["name"] for line in lines] == [row["name"] for row in rows]
    assert [float(line["ours"]) for line in lines] == [row["ours"] for row in rows]


def test_the_help_of_a_fresh_process_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "startup", "quick=true", f"json={tmp_path / 'b.json'}"]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names[0] == "rheo --help" and rows[0]["goal"] == "ours <= 0.3"
    assert {"train: start to first update", "train: peak memory"} <= set(names)
    assert all(row["ours"] > 0 for row in rows)
    memory = rows[names.index("train: peak memory")]
    assert 100 < memory["ours"] < 4000  # MiB: torch alone is above, a workstation below
    assert "torch " in capsys.readouterr().out


def test_both_samplers_give_the_same_actions() -> None:
    algo = bench_update.fresh(bench_update.composed([*bench_update.BC, "policy.steps=4"]))
    torch.nn.init.normal_(algo.average.net.outlet.weight, std=0.05)
    for rows in (1, 256):
        obs, generator = torch.randn(rows, 17), torch.Generator()
        sides = bench_act.samplers(algo, "precision", obs, generator)
        actions = []
        for side in sides:
            generator.manual_seed(5)
            actions.append(side())
        torch.testing.assert_close(*actions, atol=1e-5, rtol=1e-5)
        assert actions[0].std() > 0.01


def test_all_loaders_of_recorded_chunks_give_the_same_transitions(tmp_path: Path) -> None:
    data = bench_data.recorded(2000, tmp_path / "steps.npz")
    step = torch.tensor([0, 995, 996, 997, 999, 1000, 1500], dtype=torch.int32)
    rows = [bench_data.item(data, int(s)) for s in step]
    for ours, theirs in zip(data.rows(step).columns, zip(*rows, strict=True), strict=True):
        assert torch.equal(ours, torch.stack(theirs))


def test_both_copies_of_an_update_start_from_the_same_numbers() -> None:
    cfg = compose(bench_update.RFM)
    one, two = (bench_update.fresh(cfg) for _ in range(2))
    batch = bench_update.transitions(256, torch.Generator().manual_seed(1))
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


def test_the_variance_of_one_step_has_its_closed_form():
    """1.T7: the table of methods' excess variances, within 3 %."""
    from rheo.scripts.bench_variance import closed_ratio, step_ratio

    known = {0.2: (1.256, 3.678), 0.5: (3.222, 13.535), 0.8: (17.893, 94.95), 0.9: (41.06, 250.2)}
    generator = torch.Generator().manual_seed(0)
    for tau, row in known.items():
        for levels, value in zip((10, 40), row, strict=True):
            assert closed_ratio(levels, tau) == pytest.approx(value, rel=1e-3)
            assert step_ratio(levels, tau, 400_000, generator) == pytest.approx(value, rel=0.03)


def test_both_gradients_are_unbiased_and_the_excess_cancels_over_a_whole_chain():
    from rheo.scripts.bench_variance import STD, chain_gradient, matching_gradient

    generator = torch.Generator().manual_seed(0)
    whole = chain_gradient(10, 10, 200_000, generator)
    part, matched = (
        chain_gradient(10, 1, 200_000, generator),
        matching_gradient(1, 200_000, generator),
    )
    for gradient in (whole, part, matched):
        error = 6 * gradient.std().item() / 200_000**0.5
        assert gradient.mean().item() == pytest.approx(1 / STD, abs=error)
    assert whole.var().item() == pytest.approx(8.0, rel=0.03)  # Var(A (a - mu) / c^2) = 2 / c^2
    assert part.var() > 1.5 * matched.var()


def test_regret_on_the_bandit_of_actors_is_what_its_parts_say():
    """The best action of the box loses nothing, one a step beside it k d^2 in Q's deviations."""
    from rheo.scripts.bench_actor import PLACES, Known

    obs = torch.randn(4000, 17, generator=torch.Generator().manual_seed(0))
    outside = {}
    for place, reach in PLACES.items():
        critic = Known(reach)
        best = critic.best(obs)
        outside[place] = (best.abs() > 1).float().mean().item()
        assert critic.regret(obs, best.clamp(-1, 1)[:, None]) == 0
        if place == "inside":
            beside = (best + 0.1)[:, None]
            expected = 0.01 * critic.curvature.sum() / critic.unit
            assert critic.regret(obs, beside) == pytest.approx(expected.item(), rel=0.02)
        uniform = 2 * torch.rand(4000, 64, 6, generator=torch.Generator().manual_seed(1)) - 1
        deviation = critic(obs[:, None], uniform[:, :, None])[0].std(1).mean()
        assert deviation.item() == pytest.approx(1.0, rel=0.05)
    assert 0.3 < outside["at walls"] < 0.5 and outside["inside"] < 0.02


def test_the_shipped_actor_loses_no_more_than_a_gaussian_where_the_best_action_is_at_a_wall():
    """Over three seeds .83 to .88 of its regret after 1,000 steps; with walls at 1, 1.35."""
    from rheo.scripts.bench_actor import ACTORS, GAUSSIAN, PLACES, STEPS, learned

    ours, theirs = (
        learned(words, PLACES["at walls"], STEPS) for words in (ACTORS["RFM"], GAUSSIAN)
    )
    assert ours.deployed <= 1.1 * theirs.deployed


@pytest.mark.parametrize("cell", ["noise, box", "noise, walls at 1.3", "noise, tanh"])
def test_the_estimators_of_the_table_aim_at_its_exact_velocity(cell: str) -> None:
    """Independent codes: particles on one side, a quadrature of every action on the other."""
    words = (*bench_estimator.CELLS[cell], *bench_estimator.ALIKE)
    few, many = (
        np.array(bench_estimator.errors((*words, f"algo.particles={count}"), 100))
        for count in (16, 1024)
    )
    assert (many < 0.07).all() and (many < 0.4 * few).all(), (few, many)


def test_controls_take_the_noise_of_the_gradient_form_away() -> None:
    """Few particles before a tanh: the gradient form's error is many times the noise's at first."""
    words = (*bench_estimator.ALIKE, "algo.particles=16")
    plain, controlled = (
        bench_estimator.errors((*bench_estimator.CELLS[f"{name}, tanh"], *words), 100)
        for name in ("gradient", "combined")
    )
    assert plain[0] > 10 and controlled[0] < 0.4


def test_weighting_the_error_of_the_predicted_action_leaves_the_least_noise() -> None:
    """Closed form and sample agree, and the default's share of signal is three times uniform's."""
    from rheo.scripts.bench_variance import closed_share, shift_share

    generator = torch.Generator().manual_seed(0)
    for kind in ("uniform", "noise2"):
        found = shift_share(kind, 400_000, generator)
        assert found == pytest.approx(closed_share(kind), rel=0.05)
    assert closed_share("noise2") > 3 * closed_share("uniform")
    assert compose(["algo=awm_gae", "env=hopper"])["algo"]["weighting"] == "noise2"
