"""`rheo report`: pages of runs, every number from their episodes."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rheo.scripts.cli import main
from rheo.stats import improvement, iqm, of_means, student, wilson

NOW = dict.fromkeys(("rheo", "torch", "mujoco", "gymnasium", "numpy"), "1.0")


def run(
    folder: Path,
    name: str,
    values: Sequence[float],
    *,
    key: str = "ret",
    label: str = "",
    versions: dict[str, str] | None = None,
) -> None:
    """A run's folder with an evaluation of these episodes."""
    place = folder / name
    (place / "eval").mkdir(parents=True)
    seed, algo = name.rpartition("-s")[2], name.partition("-")[0]
    (place / "config.yaml").write_text(
        f"algo: {{_target_: rheo.algos.{algo}.X}}\nseed: {seed}\nname: null\nsteps: 100\n"
        "env: {id: T-v0, options: {}}\ndata: null\ninit: null\n"
    )
    rows = [{"ret": 0.0, key: value} for value in values]
    told: dict[str, object] = {f"eval/{key}": 0.5} if key != "ret" else {}
    if label:
        told |= {"label": label, "changed": ["policy.deploy_scale=0", "seed=11"]}
    text = json.dumps({"step": 100, "env": "T-v0", "episodes": rows, **told})
    (place / "eval" / f"{100:012d}{label}.json").write_text(text)
    start: dict[str, object] = {"command": ["rheo", "train", name], "commit": "abc"}
    start["versions"] = NOW | (versions or {})
    (place / "run.json").write_text(json.dumps({"starts": [start]}))
    (place / "metrics.jsonl").write_text(json.dumps({"step": 100, "time/wall": 120.0}) + "\n")


def rows(text: str) -> dict[str, dict[str, str]]:
    """The first table of a page by method."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, *body = lines
    return {row[0]: dict(zip(head, row, strict=False)) for row in body if row[0] != head[0]}


def test_a_page_has_a_row_a_method_with_intervals_commands_and_versions(
    tmp_path: Path, capsys
) -> None:
    rng = np.random.default_rng(0)
    low = [list(rng.normal(10, 1, 20)) for _ in range(3)]
    high = [list(rng.normal(20, 1, 20)) for _ in range(3)]
    for seed in range(3):
        run(tmp_path, f"sac-t-s{seed}", low[seed])
        run(
            tmp_path, f"rfm-t-s{seed}", high[seed], versions={"torch": "2.0"} if seed == 2 else None
        )
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    found = rows(text)
    assert list(found) == ["rfm", "sac"]  # the best first
    assert found["rfm"]["IQM"] == f"{iqm(np.concatenate(high)):.1f}"
    means = np.array([np.mean(values) for values in low])
    assert found["sac"]["over seeds"] == "{:.1f} to {:.1f}".format(*of_means(means))
    assert found["sac"]["best is better"] == "100 %" and found["rfm"]["minutes"] == "2.0"
    assert "sac-t-s1: rheo train sac-t-s1" in text and "- 5 runs: rheo 1.0" in text
    assert "Made with other versions than the first row: rfm-t-s2." in text
    with (tmp_path / "report.csv").open() as file:
        sheet = list(csv.DictReader(file))
    assert len(sheet) == 8  # a line a run, and one for all runs of a row before them
    whole, first = sheet[:2]
    assert (whole["seed"], whole["seeds"], first["seed"], first["seeds"]) == ("", "3", "0", "1")
    assert float(first["mean"]) == pytest.approx(np.mean(high[0]), abs=1e-4)
    assert float(whole["iqm"]) == pytest.approx(iqm(np.concatenate(high)), abs=1e-4)
    assert first["row"] == f"{tmp_path.name}/rfm/t" and first["command"] == "rheo train rfm-t-s0"
    assert first["versions"].startswith("rheo 1.0, torch 1.0") and first["source"] == "runs"
    assert text.startswith(capsys.readouterr().out[:200])


def test_success_is_a_rate_with_wilson_s_interval(tmp_path: Path) -> None:
    run(tmp_path, "a-t-s0", [True] * 15 + [False] * 5, key="success_once")
    run(tmp_path, "b-t-s0", [True] * 5 + [False] * 5, key="success_once")
    assert main(["report", str(tmp_path), f"out={tmp_path / 'pages'}"]) == 0
    text = (tmp_path / "pages" / "report.md").read_text()
    low, high = wilson(15, 20)
    row = rows(text)["a"]
    assert row["rate"] == "75.0" and row["Wilson"] == f"{100 * low:.1f} to {100 * high:.1f}"
    assert row["over seeds"] == "one seed" and "IQM" not in text
    assert "Rows have different numbers of episodes" in text


def test_evaluations_with_a_changed_value_are_reported_when_asked(tmp_path: Path) -> None:
    run(tmp_path, "a-t-s0", [1.0, 2.0], label="-2-deploy_scale=0")
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path), "with=deploy_scale=0"]) == 0
    assert "with deploy_scale=0." in (tmp_path / "report.md").read_text()
    (row,) = csv.DictReader((tmp_path / "report.csv").open())
    assert row["evaluation"] == "episodes=2 policy.deploy_scale=0 seed=11"
    assert row["deployment"] == "policy.deploy_scale=0"


def test_a_run_that_was_never_evaluated_is_named_and_the_others_reported(
    tmp_path: Path, capsys
) -> None:
    run(tmp_path / "sweep", "a-t-s0", [1.0])
    run(tmp_path / "sweep", "b-t-s0", [1.0])
    (tmp_path / "sweep" / "b-t-s0" / "eval" / f"{100:012d}.json").unlink()
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "## Left out" in text and "b-t-s0: never evaluated" in text
    assert main(["report", str(tmp_path / "sweep" / "b-t-s0")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "no runs in it" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30, 299, 400])
def test_students_point_is_scipys(freedom: int) -> None:
    assert student(freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=1e-7)
    if freedom < 10:
        values = np.random.default_rng(1).normal(size=freedom + 1)
        theirs = scipy_stats.t.interval(0.95, freedom, values.mean(), scipy_stats.sem(values))
        assert of_means(values) == pytest.approx(theirs)


def test_improvement_counts_pairs_and_halves_ties() -> None:
    assert improvement(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == (2 + 0.5) / 4
    ours = improvement(x := np.random.default_rng(0).normal(1, 1, 7), y := np.arange(5.0))
    assert ours == pytest.approx(scipy_stats.mannwhitneyu(x, y).statistic / 35)
    with pytest.raises(ValueError, match="one run has no interval"):
        of_means(np.array([1.0]))
