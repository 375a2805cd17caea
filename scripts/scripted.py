"""`rheo collect set=scripted`: demonstrations by a script that solves the task."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from rheo.envs.data.demos import Demo, env_args_of, write_demos
from rheo.envs.data.recording import Refused
from rheo.envs.data.writing import write
from rheo.envs.demonstrations import Demonstrations, recording_of
from rheo.envs.paths import expanded, layout_of
from rheo.errors import MACHINE, REQUEUE, RheoError
from rheo.files import atomically, put_text, sha256

from .config.compose import allow_typed, compose
from .config.verbs import Collecting
from .stopping import Stop
from .store.provenance import versions


class Tally:
    """Demonstrations on their way, whose lengths and returns are noted."""

    def __init__(self, demos: Iterable[Demo]) -> None:
        self.demos = demos
        self.lengths: list[int] = []
        self.returns: list[float] = []

    def __iter__(self) -> Any:
        for demo in self.demos:
            self.lengths.append(len(demo.action))
            self.returns.append(float(np.sum(cast(Any, demo.reward))))
            yield demo


def main(asked: Collecting, stop: Stop) -> int:
    """Plays the script and writes what it does, with a card.

    What was played before the environment failed, the script was given up or a signal asked to stop
    is kept; then RheoError says what happened.
    """
    words = [f"env={asked.env}", *asked.words]
    allow_typed(words)
    node = compose(["algo=sac", *words, *asked.flagged])["env"]
    demos = Demonstrations(
        node["id"],
        node["options"],
        episodes=asked.episodes or 1,
        noise=asked.noise,
        keep=cast(Any, asked.keep),
        past=asked.past,
        seed=asked.seed,
        halt=stop.why,
    )
    out, tally = expanded(asked.out), Tally(demos)
    try:
        put(tally, demos, out, layout_of(out, asked.layout))
    finally:
        demos.close()
    finish(out, demos, tally, asked)
    return 0


def put(tally: Tally, demos: Demonstrations, out: Path, layout: str) -> None:
    """Writes the demonstrations as they come; of other layouts than robomimic's, at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    about = demos.about()
    if layout == "robomimic":
        args, keys = env_args_of(about), {"obs_keys": about["obs_keys"]}
        try:
            atomically(out, lambda part: write_demos(part, tally, args, keys))
        except Refused:
            raise nothing(demos) from None
        return
    held = list(tally)
    if not held:
        raise nothing(demos)
    write(recording_of(held, about), out, layout=layout)


def nothing(demos: Demonstrations) -> RheoError:
    """The error where not one demonstration came about."""
    text = f"no demonstration in {demos.attempts} attempts; nothing is written"
    return RheoError(f"{demos.broken}: {text}", REQUEUE if demos.halt() else MACHINE)


def finish(out: Path, demos: Demonstrations, tally: Tally, asked: Collecting) -> None:
    """Writes the card and says what there is. Raises RheoError where it ended early."""
    steps = sum(tally.lengths)
    card = {
        "file": out.name,
        "sha256": sha256(out),
        "env_id": demos.id,
        "set": asked.set,
        "seed": asked.seed,
        "noise": asked.noise,
        "keep": asked.keep,
        "past": None if math.isinf(demos.past) else demos.past,  # null: all that there were
        **{"attempts": demos.attempts, "successes": demos.successes, "episodes": demos.kept},
        **{"steps": steps, "return_mean": float(np.mean(tally.returns))},
        "obs_keys": list(demos.observed),
        "stopped": demos.broken,
        "versions": versions(),
    }
    put_text(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1) + "\n")
    share = 100 * demos.successes / max(demos.attempts, 1)
    text = f"{demos.kept} demonstrations of {demos.attempts} attempts ({demos.successes} solved, "
    text += f"{share:.0f} %; {demos.attempts - demos.kept} discarded), {steps} steps"
    print(f"{out}: {demos.id}, {text}, noise {asked.noise:g}; card {out.name}.card.json")
    if demos.broken is not None:
        text = f"{demos.kept} of {asked.episodes} demonstrations were collected until then"
        code = REQUEUE if demos.halt() else MACHINE
        raise RheoError(f"{demos.broken}: {text} and are in {out}", code)
