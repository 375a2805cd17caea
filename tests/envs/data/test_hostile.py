"""Files of others read no other file, run no code and do not keep the reader busy for ever."""

import json
import os
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from rheo.envs.data import bulk, vetting, walker
from rheo.envs.data.read import read
from rheo.envs.data.told import some
from rheo.errors import EnvError

STEPS = 20
OBS = np.arange(3.0 * STEPS).reshape(STEPS, 3)
ACTION = np.linspace(-0.9, 0.9, 2 * STEPS).reshape(STEPS, 2)


def steps(file: h5py.File, obs: Any = OBS) -> None:
    """Good steps in D4RL's layout; None: without observations."""
    file["actions"], file["timeouts"] = ACTION, np.arange(STEPS) % 5 == 4
    if obs is not None:
        file["observations"] = obs


def elsewhere(file: h5py.File, folder: Path) -> None:
    secret = folder / "secret.bin"
    secret.write_bytes(b"SECRET PASSWORD " * 30)
    file.create_dataset("observations", OBS.shape, "f8", external=[(str(secret), 0, OBS.nbytes)])


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(OBS.shape, "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "observations", OBS.shape)
    file.create_virtual_dataset("observations", layout)


def linked(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.hdf5", "w") as other:
        steps(other)
    file["observations"] = h5py.ExternalLink(str(folder / "other.hdf5"), "observations")


def by_a_plugin(file: h5py.File, _: Path) -> None:
    how = h5p.create(h5p.DATASET_CREATE)
    how.set_chunk(OBS.shape)
    how.set_filter(32015, 1, (3,))
    h5d.create(file.id, b"observations", h5t.NATIVE_DOUBLE, h5s.create_simple(OBS.shape), how)


def in_huge_pieces(file: h5py.File, _: Path) -> None:
    how: Any = {"maxshape": (None, 3), "chunks": (10**8, 3), "compression": "gzip"}
    file.create_dataset("observations", OBS.shape, "f8", **how)


def circle(file: h5py.File, _: Path) -> None:
    file["observations"] = OBS
    file["infos/again"] = file["/"]


def ladder(file: h5py.File, _: Path) -> None:
    file["observations"] = OBS
    group = file.create_group("infos")
    for rung in range(30):
        below = file.create_group(f"rungs/{rung}")
        group["left"] = group["right"] = below
        group = below


def well(file: h5py.File, _: Path) -> None:
    file["observations"] = OBS
    file.create_group("/".join("g" * 1000))


def soft_circle(file: h5py.File, _: Path) -> None:
    file["observations"] = OBS
    file["here"], file["there"] = h5py.SoftLink("/there"), h5py.SoftLink("/here")


HOSTILE: list[tuple[Callable[[h5py.File, Path], None], str]] = [
    (elsewhere, r"observations: its numbers lie in another file \('.*secret.bin'\)"),
    (virtual, "observations: a view of other files"),
    (linked, "observations: a link to another file"),
    (by_a_plugin, "observations: packed by .*32015.*, never called; .*h5repack"),
    (in_huge_pieces, "observations: stored in pieces of 2.40 GB"),
    (circle, "infos/again: a group that holds itself"),
    (ladder, "links lead to .* objects"),
    (well, "nested deeper than 32"),
    (soft_circle, "links that go round in circles"),
]


@pytest.mark.parametrize(("make", "message"), HOSTILE)
def test_what_leads_out_of_a_file_or_round_in_it_is_refused_by_name(
    tmp_path: Path, make: Callable[[h5py.File, Path], None], message: str
) -> None:
    with h5py.File(tmp_path / "evil.hdf5", "w") as file:
        steps(file, None)
        make(file, tmp_path)
    with pytest.raises(EnvError, match=f"evil.hdf5: .*{message}"):
        read(str(tmp_path / "evil.hdf5"))


def test_links_inside_of_a_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file, None)
        file["kept/table"] = OBS
        file["observations"], file["nowhere"] = h5py.SoftLink("/kept/table"), h5py.SoftLink("/x")
    np.testing.assert_allclose(read(str(tmp_path / "a.hdf5")).obs, OBS)


def endless(path: Path) -> Path:
    """A file whose text the library reads for ever: a heap's free space of no size.

    It is met by whoever reads any attribute of text; the heap is walked from piece to piece.
    """
    with h5py.File(path, "w") as file:
        steps(file)
        file.attrs["env_id"] = "Mine-v0"
    data = bytearray(path.read_bytes())
    heap = data.find(b"GCOL")
    place = heap + 16
    while int.from_bytes(data[place : place + 2], "little"):
        size = int.from_bytes(data[place + 8 : place + 16], "little")
        place += 16 + -(-size // 8) * 8
    data[place + 8 : place + 16] = bytes(8)
    path.write_bytes(data)
    return path


def test_a_file_that_keeps_the_library_busy_for_ever_is_answered(tmp_path: Path) -> None:
    path = endless(tmp_path / "endless.hdf5")
    before = time.process_time()
    for _ in range(2):  # the second time from memory
        with pytest.raises(EnvError, match="endless.hdf5: keeps the HDF5 library busy for ever"):
            read(str(path))
    assert time.process_time() - before < 1
    with h5py.File(tmp_path / "good.hdf5", "w") as file:
        steps(file)
    assert len(read(str(tmp_path / "good.hdf5")).action) == STEPS  # by a new process


def test_the_verbs_answer_an_endless_file_in_one_line(tmp_path: Path) -> None:
    path = str(endless(tmp_path / "endless.hdf5"))
    for verb in (["data", "info", path], ["train", "algo=bc", f"data={path}"]):
        command = [sys.executable, "-m", "rheo.scripts.cli", *verb]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        said = done.stdout + done.stderr
        assert done.returncode == 2, said
        assert "endless.hdf5" in said and "busy for ever" in said and "Traceback" not in said


def test_what_kills_its_looker_is_named_and_an_idle_one_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file)
    guard = vetting.Guard()
    answer = guard.ask(str(tmp_path / "a.hdf5"), "HDF5", 1.0)
    assert isinstance(answer, dict) and answer["bytes"] == OBS.nbytes + ACTION.nbytes + STEPS
    process = guard.process
    assert process is not None and process.stdin is not None
    process.stdin.close()  # it ends by itself
    process.wait()
    assert isinstance(guard.ask(str(tmp_path / "a.hdf5"), "HDF5", 1.0), dict)
    guard.end()

    class Dying(vetting.Guard):
        def ask(self, path: str, kind: vetting.Kind, seconds: float) -> Any:
            os.kill(self.start().pid, 11)
            return super().ask(path, kind, seconds)

    monkeypatch.setattr(vetting, "guard", Dying())
    monkeypatch.setattr(vetting, "vetted", {})
    with pytest.raises(EnvError, match=r"a.hdf5: makes the HDF5 library crash \(SIGSEGV\)"):
        read(str(tmp_path / "a.hdf5"))
    vetting.guard.end()


def test_a_piece_that_unpacks_to_more_than_it_stands_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "CHUNK", 10**5)  # pieces that could become larger are looked into
    with h5py.File(tmp_path / "bomb.hdf5", "w") as file:
        steps(file, None)
        held = file.create_dataset("observations", OBS.shape, "f8", chunks=OBS.shape, compression=1)
        held.id.write_direct_chunk((0, 0), zlib.compress(bytes(10**6)))
    what = "a piece of 480 bytes unpacks to more: damaged"
    assert walker.walked(str(tmp_path / "bomb.hdf5")) == {"what": what, "key": "observations"}


def test_text_that_many_places_share_is_weighed_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "CHUNK", 1000)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["mask/train"] = np.array(["x" * 60] * 20, dtype=object)
    found = walker.walked(str(tmp_path / "a.hdf5"))
    assert found == {"what": found["what"], "key": "mask/train"} and "a bomb" in found["what"]


def test_a_file_says_of_itself_what_is_in_the_list_and_nothing_else(tmp_path: Path) -> None:
    lies = {"path": "/etc/passwd", "format": "Minari", "jumps": [1], "broken": "x", "demos": 3}
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file)
        file.attrs.update(lies | {"env_id": "Mine-v0", "dt": [0.02]})
    about = read(str(tmp_path / "a.hdf5")).about
    assert (about["path"], about["format"]) == (str(tmp_path / "a.hdf5"), "d4rl")
    assert (about["env_id"], about["dt"]) == ("Mine-v0", 0.02)
    assert not {"jumps", "broken", "demos"} & set(about)
    said = "not read: attribute broken, attribute demos, attribute jumps, attribute path"
    assert about["remarks"] == [("", said)]
    assert some(["a" * 99] * 99) == ", ".join(["a" * 60 + "..."] * 20) + " and 79 more"
    np.savez(tmp_path / "a.npz", observations=OBS, actions=ACTION, episode_ends=[STEPS], **lies)
    assert read(str(tmp_path / "a.npz")).about["path"] == str(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("env_id", [1, 2], "env_id: is .*, expected a word"),
        ("dt", "fast", "dt: is 'fast', expected a positive number"),
        ("dt", float("nan"), "dt: is nan, expected a positive number"),
        ("action_low", "low", "action_low: is 'low', expected a list of numbers"),
        ("action_high", h5py.Empty("f8"), "action_high: is .*, expected a list of numbers"),
        ("obs_keys", '["a", "a"]', "obs_keys: is .*, expected a list of names"),
        ("obs_widths", "[1e300]", "obs_widths: is .*, expected a list of whole numbers"),
        ("obs_images", "[1, 2]", "obs_images: is .*, expected heights and widths by name"),
        ("env_options", "3", "env_options: is .*, expected a table"),
    ],
)
def test_what_a_file_says_has_a_type(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file)
        file.attrs[key] = value
    with pytest.raises(EnvError, match=message):
        read(str(tmp_path / "a.hdf5"))


def test_what_a_reader_raises_is_damage_and_its_place_is_told_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rheo.envs.data import formats
    from rheo.scripts.cli import main

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("by\nnothing")

    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file)
    monkeypatch.setattr(formats, "from_hdf5", broken)
    path = str(tmp_path / "a.hdf5")
    with pytest.raises(EnvError, match=r"a.hdf5: damaged: ZeroDivisionError \(by nothing\);"):
        read(path)
    assert main(["data", "info", path]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("RHEO_TRACEBACK", "1")
    assert main(["data", "info", path]) == 2
    assert "in broken" in capsys.readouterr().err


class Code:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "change",
    [
        {"compressor": {"id": "pickle"}, "filters": None},
        {"compressor": None, "filters": [{"id": "delta", "dtype": "<f4"}, {"id": "pickle"}]},
    ],
)
def test_an_array_that_is_unpacked_by_code_is_never_opened(
    tmp_path: Path, foreign: Any, change: dict[str, Any]
) -> None:
    path = foreign.pusht(tmp_path / "r.zarr", [5, 8], action=foreign.actions(0, 13))
    described = path / "data" / "state" / ".zarray"
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    for piece in described.parent.glob("0*"):
        piece.write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(EnvError, match="data/state: packed by pickle, which is never called"):
        read(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_stores_links_stay_inside(tmp_path: Path, foreign: Any) -> None:
    path = foreign.pusht(tmp_path / "r.zarr", [5, 8], action=foreign.actions(0, 13))
    piece = path / "data" / "state" / "0.0"
    moved = piece.rename(path / "kept")
    piece.symlink_to(moved)
    assert len(read(str(path)).action) == 13
    piece.unlink()
    piece.symlink_to(moved.rename(tmp_path / "secret"))
    with pytest.raises(EnvError, match="data/state/0.0 is a link out of the store"):
        read(str(path))


def test_minari_makes_no_environment_that_metadata_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    folder = tmp_path / "evil" / "own-v0" / "data"
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w"):
        pass
    mark = tmp_path / "ran"
    spec = {"id": "Own-v0", "entry_point": "os:system", "kwargs": {"command": f"touch {mark}"}}
    told = {"env_spec": json.dumps(spec), "data_format": "hdf5", "total_episodes": 1}
    (folder / "metadata.json").write_text(json.dumps(told))
    with pytest.raises(EnvError, match="metadata do not tell its action_space and observation_s"):
        read("minari:evil/own-v0")
    assert not mark.exists()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of a few kilobytes."""
    monkeypatch.setattr(bulk, "FREE", 10**5)


def swelling(folder: Path, kind: str, foreign: Any) -> str:
    """A recording that is hundreds of times as large in memory; its path."""
    rows = 10**5
    still = {"observations": np.zeros((rows, 6)), "actions": np.zeros((rows, 2))}
    still |= {"episode_ends": np.array([rows])}
    if kind == "npz":
        np.savez_compressed(folder / "a.npz", **still)  # type: ignore[arg-type]
        return str(folder / "a.npz")
    if kind in ("packed", "sparse"):
        with h5py.File(folder / "a.hdf5", "w") as file:
            for key, value in still.items():
                if kind == "packed":
                    file.create_dataset(key, data=value, compression="gzip")
                else:
                    file.create_dataset(
                        key, value.shape, "f4" if value.ndim > 1 else "i8", chunks=True
                    )
            ends: Any = file["episode_ends"]
            ends[0] = rows
        return str(folder / "a.hdf5")
    if kind == "zarr":
        path = foreign.pusht(folder / "r.zarr", [5, 8], action=foreign.actions(0, 13))
        for key in ("state", "action"):
            described = path / "data" / key / ".zarray"
            told = json.loads(described.read_text())
            described.write_text(json.dumps(told | {"shape": [rows, told["shape"][1]]}))
        return str(path)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {key: pa.array(np.zeros(rows)) for key in ("action", "observation.state")}
    columns |= {"episode_index": np.zeros(rows, int), "frame_index": np.arange(rows)}
    pq.write_table(pa.table(columns), folder / "a.parquet", compression="zstd")
    return str(folder / "a.parquet")


@pytest.mark.parametrize("kind", ["npz", "packed", "sparse", "zarr"])
def test_what_would_swell_is_refused_until_a_user_says_so(
    tmp_path: Path, foreign: Any, small: None, kind: str
) -> None:
    path = swelling(tmp_path, kind, foreign)
    with pytest.raises(EnvError, match="MB on disk would become .* in memory; .*data.big=true"):
        read(path)
    if kind != "zarr":
        assert len(read(path, big=True).action) == 10**5


def test_a_parquet_file_that_would_swell_is_refused(
    tmp_path: Path, foreign: Any, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "TIMES", 5)  # the counters of frames pack badly
    path = swelling(tmp_path, "parquet", foreign)
    with pytest.raises(EnvError, match="would become 3.2 MB in memory"):
        read(path)
    assert len(read(path, big=True).action) == 10**5


def test_lists_and_tables_that_are_longer_than_the_steps_are_not_allocated(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        steps(file)
        file.create_dataset("episode_ends", (10**12,), "i8", chunks=True)
    with pytest.raises(EnvError, match="episode_ends: has 1,000,000,000,000 entries, and there ar"):
        read(str(tmp_path / "a.hdf5"))
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        for demo in range(2):
            file[f"data/demo_{demo}/actions"] = ACTION
            rows = (STEPS, 10**12)[demo]
            file.create_dataset(f"data/demo_{demo}/obs/a", (rows, 3), "f4", chunks=True)
    with pytest.raises(EnvError, match="obs/a, episode 1: demo_1 has 1000000000000 rows and 20 a"):
        read(str(tmp_path / "b.hdf5"))
    assert len(read(str(tmp_path / "b.hdf5"), on_bad="drop").action) == STEPS


def test_an_array_without_a_space_and_rows_without_numbers_are_named(
    tmp_path: Path, foreign: Any
) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("kept/none", data=h5py.Empty("f4"))
    with pytest.raises(EnvError, match=r"layout that is not read: it holds kept/ \(none \[\]\)"):
        read(str(tmp_path / "a.hdf5"))
    pytest.importorskip("pyarrow")
    path = foreign.lerobot(
        tmp_path / "set", [4, 3], extra={"observation.x": lambda _, n: [np.zeros(0)] * n}
    )
    with pytest.raises(EnvError, match="observation.x: its rows hold no numbers"):
        read(str(path))
