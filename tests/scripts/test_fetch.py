"""`rheo data fetch` from a server of this machine that stops, ignores ranges, or lies."""

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.scripts import fetch
from rheo.scripts.cli import main

NAME, FILE = "hopper-medium-v2", "hopper_medium-v2.hdf5"


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`. The tests set how, and read the ranges that were asked for."""

    body = b""
    version = '"one"'
    kind = "application/octet-stream"
    ranges = True  # whether ranges are answered
    stops: list[int]  # bytes after which the next answers stop
    status = 200
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{FILE}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, wanted = cast(Server, self.server), self.headers.get("Range")
        server.asked.append(wanted)
        same = self.headers.get("If-Range") in (None, server.version)
        start = int(wanted[6:].rstrip("-")) if wanted and server.ranges and same else 0
        if server.status != 200:
            return self.send_error(server.status)
        if start >= len(server.body) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.send_header("Content-Type", server.kind)
        self.send_header("ETag", server.version)
        self.end_headers()
        count = server.stops.pop(0) if server.stops else len(server.body)
        self.wfile.write(server.body[start : start + count])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    path, obs = tmp_path / "original.hdf5", np.random.default_rng(0).normal(size=(900, 11))
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = obs, np.tanh(obs[:, :3])
        file["timeouts"] = np.arange(900) % 100 == 99
    with Server(("127.0.0.1", 0), Handler) as httpd:
        httpd.body, httpd.stops, httpd.asked = path.read_bytes(), [], []
        thread = threading.Thread(target=functools.partial(httpd.serve_forever, 0.01))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Any:
    """Fetches into a folder and gives back the exit status and the names in the folder."""

    def run(*words: str, source: str | None = None) -> tuple[int, list[str]]:
        where = ["--to", str(tmp_path / "sets")]
        code = main(["data", "fetch", NAME, "--from", source or server.url, *where, *words])
        folder = tmp_path / "sets"
        return code, sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    return run


WHOLE = ["hopper_medium-v2.hdf5", "hopper_medium-v2.json"]


def test_a_file_is_fetched_with_its_size_said_first_and_its_digest_noted(
    get: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get() == (0, WHOLE)
    file = tmp_path / "sets" / FILE
    assert file.read_bytes() == server.body
    card = json.loads((tmp_path / "sets" / "hopper_medium-v2.json").read_text())
    sha = hashlib.sha256(server.body).hexdigest()
    assert card["sha256"] == sha and card["bytes"] == len(server.body)
    assert card["url"] == server.url and card["name"] == NAME
    out = capsys.readouterr().out
    assert out.startswith(f"{server.url}: 0.1 MB, to {tmp_path / 'sets'}") and sha in out
    assert len(read(str(file)).ends) == 9


def test_the_set_of_a_single_task_is_fetched_by_its_name_and_read_by_both(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("RHEO_DATASETS", str(tmp_path / "sets"))
    rows: Any = {"observations": np.zeros((9, 28)), "actions": np.zeros((9, 5)), "qpos": np.eye(9)}
    np.savez(tmp_path / "original.npz", **rows, terminals=np.arange(9) % 3 == 2)
    server.body = (tmp_path / "original.npz").read_bytes()
    words = ["data", "fetch", "cube-single-play-singletask-task1-v0", "--from", server.url]
    assert main(words) == 0
    names = sorted(file.name for file in (tmp_path / "sets").iterdir())
    assert names == ["cube-single-play-v0.json", "cube-single-play-v0.npz"]
    assert len(read("cube-single-play-v0").ends) == 3 and main(words) == 0
    server.body = (tmp_path / "original.hdf5").read_bytes()
    capsys.readouterr()
    assert main(["data", "fetch", "scene-play-v0", "--from", server.url]) == 3
    assert "what comes is not an .npz file" in capsys.readouterr().err


def test_a_connection_that_breaks_off_is_taken_up_where_it_stopped(
    get: Any, server: Server, tmp_path: Path
) -> None:
    server.stops = [30_000, 20_000]
    assert get() == (0, WHOLE)
    assert server.asked == [None, "bytes=30000-", "bytes=50000-"]
    assert (tmp_path / "sets" / FILE).read_bytes() == server.body


def test_a_second_command_goes_on_with_what_the_first_one_left(
    get: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stops = [10_000, 5_000, 1_000]
    code, names = get()
    assert code == 3 and names == ["hopper_medium-v2.part", "hopper_medium-v2.part.json"]
    error = capsys.readouterr().err
    assert "broke off after 16,000 bytes" in error and "run the same command to go on" in error
    assert get() == (0, WHOLE) and server.asked[-1] == "bytes=16000-"
    assert (tmp_path / "sets" / FILE).read_bytes() == server.body
    assert ", going on after 0.0 MB" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["version", "ranges"])
def test_a_part_of_another_file_is_never_continued(
    get: Any, server: Server, tmp_path: Path, change: str
) -> None:
    server.stops = [100, 100, 100]
    get()
    other = server.body.replace(b"observations", b"observatio_s")
    if change == "version":
        server.version, server.body = '"two"', other.replace(b"observatio_s", b"observations")
    else:
        server.ranges = False
    assert get() == (0, WHOLE)
    assert (tmp_path / "sets" / FILE).read_bytes() == server.body


def test_a_whole_part_needs_no_more_bytes_and_a_longer_one_starts_again(
    get: Any, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "sets"
    for surplus in (b"", b"more"):
        folder.mkdir()
        (folder / "hopper_medium-v2.part").write_bytes(server.body + surplus)
        (folder / "hopper_medium-v2.part.json").write_text(json.dumps({"url": server.url}))
        assert get() == (0, WHOLE)
        assert (folder / FILE).read_bytes() == server.body
        for name in WHOLE:
            (folder / name).unlink()
        folder.rmdir()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_page_instead_of_the_file_never_gets_its_name(
    get: Any, server: Server, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body, server.kind = b"<!DOCTYPE html><html>gone</html>", kind
    code, names = get()
    assert code == 3 and FILE not in names
    error = capsys.readouterr().err
    assert (
        "HTML page" in error if "html" in kind else "not an HDF5 file (b'<!DOCTYPE html>" in error
    )
    assert "rheo data fetch hopper-medium-v2 --from FILE" in error


def test_a_page_does_not_destroy_what_has_come(get: Any, server: Server, tmp_path: Path) -> None:
    server.stops, whole = [500, 500, 500], server.body
    get()
    server.body, server.ranges = b"<html>log in to this network</html>" * 99, False
    assert get()[0] == 3
    assert (tmp_path / "sets" / "hopper_medium-v2.part").read_bytes() == whole[:1500]


def test_a_truncated_or_foreign_file_is_removed(
    get: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = server.body[:-1000]
    assert get()[1] in ([], ["hopper_medium-v2.part.json"])
    assert "truncated: it should have" in capsys.readouterr().err


def test_a_server_that_refuses_is_quoted(
    get: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 403
    assert get() == (3, [])
    assert "403 Forbidden; get the file from elsewhere" in capsys.readouterr().err


def test_a_file_of_this_machine_is_copied_and_left_alone(
    get: Any, server: Server, tmp_path: Path
) -> None:
    original = tmp_path / "original.hdf5"
    assert get(source=str(original)) == (0, WHOLE)
    assert original.read_bytes() == (tmp_path / "sets" / FILE).read_bytes() == server.body
    assert server.asked == []


def test_what_is_there_is_checked_instead_of_fetched(
    get: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get()
    asked = len(server.asked)
    assert get() == (0, WHOLE) and len(server.asked) == asked
    assert "already there, as it was fetched" in capsys.readouterr().out
    file = tmp_path / "sets" / FILE
    with h5py.File(file, "a") as content:
        content.attrs["note"] = 1
    assert get()[0] == 3
    assert "has changed since it was fetched" in capsys.readouterr().err
    file.write_bytes(b"<html></html>")
    assert get()[0] == 3 and file.exists()
    assert "an HTML page" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("y", 0)])
def test_a_person_at_a_terminal_is_asked_once(
    get: Any, server: Server, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    questions = []
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or answer)
    server.stops = [400]
    assert get()[0] == code and len(questions) == 1
    assert get("--yes")[0] == 0 and len(questions) == 1


class Terminal:
    """A standard input with a person behind it."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True


def test_names_and_sources_that_are_wrong_are_answered(
    get: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "fetch", "hopper-medum-v2"]) == 2
    assert "did you mean 'hopper-medium-v2'?" in capsys.readouterr().err
    assert get(source=str(tmp_path / "none"))[0] == 2
    assert "none: no such file" in capsys.readouterr().err
    assert get(source="file:///etc/passwd")[0] == 2
    assert "only http and https" in capsys.readouterr().err


def test_a_disk_without_room_is_said_before_anything_comes(
    get: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda folder: usage)
    assert get() == (3, [])
    assert "choose another --to DIR" in capsys.readouterr().err
