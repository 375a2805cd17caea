"""HDF5 on a full disk and under signals: an exception, whole or nothing, and no crash later."""

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from rheo.envs.data.read import load
from rheo.envs.data.recording import Column, Reading, Recording
from rheo.envs.data.sheltered import Sheltered, book
from rheo.envs.data.writing import write, write_hdf5
from rheo.files import Unwritten


def recording(steps: int) -> Recording:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(steps + 2, 5)).astype(np.float32)
    action = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    ends = np.array([steps // 2, steps])
    reward, terminated = np.ones(steps, np.float32), np.zeros(steps, bool)
    return Recording(obs, action, reward, terminated, ends, np.array([steps, steps + 1]), {})


@pytest.fixture
def limited() -> Iterator[None]:
    """No file can grow beyond 20,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("layout", ["d4rl", "robomimic"])
def test_what_is_written_is_read_back(tmp_path: Path, layout: str) -> None:
    made = recording(9000)
    write(made, tmp_path / "x.hdf5", layout=layout)
    back = load(str(tmp_path / "x.hdf5"), Reading())
    assert np.array_equal(back.obs, made.obs) and np.array_equal(back.action, made.action)
    assert os.listdir(tmp_path) == ["x.hdf5"]


@pytest.mark.parametrize("layout", ["d4rl", "robomimic", "npz"])
def test_a_full_disk_is_a_line_and_leaves_what_was_there(
    tmp_path: Path, limited: None, layout: str
) -> None:
    file = tmp_path / ("x.npz" if layout == "npz" else "x.hdf5")
    file.write_text("what was there")
    with pytest.raises(Unwritten, match=r"x\.\w+: not written: File too large") as refused:
        write(recording(9000), file, layout=layout)
    assert refused.value.code == 3 and "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == [file.name] and file.read_text() == "what was there"


def test_pieces_stop_where_the_disk_does(tmp_path: Path, limited: None) -> None:
    taken = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield np.random.default_rng(taken).normal(size=(1000, 100))

    with pytest.raises(OSError, match="File too large"):
        column = Column((50_000, 100), np.dtype(np.float64), blocks)
        write_hdf5(tmp_path / "x", {"observations": column}, {})
    assert taken < 25  # the library holds some back


@pytest.mark.parametrize("limit", range(0, 12_000, 700))
def test_wherever_the_disk_ends_the_library_sees_the_file_that_it_wrote(
    tmp_path: Path, limited: None, limit: int
) -> None:
    """Also what it closes afterwards: read back through the shelter, all is there."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    shelter, values = Sheltered(tmp_path / "x"), np.arange(2000.0)
    with h5py.File(shelter, "w") as file:
        for k in range(3):
            file[f"group{k}/values"] = values + k
            file[f"group{k}"].attrs["text"] = "x" * 500
    assert shelter.refused is not None
    shelter.seek(0)
    with h5py.File(io.BytesIO(shelter.read()), "r") as file:
        for k in range(3):
            assert np.array_equal(np.asarray(file[f"group{k}/values"]), values + k)
    shelter.close()


STOPPED = """
import os, signal, sys, threading, time
import numpy as np
from pathlib import Path
from rheo.envs.data import sheltered
from rheo.envs.data.writing import write_hdf5
from rheo.envs.data.recording import Column

inside = 0
real = sheltered.Sheltered.write
def write(self, data):
    global inside
    inside += 1
    if inside == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    return real(self, data)
sheltered.Sheltered.write = write
blocks = lambda: (np.random.default_rng(i).normal(size=(1000, 1)) for i in range(20))
column = Column((20_000, 1), np.dtype(float), blocks)
try:
    write_hdf5(Path(sys.argv[1]), {"observations": column}, {})
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("call", [1, 3, 8])
def test_ctrl_c_inside_the_library_is_heard_when_it_has_returned(tmp_path: Path, call: int) -> None:
    words = [sys.executable, "-c", STOPPED, str(tmp_path / "x"), str(call)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_signals_between_pieces_are_answered_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), book(tmp_path / "x") as pages:
        with pages.piece() as file:
            file["a"] = 1
        signal.raise_signal(signal.SIGINT)
        pytest.fail("nobody heard it")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
