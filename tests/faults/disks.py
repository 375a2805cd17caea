"""A disk that fills up at every writer, and one that has room again.

The disk is a tmpfs of a few MiB in a mount namespace of the process that forks the commands
(`unshare --user --mount`, no rights needed where user namespaces are allowed). It fills at the
moment at which a file is opened or renamed: what is left of it is taken.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alike import apart
from children import Ended, rheo, small_disks, zygote
from kinds import data, straight, words
from trials import Promise, Random, Trial, each

SPACE = 24_000  # KiB, for several times the run
SAID = ("space", "full", "disk", "written", "write")  # a word of what is said of it
TRIED = ("log_every=10", "eval_every=40", "save_every=20")  # so that five writes fail in a row


class Writer(NamedTuple):
    """Who writes when the disk fills. codes: how the command may end."""

    name: str
    place: str
    command: tuple[str, ...] = ()  # none: a training
    codes: tuple[int, ...] = (3,)
    nth: int = 0


ENDINGS = ("npz", "hdf5")
WRITERS = (
    Writer("lock", "open .*runs/r/lock", codes=(2, 3)),
    Writer("configuration", "open .*config.yaml", codes=(2, 3)),
    Writer("run.json", "open .*run.json", codes=(2, 3)),
    Writer("first event", "open .*events", codes=(0, 2, 3)),
    Writer("rows", "open .*metrics.jsonl"),
    Writer("evaluation", "open .*eval/", nth=1),
    Writer("first save", "os.mkdir .*staging"),
    Writer("tensors", "open .*safetensors", nth=3),
    Writer("state", "open .*state.json", nth=2),
    Writer("manifest", "open .*manifest.json", nth=1),
    Writer("a save's rename", r"os.rename .*ckpt/\d+$", nth=1),
    Writer("curve", "open .*curve", codes=(0, 3)),
    *(
        Writer(f"collect {end}", rf"open .*x\.{end}",
               ("collect", "random", "env=inverted_pendulum", "steps=20000", f"out=x.{end}"))
        for end in ENDINGS
    ),
    *(
        Writer(f"convert {end}", rf"open .*x\.{end}", ("data", "convert", "DATA", f"x.{end}"))
        for end in ENDINGS
    ),
)  # fmt: skip


def trial(writer: Writer) -> Trial:
    """A command on a disk that fills up under it; a training then goes on with room."""
    state = zygote(SPACE)
    inner, filler = Path("/mnt/work"), Path("/mnt/filler")
    seen = state.disk / "work"

    def prepare(place: Path) -> None:
        empty(state.disk)
        seen.mkdir()

    def full(place: Path, _: None) -> tuple[Ended, Ended | None]:
        fault = {"act": "fill", "place": writer.place, "count": writer.nth, "file": str(filler)}
        command = [str(data()) if word == "DATA" else word for word in writer.command]
        begin = command or ["train", *words("off-policy"), *TRIED, "name=r"]
        outside = {"log": place / "log"}
        end = rheo(inner, begin, fault, space=SPACE, **outside)
        filled = (state.disk / "filler").exists()
        (state.disk / "filler").unlink(missing_ok=True)
        if not filled:
            return end._replace(text=f"NEVER FULL\n{end.text}"), None
        again = not command and (seen / "runs" / "r" / "config.yaml").exists()
        return end, rheo(inner, ["resume", "r"], space=SPACE, **outside) if again else None

    def judge(place: Path, ends: tuple[Ended, Ended | None]) -> str:
        end, resumed = ends
        if end.text.startswith("NEVER FULL"):
            return f"its writer never came: {end.text[-200:]}"
        if end.crashed() or end.code not in writer.codes:
            return end.crashed() or f"ended with {end.code}: {end.text[-300:]}"
        if end.code and not any(word in end.text for word in SAID):
            return f"does not say that the disk is full: {end.text[-300:]}"
        left = [f.name for f in seen.rglob("*") if f.name.startswith((".", "x."))]
        if left:
            return f"left {', '.join(left)}"
        if resumed is None:
            return ""
        if resumed.code or resumed.crashed():
            return f"resume ended with {resumed.code}: {resumed.text[-300:]}"
        return apart(often(), seen / "runs" / "r")

    return Trial(writer.name, prepare, full, judge)


def empty(disk: Path) -> None:
    """Removes what the trial before left on a disk."""
    for entry in disk.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def often() -> Path:
    """The undisturbed run that writes as often."""
    return straight("off-policy", TRIED)


def drawn(count: int, draw: Random) -> Iterator[Trial]:
    """Every writer once, or as many as asked."""
    yield from each(WRITERS, trial)(count, draw)


def lack() -> str:
    """Why no disk can be filled here."""
    return "" if small_disks() else "needs user namespaces (unshare --user --mount)"


PROMISES = [
    Promise("disk", "a full disk at any writer: said, exit 3, nothing broken, resumed", drawn,
            lack=lack),
]  # fmt: skip
