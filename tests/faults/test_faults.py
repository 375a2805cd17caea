"""Promises of docs/reference/promises.md, tried a few times; `rheo bench faults` tries more.

Children are forked from one process that has imported everything, so each takes a second or two.
"""

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import bench_faults
import damage
import environments
import fuzz
import hostile
import pytest
import reference
import soak
import stops
from alike import apart, differences
from kills import PROMISES as KILLS
from kinds import straight
from trials import Promise, Trial, measure, write_csv
from trials import tried as tried_once

from rheo.errors import RheoError
from rheo.scripts import bench

SEED = 1
FEW = {"kill": 2, "damage": 2, "signals": 4, "disk": 4, "hostile": 5, "env": 2, "fuzz": 1}
SLOW = ("warp",)  # compiles for half a minute; tests/test_resume.py stops and resumes such runs


def test_a_sweep_that_was_stopped_keeps_its_own_folder_and_leaves_nothing_half_written(
    tmp_path: Path,
) -> None:
    (sweep,) = [one for one in stops.verbs() if one.command[0] == "sweep"]
    assert tried_once(stops.verb((sweep, signal.SIGUSR1))) == ""
    own = tmp_path / "runs" / "s" / ".sweep"
    own.mkdir(parents=True)
    (own / "seed=0.log").write_text("what it printed")
    assert stops.halves(tmp_path) == ""
    (own / ".seed=0.json.7.tmp").write_text("{")
    assert stops.halves(tmp_path) == "left runs/s/.sweep/.seed=0.json.7.tmp"


def kept(promise: Promise, count: int) -> list[str]:
    """What was not kept of a promise."""
    rows, failures = measure([promise], count, SEED, lambda text: None)
    if rows[0].note:
        pytest.skip(rows[0].note)
    assert rows[0].tried > 0
    return [f"{one.trial}: {one.wrong}" for one in failures]


def tried() -> list[Promise]:
    """All but the longest."""
    every = [one for one in bench_faults.promises() if one.group in FEW]
    return [one for one in every if not any(word in one.text for word in SLOW)]


@pytest.mark.parametrize("promise", tried(), ids=lambda one: one.text)
def test_a_promise_is_kept(promise: Promise) -> None:
    assert kept(promise, FEW[promise.group]) == []


# ---- the harness sees what is wrong --------------------------------------------------------------


def trial(wrong: str) -> Trial:
    return Trial("t", lambda place: 1, lambda place, state: state + 1, lambda place, n: wrong * n)


def test_what_fails_or_breaks_is_counted_and_told() -> None:
    def break_off(place: Path) -> Any:
        raise OSError("no room")

    trials = [trial(""), trial("x"), trial("")._replace(prepare=break_off)]
    promises = [
        Promise("kill", "some", lambda count, draw: trials[:count]),
        Promise("kill", "none here", lambda count, draw: trials, lack=lambda: "no such disk"),
    ]
    rows, failures = measure(promises, 3, 0, lambda text: None)
    assert [(row.tried, row.failed, row.note) for row in rows] == [
        (3, 2, ""),
        (0, 0, "no such disk"),
    ]
    assert failures[0].wrong == "xx" and "no room" in failures[1].wrong


def test_the_same_seed_draws_the_same_trials() -> None:
    def drawn(seed: int) -> list[str]:
        promise = next(one for one in damage.PROMISES if "flipped" in one.text)
        told: list[str] = []
        measure([promise._replace(trials=named(promise))], 4, seed, told.append)
        return told

    def named(promise: Promise) -> Any:
        return lambda count, draw: (
            trial("")._replace(name=one.name) for one in promise.trials(count, draw)
        )

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_bit_of_a_run_that_differs_is_seen(tmp_path: Path) -> None:
    one, two = straight("off-policy"), tmp_path / "two"
    shutil.copytree(one, two)
    assert apart(one, two) == ""
    lines = (two / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    (two / "stray").touch()
    (two / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(row | {"x": 1})]) + "\n")
    assert apart(one, two) == "2 differences: metrics.jsonl, stray"
    assert differences({"a": [0.0]}, {"a": [-0.0]}) == [".a.0"]
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []
    assert differences({"a": 1}, {"a": 1.0}) == [".a"]


def test_a_straight_run_that_was_never_killed_equals_itself_through_the_harness() -> None:
    (promise,) = (one for one in KILLS if "off-policy" in one.text)
    assert kept(promise, 1) == []


@pytest.mark.parametrize(
    "words", [["faults", "only=kil"], ["faults", "quick=true"], ["faults", "minutes=-1"]]
)
def test_a_wrong_word_is_refused_before_anything_is_tried(words: list[str]) -> None:
    with pytest.raises(RheoError, match=r"kil|quick|minutes"):
        bench.asked(words)


def test_every_group_can_be_asked_for_and_files_are_written(tmp_path: Path) -> None:
    groups = {one.group for one in bench_faults.promises()} | {"soak"}
    assert groups == set(bench.PROMISED)
    words = ["only=fuzz:run.json", "count=1", f"json={tmp_path / 'f.json'}"]
    places, options = bench.asked(["faults", *words, f"csv={tmp_path / 'f.csv'}"])
    assert places == [bench.FAULTED]
    bench.main((places, options))
    found = json.loads((tmp_path / "f.json").read_text())
    (row,) = csv.DictReader((tmp_path / "f.csv").open())
    assert row == {"promise": "nearly right: run.json", "tried": "40", "failed": str(row["failed"])}
    assert found["rows"][0]["tried"] == 40 and "machine" in found


def test_a_table_leaves_out_what_was_not_tried(tmp_path: Path) -> None:
    rows, _ = measure([hostile.PROMISES[0]._replace(lack=lambda: "not here")], 1, 0, print)
    write_csv(tmp_path / "x.csv", rows)
    assert (tmp_path / "x.csv").read_text() == "promise,tried,failed\n"


def test_the_page_tells_of_promises_that_are_tried() -> None:
    with (reference.DATA / "faults.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    known = {one.text for one in bench_faults.promises()}
    assert rows and {row["promise"] for row in rows} <= known
    assert all(0 <= int(row["failed"]) <= int(row["tried"]) > 0 for row in rows)


def test_growth_over_a_long_run_is_seen() -> None:
    def looks(rss: Any, files: int = 9) -> list[soak.Look]:
        return [soak.Look(i, rss(i), files + i // 15, 3, i * 100, 1) for i in range(20)]

    assert soak.unsteady([one._replace(files=9) for one in looks(lambda i: 300.0)]) == ""
    assert "memory grew" in soak.unsteady(
        [one._replace(files=9) for one in looks(lambda i: 300.0 + 5 * i)]
    )
    assert "files went from 9 to 10" in soak.unsteady(looks(lambda i: 300.0))
    still = [one._replace(step=5, files=9) for one in looks(lambda i: 300.0)]
    assert "nothing was learnt" in soak.unsteady(still)


def test_every_phase_and_case_has_a_name_of_its_own() -> None:
    for names in (
        [one.name for one in stops.TRAINING],
        [one.name for one in hostile.FILES],
        [(fault, workers) for fault, _, workers in environments.cases()],
        list(fuzz.KINDS),
    ):
        assert len(names) == len(set(names))
