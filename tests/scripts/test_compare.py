"""Comparison of runs: grouping by everything but the seed, statistics by hand, honest refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from rheo.scripts.cli import main
from rheo.scripts.compare import curve_of
from rheo.scripts.plot import band
from rheo.stats import iqm, of_runs


def evaluated(name, returns, *, step=10, lr=1e-3, seed=0, references=True, label="-4", data="d"):
    """A run folder as `rheo train` and `rheo eval` leave it."""
    folder = Path("runs") / name
    (folder / "eval").mkdir(parents=True)
    algo = {"_target_": f"rheo.algos.x.{name[0].upper()}", "lr": lr}
    config = {"algo": algo, "seed": seed, "name": name, "steps": step, "data": f"d/{data}.hdf5"}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"step": 10, "time/wall": 120.0}\n{"step": 10}\n')
    rows = {"step": step, "env": "Hopper-v4", "episodes": [{"ret": r} for r in returns]}
    if references:
        rows["references"] = {"low": 0.0, "high": 200.0, "origin": "D4RL"}
    (folder / "eval" / f"{step:012d}{label}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_seeds_of_one_configuration_are_one_row(capsys):
    evaluated("a-s0", [0, 100, 200, 300], seed=0)
    evaluated("a-s1", [40, 40, 40, 40], seed=1)
    evaluated("b-s0", [20, 20, 20, 20], lr=2e-3)
    assert main(["compare", "a-s0", "a-s1", "b-s0", "out=t.md"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert Path("t.md").read_text().splitlines()[2:] == rows
    cells = [cell.strip() for cell in rows[0].split("|")[1:-1]]
    assert cells[:4] == ["a", "Hopper-v4", "10", "2"] and cells[7] == "2.0"
    assert cells[4].startswith("47.5 [") and cells[6] == "75.0 / 20.0"
    assert cells[5].startswith("27.5 [")  # the middle four of 0 20 20 20 20 50 100 150: see iqm
    assert [cell.strip() for cell in rows[1].split("|")[1:6]][-1] == "10.0 [10.0, 10.0]"


def test_runs_of_a_sweep_are_called_by_what_differs_beside_their_seed(capsys):
    for name in ("x/seed=0", "x/seed=1", "y/algo.lr=0.1_seed=0", "y/algo.lr=0.1_seed=1"):
        evaluated(name, [1.0], lr=0.1 if name[0] == "y" else 1e-3)
    assert main(["compare", "runs/x/seed=0", "runs/x/seed=1", "y/algo.lr=0.1_seed=0"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["x", "algo.lr=0.1"]
    assert [row.split("|")[4].strip() for row in rows] == ["2", "1"]


def test_the_last_step_and_its_largest_plain_evaluation_count(capsys):
    folder = evaluated("a-s0", [100, 100])
    evaluated("other", [0.0])
    for name, value in (("000000000005-50", 0), ("000000000010", 0), ("000000000010-9-steps=2", 0)):
        row = {"step": 10, "env": "Hopper-v4", "episodes": [{"ret": value}]}
        (folder / "eval" / f"{name}.json").write_text(json.dumps(row))
    assert main(["compare", "a-s0"]) == 0
    assert "50.0 [50.0, 50.0]" in capsys.readouterr().out
    assert main(["compare", "a-s0", "with=steps=2", "metric=return"]) == 0
    assert "0.0 [0.0, 0.0]" in capsys.readouterr().out


def test_the_interquartile_mean_and_its_interval_by_hand():
    assert iqm(np.array([9.0, 1, 2, 3, 4, 5, 6, -100])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    rng = np.random.default_rng(1)
    runs = [rng.normal(mean, 1.0, 400) for mean in (-1.0, 0.0, 1.0, 2.0)]
    low, high = of_runs(runs, np.mean)
    centre, spread = 0.5, np.sqrt(np.var([-1, 0, 1, 2]) / 4)  # seeds dominate
    assert low == pytest.approx(centre - 1.96 * spread, abs=0.15)
    assert high == pytest.approx(centre + 1.96 * spread, abs=0.15)


def test_methods_are_rows_and_data_sets_columns(capsys):
    evaluated("a1-s0", [100.0] * 4, data="x")
    evaluated("a1-s1", [200.0] * 4, data="x", seed=1)
    evaluated("a2-s0", [20.0] * 4, data="y")
    evaluated("b1-s0", [40.0] * 4, data="x")
    names = ["a1-s0", "a1-s1", "a2-s0", "b1-s0"]
    assert main(["compare", *names, "columns=data"]) == 0
    rows = [[c.strip() for c in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][1:4] == ["", "x", "y"]
    assert rows[2][1] == "A" and rows[2][2].startswith("75.0 [") and rows[2][3].endswith("(1)")
    assert rows[3][1:4] == ["B", "20.0 [20.0, 20.0] (1)", ""]
    evaluated("a3-s0", [1.0] * 4, data="x", lr=1.0)
    assert main(["compare", *names, "a3-s0", "columns=data"]) == 2
    assert "both A on x" in capsys.readouterr().err
    evaluated("b1-s1", [80.0] * 4, data="x", lr=1.0, seed=1)
    assert main(["compare", "b1-s0", "b1-s1", "group=name"]) == 0
    assert "| 2 | 30.0 [" in capsys.readouterr().out


def trained(name, seed, walls, returns, **more):
    """A run that was evaluated on its way, one episode of each return at each of the times."""
    folder = evaluated(name, returns[-1], step=len(walls) - 1, seed=seed, **more)
    config = json.loads((folder / "config.yaml").read_text()) | {"init": "runs/base"}
    (folder / "config.yaml").write_text(json.dumps(config))
    rows = []
    for step, (wall, values) in enumerate(zip(walls, returns, strict=True)):
        row = {"step": step, "env": "Hopper-v4", "episodes": [{"ret": float(v)} for v in values]}
        (folder / "eval" / f"{step:012d}.json").write_text(json.dumps(row))
        rows.append({"step": step, "eval/return": float(np.mean(values)), "time/wall": wall})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_seeds_whose_last_rollout_ended_later_are_one_row(capsys):
    for seed, step in enumerate((10, 12)):
        folder = evaluated(f"a-s{seed}", [float(step)] * 2, step=step, seed=seed)
        config = json.loads((folder / "config.yaml").read_text()) | {"steps": 9}
        (folder / "config.yaml").write_text(json.dumps(config))
    assert main(["compare", "a-s0", "a-s1", "metric=return"]) == 0
    assert "| 11 | 2 | 11.0 [" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "groups"), [("workers", 1), ("threads", 1), ("num_envs", 2)])
def test_what_steps_the_environments_does_not_part_runs(key, groups, capsys):
    for seed in (0, 1):
        folder = evaluated(f"a-s{seed}", [1.0, 2.0], seed=seed)
        config = json.loads((folder / "config.yaml").read_text()) | {"env": {key: seed + 1}}
        (folder / "config.yaml").write_text(json.dumps(config))
    assert main(["compare", "a-s0", "a-s1", "metric=return"]) == 0
    assert len(capsys.readouterr().out.splitlines()[2:]) == groups


def test_growth_and_a_limit_of_minutes(capsys):
    trained("a-hopper-s0", 0, [6, 60, 121], [[100, 300], [400, 400], [900, 1100]])
    trained("a-hopper-s1", 1, [6, 90, 119], [[200, 200], [500, 700], [100, 100]])
    names = ["a-hopper-s0", "a-hopper-s1", "metric=return"]
    assert main(["compare", *names]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[7] == "2.0" and cells[8:] == ["200.0", "+175 %"]  # (1000 + 100) / 2 over 200
    assert main(["compare", *names, "minutes=2"]) == 0  # the first seed's second evaluation
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[6] == "400.0 / 100.0" and cells[7] == "1.5" and cells[9] == "+25 %"


def test_frames_until_a_value_is_reached(capsys):
    trained("a-hopper-s0", 0, [6, 60, 121], [[100, 300], [400, 400], [900, 1100]])
    trained("a-hopper-s1", 1, [6, 90, 119], [[200, 200], [500, 700], [100, 100]])
    names = ["a-hopper-s0", "a-hopper-s1", "metric=return"]
    assert main(["compare", *names, "reach=200,400.5,5000"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    titles, cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row))
    assert titles[-3:] == ["frames to 200", "frames to 400.5", "frames to 5000"]
    assert cells[-3:] == ["1 / 1", "2 / 1", "never / never"]


def test_success_is_in_per_cent(capsys):
    file = next((evaluated("a-s0", [1.0] * 4) / "eval").glob("*.json"))
    stored = json.loads(file.read_text())
    for row, solved in zip(stored["episodes"], (True, False, False, False), strict=True):
        row["success_once"] = solved
    file.write_text(json.dumps(stored))
    assert main(["compare", "a-s0", "metric=success_once"]) == 0
    assert "| 25.0 [" in capsys.readouterr().out


def test_the_time_of_a_decision_is_shown_where_every_evaluation_has_it(capsys):
    for name, ms in (("a-s0", 1.0), ("a-s1", 2.0), ("b-s0", None)):
        file = next((evaluated(name, [1.0], seed=int(name[-1])) / "eval").glob("*.json"))
        timed = {} if ms is None else {"decision_ms": ms}
        file.write_text(json.dumps(json.loads(file.read_text()) | timed))
    assert main(["compare", "a-s0", "a-s1"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()[:3]
    assert head.endswith("| ms per decision |") and row.endswith("| 1.50 |")
    assert main(["compare", "a-s0", "a-s1", "b-s0", "group=name"]) == 0
    assert "ms per decision" not in capsys.readouterr().out


def test_curves_are_means_over_seeds_with_their_interval(capsys):
    trained("a-hopper-s0", 0, [0, 60, 120], [[0, 0], [100, 100], [200, 200]])
    trained("a-hopper-s1", 1, [0, 120, 240], [[0, 0], [300, 300], [600, 600]])
    first, second = (curve_of(Path("runs") / f"a-hopper-s{i}", "return") for i in range(2))
    x, middle, low, high = band([first, second], "frames")
    np.testing.assert_allclose(middle, 200 * x)  # slopes 100 and 300
    np.testing.assert_allclose((low[-1], high[-1]), (200, 600))  # either seed twice
    x, middle, low, high = band([first, second], "minutes")
    assert x[-1] == 2.0  # where the shorter one ends
    np.testing.assert_allclose(middle, 125 * x)  # slopes 100 and 150
    names = ["a-hopper-s0", "a-hopper-s1"]
    assert main(["compare", *names, "metric=return", "group=name", "curves=c.png"]) == 0
    assert Path("c.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", *names, "metric=return", "curves=c.nothing"]) == 2
    assert "curves=c.nothing: " in capsys.readouterr().err
    columns = ["metric=return", "group=name", "columns=env"]
    assert main(["compare", *names, *columns]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| a | ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: rheo compare"),
        (["a-s0", "metric=retrun"], "metric=retrun: not known; did you mean 'return'?"),
        (["a-s0", "into=x"], "unknown option 'into'"),
        (["a-s0", "reach=far"], "reach=far: numbers are needed"),
        (["a-s0", "reach=1", "columns=env"], "reach=1: of the table without columns="),
        (["a-s0", "group=x"], "group=x: not known; there are: config, name"),
        (["a-s0", "columns=x"], "columns=x: not known; there are: data, env"),
        (["a-s0", "minutes=0"], "minutes=0: a positive number is needed"),
        (["a-s0", "minutes=1"], "no evaluation within its first 1 minutes"),
        (["a-s0", "curves=x.png"], "a curve needs two evaluations; set eval_every="),
        (["a-s0", "metric=score"], "no score is defined there; use metric=return"),
        (["a-s0", "metric=success_once"], "its episodes have no success_once"),
        (["empty"], "never evaluated; run: rheo eval"),
        (["none"], "no run at runs/none"),
    ],
)
def test_what_cannot_be_compared_is_said(words, message, capsys):
    evaluated("a-s0", [1, 2], references=False)
    empty = evaluated("empty", [1])
    next((empty / "eval").iterdir()).unlink()
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err
