"""The comparisons of `rheo bench`: their rows, and that both sides of a row do the same work."""

import json
import math
from pathlib import Path
from typing import Any

import bench_data
import bench_estimator
import numpy as np
import pytest
import torch
from bench_actor import ACTORS, GAUSSIAN, PLACES, STEPS, Known, learned
from bench_variance import (
    STD,
    chain_gradient,
    closed_ratio,
    closed_share,
    matching_gradient,
    shift_share,
    step_ratio,
)

from rheo.scripts import bench
from rheo.scripts.config.compose import compose


def measured(words: list[str], file: Path) -> dict[str, dict[str, Any]]:
    """Rows of a short pass by their names; of rows of one name, the first."""
    words = [*words, "quick=true", f"json={file}"]
    assert bench.main(bench.asked(words)) == 0
    return {row["name"]: row for row in reversed(json.loads(file.read_text())["rows"])}


def test_rows_compare_and_carry_their_goals(tmp_path: Path) -> None:
    rows = measured(["env", "update", "data"], tmp_path / "b.json")
    for row in rows.values():
        present = [row[key] for key in ("ours", "other", "ratio", "low", "high")]
        assert all(math.isfinite(value) and value > 0 for value in present), row
        assert row["low"] <= row["ratio"] <= row["high"], row
    goals = {name: row["goal"] for name, row in rows.items()}
    assert goals["HalfCheetah-v5 x 1"] == "ratio >= 1"
    assert goals["Hopper-v5 x 8"] == "ratio >= 1.8"
    assert goals["Ant-v5 x 64"] == "ratio >= 2.5; share >= 0.85"
    assert goals["rfm, update"] == goals["rfm_box, update"] == "ratio <= 1.5"
    assert {row["versus"] for row in rows.values()} >= {"gymnasium SyncVectorEnv", "SAC"}


def test_bfloat16_is_near_float32_in_outputs_losses_and_gradients(tmp_path: Path) -> None:
    rows = measured(["precision"], tmp_path / "b.json")
    assert all(row["met"] for row in rows.values()), rows
    kinds = {name.partition(": ")[2].partition(" of ")[0] for name in rows}
    assert kinds == {"outputs", "losses", "gradients", "first ratio that is not 1"}
    errors = {name: row["ours"] for name, row in rows.items() if "ratio" not in name}
    assert len(errors) == 28 and min(errors.values()) > 0


def test_the_help_of_a_fresh_process_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured(["startup"], tmp_path / "b.json")
    assert rows["rheo --help"]["goal"] == "ours <= 0.3"
    assert {"train: start to first update", "train: peak memory"} <= set(rows)
    assert all(row["ours"] > 0 for row in rows.values())
    memory = rows["train: peak memory"]["ours"]
    assert 100 < memory < 4000  # MiB: torch alone is above, a workstation below
    assert "torch " in capsys.readouterr().out


def test_all_loaders_of_recorded_chunks_give_the_same_transitions(tmp_path: Path) -> None:
    data = bench_data.recorded(2000, tmp_path / "steps.npz")
    step = torch.tensor([0, 995, 996, 997, 999, 1000, 1500], dtype=torch.int32)
    rows = [bench_data.item(data, int(s)) for s in step]
    for ours, theirs in zip(data.rows(step).columns, zip(*rows, strict=True), strict=True):
        assert torch.equal(ours, torch.stack(theirs))


def test_the_variance_of_one_step_has_its_closed_form():
    """1.T7: the table of methods' excess variances, within 3 %."""
    known = {0.2: (1.256, 3.678), 0.5: (3.222, 13.535), 0.8: (17.893, 94.95), 0.9: (41.06, 250.2)}
    generator = torch.Generator().manual_seed(0)
    for tau, row in known.items():
        for levels, value in zip((10, 40), row, strict=True):
            assert closed_ratio(levels, tau) == pytest.approx(value, rel=1e-3)
            assert step_ratio(levels, tau, 400_000, generator) == pytest.approx(value, rel=0.03)


def test_both_gradients_are_unbiased_and_the_excess_cancels_over_a_whole_chain():
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


def test_moves_bring_particles_of_the_prior_nearer_to_the_target() -> None:
    """At equal particles; a guess that is exact (`self`) is nearer still."""
    words = (*bench_estimator.CELLS["noise, box"], *bench_estimator.ALIKE, "algo.particles=16")
    still, moved = (
        np.array(bench_estimator.errors((*words, f"algo.proposal={proposal}"), 100))
        for proposal in ("truncated", "annealed")
    )
    assert (moved < 0.8 * still).all(), (still, moved)


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
    generator = torch.Generator().manual_seed(0)
    for kind in ("uniform", "noise2"):
        found = shift_share(kind, 400_000, generator)
        assert found == pytest.approx(closed_share(kind), rel=0.05)
    assert closed_share("noise2") > 3 * closed_share("uniform")
    assert compose(["algo=awm_gae", "env=hopper"])["algo"]["weighting"] == "noise2"
