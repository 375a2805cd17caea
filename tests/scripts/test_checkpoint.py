"""Checkpoints: what goes in comes out, and nothing that was altered or cut comes out at all."""

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rheo.scripts.store import checkpoint
from rheo.scripts.store.tree import DTYPES, Broken, pack, unpack
from rheo.scripts.store.where import step_of


def same(a: Any, b: Any) -> bool:
    """Equality with types, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state() -> dict[str, Any]:
    """A tree like a training run's: modules, an optimiser that stepped, generators, counters."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(3)
    return {
        "algo": {"net": dict(net.state_dict()), "opt": optimizer.state_dict(), "updates": 1},
        "noise": generator.get_state(),
        "source": {
            "pcg": np.random.default_rng(1).bit_generator.state,
            "mt": np.random.RandomState(1).get_state(legacy=False),
            "rows": torch.randn(50, 3)[:40],
            "turned": torch.randn(3, 4).T,
            "elapsed": np.array([3, 4], dtype=np.int32),
            "empty": [np.array([]), np.empty((0, 7)), torch.empty(0)],
        },
        "odd": (None, [True, -0.0, float("nan"), float("-inf"), 2**200, "ü\n"], {}, ()),
        "keys": {3: {"$x": 1}, "3": 4, (1, 2): 5},
    }


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(width=64)
    | st.text(max_size=5)
    | st.builds(lambda n: torch.arange(n), st.integers(0, 3))
    | st.builds(lambda n: np.full((n, 2), 1.5, np.float32), st.integers(0, 3))
    | st.builds(np.float32, st.floats(width=32))
)
keys = st.text(max_size=4) | st.integers(0, 9) | st.sampled_from(["$tensor", "$dict", "a.b"])
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_any_tree_survives_packing(tree: Any) -> None:
    packed = pack({"part": tree})
    text = json.loads(json.dumps(packed.state, allow_nan=False))
    assert same(unpack(packed._replace(state=text)), {"part": tree})


def test_a_training_state_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    tree = state()
    path = checkpoint.write(tmp_path, 12, tree, keep=2)
    back = checkpoint.read(path)
    assert path.name == "000000000012" and same(back, tree)
    draws = []
    for source in (tree["source"], back["source"]):
        generator = np.random.default_rng()
        generator.bit_generator.state = source["pcg"]
        draws.append(generator.integers(2**60))
    assert draws[0] == draws[1]
    assert torch.Generator().set_state(back["noise"]).initial_seed() == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_written_as_safetensors_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"x": torch.tensor([0, 1, 1, 0]).to(dtype), "empty": torch.zeros(0, 3).to(dtype)}
    tensors["single"] = torch.ones(1, dtype=torch.uint8)
    tensors["scalar"] = torch.tensor(1).to(dtype)
    checkpoint.write_tensors(tmp_path / "x.safetensors", tensors)
    back = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert set(back) == set(tensors) and all(same(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("leaf", [object(), {1, 2}, b"x", np.array(["a"]), 1j, lambda: 0])
def test_what_cannot_be_saved_is_refused_with_its_place(leaf: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"algo\.opt\.1"):
        checkpoint.write(tmp_path, 1, {"algo": {"opt": [0, leaf]}}, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_saved_again_becomes_the_newest(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        checkpoint.write(tmp_path, 7, {"x": value}, keep=2)
    newest, older = checkpoint.found(tmp_path)
    assert (checkpoint.read(newest)["x"], checkpoint.read(older)["x"]) == (3, 2)
    assert step_of(newest) == 7


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 5, 10, 200):
        checkpoint.write(tmp_path, step, {"x": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000010", "000000000200"]


def small(folder: Path) -> Path:
    tree = {"algo": {"w": torch.arange(64.0), "n": [1, 2]}, "source": {"rows": torch.ones(9, 3)}}
    return checkpoint.write(folder, 1, tree, keep=2)


def test_two_hundred_flipped_bits_are_refused_two_hundred_times(tmp_path: Path) -> None:
    files = sorted(small(tmp_path).iterdir())
    chance = random.Random(0)
    hit: set[str] = set()
    for _ in range(200):
        file = chance.choice(files)
        good = file.read_bytes()
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        file.write_bytes(bad)
        with pytest.raises(Broken, match=file.name):
            checkpoint.read(file.parent)
        file.write_bytes(good)
        hit.add(file.name)
    assert hit == {"algo.safetensors", "source.safetensors", "state.json", "manifest.json"}
    checkpoint.read(files[0].parent)


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    file = checkpoint.write(tmp_path, 1, {"x": 1}, keep=2) / "manifest.json"
    good = file.read_bytes()
    for place in range(0, len(good) * 8, 5):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        file.write_bytes(bad)
        with pytest.raises(Broken):
            checkpoint.read(file.parent)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["algo.safetensors", "state.json"])
def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path, name: str, share: float) -> None:
    file = small(tmp_path) / name
    size = file.stat().st_size
    os.truncate(file, int(size * share))
    message = f"{name}: truncated, have {int(size * share)} of {size} bytes"
    with pytest.raises(Broken, match=message):
        checkpoint.read(file.parent)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = small(tmp_path) / "source.safetensors"
    file.unlink()
    with pytest.raises(Broken, match="source.safetensors: unreadable"):
        checkpoint.read(file.parent)


def forge(path: Path, **changes: Any) -> None:
    """Rewrites a manifest as an attacker would: with a digest that fits."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_bytes())
    del manifest["sha256"]
    manifest.update(changes)
    file.write_bytes(checkpoint.sealed(manifest))


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    path = small(tmp_path)
    forge(path, format=99)
    with pytest.raises(Broken, match="format 99 is newer"):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.json", "x.pt", ""])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    path = small(tmp_path)
    entry = {"size": 0, "sha256": ""}
    forge(path, files={"state.json": entry, name: entry})
    with pytest.raises(Broken):
        checkpoint.read(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (BOMB,)


BOMB = ""


def test_a_pickle_under_a_false_name_is_refused_and_never_run(tmp_path: Path) -> None:
    global BOMB
    BOMB = str(tmp_path / "exploded")
    path = small(tmp_path / "ckpt") if (tmp_path / "ckpt").mkdir() is None else tmp_path
    torch.save(Bomb(), path / "algo.safetensors")
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    data = (path / "algo.safetensors").read_bytes()
    files["algo.safetensors"] = checkpoint.write_bytes(path / "algo.safetensors", [data])
    forge(path, files=files)
    with pytest.raises(Broken, match="not a checkpoint of this program"):
        checkpoint.read(path)
    assert not Path(BOMB).exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"algo": {"$tensor": "gone"}}', '{"algo": {"$odd": 1}}', "[]", "1"]
)
def test_a_forged_structure_is_refused(tmp_path: Path, text: str) -> None:
    path = small(tmp_path)
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    files["state.json"] = checkpoint.write_bytes(path / "state.json", [text.encode()])
    forge(path, files=files)
    with pytest.raises(Broken):
        checkpoint.read(path)


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    small(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            checkpoint.write(tmp_path, 2, {"big": torch.zeros(10_000)}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.rglob("*")) == before


KILL = """
import os, signal, sys
from pathlib import Path
import torch
from rheo.envs.rows import Rows
from rheo.scripts.store import checkpoint, segments

segments.LARGEST = 160  # 10 rows
folder = Path(sys.argv[1])
calls = ("open", "fsync", "rename", "unlink", "rmdir", "mkdir", "link", "stat")
table = torch.arange(400.0).view(100, 4)
saved = {}

def tree(step):
    rows = Rows([(2 * step, table[2 * step : 20 * step])], saved)
    return {"algo": {"w": torch.full((500,), float(step))}, "n": step, "replay": {"rows": rows}}

def save_and_die(at):
    count = 0
    def wrap(real):
        def hook(*args, **kwargs):
            nonlocal count
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return real(*args, **kwargs)
        return hook
    for name in calls:
        setattr(os, name, wrap(getattr(os, name)))
    checkpoint.write(folder, 3, tree(3), keep=2)
    os._exit(0)

finished = killed = 0
while not finished:
    for old in folder.glob("*"):
        __import__("shutil").rmtree(old)
    saved.clear()
    for step in (1, 2):
        checkpoint.write(folder, step, tree(step), keep=2)
    child = os.fork()
    if child == 0:
        save_and_die(killed)
    finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    killed += not finished
    newest = checkpoint.read(checkpoint.found(folder)[0])
    assert newest["n"] in (2, 3) and bool((newest["algo"]["w"] == newest["n"]).all())
    assert newest["replay"]["rows"] == tree(newest["n"])["replay"]["rows"]
    assert all(checkpoint.read(path) for path in checkpoint.found(folder))
    checkpoint.clean(folder)
    assert {p.name for p in folder.iterdir()} == {p.name for p in checkpoint.found(folder)}
    assert len(checkpoint.found(folder)) >= 2
print(killed)
"""


def test_a_kill_at_any_system_call_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


@pytest.mark.parametrize("entry", [{}, {"size": 1}, {"sha256": "0"}, None, []])
def test_a_manifest_that_lacks_what_is_compared_is_refused(tmp_path: Path, entry: Any) -> None:
    path = checkpoint.write(tmp_path, 1, {"n": 1, "a": {"x": torch.ones(2)}}, keep=2)
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    if isinstance(entry, dict) and "size" in entry:
        entry = {"size": (path / "a.safetensors").stat().st_size}
    manifest["files"]["a.safetensors"] = entry
    (path / "manifest.json").write_bytes(checkpoint.sealed(manifest))
    with pytest.raises(Broken, match="its manifest entry lacks"):
        checkpoint.read(path)
