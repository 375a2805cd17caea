"""Promises of docs/reference/promises.md, tried a few times; `rheo bench faults` tries more.

Children are forked from one process that has imported everything, so each takes a second or two.
"""

import csv
import json
import os
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
from pieces import COLUMNS, Pieces
from trials import Promise, Random, Trial, measure
from trials import tried as tried_once

from rheo.errors import RheoError
from rheo.scripts import bench

SEED = 1
FEW = {"kill": 2, "damage": 2, "signals": 2, "disk": 2, "hostile": 2, "env": 2, "fuzz": 1}
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


def test_every_group_can_be_asked_for_and_files_are_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {one.group for one in bench_faults.promises()} | {"soak"}
    assert groups == set(bench.PROMISED)
    words = ["only=fuzz:run.json", "count=1", f"json={tmp_path / 'f.json'}"]
    places, options = bench.asked(["faults", *words, f"csv={tmp_path / 'f.csv'}"])
    assert places == [bench.FAULTED]
    bench.main((places, options))
    found = json.loads((tmp_path / "f.json").read_text())
    (row,) = csv.DictReader((tmp_path / "f.csv").open())
    assert [row[name] for name in ("promise", "tried", "whole", "count", "seed")] == [
        "nearly right: run.json", "40", "yes", "1", "0",
    ]  # fmt: skip
    assert found["rows"][0]["tried"] == 40 and "machine" in found
    capsys.readouterr()
    bench.main(bench.asked(["faults", *words, f"csv={tmp_path / 'f.csv'}"]))
    assert "taken from it are 1 of 1 promises whole; to try them again" in capsys.readouterr().out
    (again,) = csv.DictReader((tmp_path / "f.csv").open())
    assert again == row and json.loads((tmp_path / "f.json").read_text()) == found


# ---- in pieces -----------------------------------------------------------------------------------


class Drawn:
    """A promise of which every other trial is not kept; the one after `last` is ended by a key."""

    def __init__(self, text: str = "some") -> None:
        self.names: list[str] = []
        self.last = 99
        self.promise = Promise("kill", text, self.trials)

    def trials(self, count: int, draw: Random) -> Any:
        for _ in range(count):
            yield Trial(str(draw.randrange(10**6)), self.prepare, self.harm, self.judge)

    def prepare(self, place: Path) -> None:
        if len(self.names) == self.last:
            raise KeyboardInterrupt

    def harm(self, place: Path, state: None) -> None:
        self.names.append("")

    def judge(self, place: Path, state: None) -> str:
        return "odd" if len(self.names) % 2 else ""


def pieces(folder: Path, count: int = 7, seed: int = 3) -> Pieces:
    return Pieces(folder / "f.csv", folder / "f.json", count, seed, {"machine": "this"})


def try_on(folder: Path, one: Drawn, count: int = 7, seed: int = 3) -> tuple[list[str], str]:
    """What a call tries, by its trials' names, and what it takes of earlier ones."""
    known, tried = pieces(folder, count, seed), []
    taken = known.taken([one.promise])
    try:
        measure([one.promise], count, seed, tried.append, known)
    except KeyboardInterrupt:
        tried.pop()
    finally:
        known.write()
    return [text.rpartition(" ")[2] for text in tried if not text.startswith("FAILED")], taken


def test_a_call_that_was_ended_goes_on_with_the_trials_that_are_left(tmp_path: Path) -> None:
    (tmp_path / "straight").mkdir()
    whole, nothing = try_on(tmp_path / "straight", Drawn())
    assert len(set(whole)) == 7 and nothing == ""
    one = Drawn()
    one.last = 3
    first, _ = try_on(tmp_path, one)
    assert (tmp_path / "f.csv").read_text().splitlines()[1].startswith("some,3,2,kill,no,")
    one.last = 99
    second, taken = try_on(tmp_path, one)
    assert first + second == whole and len(first) == 3
    assert '0 of 1 promises whole, 3 trials of "some"; to try them again, remove it' in taken
    third, taken = try_on(tmp_path, one)
    assert third == [] and "1 of 1 promises whole; " in taken
    mine, straight_ = (
        (lasting(json.loads((folder / "f.json").read_text())), pieces(folder).rows.keys())
        for folder in (tmp_path, tmp_path / "straight")
    )
    assert mine == straight_ and len(mine[0]["failures"]) == 4


def lasting(found: dict[str, Any]) -> dict[str, Any]:
    """What was written, without what a clock measured."""
    for row in found["rows"]:
        del row["seconds"]
    return found


def test_a_table_goes_on_with_its_own_trials_alone_and_keeps_those_of_other_promises(
    tmp_path: Path,
) -> None:
    try_on(tmp_path, Drawn())
    for count, seed in ((8, 3), (7, 4)):
        with pytest.raises(RheoError, match='"some" was tried with count=7 seed=3; give these'):
            pieces(tmp_path, count, seed).taken([Drawn().promise])
    try_on(tmp_path, Drawn("another"), count=2, seed=4)
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert [line.split(",")[:5] for line in lines[1:]] == [
        ["some", "7", "4", "kill", "yes"], ["another", "2", "1", "kill", "yes"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("f.csv", "promise,tried,failed\nsome,1,0\n", "no table to go on with; remove it"),
        (
            "f.csv",
            f"{','.join(COLUMNS)}\nsome,many,0,kill,yes,1.0,7,3\n",
            "line of 'some' is broken",
        ),
        ("f.csv", f"{','.join(COLUMNS)}\nsome,1\n", "line of 'some' is broken"),
        ("f.json", "[]", "f.json: cannot be gone on with"),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_refused_and_left(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    try_on(tmp_path, Drawn())
    (tmp_path / name).write_text(text)
    with pytest.raises(RheoError, match=said):
        pieces(tmp_path)
    assert (tmp_path / name).read_text() == text


def test_a_table_leaves_out_what_was_not_tried(tmp_path: Path) -> None:
    known = pieces(tmp_path)
    lacking = hostile.PROMISES[0]._replace(lack=lambda: "not here")
    measure([lacking], 1, 0, print, known)
    known.write()
    assert (tmp_path / "f.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert json.loads((tmp_path / "f.json").read_text())["rows"][0]["note"] == "not here"


def test_recorded_data_are_numbered_so_that_the_rest_of_them_can_be_tried_alone() -> None:
    some = [one.name for one in fuzz.of_data(3, Random(1))]
    more = [one.name for one in fuzz.of_data(5, Random(1))]
    assert len(set(more)) == 5 and more[:3] == some


def test_an_input_that_ends_its_process_is_found_among_others() -> None:
    def wrong(numbers: range) -> dict[int, str]:
        if 5 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return {7: "odd"} if 7 in numbers else {}

    found = fuzz.surviving(wrong, range(2, 9))
    assert found == {5: f"the process that reads it ended with {-signal.SIGKILL}", 7: "odd"}


def test_the_page_shows_what_was_tried_and_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_on(tmp_path, Drawn())
    (tmp_path / "f.csv").rename(tmp_path / "faults.csv")
    monkeypatch.setattr(reference, "DATA", tmp_path)
    assert reference.promises().splitlines()[::2] == [
        "| promise | tried | failed |",
        "| some | 7 | 4 |",
    ]


def test_the_page_tells_of_promises_that_are_tried() -> None:
    with (reference.DATA / "faults.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    known = {one.text for one in bench_faults.promises()}
    assert rows and {row["promise"] for row in rows} <= known
    assert all(0 <= int(row["failed"]) <= int(row["tried"]) > 0 for row in rows)


def test_growth_over_a_long_run_is_seen() -> None:
    def looks(rss: Any, files: int = 9) -> list[soak.Look]:
        return [soak.Look(i, rss(i), files + i // 12, 3, i * 100, 1) for i in range(20)]

    assert soak.unsteady([one._replace(files=9) for one in looks(lambda i: 300.0)]) == ""
    assert "memory grew" in soak.unsteady(
        [one._replace(files=9) for one in looks(lambda i: 300.0 + 5 * i)]
    )
    assert "files went from 9 to 10" in soak.unsteady(looks(lambda i: 300.0))
    once = [one._replace(files=9 + (one.minutes == 15)) for one in looks(lambda i: 300.0)]
    assert soak.unsteady(once) == ""  # a save was under way
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
