"""Recordings made worse on purpose: `rheo data corrupt`, material to test a repair on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheo.envs.data.recording import Recording, refuse
from rheo.errors import RheoError

from .config.data import PARTS

SCALE = 0.5  # where none is asked for
REWARD = 30.0  # scales of a reward's noise, of which learners hardly mind little (arXiv:2505.23871)
Noise = Callable[[np.random.Generator, float, tuple[int, ...]], NDArray]
KINDS: dict[str, Noise | None] = {  # None: what is corrupted is lost, and 0 stands in its place
    "uniform": lambda rng, scale, shape: rng.uniform(-scale, scale, shape),
    "gaussian": lambda rng, scale, shape: rng.normal(0.0, scale, shape),
    "missing": None,
}


def tables(recording: Recording) -> dict[str, NDArray]:
    """The numbers [S, D] of the parts of every step, as they lie in the recording: views.

    Of observations their images are left out, and what is observed behind a last step.
    """
    found = dict(recording.tables)
    if recording.reward is not None:
        found["rewards"] = recording.reward[:, None]
    return {part: found[part] for part in PARTS if part in found and found[part].shape[1]}


def named(recording: Recording, parts: Sequence[str]) -> dict[str, NDArray]:
    """Those of some parts. Raises Refused for one that is not there."""
    found = tables(recording)
    for part in parts:
        if part not in found:
            which = "no rewards" if part == "rewards" else "images alone"
            raise refuse(recording.about["path"], f"{which}; --parts names others", part)
    return {part: found[part] for part in parts}


def scale_of(asked: Mapping[str, Any]) -> float | None:
    """The size of the noise, None where there is none. Raises RheoError where one was named."""
    if KINDS[asked["kind"]] is not None:
        return SCALE if asked["scale"] is None else asked["scale"]
    if asked["scale"] is not None:
        raise RheoError(f"scale={asked['scale']:g}: what is missing has no noise; leave it out")
    return None


def corrupt(recording: Recording, asked: Mapping[str, Any]) -> tuple[NDArray, dict[str, Any]]:
    """Corrupts a share of the steps in place: which, [S, P] bool, and what a card says of it.

    Random attacks as in appendix C.1 of arXiv:2505.23871: in the parts that are asked for every
    number x of such a step becomes x + std(x) noise, the deviation being that of all steps, and a
    reward becomes 30 noise. Actions are cut to their box. Raises Refused.
    """
    steps, scale = len(recording.action), scale_of(asked)
    rng = np.random.default_rng(asked["seed"])
    count = round(asked["share"] * steps)
    if not count:
        text = f"--share {asked['share']:g} of {steps:,} steps is none"
        raise refuse(recording.about["path"], text)
    hit = np.sort(rng.permutation(steps)[:count])
    found, cut = named(recording, asked["parts"]), 0
    for part, table in found.items():
        worse = noisy(part, table, hit, asked["kind"], scale, rng)
        if part == "actions":
            cut = int((np.abs(worse) > 1).sum())
            worse = worse.clip(-1, 1)
        table[hit] = worse
    mask = np.zeros((steps, len(found)), bool)
    mask[hit] = True
    told = {key: asked[key] for key in ("kind", "share", "seed")} | {"scale": scale}
    return mask, {**told, "parts": list(found), "steps": steps, "corrupted": count, "cut": cut}


def noisy(
    part: str, table: NDArray, hit: NDArray, kind: str, scale: float | None, rng: Any
) -> NDArray:
    """What stands in the rows `hit` of a part's table [S, D] once they are corrupted."""
    drawn, shape = KINDS[kind], (len(hit), table.shape[1])
    if drawn is None or scale is None:
        return np.zeros(shape)
    noise = drawn(rng, scale, shape)
    if part == "rewards":
        return REWARD * noise
    spread = np.array([column.std(dtype=np.float64) for column in table.T])
    return table[hit] + spread * noise
