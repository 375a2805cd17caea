"""Every verb that writes a file, on a full disk: a line, exit code 3, nothing half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from rheo.scripts import cli, films, plot
from rheo.scripts import train as training
from rheo.scripts.store import waiting
from rheo.scripts.store.run import Run

HERE = """
import resource, sys
from rheo.scripts import cli
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for words in " ".join(sys.argv[2:]).split(" then "):
    print("left with", cli.main(words.split()), flush=True)
"""
COLLECT = ["collect", "random", "env=inverted_pendulum", "num_envs=4"]


def rheo(limit: int, *words: str) -> tuple[str, str]:
    """stdout and stderr of verbs in a process of their own, which must end in peace."""
    argv = [sys.executable, "-c", HERE, str(limit), *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout, done.stderr


def test_converting_onto_a_full_disk(tmp_path: Path, episodes: Callable) -> None:
    data, there = episodes(tmp_path / "data.npz", [400, 400]), tmp_path / "there"
    there.mkdir()
    outs = [f"{there}/{out}" for out in ("x.hdf5", "x.npz", "x.hdf5 --layout robomimic")]
    told, errors = rheo(9000, " then ".join(f"data convert {data} {out}" for out in outs))
    assert told == "left with 3\n" * 3
    told_of = ("was observed after", "has no place for costs")
    lines = [line for line in errors.splitlines() if not any(word in line for word in told_of)]
    assert len(lines) == 3 and all(line.startswith(f"rheo: {there}/x.") for line in lines)
    assert all("not written: File too large; make room and" in line for line in lines)
    assert os.listdir(there) == []


@pytest.mark.parametrize("out", ["x.hdf5", "x.npz"])
def test_what_was_collected_goes_to_another_disk_where_there_is_one(
    out: str, tmp_path: Path, small_disk: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    disk = small_disk(50_000)
    told, errors = rheo(0, *COLLECT, "steps=4000", f"out={disk}/{out}")
    (spare,) = tmp_path.glob("rheo-*")
    assert "left with 3" in told and f"What was collected is in {spare}/{out}" in errors
    assert "take 0.1 MB before they are compressed" in errors  # said before anything is collected
    assert {p.name for p in spare.iterdir()} == {out, f"{out}.card.json"}
    assert os.listdir(disk) == []


def test_where_there_is_no_other_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    told, errors = rheo(5000, *COLLECT, "steps=4000", f"out={tmp_path}/x.hdf5")
    assert "left with 3" in told and f"{tmp_path}/x.hdf5: not written" in errors
    assert os.listdir(tmp_path) == []


def test_what_can_never_fit_is_refused_before_it_is_collected(
    small_disk: Callable, capsys: pytest.CaptureFixture
) -> None:
    out = small_disk(50_000) / "x.hdf5"
    assert cli.main([*COLLECT, "steps=400000000", f"out={out}"]) == 3
    assert "take 9.60 GB before they are compressed, and 0.1 MB are free" in capsys.readouterr().err


def test_a_film_that_was_cut_short_is_no_film(small_disk: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
    disk = small_disk(30_000)
    with pytest.raises(OSError, match=r"x\.gif: not written: No space left"):
        films.write(frames, disk / "x.gif", 20.0)
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(OSError, match=r"x\.mp4: not written: ffmpeg"):
        films.write(frames, disk / "x.mp4", 20.0)
    assert os.listdir(disk) == []
    films.write(frames, tmp_path / "x.mp4", 20.0)


def test_a_picture_is_drawn_whole_or_not_at_all(small_disk: Callable) -> None:
    disk = small_disk(10_000)
    row = {"step": 0, "eval/return": 1.0, "eval/return_low": 0.0, "eval/return_high": 2.0}
    (disk / "curve.png").write_text("the one before")
    with pytest.raises(OSError, match=r"curve\.png: not written"):
        plot.plot(disk, [row, row | {"step": 9}])
    assert (disk / "curve.png").read_text() == "the one before"
    assert os.listdir(disk) == ["curve.png"]


def test_a_program_is_exported_with_its_contract_or_not_at_all(
    tiny: Callable, tmp_path: Path, small_disk: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["train", *tiny("bc", "run")]) == 0
    assert cli.main(["export", "run", f"out={tmp_path}/whole.pt2"]) == 0
    size = (tmp_path / "whole.pt2").stat().st_size
    for room in (size // 2, size):  # the second has none for the contract
        disk = small_disk(-(-room // 4096) * 4096)
        assert cli.main(["export", "run", f"out={disk}/x.pt2"]) == 3
        assert "not written: No space left on device" in capsys.readouterr().err
        assert os.listdir(disk) == []


def fill(disk: Path) -> None:
    """Takes what room there is."""
    with suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def results(run: Path) -> tuple[list[dict], list[str], object]:
    """Rows without what a clock measures, evaluations, and the newest checkpoint's algorithm."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith(("time/", "crc"))} for row in rows]
    tree = Run.open(str(run)).load()
    assert tree is not None
    policy = {name: value.tolist() for name, value in tree["algo"]["policy"].items()}
    evaluations = [file.read_text() for file in sorted((run / "eval").glob("*.json"))]
    return rows, evaluations, (policy, tree["source"]["buffer"]["rows"].take(0, 200).tolist())


def test_a_shortage_while_training_loses_nothing(
    tiny: Callable, tmp_path: Path, small_disk: Callable, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A short one is waited for; one that lasts is code 3, and the run goes on exactly."""
    disk, words = small_disk(8_000_000), tiny("sac", "x")
    assert cli.main(["train", *words, f"name={tmp_path}/straight"]) == 0
    straight = results(tmp_path / "straight")
    between = training.Loop.between
    monkeypatch.setattr(waiting, "PAUSE", 0.0)

    def short(self: training.Loop, before: int, now: int, steps: int) -> None:
        if before < 90 <= now:  # in it lie rows, an evaluation and a checkpoint
            fill(disk)
        if before < until <= now:
            (disk / "ballast").unlink()
        between(self, before, now, steps)

    monkeypatch.setattr(training.Loop, "between", short)
    until = 125
    assert cli.main(["train", *words, f"name={disk}/short"]) == 0
    told = capsys.readouterr().err
    assert "1 files not written" in told and "checkpoint of step 120 not written" in told
    assert results(disk / "short") == straight
    until = 1000
    assert cli.main(["train", *words, f"name={disk}/long"]) == 3
    assert "failures in a row" in capsys.readouterr().err
    (disk / "ballast").unlink()
    assert not list((disk / "long").rglob("*.tmp*")) and not list(
        (disk / "long").rglob(".staging*")
    )
    monkeypatch.setattr(training.Loop, "between", between)
    assert cli.main(["resume", f"{disk}/long"]) == 0
    assert results(disk / "long") == straight
