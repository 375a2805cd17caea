"""Small runs of every kind, a second or two each, and the data and bases that they begin with."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from children import rheo
from shipped import needs, small

from rheo.envs.packages import engine_lacks

__all__ = ["Kind", "KINDS", "folder", "lacks", "straight", "words"]
PERIODS = ("log_every=20", "eval_every=100", "save_every=60", "episodes=2")
PENDULUM = ("env=inverted_pendulum", "env.num_envs=2")


class Kind(NamedTuple):
    """A kind of run. base: of which it tunes a clone."""

    algo: str
    more: tuple[str, ...]
    steps: int = 200
    base: bool = False
    warp: bool = False


KINDS = {
    "offline": Kind("iql", ()),
    "off-policy": Kind("sac", PENDULUM),
    "on-policy": Kind("reinflow", (*PENDULUM, "source.decisions=16"), base=True),
    "workers": Kind("rfm", (*PENDULUM, "env.backend=gymnasium", "env.workers=2")),
    "warp": Kind("sac", ("env=hopper", "env.backend=warp", "env.num_envs=4"), warp=True),
}


@cache
def folder() -> Path:
    """Where what several trials share is made, once in a process."""
    place = Path(tempfile.mkdtemp(prefix="rheo-faults-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def lacks(kind: str) -> str:
    """Why runs of a kind cannot be made here; empty: they can."""
    return (engine_lacks("warp") or "") if KINDS[kind].warp else ""


@cache
def data() -> Path:
    """A recording of its own."""
    file = folder() / "data.npz"
    made(["collect", "random", "env=inverted_pendulum", "steps=300", f"out={file}"])
    return file


@cache
def clone() -> Path:
    """A tiny clone of it, to be tuned."""
    target = folder() / "clone"
    own = [*needs("bc", data()), *small("bc"), *PERIODS, "horizon=2", "steps=60"]
    made(["train", *own, f"name={target}"])
    return target


@cache
def words(kind: str) -> tuple[str, ...]:
    """The words of `rheo train` for a kind, without a name."""
    one = KINDS[kind]
    if one.base:
        size = [
            word for word in small(one.algo) if word.startswith(("algo.", "source.", "critic."))
        ]
        begin = [f"algo={one.algo}", f"init={clone()}", *size]
    else:
        begin = [*needs(one.algo, data()), *small(one.algo)]
    return (*begin, *one.more, *PERIODS, f"steps={one.steps}")


@cache
def straight(kind: str, more: tuple[str, ...] = ()) -> Path:
    """The run folder of a kind that was never disturbed; `events` two folders above has its events.

    more: words that it has besides.
    """
    place = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=folder()))
    note = {"act": "note", "place": "runs/r", "file": str(place / "events")}
    made(["train", *words(kind), *more, "name=r"], place, note)
    return place / "runs" / "r"


def made(command: list[str], cwd: Path | None = None, *faults: dict) -> None:
    """Runs a command that has to succeed."""
    end = rheo(cwd or folder(), command, *faults)
    if end.code:
        raise RuntimeError(f"rheo {' '.join(command)}\nended with {end.code}:\n{end.text[-2000:]}")
