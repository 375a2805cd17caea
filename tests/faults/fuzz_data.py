"""Damaged and odd recordings by the thousand: no reader may raise, hang or swell.

`fuzz(count, seed)` makes inputs of every layout that is read, half of them a good file with bytes
changed, half well-formed files with odd content, and returns what went wrong; nothing should.
"""

import ctypes
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from rheo.envs.data import formats
from rheo.envs.data.read import load, mended, played_in
from rheo.envs.data.recording import Reading, Refused
from rheo.errors import RheoError
from rheo.scripts.data import described

SECONDS, HANGING, SWOLLEN = 1.0, 10.0, 300 << 20  # of CPU for an input; a hang; bytes of memory
LENGTHS = [4, 6, 3]
OURS = Path(__file__).parents[2]
STEPS = sum(LENGTHS)
UNWRITABLE = (TypeError, ValueError, OSError, RuntimeError, KeyError, AttributeError)
Files = dict[str, bytes]


class Sample(NamedTuple):
    """A good recording: its files, what of them is opened, and a maker of odd ones."""

    files: Files
    opens: str
    odd: Callable[[random.Random, Files], Files]


# ---- odd values ----------------------------------------------------------------------------------


def odd_text(draw: random.Random) -> str:
    """Text that parsers trip over."""
    texts = [
        "",
        "\x1b]0;title\x07",
        "[" * 5000,
        '{"a": ' * 3000,
        "9" * 5000,
        "\u202e",
        "a\0b",
        "{}",
    ]
    texts += [
        "[1, 2]",
        '["a", "a"]',
        '{"env_name": [], "env_kwargs": 3}',
        "null",
        "NaN",
        "[[1],[2]]",
    ]
    return draw.choice(
        [*texts, '{"control_freq": "x"}', "../../etc/passwd", "Hopper-v4", "é" * 300]
    )


def odd_json(draw: random.Random, depth: int = 0) -> Any:
    """A value that JSON can hold."""
    plain: list[Any] = [None, True, 0, -1, 1e308, 10**30, float("nan"), float("inf"), 0.1, "", []]
    plain += [
        {},
        odd_text(draw),
        [1, "a"],
        {"a": {"b": 1}},
        [[]],
        2**63,
        "3",
        [0],
        [-1, -1],
        1e-320,
    ]
    if depth < 2 and draw.random() < 0.3:
        return {odd_text(draw): odd_json(draw, depth + 1) for _ in range(draw.randrange(3))}
    return draw.choice(plain)


def odd_array(draw: random.Random) -> Any:
    """An array that is not what a reader hopes for."""
    rows = draw.choice([0, 1, 2, STEPS - 1, STEPS, STEPS + 1])
    shape = draw.choice([(), (rows,), (rows, 1), (rows, 3), (rows, 0), (rows, 2, 2), (1, 1, 1, 1)])
    kinds = ["f4", "f8", "f2", "i1", "u8", "i8", "?", "c8", "S5", "O", ">f4", "M8[s]", "V4", "U3"]
    kind = draw.choice(kinds)
    fill = draw.choice([0, 1, -1, 255, np.nan, np.inf, 1e300, 2**62])
    with np.errstate(all="ignore"):
        if kind == "O":
            return np.full(shape, odd_text(draw).replace("\0", "")[:50], object)
        if kind in ("S5", "U3", "V4", "M8[s]"):
            return np.zeros(shape, kind)
        return np.full(shape, fill).astype(kind)


def changed(draw: random.Random, tree: Any) -> Any:
    """A JSON value with something in it replaced, removed or added."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(sorted(tree))
        rest = {k: v for k, v in tree.items() if k != key}
        kind = draw.random()
        if kind < 0.15:
            return rest
        if kind < 0.25:
            return {**tree, odd_text(draw): odd_json(draw)}
        return {**tree, key: changed(draw, tree[key]) if kind < 0.6 else odd_json(draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.6:
        place = draw.randrange(len(tree))
        return [*tree[:place], changed(draw, tree[place]), *tree[place + 1 :]]
    return odd_json(draw)


# ---- layouts -------------------------------------------------------------------------------------


def put(group: Any, name: str, value: Any, draw: random.Random) -> None:
    """Writes an odd value, if HDF5 can hold it."""
    with suppress(*UNWRITABLE):
        kind = draw.random()
        if kind < 0.06:
            group.create_dataset(name, data=h5py.Empty(draw.choice(["f4", "S3"])))
        elif kind < 0.1:
            rows = draw.choice([10**5, 10**9, 10**12])  # the first one can be read, in a moment
            shape = draw.choice([(rows,), (rows, 3), (STEPS, rows)])
            group.create_dataset(name, shape, draw.choice(["f4", "S8", "?"]), chunks=True)
        elif kind < 0.13:
            group.create_group(name)
        elif kind < 0.16:
            group[name] = h5py.SoftLink(draw.choice(["/", "/nowhere", f"/{name}", "/data"]))
        elif kind < 0.18:
            values = [np.arange(draw.randrange(4), dtype="f4") for _ in range(3)]
            data = group.create_dataset(name, (3,), h5py.vlen_dtype(np.float32))
            data[:] = np.array([*values, None], object)[:3]
        else:
            group[name] = value


TOLD = [
    "env_id",
    "dt",
    "action_low",
    "action_high",
    "obs_keys",
    "obs_widths",
    "obs_images",
    "demos",
]
TOLD += ["path", "format", "jumps", "left_out", "env_args", "env_options", "action_scale", "broken"]
TOLD += ["dones_are", "total", "fps", "sim", "unit", "remarks", "limit", "episodes", "attributes"]
NAMES = [
    "observations",
    "actions",
    "rewards",
    "terminals",
    "timeouts",
    "next_observations",
    "masks",
]
NAMES += ["episode_ends", "episode_lengths", "dones", "successor_known", "mask/train", "mask/valid"]
NAMES += [
    "episode_starts",
    "action_low",
    "action_high",
    "infos/x",
    "obs",
    "action",
    "data/demo_0/obs",
]
NAMES += ["demo_" + "9" * 5000, "data/demo_" + "7" * 3000 + "/actions", "traj_" + "1" * 4400]
NAMES += ["data/demo_1/actions", "data/demo_1/obs/a", "traj_1/obs", "traj_0/actions", "traj_2"]
NAMES += ["observations/qpos", "observations/images/top", "data/demo_0/next_obs/a", "compress_len"]


def odd_hdf5(draw: random.Random, files: Files) -> Files:
    """An HDF5 file with some arrays and attributes replaced."""
    (name, data), *_ = ((k, v) for k, v in files.items() if v.startswith(b"\x89HDF"))
    held = io.BytesIO(data)
    with h5py.File(held, "r+") as file:
        there: list[str] = []
        file.visit(there.append)
        for _ in range(draw.randrange(1, 4)):
            target = draw.choice(there if draw.random() < 0.7 and there else NAMES)
            if draw.random() < 0.4:
                place: Any = file["data"] if "data" in file and draw.random() < 0.6 else file
                value: Any = draw.choice([odd_text(draw).replace("\0", ""), odd_array(draw)])
                value = draw.choice([value, h5py.Empty("f4"), 1.5, json.dumps(odd_json(draw))])
                with suppress(*UNWRITABLE):
                    place.attrs[draw.choice(TOLD)] = value
                continue
            with suppress(*UNWRITABLE):
                del file[target]
            if draw.random() < 0.9:
                put(file, target, odd_array(draw), draw)
    return files | {name: held.getvalue()} | odd_beside(draw, files)


def odd_beside(draw: random.Random, files: Files) -> Files:
    """The JSON files beside, some of them changed."""
    found = {}
    for name, data in files.items():
        if name.endswith((".json", ".zarray")) and draw.random() < 0.4:
            found[name] = json.dumps(changed(draw, json.loads(data))).encode()
    return found


def odd_tree(draw: random.Random, files: Files) -> Files:
    """A folder of which descriptions are changed, or a file is gone."""
    found = files | odd_beside(draw, files)
    if draw.random() < 0.1:
        found.pop(draw.choice(sorted(found)))
    return found


def odd_npz(draw: random.Random, files: Files) -> Files:
    """An npz file with some arrays replaced, and attributes."""
    arrays = dict(np.load(io.BytesIO(files["a.npz"])))
    for _ in range(draw.randrange(1, 4)):
        key = draw.choice([*arrays, *TOLD, *(n for n in NAMES if "/" not in n and len(n) < 99)])
        value = odd_array(draw) if draw.random() < 0.7 else np.array(odd_text(draw))
        arrays[key] = value if value.dtype != object else value.astype("U")
    if draw.random() < 0.4:
        arrays["attributes"] = np.array(json.dumps({draw.choice(TOLD): odd_json(draw)}))
    out = io.BytesIO()
    np.savez_compressed(out, **{k: v for k, v in arrays.items() if draw.random() < 0.95})
    return {"a.npz": out.getvalue()}


def odd_parquet(draw: random.Random, files: Files) -> Files:
    """A LeRobot folder with columns of other types, empty places or other descriptions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = draw.choice([name for name in files if name.endswith(".parquet")])
    table = pq.read_table(io.BytesIO(files[name]))
    rows = table.num_rows
    columns = [pa.nulls(rows), pa.array([None, *range(rows - 1)]), pa.array(["a"] * rows)]
    columns += [pa.array([[1.0] * (i % 3) for i in range(rows)]), pa.array([[[1], [2]]] * rows)]
    columns += [
        pa.array([{"a": 1}] * rows),
        pa.array([float("nan")] * rows),
        pa.array([True] * rows),
    ]
    columns += [pa.array([2**62] * rows), pa.array([-1] * rows), pa.array([[]] * rows)]
    key = draw.choice([*table.column_names, "observation.x", "next.reward", "next.done"])
    if key in table.column_names:
        table = table.drop_columns([key])
    if draw.random() < 0.8:
        table = table.append_column(key, draw.choice(columns))
    out = io.BytesIO()
    pq.write_table(table.slice(0, draw.choice([rows, rows, 1, 0])), out)
    return files | {name: out.getvalue()} | odd_beside(draw, files)


def damaged(draw: random.Random, files: Files) -> Files:
    """Files of which one has bytes changed, cut off, doubled or put in."""
    name = draw.choice(sorted(files))
    data = bytearray(files[name])
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        place, kind = draw.randrange(len(data) or 1), draw.random()
        if kind < 0.5 and data:
            data[place % len(data)] ^= 1 << draw.randrange(8)
        elif kind < 0.7:
            data[place : place + 8] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(8)])
        elif kind < 0.8:
            data = data[:place]
        elif kind < 0.9:
            data[place:place] = draw.randbytes(draw.randrange(1, 40))
        else:
            other = draw.randrange(len(data) or 1)
            data[place : place + 64] = data[other : other + 64]
    return files | {name: bytes(data)}


# ---- samples -------------------------------------------------------------------------------------


def folder(path: Path) -> Files:
    """The files of a folder, by their place in it."""
    files = [one for one in sorted(path.rglob("*")) if one.is_file()]
    return {one.relative_to(path).as_posix(): one.read_bytes() for one in files}


def foreign() -> Any:
    """The writers of other people's formats."""
    path = Path(__file__).parents[1] / "envs" / "data" / "foreign_files.py"
    spec = importlib.util.spec_from_file_location("foreign_files", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain() -> dict[str, Any]:
    """Steps in D4RL's layout."""
    last = np.isin(np.arange(STEPS), np.cumsum(LENGTHS) - 1)
    obs = np.arange(3.0 * STEPS).reshape(STEPS, 3)
    ours = {"observations": obs, "actions": np.linspace(-0.9, 0.9, 2 * STEPS).reshape(STEPS, 2)}
    return ours | {"rewards": np.ones(STEPS), "timeouts": last, "next_observations": obs + 3}


def own(path: Path) -> Iterator[tuple[str, Sample]]:
    """npz, D4RL's layout, our own and robomimic's, as Rheo writes them."""
    from rheo.envs.data.read import read
    from rheo.envs.data.writing import write

    np.savez(path / "a.npz", **plain())
    yield "npz", Sample(folder(path), "a.npz", odd_npz)
    recording = read(str(path / "a.npz"))
    told = {"env_id": "Mine-v0", "obs_keys": ["a", "b"], "obs_widths": [1, 2], "dt": 0.1}
    about = recording.about | told
    for name, layout in (("own", "d4rl"), ("robomimic", "robomimic")):
        write(recording._replace(about=about), path / name / "a.hdf5", layout=layout)
        yield name, Sample(folder(path / name), "a.hdf5", odd_hdf5)
    (path / "d4rl").mkdir()
    with h5py.File(path / "d4rl" / "a.hdf5", "w") as file:
        for key, value in plain().items():
            file.create_dataset(key, data=value, compression="gzip", chunks=True)
        file.attrs["env_id"], file.attrs["dt"] = "Mine-v0", 0.1
        file["metadata/algorithm"] = "SAC"
    yield "d4rl", Sample(folder(path / "d4rl"), "a.hdf5", odd_hdf5)


def others(path: Path) -> Iterator[tuple[str, Sample]]:
    """ALOHA, ManiSkill, and with their packages zarr, LeRobot and Minari."""
    write = foreign()
    write.aloha(path / "aloha", [5])
    yield "aloha", Sample(folder(path / "aloha"), "episode_0.hdf5", odd_hdf5)
    (path / "mani").mkdir()
    write.maniskill(path / "mani" / "a.h5", [4, 3])
    yield "maniskill", Sample(folder(path / "mani"), "a.h5", odd_hdf5)
    if importlib.util.find_spec("zarr"):
        inside = np.concatenate([write.actions(e, n) for e, n in enumerate(LENGTHS)])
        store = write.pusht(path / "zarr" / "r.zarr", LENGTHS, action=inside, img=None)
        yield "zarr", Sample(folder(path / "zarr"), "r.zarr", odd_tree)
        zipped = write.zipped(store)
        files = {"r.zarr.zip": zipped.read_bytes()}
        yield "zarr.zip", Sample(files, "r.zarr.zip", damaged)
    if importlib.util.find_spec("pyarrow"):
        write.lerobot(path / "lerobot" / "set", LENGTHS)
        yield "lerobot", Sample(folder(path / "lerobot"), "set", odd_parquet)
    if importlib.util.find_spec("minari"):
        yield "minari", Sample(minari_set(path / "minari"), "minari:test/own-v0", odd_hdf5)


def minari_set(store: Path) -> Files:
    """A data set of Minari's store."""
    minari: Any = importlib.import_module("minari")
    from gymnasium.spaces import Box

    store.mkdir()
    os.environ["MINARI_DATASETS_PATH"] = str(store)
    space, action = Box(-1, 1, (3,), np.float64), Box(-1, 1, (2,), np.float32)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=np.zeros((5, 3)),
            actions=np.full((4, 2), i / 20, np.float32),
            rewards=np.ones(4),
            terminations=np.zeros(4, bool),
            truncations=np.arange(4) == 3,
        )
        for i in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spaces: Any = {"observation_space": space, "action_space": action}
        minari.create_dataset_from_buffers("test/own-v0", buffers, data_format="hdf5", **spaces)
    return folder(store)


# ---- running -------------------------------------------------------------------------------------


class Hanging(BaseException):
    """An input that computes for too long."""


@contextmanager
def watched() -> Iterator[None]:
    """Raises Hanging when the body computes for too long."""

    def stop(*_: Any) -> None:
        raise Hanging

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANGING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def place(files: Files, folder: Path, opens: str) -> str:
    """Puts files into a folder of their own; what is opened of them."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    if opens.startswith("minari:"):
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        return opens
    return str(folder / opens)


def asked(path: str, draw: random.Random) -> None:
    """What the verbs do with a recording."""
    scale, keys = draw.choice(["auto", "auto", "extremes", "physical"]), draw.choice([None, ["a"]])
    reading = Reading(action_scale=scale, obs_keys=keys if draw.random() < 0.2 else None)
    played_in(path)
    recording = load(path, reading)
    with redirect_stdout(io.StringIO()):
        "\n".join(described(recording)).encode(errors="surrogateescape")
    mended(recording, draw.choice(["refuse", "drop", "clip"]))


def untyped(refused: Refused) -> str:
    """Where code of ours met what it did not expect; "" where a library did, or nothing."""
    cause, place, ours = refused.__cause__, "", False
    if "damaged: " not in str(refused) or cause is None:
        return ""
    frame = cause.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{frame.tb_lineno}"
        ours = str(OURS) in code.co_filename and "site-packages" not in code.co_filename
        frame = frame.tb_next
    return f"{type(cause).__name__} at {place}: {cause}"[:150] if ours else ""


class Allocated(ctypes.Structure):
    """What glibc's `mallinfo2` tells of the allocator."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")
        + ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def memory(forget: bool = False) -> dict[str, int]:
    """Bytes of memory that this process has, by every count that this system has.

    VmHWM: the most it had since that was forgotten, which sees what was given back too. VmRSS, and
    what the allocator gave out: what is held. Not every kernel forgets the first, tells it or
    counts pages at all; the last asks no kernel.
    """
    with suppress(OSError):
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
    told = {"VmRSS": 0, "VmHWM": 0, "allocated": 0}
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in told:
                told[name] = 1024 * int(value.split()[0])
    with suppress(AttributeError):  # another C library
        ask = ctypes.CDLL(None).mallinfo2
        ask.restype = Allocated
        heap = ask()
        told["allocated"] = heap.hblkhd + heap.uordblks
    return told


def tried(path: str, draw: random.Random, strict: bool) -> str:
    """What is wrong with how an input is answered; "" for nothing."""
    began, before = time.process_time(), memory(forget=True)
    failed = ""
    try:
        with watched():
            asked(path, draw)
    except Refused as refused:
        failed = untyped(refused) if strict else ""
    except RheoError:
        pass
    except Hanging:
        failed = f"computes for more than {HANGING} s"
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        if isinstance(error, KeyboardInterrupt):
            raise
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = "" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        failed = f"{type(error).__name__} at {where}: {error}"[:250]
    spent = time.process_time() - began
    grown = max(now - before[count] for count, now in memory().items())
    if not failed and spent > SECONDS:
        failed = f"took {spent:.1f} s of CPU"
    return failed or (f"memory grew by {grown >> 20} MiB" if grown > SWOLLEN else "")


def fuzz(count: int, seed: int = 0, keep: Path | None = None, strict: bool = False) -> list[str]:
    """What went wrong with so many inputs, a line each; empty when all are as they should be.

    keep, strict: as of `wrong`.
    """
    return list(wrong(range(count), seed, keep, strict).values())


def wrong(
    numbers: range, seed: int, keep: Path | None = None, strict: bool = False
) -> dict[int, str]:
    """What went wrong with inputs of some numbers, which with the seed say what each is.

    keep: a folder for the inputs that something was wrong with. strict: damage that code of ours
    met unexpectedly, though it is answered in a line, is told too.
    """
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    store, failures = os.environ.get("MINARI_DATASETS_PATH"), {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for made in ("own", "others"):
                (home / made).mkdir()
            samples = dict(own(home / "own")) | dict(others(home / "others"))
            for number in numbers:
                draw = random.Random(f"{seed} {number}")
                name = draw.choice(sorted(samples))
                sample = samples[name]
                change = damaged if number % 2 else sample.odd
                at = home / f"input-{number}"
                files = change(draw, sample.files)
                failed = tried(place(files, at, sample.opens), draw, strict)
                if failed:
                    failures[number] = (
                        f"{name} seed={seed} input={number} {change.__name__}: {failed}"
                    )
                    if keep is not None:
                        shutil.copytree(at, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
                shutil.rmtree(at)
                formats.known_heads.clear()
    finally:
        shutil.rmtree(home)
        os.environ.pop("MINARI_DATASETS_PATH")
        os.environ |= {} if store is None else {"MINARI_DATASETS_PATH": store}
    return failures


if __name__ == "__main__":
    kept = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    found = fuzz(int(sys.argv[1]), int(sys.argv[2]), kept, strict=True)
    print("\n".join(found) or "nothing")
    sys.exit(bool(found))
