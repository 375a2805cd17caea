"""What an environment raises, returns and does: told with its place, the run saved, never silent.

The table says how a run may end: exit codes, and a word that has to be in what is printed.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from children import Ended, rheo
from trials import Promise, Random, Trial, each

HERE = Path(__file__).resolve().parent
RUN = (
    *("train", "algo=sac", "env=gym", "env.id=fragile_worlds:World-v0", "env.num_envs=2"),
    *("policy.width=8", "critic.width=8", "source.batch_size=4", "source.warmup=20", "episodes=1"),
    *("steps=300", "log_every=20", "eval_every=300", "save_every=40", "name=r"),
)
TIMEOUT = 5  # seconds of env.step_timeout
GOES_ON, STOPS, USER = (0,), (3,), (2, 3)


class Wish(NamedTuple):
    """How a run with a fault may end. rows: a metric whose sum over the run is not 0."""

    codes: tuple[int, ...]
    word: str = ""
    metric: str = ""


BAD = Wish(GOES_ON, metric="env/bad_obs")
PLACED = Wish(STOPS, "World-v0")
HOSTED = Wish(GOES_ON, metric="env/restarts")
WISHES = {  # in the process of the run
    **dict.fromkeys(("nan observation", "inf observation", "nan reward", "inf reward"), BAD),
    **dict.fromkeys(("reward 1e300", "observation 1e200"), Wish((0, 3, 4))),
    "observation 1e30": Wish((0, 3, 4)),
    "beyond its bounds": Wish((0, 3), "bound"),
    **dict.fromkeys(("wrong shape", "scalar observation", "no observation"), Wish(STOPS, "shape")),
    **dict.fromkeys(("dict observation", "text observation", "no reward", "text reward"), PLACED),
    **dict.fromkeys(("reward of two", "no info", "tuple of four", "reset raises"), PLACED),
    "nan terminated": Wish((0, 3)),
    "reset without info": Wish(USER, "reset"),
    "constructor": Wish(USER, "no such robot"),
    "raises RuntimeError": Wish(STOPS, "the bus is silent"),
    "raises ValueError": Wish(STOPS, "the gripper is stuck"),
    "raises FloatingPointError": Wish(STOPS, "World-v0"),
    "raises KeyboardInterrupt": Wish((3, 75, 130)),
    "raises SystemExit": PLACED,
    "always nan": Wish(STOPS, "World-v0"),
    "reward of one": Wish((0, 2, 3)),
}
IN_WORKERS = {  # what takes a process along, or never comes back, is borne by a worker
    **dict.fromkeys(("sleeps", "spins", "killed", "segmentation fault"), HOSTED),
    **dict.fromkeys(("raises RuntimeError", "raises SystemExit", "tuple of four"), HOSTED),
}


def trial(chosen: tuple[str, Wish, int]) -> Trial:
    """A run whose environment fails."""
    fault, wish, workers = chosen
    more = [f"env.options.fault={fault!r}"]
    more += [f"env.workers={workers}", f"env.step_timeout={TIMEOUT}"] if workers else []

    def run(place: Path) -> Ended:
        known = {"path": [str(HERE)], "environ": {"PYTHONPATH": paths()}}
        return rheo(place, [*RUN, *more], **known)

    def judge(place: Path, end: Ended) -> str:
        if end.crashed():
            return end.crashed()
        if end.code not in wish.codes:
            return f"ended with {end.code}, not {wish.codes}: {end.text[-400:]}"
        if end.code and wish.word not in end.text:
            return f"does not say {wish.word!r}: {end.text[-400:]}"
        folder = place / "runs" / "r"
        if end.code == 3 and not list(folder.glob("ckpt/0*")):
            return "nothing was saved"
        if wish.metric and not counted(folder, wish.metric):
            return f"{wish.metric} is not counted"
        return ""

    return Trial(f"{fault}{', in a worker' * bool(workers)}", run, lambda place, end: end, judge)


def paths() -> str:
    """Where children of the run find the environment."""

    return os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])


def counted(folder: Path, metric: str) -> bool:
    """Whether a count of a run is not 0; an odd environment's id may keep the run from opening."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return any(v for line in lines for k, v in json.loads(line).items() if k.startswith(metric))


def cases() -> list[tuple[str, Wish, int]]:
    """Every fault with its wish and where it is hosted."""
    alone = [(fault, wish, 0) for fault, wish in WISHES.items()]
    return alone + [(fault, wish, 1) for fault, wish in IN_WORKERS.items()]


def drawn(count: int, draw: Random) -> Iterator[Trial]:
    """All of them, or as many as asked."""
    yield from each(cases(), trial)(count, draw)


PROMISES = [
    Promise("env", "what an environment does wrong is told, and the run is saved", drawn, 2)
]
