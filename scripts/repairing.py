"""Corrupted recordings made better: `rheo data repair` (ADG, arXiv:2505.23871)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheo.algos import recovery
from rheo.algos.recovery import LEVELS, Slices
from rheo.envs.data.recording import Recording
from rheo.errors import NUMERICS, REQUEUE, RheoError
from rheo.policies.flow import FlowPolicy

from .corrupting import named, tables
from .stopping import Stop

POWER = 1 / 6  # of a score, after which those of a kind lie about as a normal distribution does
APART = 2.3  # Ashman's D above which there are two groups: of clean demonstrations some reach 2.2
MOST = 0.6  # share of the steps above which the upper group is what is usual, not what is wrong
POINTS, ROUNDS = 2001, 200  # quantiles that stand for all scores, and rounds of the fit to them
KINDS: dict[str, Literal["eps", "a"]] = {"detector": "eps", "denoiser": "a"}  # what they predict
TOLD = 10.0  # seconds between two lines
log = logging.getLogger("rheo")


class Groups(NamedTuple):
    """Two groups of scores: how far they lie apart (Ashman's D), and where the upper one begins."""

    apart: float
    limit: float


class Steps(NamedTuple):
    """All numbers of every step side by side, between the least and the largest of their kind."""

    rows: Tensor  # [S, M] in [-1, 1]
    middle: NDArray  # [M]
    half: NDArray  # [M] half of the range; 1 where there is none
    widths: dict[str, int]  # numbers of each part, in order

    def divided(self, array: NDArray) -> dict[str, NDArray]:
        """What is told of all numbers, [S, M], by parts."""
        places = np.cumsum(list(self.widths.values()))[:-1]
        return dict(zip(self.widths, np.split(array, places, 1), strict=True))

    def flags(self, mask: Mapping[str, NDArray]) -> Tensor:
        """Which numbers are flagged, [S, M], where parts of steps are, [S] each."""
        none = np.zeros(len(self.rows), bool)
        whole = np.stack([mask.get(part, none) for part in self.widths], 1)
        return torch.as_tensor(np.repeat(whole, list(self.widths.values()), 1))


def side_by_side(recording: Recording) -> Steps:
    """The steps of a recording: state and action, and the reward where there is one."""
    found = tables(recording)
    whole = np.concatenate(list(found.values()), 1)
    low, high = whole.min(0).astype(np.float64), whole.max(0).astype(np.float64)
    middle, half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
    rows = torch.as_tensor(((whole - middle) / half).astype(np.float32))
    return Steps(rows, middle, half, {part: table.shape[1] for part, table in found.items()})


def cut(recording: Recording, rows: Tensor, half: int) -> Slices:
    """The slices of a recording's episodes."""
    lengths = recording.lengths
    first, after = (
        torch.as_tensor(np.repeat(x, lengths)) for x in (recording.starts, recording.ends)
    )
    return Slices(rows, first, after, half)


def two_groups(scores: NDArray) -> Groups | None:
    """Two normal distributions in the sixth roots of scores [S]; None where there are not two.

    Nor where the upper one holds the most of them: what is usual is not what is wrong. Fitted by
    expectation and maximisation to quantiles, so that many scores take no longer than few. A score
    belongs to the upper group from where its density there is the larger one.
    """
    x = np.quantile(np.maximum(scores, 0.0), np.linspace(0, 1, POINTS)) ** POWER
    if not x[-1] > x[0]:
        return None
    middle, spread = np.quantile(x, [0.25, 0.9]), np.full(2, x.std() / 2)
    weight, least = np.array([0.7, 0.3]), 1e-3 * x.std()
    for _ in range(ROUNDS):
        share = belonging(x, weight, middle, spread)
        count = share.sum(0).clip(1e-9)
        weight, middle = count / len(x), (share * x[:, None]).sum(0) / count
        spread = np.sqrt((share * (x[:, None] - middle) ** 2).sum(0) / count).clip(least)
    low, high = np.argsort(middle)
    apart = float((middle[high] - middle[low]) / np.sqrt(np.square(spread).mean()))
    between = np.linspace(middle[low], middle[high], POINTS)
    upper = belonging(between, weight, middle, spread)[:, high] > 0.5
    limit = between[upper.argmax()]
    if apart <= APART or not upper.any() or (x > limit).mean() > MOST:
        return None
    return Groups(apart, float(limit ** (1 / POWER)))


def belonging(x: NDArray, weight: NDArray, middle: NDArray, spread: NDArray) -> NDArray:
    """The probability of each of two groups, [N, 2], where a number [N] is known."""
    density = np.log(weight) - np.log(spread) - ((x[:, None] - middle) / spread) ** 2 / 2
    density = np.exp(density - density.max(1, keepdims=True))
    return density / density.sum(1, keepdims=True)


def flagged(scores: NDArray, share: float | None) -> tuple[NDArray, dict[str, Any]]:
    """Which of a part's scores [S] are too large, [S] bool, and by what rule."""
    if share is not None:
        mask = np.zeros(len(scores), bool)
        mask[np.argsort(-scores, kind="stable")[: round(share * len(scores))]] = True
        return mask, {"share": share}
    groups = two_groups(scores)
    if groups is None:
        return np.zeros(len(scores), bool), {"apart": None}
    return scores > groups.limit, groups._asdict()


@dataclass
class Repair:
    """A repair of a recording; `mask`, `scores` and `card` tell what it found.

    All parts of a step are looked at; those of `asked["parts"]` are flagged and repaired. Raises
    Refused for parts that are not there, and RheoError where a signal stops it or a network
    breaks.
    """

    recording: Recording
    asked: Mapping[str, Any]
    stop: Stop
    losses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.asked
        self.parts = named(self.recording, asked["parts"])
        self.steps = side_by_side(self.recording)
        self.slices = cut(self.recording, self.steps.rows, asked["half"])
        self.level = max(1, round(asked["level"] * LEVELS))
        self.generator = torch.Generator().manual_seed(asked["seed"])

    def go(self) -> None:
        """Detects and repairs, in the recording's own arrays."""
        torch.manual_seed(self.asked["seed"])  # of the weights
        detector = self.learnt("detector", (self.level, LEVELS))
        noise = recovery.predicted(detector, self.slices, self.level).square().numpy()
        by_part = self.steps.divided(noise)
        self.scores = np.stack([by_part[part].mean(1) for part in self.parts], 1)
        found = [flagged(scores, self.asked["share"]) for scores in self.scores.T]
        self.mask = np.stack([mask for mask, _ in found], 1)
        told = dict(zip(self.parts, (rule for _, rule in found), strict=True))
        changed = self.mended() if self.mask.any() else {}
        for index, (part, rule) in enumerate(told.items()):
            rule |= {"flagged": int(self.mask[:, index].sum()), "changed": changed.get(part, 0)}
        own = {key: self.asked[key] for key in ("half", "level", "updates", "seed")}
        self.card = {"steps": len(noise), "parts": told, **own, "losses": self.losses}

    def learnt(
        self, name: str, levels: tuple[int, int], trusted: Tensor | None = None
    ) -> FlowPolicy:
        """A trained network. Says every few seconds how far it is."""
        policy = recovery.field(self.steps.rows, self.asked["half"], KINDS[name])
        total, last, told = self.asked["updates"], torch.nan, monotonic()
        how = self.slices, levels, total, self.generator, trusted
        for count, loss in enumerate(recovery.fit(policy, *how), 1):
            if self.stop:
                raise RheoError(f"{self.stop.why()}; nothing is written", REQUEUE)
            if count < total and monotonic() - told < TOLD:
                continue
            last, told = float(loss), monotonic()
            if not np.isfinite(last):
                text = f"the {name}'s loss is {last} after {count:,} updates; nothing is written"
                raise RheoError(text, NUMERICS)
            log.info("%s: update %s of %s, loss %.3f", name, f"{count:,}", f"{total:,}", last)
        self.losses[name] = last
        return policy

    def mended(self) -> dict[str, int]:
        """Puts other numbers where parts are flagged; how many numbers became others, by parts."""
        masks = dict(zip(self.parts, self.mask.T, strict=True))
        flags = self.steps.flags(masks)
        denoiser = self.learnt("denoiser", (1, self.level), ~flags)
        rows = recovery.repaired(denoiser, self.slices, flags, self.level)
        better = self.steps.divided(rows.double().numpy() * self.steps.half + self.steps.middle)
        changed = {}
        for part, table in self.parts.items():
            old = table[masks[part]]
            table[masks[part]] = better[part][masks[part]]
            changed[part] = int((table[masks[part]] != old).sum())
        return changed


def lines(card: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """What a repair did, a line a part."""
    return [line(part, card["parts"][part], card["steps"]) for part in parts]


def line(part: str, told: Mapping[str, Any], steps: int) -> str:
    """What was done with a part."""
    if "share" not in told and told["apart"] is None:
        text = "the predicted noise does not single out some of the steps, so nothing is flagged"
        return f"{part}: {text} (--share flags a share)"
    share = 100 * told["flagged"] / steps
    text = f"{part}: {told['flagged']:,} of {steps:,} steps are flagged ({share:.1f} %), "
    return text + f"{told['changed']:,} numbers are changed"
