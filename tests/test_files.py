"""Files that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

from rheo.files import sweep, untaken
from rheo.scripts.store.run import Run


def killed_while_it_writes(file: Path) -> str:
    """The temporary file that a killed writer leaves."""
    code = (
        "import os, sys, pathlib; from rheo.files import atomically\n"
        "atomically(pathlib.Path(sys.argv[1]), lambda part: "
        "(part.write_text('half'), os.kill(os.getpid(), 9)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)]).returncode == -9
    (left,) = (one.name for one in file.parent.iterdir() if one != file)
    return left


def test_what_a_killed_writer_leaves_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("whole")
    left = killed_while_it_writes(tmp_path / "run.json")
    assert left.startswith(".run.json.")
    kept = {f".run.json.{os.getpid()}.tmp", ".run.json.tmp", "run.json", ".hidden"}
    for name in kept:
        (tmp_path / name).touch()
    sweep(tmp_path, tmp_path / "no such folder")
    assert {one.name for one in tmp_path.iterdir()} == kept


def test_a_run_killed_before_its_configuration_was_there_begins_again(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    left = killed_while_it_writes(folder / "config.yaml")
    with Run.create(str(folder), {"seed": 1}):
        assert not (folder / left).exists() and (folder / "config.yaml").exists()


def test_a_name_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    """Also where an earlier one has been removed: counting what is there would meet it."""
    (tmp_path / "run.1").mkdir()
    assert untaken(tmp_path / "run").name == "run.0"
    (tmp_path / "run.0").touch()
    assert untaken(tmp_path / "run").name == "run.2"
