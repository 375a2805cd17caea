"""What `rheo play` was asked."""

from collections.abc import Sequence
from typing import NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError

from ..store.where import existing
from .top import EVAL_SEED
from .words import Option, count, divide, natural, positive, switch, values

ENDINGS = (".gif", ".mp4")
USAGE = {
    "play": """\
usage: rheo play RUN... [out=FILE.gif|FILE.mp4] [episodes=1] [seed=100000] [fps=25] [speed=1]
                        [size=360] [camera=NAME] [window=true]
       a film of the first episodes of an evaluation, of several runs side by side, with return, Q
       and how much of a plan was executed
options: size=N      pixels of its height
         camera=NAME one of the environment's model; without, the usual one
         speed=N     of the film, in units of the environment's own time
         window=true MuJoCo's viewer in place of a film, of one run"""
}


class Playing(NamedTuple):
    """A film, or a window."""

    runs: list[str]
    flagged: list[str]  # --config-dir
    out: str | None  # None: named after the first run
    episodes: int
    seed: int
    fps: float
    speed: float
    size: int
    camera: str | None
    window: bool


PLAYING = {
    **{"out": Option(None), "camera": Option(None), "window": Option(False, switch)},
    **{
        "episodes": Option(1, count),
        "size": Option(360, count),
        "seed": Option(EVAL_SEED, natural),
    },
    **{"fps": Option(25.0, positive), "speed": Option(1.0, positive)},
}


def play(argv: Sequence[str]) -> Playing:
    """`rheo play`: runs, and how they are shown. Raises RheoError."""
    words = divide(argv, PLAYING)
    found = values(words.options, PLAYING, f", and no such run\n{USAGE['play']}")
    if not words.runs:
        raise RheoError(USAGE["play"])
    for name in words.runs:
        existing(name)
    if found["window"] and (len(words.runs) > 1 or found["out"]):
        raise RheoError("window=true: is of one run, and writes no out=")
    if found["out"] is not None and expanded(found["out"]).suffix.lower() not in ENDINGS:
        raise RheoError(f"out={found['out']}: a film is a {' or '.join(ENDINGS)}")
    return Playing(words.runs, words.flagged, **found)
