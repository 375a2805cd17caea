"""Paired measurements and the rows of the speed table.

Sides that are compared alternate within one process, so that whatever else the machine does slows
all of them alike; a ratio is taken within each repetition, and its median and range are shown.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from .fast import medium_is_exact, with_precision

WIDTH = 256  # of the networks and so of the products that limit them
Clock = Callable[[], float]
SENSES = {">=": operator.ge, "<=": operator.le}


class Plan(NamedTuple):
    """How long to measure, and which speed mode the updates run in."""

    repeats: int = 7
    seconds: float = 0.25  # of every side in every repetition; 0: one block of calls, not warmed up
    quick: bool = False
    fast: str | None = None  # None: what each configuration ships
    numbers: str = "float32"  # the precision of updates
    device: str = "cpu"  # of environments and networks that are measured on one
    worlds: tuple[int, ...] = ()  # how many there; none: a few usual numbers


class Goal(NamedTuple):
    """What a field of a row should reach: field "ours", "ratio" or "share", sense >= or <=."""

    field: str
    sense: str
    value: float

    def __str__(self) -> str:
        text = f"{self.value:.0%}" if self.field == "share" else f"{self.value:g}"
        return f"{self.sense} {text}" + "x" * (self.field == "ratio")


@dataclass(frozen=True)
class Row:
    """One measurement. ours and other are in `unit`; reached and limit in `limit_unit`."""

    name: str
    unit: str
    ours: float
    versus: str = ""  # what the other side is
    other: float | None = None
    ratio: float | None = None
    low: float | None = None  # range of the ratio over the repetitions
    high: float | None = None
    goals: tuple[Goal, ...] = ()
    limit_unit: str = ""
    reached: float | None = None
    limit: float | None = None
    share: float | None = None

    def met(self) -> bool | None:
        """Whether every goal is met; None without a goal."""
        found = [(SENSES[goal.sense], getattr(self, goal.field), goal.value) for goal in self.goals]
        return all(sense(value, bound) for sense, value, bound in found) if found else None

    def flat(self) -> dict[str, Any]:
        """The row for a file."""
        values = {name: value for name, value in vars(self).items() if name != "goals"}
        texts = [f"{goal.field} {goal.sense} {goal.value:g}" for goal in self.goals]
        return values | {"goal": "; ".join(texts), "met": self.met()}


def alternate(
    plan: Plan,
    sides: Mapping[str, Callable[[], object]],
    block: int = 1,
    cpu: bool = False,
    device: str = "cpu",
) -> dict[str, NDArray]:
    """Seconds per call of each side, [repeats]; the order turns around every repetition.

    Calls come in multiples of `block`, for sides whose calls do different work in turn. `cpu`
    counts the process's own time, for sides that keep one thread busy and wait for nothing: it
    is wall time, less what other processes took of the core. device: whose work is waited for at
    both ends of a span.
    """
    clock = process_time if cpu else clock_of(device)
    counts = {name: block * calls(side, plan.seconds, block, clock) for name, side in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(plan.repeats):
        for name in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            times[name].append(span(sides[name], counts[name], clock) / counts[name])
    return {name: np.array(values) for name, values in times.items()}


def clock_of(device: str) -> Clock:
    """The time at which everything that a device was given is done."""
    if not device.startswith("cuda"):
        return perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return perf_counter()

    return clock


def calls(side: Callable[[], object], seconds: float, block: int, clock: Clock) -> int:
    """Blocks of calls that fill the time, found after a warm-up (compilation, first touch)."""
    if seconds == 0:
        return 1
    span(side, block, clock)
    count = 1
    while (taken := span(side, count * block, clock)) < seconds / 4:
        count = max(2 * count, int(count * seconds / 4 / max(taken, 1e-9)))
    return max(round(count * seconds / taken), 1) if taken > 0 else 1


def span(side: Callable[[], object], count: int, clock: Clock) -> float:
    """Seconds of `count` calls."""
    start = clock()
    for _ in range(count):
        side()
    return clock() - start


def faster(row: Row, times: Mapping[str, NDArray], other: str, per: float = 1.0) -> Row:
    """The row with rates (`per` a call) of both sides; ratio above 1: ours is faster."""
    row = replace(row, ours=rate(times["ours"], per), versus=other, other=rate(times[other], per))
    return with_ratio(row, times[other] / times["ours"])


def shorter(row: Row, times: Mapping[str, NDArray], other: str, unit: float = 1e6) -> Row:
    """The row with times of both sides (microseconds); ratio below 1: ours is faster."""
    ours, theirs = (float(np.median(times[name])) * unit for name in ("ours", other))
    row = replace(row, ours=ours, versus=other, other=theirs)
    return with_ratio(row, times["ours"] / times[other])


def with_ratio(row: Row, ratios: NDArray) -> Row:
    """The row with the ratio of every repetition."""
    low, middle, high = (float(f(ratios)) for f in (np.min, np.median, np.max))
    return replace(row, ratio=middle, low=low, high=high)


def against_limit(
    row: Row, times: Mapping[str, NDArray], unit: str, work: float, limit_work: float
) -> Row:
    """The row with its share of the rate of the side "limit"; both works in `unit`s a call."""
    share = float(np.median(work / times["ours"] * times["limit"] / limit_work))
    reached, limit = rate(times["ours"], work), rate(times["limit"], limit_work)
    return replace(row, limit_unit=unit, reached=reached, limit=limit, share=share)


def rate(times: NDArray, work: float) -> float:
    """Median work per second."""
    return float(np.median(work / times))


def products(rows: int, fast_ones: bool) -> tuple[Callable[[], object], float]:
    """Products [rows, 256] x [256, 256] in f32 as the limit, and their GFLOP a call."""
    a, b, out = torch.randn(rows, WIDTH), torch.randn(WIDTH, WIDTH), torch.empty(rows, WIDTH)
    work = 8 * 2e-9 * rows * WIDTH**2

    def run() -> None:
        for _ in range(8):
            torch.mm(a, b, out=out)

    chosen = fast_ones and medium_is_exact()
    return (with_precision(run, "medium") if chosen else run), work


def gigaflop(side: Callable[[], object], count: int = 1) -> float:
    """Useful work of a call, matrix products only, averaged over `count` calls."""
    with FlopCounterMode(display=False) as counter:
        for _ in range(count):
            side()
    return counter.get_total_flops() / count / 1e9
