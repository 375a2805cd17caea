"""Files from somebody who means harm: no code of theirs runs, nothing is read or written elsewhere.

Every file is made here, by what formats allow. A marker in a file outside, and a file that must not
appear, tell whether it worked.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml
from children import Ended, rheo
from kinds import straight
from trials import Promise, Random, Trial, each

from rheo.scripts.store import checkpoint
from rheo.scripts.store.run import Run

SECRET, PRECIOUS = "SECRET-7f3a", "precious"
SECONDS = 60.0  # in which an answer has to come, on a machine with other work
MIB = 1500  # of memory that a command may take
RESTORED = "the configuration of the last checkpoint is taken"
Make = Callable[[Path], list[str]]  # makes the file in a folder; the command that reads it


class Hostile(NamedTuple):
    """A file of somebody else's. refused: it must be; else it may be read, without harm.

    says: what is told then.
    """

    name: str
    make: Make
    refused: bool = True
    says: str = ""


# ---- recorded data -------------------------------------------------------------------------------


def recording(file: Path, **more: Any) -> h5py.File:
    """An HDF5 file as D4RL writes them, but for its observations."""
    out = h5py.File(file, "w")
    steps = 64
    known: dict[str, Any] = {
        "actions": np.zeros((steps, 1), np.float32),
        "rewards": np.zeros(steps, np.float32),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.arange(steps) % 16 == 15,
    }
    for key, value in {**known, **more}.items():
        out[key] = value
    return out


def elsewhere(place: Path) -> Path:
    """A file whose content is nobody's business."""
    file = place / "secret.bin"
    file.write_bytes((SECRET.encode() * 300)[: 64 * 4 * 4])
    return file


def convert(place: Path) -> list[str]:
    return ["data", "convert", str(place / "x.hdf5"), str(place / "out.npz")]


def external(place: Path) -> list[str]:
    """Observations whose storage is another file."""
    with recording(place / "x.hdf5") as out:
        storage = [(str(elsewhere(place)), 0, 64 * 4 * 4)]
        out.create_dataset("observations", (64, 4), np.float32, external=storage)
    return convert(place)


def virtual(place: Path) -> list[str]:
    """Observations that are a view of another file's."""
    with h5py.File(place / "other.hdf5", "w") as other:
        other["x"] = np.frombuffer(elsewhere(place).read_bytes(), np.float32).reshape(64, 4)
    with recording(place / "x.hdf5") as out:
        layout = h5py.VirtualLayout((64, 4), np.float32)
        layout[:] = h5py.VirtualSource(str(place / "other.hdf5"), "x", (64, 4))
        out.create_virtual_dataset("observations", layout)
    return convert(place)


def linked(place: Path) -> list[str]:
    """Observations that are a link into another file."""
    virtual(place)
    with recording(place / "x.hdf5") as out:
        out["observations"] = h5py.ExternalLink(str(place / "other.hdf5"), "x")
    return convert(place)


def circle(place: Path) -> list[str]:
    """A group that holds itself."""
    with recording(place / "x.hdf5", observations=np.zeros((64, 4), np.float32)) as out:
        out["self"] = h5py.SoftLink("/")
        out["infos"] = h5py.SoftLink("/infos")
    return ["data", "info", str(place / "x.hdf5")]


def sparse(place: Path) -> list[str]:
    """A few kilobytes that say they are a billion rows."""
    with h5py.File(place / "x.hdf5", "w") as out:
        for key, width in (
            ("observations", (4,)),
            ("actions", (1,)),
            ("rewards", ()),
            ("terminals", ()),
        ):
            shape = (10**9, *width)
            out.create_dataset(key, shape, np.float32, chunks=(1 << 20, *width), fillvalue=0)
    return convert(place)


def inflated(place: Path) -> list[str]:
    """An archive that is a thousand times larger in memory."""
    steps = 12_000_000
    with zipfile.ZipFile(place / "x.npz", "w", zipfile.ZIP_DEFLATED) as out:
        for key, width in (("observations", 16), ("actions", 8)):
            with out.open(f"{key}.npy", "w", force_zip64=True) as stream:
                head = {"descr": "<f4", "fortran_order": False, "shape": (steps, width)}
                np.lib.format.write_array_header_1_0(stream, head)
                piece = bytes(1 << 22)
                for _ in range(steps * width * 4 // len(piece)):
                    stream.write(piece)
    return ["data", "info", str(place / "x.npz")]


def pickled(place: Path) -> list[str]:
    """Arrays of Python objects, which only pickle reads."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {place / 'CANARY'}",)

    np.savez(place / "x.npz", observations=np.array([Evil()], dtype=object), actions=np.zeros(1))
    return ["data", "info", str(place / "x.npz")]


def escapes(place: Path) -> list[str]:
    """Text that would change the terminal's title."""
    with recording(place / "x.hdf5", observations=np.zeros((64, 4), np.float32)) as out:
        out.attrs["env_id"] = "\x1b]0;owned\x07\x1b[2J"
        out.attrs["path"] = "/somewhere/else"
    return ["data", "info", str(place / "x.hdf5")]


# ---- run folders ---------------------------------------------------------------------------------


def received(place: Path) -> Path:
    """A run folder as somebody sends it."""
    folder = place / "run"
    shutil.copytree(straight("off-policy"), folder)
    return folder


def rewritten(place: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A run folder whose configuration was changed, by who may have changed the checkpoint too."""
    folder = received(place)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def link(name: str) -> Make:
    """A part of a run folder that points elsewhere."""

    def make(place: Path) -> list[str]:
        folder, victim = received(place), place / "victim"
        if (folder / name).is_dir():
            victim.mkdir()
            (victim / ".staging-1").mkdir()
            (victim / ".staging-1" / "precious").write_text(PRECIOUS)
            shutil.rmtree(folder / name)
        else:
            victim.write_text(PRECIOUS)
            (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(victim)
        return ["resume", str(folder), "steps=220"]

    return make


def resolver(text: str) -> Make:
    """A value that would be looked up in the environment."""

    def make(place: Path) -> list[str]:
        def change(config: dict[str, Any]) -> None:
            config["recipe"], config["env"]["id"] = "oc.env", text

        return ["eval", str(rewritten(place, change)), "episodes=1"]

    return make


def target(name: str) -> Make:
    """A class that is no part of a policy."""

    def make(place: Path) -> list[str]:
        def change(config: dict[str, Any]) -> None:
            config["policy"]["_target_"] = name

        return ["eval", str(rewritten(place, change)), "episodes=1"]

    return make


def laughs(place: Path) -> list[str]:
    """A few lines of YAML that are billions of words."""
    folder = received(place)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("\n".join(lines) + "\n" + text)
    return ["eval", str(folder), "episodes=1"]


def deep(place: Path) -> list[str]:
    """Brackets in brackets."""
    folder = received(place)
    (folder / "config.yaml").write_text("a: " + "[" * 20_000 + "]" * 20_000 + "\n")
    return ["eval", str(folder), "episodes=1"]


def sizes(place: Path) -> list[str]:
    """A checkpoint, digests right, of a policy with a billion inputs."""
    folder = received(place)
    tree = Run.open(str(folder)).load()
    assert tree is not None
    tree["sizes"]["obs_dim"] = 10**9
    shutil.rmtree(folder / "ckpt")
    checkpoint.write(folder / "ckpt", 200, {"run": {"wall": 1.0}, **tree}, 2)
    return ["eval", str(folder), "episodes=1"]


def outside(place: Path) -> list[str]:
    """A manifest that names files above its folder."""
    folder = received(place)
    last = sorted((folder / "ckpt").glob("0*"))[-1]
    manifest = json.loads((last / "manifest.json").read_bytes())
    manifest.pop("sha256")
    manifest["files"]["../../../victim"] = {"size": 8, "sha256": "0" * 64}
    (last / "manifest.json").write_bytes(checkpoint.sealed(manifest))
    return ["eval", str(folder), "episodes=1"]


# ---- judging -------------------------------------------------------------------------------------

FILES = (
    *(Hostile(f"HDF5 {make.__name__}", make) for make in (external, virtual, linked, sparse)),
    Hostile("HDF5 circle", circle, refused=False),
    Hostile("npz a hundred times its size", inflated),
    Hostile("npz with objects", pickled),
    Hostile("escapes in an attribute", escapes, refused=False),
    *(
        Hostile(f"link as {x}", link(x))
        for x in ("lock", "eval", "ckpt", "events", "metrics.jsonl")
    ),
    *(
        Hostile(f"resolver {text}", resolver(text), refused=False)  # the checkpoint's is taken
        for text in (
            "${oc.env:FAULT_SECRET}",
            "${${recipe}:FAULT_SECRET}",
            "a${${recipe}:FAULT_SECRET}b",
        )
    ),
    *(
        Hostile(f"class {x}", target(x))
        for x in ("os.system", "rheo.scripts.cli.main", "rheo.files.put_text")
    ),
    Hostile("YAML that grows", laughs, refused=False, says=RESTORED),
    Hostile("YAML that is deep", deep, refused=False, says=RESTORED),
    Hostile("a policy of a billion inputs", sizes),
    Hostile("a manifest that names files elsewhere", outside, refused=False),  # falls back
)


def trial(one: Hostile) -> Trial:
    """Reads a hostile file in a process with little memory."""

    def harm(place: Path, command: list[str]) -> Ended:
        known = {"environ": {"FAULT_SECRET": SECRET}, "within": SECONDS, "memory": MIB}
        return rheo(place, command, **known)

    def judge(place: Path, end: Ended) -> str:
        if end.crashed():
            return end.crashed()
        victims = [place / "victim", place / "victim" / ".staging-1" / "precious"]
        kept = [file.read_text() for file in victims if file.is_file()]
        if (place / "CANARY").exists() or any(text != PRECIOUS for text in kept):
            return "it ran code, or wrote elsewhere"
        if (place / "victim").is_dir() and not kept:
            return "it removed files elsewhere"
        if SECRET in end.text or any(holds(file) for file in shared(place)):
            return "it read what is elsewhere"
        if "\x1b" in end.text or "\x07" in end.text:
            return "it reached the terminal"
        wrong = one.refused and end.code not in (2, 3) or one.says not in end.text
        return f"accepted, with {end.code}: {end.text[-200:]}" if wrong else ""

    return Trial(one.name, one.make, harm, judge)


def shared(place: Path) -> list[Path]:
    """Files that whoever read a hostile one might pass on."""
    return [file for file in (place / "out.npz", place / "run" / "config.yaml") if file.exists()]


def holds(file: Path) -> bool:
    """Whether a secret was copied into a file."""
    if file.suffix != ".npz":
        return SECRET.encode() in file.read_bytes()
    with np.load(file, allow_pickle=False) as content:
        return any(SECRET.encode() in np.asarray(content[key]).tobytes() for key in content.files)


def drawn(count: int, draw: Random) -> Iterator[Trial]:
    """All of them, or as many as asked."""
    yield from each(FILES, trial)(count, draw)


PROMISES = [
    Promise("hostile", "a file from somebody else runs nothing, reads and writes nothing elsewhere",
            drawn, 2),
]  # fmt: skip
