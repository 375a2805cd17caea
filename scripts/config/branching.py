"""What `rheo collect branches` was asked: words read before torch is imported."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from rheo.envs.paths import expanded
from rheo.errors import RheoError, nearest

from ..store.where import existing
from .top import FREE, OPTIONS, PLACES, changes, elsewhere
from .words import Option, count, divide, natural, one_of, one_run, values

WORD = "branches"
CREW = ("env.workers", "env.step_timeout", "env.restarts")  # of environments in processes
DEPLOYED, EXPLORED = "deployed", "explored"
USAGE = """\
usage: rheo collect branches RUN out=PAIRS.npz [states=200] [width=4] [steps=300]
                    [act=deployed|explored] [seed=0] [num_envs=20]
                    [env=NAME] [env.id=ID] [env.options.KEY=VALUE] [env.execute=N]
                    [policy.deploy_scale=1] [policy.eta=1] [algo.deploy_KEY=VALUE] [device=cpu]
       states   met by the run's policy in whole episodes (num_envs side by side), drawn evenly
       width    chunks that are drawn at each of them, and executed from the same saved state
       steps    that the policy goes on after a chunk's executed steps; no value is added behind
       act      how it acts: as it is deployed and evaluated, or as it explores in training
The file holds what every chunk came to (discounted return) and the best and worst of each state."""


class Branching(NamedTuple):
    """What `rheo collect branches` was asked."""

    name: str  # of the run
    flagged: list[str]
    changed: list[str]  # values of the run that are other ones here
    world: list[str]  # words of another environment
    out: str
    states: int
    width: int
    steps: int
    act: str
    seed: int
    num_envs: int


BRANCHING = {
    **{"out": Option(None), "states": Option(200, count), "steps": Option(300, natural)},
    "width": Option(4, partial(count, least=2)),
    "act": Option(DEPLOYED, one_of(DEPLOYED, EXPLORED)),
    **{"seed": Option(0, natural), "num_envs": Option(20, count)},
}


def branches(argv: Sequence[str]) -> Branching:
    """The words behind `rheo collect branches`. Raises RheoError naming the bad one."""
    words = divide(argv, (*OPTIONS, *BRANCHING))
    name = one_run(words, USAGE)
    existing(name)
    sorted_: dict[str, list[str]] = {"changed": [], "world": [], "own": []}
    for word in words.options:
        key = word.partition("=")[0]
        if key in CREW:
            raise RheoError(f"{word}: branches are stepped in this process; leave it out")
        kind = "changed" if changes(key) else "world" if elsewhere(key) else "own"
        if kind == "own" and key not in BRANCHING:
            known = nearest(key, {*BRANCHING, *PLACES, *FREE, "env", "env.id"} - {*CREW})
            raise RheoError(f"unknown option {key!r}{known}; the run's own values are used")
        sorted_[kind].append(word)
    found: dict[str, Any] = values(sorted_["own"], BRANCHING, f"\n{USAGE}")
    if found["out"] is None:
        raise RheoError(f"out=FILE has to be given\n{USAGE}")
    out = expanded(found["out"])
    if out.suffix != ".npz":
        raise RheoError(f"out={out}: pairs are written to a .npz")
    if out.exists():
        raise RheoError(f"out={out}: exists; choose another name")
    return Branching(name, words.flagged, sorted_["changed"], sorted_["world"], **found)
