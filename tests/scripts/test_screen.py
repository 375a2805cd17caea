"""Texts of files, names and values are printed as text: no terminal obeys them."""

import io
import logging
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from rheo.errors import RheoError, printable
from rheo.scripts.cli import main
from rheo.scripts.display import Display
from rheo.scripts.screen import Screen, raw, screened

OWNED = "\x1b]0;owned\x07\x1b[2Jx\r\x9b1m\u202e\ud800"
SPELLED = "\\x1b]0;owned\\x07\\x1b[2Jx\\r\\x9b1m\\u202e\\ud800"


def test_what_a_terminal_obeys_is_spelled_and_the_rest_stays():
    assert printable(OWNED) == SPELLED
    assert printable("Zürich\tπ\n日本 🙂") == "Zürich\tπ\n日本 🙂"
    assert str(RheoError(f"env.id={OWNED}: no such")) == f"env.id={SPELLED}: no such"


def test_a_file_of_data_is_shown_as_text(tmp_path, capsys):
    file = tmp_path / "data.hdf5"
    with h5py.File(file, "w") as out:
        out.attrs["env_id"] = OWNED[:-1]
        for key, shape in (("observations", (4, 3)), ("actions", (4, 2)), ("rewards", (4,))):
            out[key] = np.zeros(shape, np.float32)
        out["terminals"] = np.array([False, False, False, True])
    main(["data", "info", str(file)])
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "\x07" not in told.out + told.err
    assert "owned" in told.out + told.err


@pytest.mark.parametrize(
    "words",
    [
        [f"{OWNED}"],
        ["eval", OWNED],
        ["train", f"algo={OWNED}"],
        ["train", "algo=sac", f"{OWNED}=1"],
    ],
)
def test_words_and_names_are_told_as_text(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "\\x1b]0;owned" in error


def test_a_folder_of_somebody_elses_is_told_as_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", "\x1b[2Jrun")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text('a: "\\e]0;owned\\a"\nalgo: [')
    assert main(["eval", "\x1b[2Jrun"]) == 2
    assert main(["eval", "\x1b[2Jrum"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_log_messages_and_whatever_is_printed_inside_a_verb_are_text(capsys):
    with screened():
        print(OWNED, flush=True)
        logging.getLogger("rheo").warning("%s", OWNED[:-1])
        assert isinstance(sys.stdout, Screen) and sys.stdout.isatty() is False
        with screened():
            print("once", file=sys.stderr)
    assert not isinstance(sys.stdout, Screen)
    told = capsys.readouterr()
    assert told.out == f"{SPELLED}\n" and "\x1b" not in told.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_line_is_drawn_and_a_title_is_text():
    stream = Terminal()
    with Display(10, title="a\x1b]0;owned\x07", stream=Screen(stream)) as display:  # type: ignore
        display.note("\x1b[2Jnote")
        display.update(5, {"env/return": 1.0})
    drawn = stream.getvalue()
    assert "\\x1b]0;owned\\x07" in drawn and "\\x1b[2Jnote" in drawn
    assert "\x1b]0" not in drawn and "\x1b[?25l" in drawn  # the cursor is hidden by rich itself
    assert Console(file=raw(Screen(stream))).file is stream
