"""The unit of recorded actions: numbers in [-1, 1], or an environment's own (N m, pixels, rad)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recording import Reading, Recording, Stage, pieces, refuse, remark

SCALES = ("auto", "unit", "physical", "extremes", "recorded")
EXACT = 1e-6  # of a bound's range: float32 rounding
STORE = "store the bounds in the file as action_low and action_high"


def in_unit(recording: Recording, reading: Reading) -> Recording:
    """The recording with actions in [-1, 1], in place, whatever unit the file has them in.

    u = (a - (high + low) / 2) / ((high - low) / 2). reading.action_scale says what the file's
    numbers are: "unit": in [-1, 1]. "physical": in the units of the run's environment, or, without
    one, of the bounds action_low and action_high that the file records. "extremes": in units whose
    bounds nothing tells; the smallest and largest of each dimension are taken for them. "recorded":
    what the file says, by action_scale="unit" or by its bounds. "auto": likewise; where it says
    nothing, numbers whose extremes are exactly the environment's bounds are physical, others are in
    [-1, 1]. A remark says which was chosen. Raises Refused for bounds that are not there or no
    ranges.
    """
    about, scale = recording.about, reading.action_scale
    path, count = about["path"], recording.action.shape[1]
    if scale not in SCALES:
        raise refuse(path, f"data.action_scale={scale!r}; there are {', '.join(SCALES)}")
    told, stage = about.get("action_scale"), reading.stage
    written = recorded(about, count)
    if scale == "physical" and told == "unit":
        text = "the file says that its actions are in [-1, 1]; data.action_scale=auto"
        raise refuse(path, text, "action_scale")
    if scale == "extremes" and told != "unit":
        return within(recording, stage)
    if scale == "unit" or told == "unit":
        about["unit"] = "read as in [-1, 1]"
        return recording
    physical = scale == "physical" or (told == "physical" and written is None)
    if physical and stage is not None and len(stage.low) == count:
        return mapped(recording, stage.low, stage.high, f"the bounds of {stage.env_id}")
    if written is not None:
        if stage is not None and len(stage.low) == count and far_apart(written, stage):
            text = f"{stage.env_id} has other bounds than the file records, {text_of(stage)}; "
            text += "data.action_scale=physical keeps what the actions are in its units"
            remark(about, "actions", text)
        return mapped(recording, *written, "the bounds recorded in the file")
    if physical:
        text = f"physical, but nothing tells their bounds; train with env=NAME, or {STORE}"
        raise refuse(path, text, "actions")
    return guessed(recording, reading)


def within(recording: Recording, stage: Stage | None) -> Recording:
    """The recording with actions mapped from their own extremes to [-1, 1], in place.

    A dimension that never changes becomes 0. Raises Refused where an environment would execute them
    within other bounds.
    """
    about, count = recording.about, recording.action.shape[1]
    if stage is not None:
        text = f"{stage.env_id} executes actions within its own bounds, {text_of(stage)}; "
        text += "data.action_scale=physical reads them in its units"
        raise refuse(about["path"], text, "action_scale", "extremes")
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    for _, rows in pieces(recording.action):
        finite = np.where(np.isfinite(rows), rows, np.nan)  # a check names those that are not
        low, high = np.fmin(low, np.fmin.reduce(finite)), np.fmax(high, np.fmax.reduce(finite))
    still = ~(low < high)
    low, high = np.where(still, low - 1, low), np.where(still, high + 1, high)
    return mapped(recording, low, high, f"their extremes, {text_of(Stage('', low, high))},")


def guessed(recording: Recording, reading: Reading) -> Recording:
    """`in_unit` for a file that does not say its unit."""
    about, stage = recording.about, reading.stage
    about["unit"] = "read as in [-1, 1]"
    if stage is None or reading.action_scale != "auto":
        return recording
    if len(stage.low) != recording.action.shape[1]:  # refused elsewhere, by both sizes
        return recording
    differing = (stage.low != -1) | (stage.high != 1)
    if not differing.any():
        return recording
    if reach(recording.action, stage.low, stage.high, differing):
        text = f"their extremes are exactly the bounds of {stage.env_id}, so they are read in its "
        text += "units; data.action_scale=unit if they are not"
        remark(about, "actions", text)
        return mapped(recording, stage.low, stage.high, f"the bounds of {stage.env_id}")
    text = f"the file does not tell their unit: read as in [-1, 1], which {stage.env_id} maps to "
    text += f"{text_of(stage)}; data.action_scale=physical if they are recorded in its units"
    remark(about, "actions", text)
    return recording


def reach(action: NDArray, low: NDArray, high: NDArray, dims: NDArray) -> bool:
    """Whether all actions [S, Da] are within the bounds, and both are reached in one of `dims`."""
    least, most = np.min(action, axis=0), np.max(action, axis=0)
    near = EXACT * (high - low)
    inside = (least >= low - near).all() and (most <= high + near).all()
    at_both = (np.abs(least - low) <= near) & (np.abs(most - high) <= near)
    return bool(inside and (at_both & dims).any())


def mapped(recording: Recording, low: NDArray, high: NDArray, bounds: str) -> Recording:
    """Actions mapped from [low, high] to [-1, 1], in place; `about` keeps what they stand for."""
    recording.about["unit"] = f"mapped from {bounds} to [-1, 1]"
    recording.about.update(action_low=low.tolist(), action_high=high.tolist())
    if (low == -1).all() and (high == 1).all():
        return recording
    centre, half = (high + low) / 2, (high - low) / 2
    for _, rows in pieces(recording.action):
        rows[:] = (rows - centre) / half
    remark(recording.about, "actions", recording.about["unit"])
    return recording


def recorded(about: dict[str, Any], count: int) -> tuple[NDArray, NDArray] | None:
    """action_low and action_high [Da] that the file records, None where it tells none."""
    found = [about.get(key) for key in ("action_low", "action_high")]
    if found[0] is None or found[1] is None:
        return None
    low, high = (np.asarray(value, np.float64).reshape(-1) for value in found)
    if not low.size == high.size == count:
        text = f"{low.size} and {high.size} bounds for {count} action dimensions"
        raise refuse(about["path"], text, "action_low")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        text = f"bounds {low.tolist()} to {high.tolist()} are no finite ranges; mend them"
        raise refuse(about["path"], text, "action_low")
    return low, high


def far_apart(bounds: tuple[NDArray, NDArray], stage: Any) -> bool:
    """Whether bounds are other ones than the environment's, beyond rounding."""
    return not all(np.allclose(*pair) for pair in zip(bounds, stage[1:], strict=True))


def text_of(stage: Any) -> str:
    """Bounds of an environment, for people: one pair where all dimensions have the same."""
    pairs = np.unique(np.stack([stage.low, stage.high], 1).round(6), axis=0)
    return ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)
