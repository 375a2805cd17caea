"""Signals in every phase of every verb: the process ends soon, and leaves nothing half-written.

A training saves and says how to go on (75); what it goes on to equals the straight run. Other verbs
end by the signal, or with what they have.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from alike import apart
from children import Ended, rheo
from inside import said
from kinds import data, straight, words
from trials import Promise, Random, Trial, each

from rheo.scripts.store.where import SWEEP

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SOON = 10.0  # seconds from the signal to the end
SAVED, AT_END = 75, 0
BY_SIGNAL: dict[int, tuple[int, ...]] = {
    signal.SIGTERM: (143, -15),
    signal.SIGINT: (130,),
    signal.SIGHUP: (129, -1),
}


class Phase(NamedTuple):
    """Where a signal comes: a file event, or the call of a function of the program."""

    name: str
    place: str = ""
    call: str = ""
    nth: int = 0

    def fault(self, number: int, stamp: Path) -> dict[str, Any]:
        """As the process is told; it writes down when it was."""
        where = {"place": self.place, "call": self.call, "count": self.nth}
        return {"act": "signal", "number": int(number), "file": str(stamp), **where}


STEP = "rheo.envs.acting:Acting.step"
TRAINING = (
    Phase("lock", "runs/r/lock"),
    Phase("configuration", "os.rename .*config.yaml"),
    Phase("assembling", call="rheo.scripts.assemble:make_env"),
    Phase("first evaluation", call="rheo.envs.chunk:ChunkEnv.step", nth=2),
    Phase("warm-up", call=STEP, nth=9),
    Phase("training", call=STEP, nth=60),
    Phase("logging", call="rheo.scripts.store.run:Run.log", nth=4),
    Phase("evaluation", call="rheo.scripts.loop:Loop.figure", nth=1),
    Phase("saving", r"open .*\.staging-.*safetensors", nth=1),
    Phase("a save's rename", r"os.rename .*ckpt/\d+$", nth=1),
    Phase("last save", r"os.rename .*ckpt/\d+$", nth=3),
    Phase("curve", "open .*curve"),
)


def training(chosen: tuple[Phase, int]) -> Trial:
    """A signal in a phase of a run, which then goes on."""
    phase, number = chosen

    def train(place: Path) -> Ended:
        fault = phase.fault(number, place / "stamp")
        return rheo(place, ["train", *words("off-policy"), "name=r"], fault)

    def resume(place: Path, stopped: Ended) -> tuple[Ended, Ended | None]:
        again = (place / "runs" / "r" / "config.yaml").exists() and stopped.code == SAVED
        return stopped, rheo(place, ["resume", "r"]) if again else None

    def judge(place: Path, ends: tuple[Ended, Ended | None]) -> str:
        stopped, resumed = ends
        if not (place / "stamp").exists():
            return "the phase never came"
        wrong = late(stopped, (SAVED, AT_END)) or halves(place)
        if wrong or resumed is None:
            left = (place / "runs" / "r").exists()
            return wrong or (
                "" if stopped.code == AT_END or not left else "stopped, and left what cannot go on"
            )
        if resumed.code or resumed.crashed():
            return f"resume ended with {resumed.code}: {resumed.text[-300:]}"
        return apart(straight("off-policy"), place / "runs" / "r")

    return Trial(f"{phase.name}, {signal.Signals(number).name}", train, resume, judge)


class Verb(NamedTuple):
    """A command, where a signal comes in it, and what it may leave in its folder."""

    phase: Phase
    command: tuple[str, ...]
    codes: tuple[int, ...] = ()  # beside those of the signal
    leaves: tuple[str, ...] = ()  # files that may be there afterwards


RANDOM = ("collect", "random", "env=inverted_pendulum", "steps=2000")


def verbs() -> list[Verb]:
    """The commands that write or take long."""
    run = str(straight("off-policy"))
    served = Phase("answering", call="rheo.scripts.serve:told")
    stepping = Phase("collecting", call="rheo.envs.mujoco.native:NativeVector.step", nth=30)
    copy = ("data", "convert", str(data()))
    return [
        *(Verb(stepping, (*RANDOM, f"out=x.{end}"), (75, 0), (f"x.{end}",)) for end in ENDINGS),
        *(
            Verb(
                Phase("writing", rf"open .*x\.{end}"),
                (*RANDOM, f"out=x.{end}"),
                (75, 0),
                (f"x.{end}",),
            )
            for end in ENDINGS
        ),  # fmt: skip
        *(
            Verb(Phase("converting", rf"open .*x\.{end}"), (*copy, f"x.{end}"), (0,), (f"x.{end}",))
            for end in ENDINGS
        ),  # fmt: skip
        Verb(Phase("evaluating", call="rheo.envs.chunk:ChunkEnv.step", nth=3), ("eval", run)),
        Verb(Phase("reading", "open .*data.npz"), ("data", "info", str(data())), (0,)),
        Verb(
            Phase("filming", call="rheo.envs.chunk:ChunkEnv.step", nth=1),
            ("play", run, "out=x.gif"),
        ),  # fmt: skip
        Verb(served, ("serve", run, "port=0"), (0,)),
        Verb(
            Phase("sweeping", call=STEP, nth=30),
            ("sweep", *words("off-policy"), "seed=0,1", "name=s"),
            (75,),
            ("runs/",),
        ),  # fmt: skip
    ]


ENDINGS = ("npz", "hdf5")


def verb(chosen: tuple[Verb, int]) -> Trial:
    """A signal to a command that is no training."""
    one, number = chosen
    phase, command = one.phase, one.command

    def run(place: Path) -> Ended:
        return rheo(place, command, phase.fault(number, place / "stamp"))

    def judge(place: Path, end: Ended) -> str:
        if not (place / "stamp").exists():
            return f"the phase never came: {end.text[-300:]}"
        wrong = late(end, (*BY_SIGNAL.get(number, (-number,)), 128 + number, *one.codes))
        return wrong or halves(place) or strays(place, one.leaves) or unreadable(place, one.leaves)

    title = f"{command[0]} {phase.name} {command[-1][:12]}, {signal.Signals(number).name}"
    return Trial(title, run, lambda place, end: end, judge)


def late(end: Ended, codes: tuple[int, ...]) -> str:
    """Whether a process ended otherwise than it may, or too late."""
    if end.crashed():
        return end.crashed()
    if end.code not in codes:
        return f"ended with {end.code}, not {codes}: {end.text[-300:]}"
    return f"ended {end.seconds:.1f} s after the signal" if end.seconds > SOON * slack() else ""


def slack() -> float:
    """How much longer things take on this machine than on an idle one, by its load."""
    return max(1.0, 3 * os.getloadavg()[0] / (os.cpu_count() or 1))


def halves(place: Path) -> str:
    """Names of files that are temporaries, or a save that was not finished.

    A sweep's own folder is neither: what its jobs printed and how they ended is there to stay.
    """
    hidden = [f for f in place.rglob(".*") if f.name != SWEEP]
    found = [str(f.relative_to(place)) for f in hidden]
    return f"left {', '.join(found)}" if found else ""


def strays(place: Path, leaves: tuple[str, ...]) -> str:
    """Names of files that a command has no business to leave."""
    own = {"stamp", "log"}
    found = {str(f.relative_to(place)) for f in place.rglob("*") if f.is_file()} - own
    found = {name for name in found if not name.startswith(leaves or ("\0",))}
    return f"left {', '.join(sorted(found))}" if found else ""


def unreadable(place: Path, leaves: tuple[str, ...]) -> str:
    """Whether a recording that was left cannot be read."""
    for file in (place / name for name in leaves if not name.endswith("/")):
        end = said(place, ["data", "info", str(file)]) if file.exists() else None
        if end is not None and (end.code or end.crash):
            return f"left {file.name}, which cannot be read: {end.text[-200:]}{end.crash}"
    return ""


def every_training() -> list[tuple[Phase, int]]:
    return [(phase, number) for phase in TRAINING for number in NUMBERS]


def of_verbs(count: int, draw: Random) -> Iterator[Trial]:
    """Signals to the other verbs."""
    every = [(one, number) for one in verbs() for number in NUMBERS]
    yield from each(every, verb)(count, draw)


PROMISES = [
    Promise(
        "signals",
        "a signal in any phase of a training: saved, exit 75, resumed to the last bit",
        each(every_training(), training),
    ),
    Promise("signals", "a signal to any other verb: ended, nothing half-written", of_verbs),
]
