"""Recorded chunks with a label of what came of them: computed from the recording, or given."""

import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ranges import Count, Natural
from .batch import Labelled
from .data.recording import Recording
from .datasets import Dataset
from .paths import expanded
from .recorded import fingerprint, following

UNLABELLED = -1  # in a file of labels: the step is left out
log = logging.getLogger("rheo")


@dataclass(eq=False)
class Labels(Dataset):
    """Chunk windows of recorded episodes, each with a label that its outcome earned.

    A label is the part of a number line in which the outcome of a decision lies: below the first of
    `edges` it is 0, from there to the next 1, and so on. Without edges the parts hold equal shares
    of the steps. A file may give labels instead, of steps or of episodes. Steps after whose
    decision nothing is recorded have no label by what is observed, and are left out.

    Args:
        label: Outcome of a decision that is labelled: obs, a column of what is observed next;
            change, that column's change per step; reward, its mean; return, its episode's; file,
            by source.file.
        column: Column of the observation for label=obs and label=change, counted from 0; null with
            the others.
        edges: Rising outcomes that part each label from the next one; null: equal shares of steps.
        labels: Number of labels; as policy.labels.
        file: File (.npy) of whole numbers from 0, one per recorded step or one per episode, for
            label=file; -1: without a label; null with the others.
        execute: Actions of each chunk that are executed before the next decision; as env.execute.
    """

    gives = Labelled  # the kind of its batches

    _: KW_ONLY
    label: Literal["obs", "change", "reward", "return", "file"]
    column: Natural | None
    edges: list[float] | None
    labels: Count
    file: str | None
    execute: Count

    def prepare(self, recording: Recording, first: Tensor, last: Tensor) -> Tensor:
        """Labels every step; which of them have one, [S] bool."""
        self.refuse()
        frames, after = following(recording, last, self.execute)
        if self.label == "file":
            label, usable = self.given(recording)
        else:
            came, usable = self.outcome(recording, frames.numpy(), after.numpy())
            label = self.parted(came, usable)
        counts = np.bincount(label[usable], minlength=self.labels)
        if not counts.all():
            raise ValueError(
                f"data={self.path}: no step has the label {int(counts.argmin())} (label: steps "
                f"{counted(counts)}), so nothing tells what it is; set source.edges, or fewer "
                "policy.labels"
            )
        text = "data=%s: labels by %s, label: steps %s%s"
        rest = f", {(~usable).sum():,} steps without one" if not usable.all() else ""
        log.info(text, self.path, self.label, counted(counts), rest)
        self.target = torch.from_numpy(label).to(self.generator.device)  # [S]
        return torch.from_numpy(usable)

    def refuse(self) -> None:
        """Raises ValueError for keys that do not go together."""
        columns, filed = self.label in ("obs", "change"), self.label == "file"
        for key, value, used in (
            ("column", self.column, columns),
            ("file", self.file, filed),
            ("edges", self.edges, not filed),
        ):
            if value is not None and not used:
                raise ValueError(
                    f"source.{key}={value} with source.label={self.label}: nothing uses it; leave "
                    "it out, or choose another source.label"
                )
        if columns and (self.column is None or self.column >= self.state_dim):
            raise ValueError(
                f"source.column={self.column} with source.label={self.label}: an observation has "
                f"the columns 0 to {self.state_dim - 1}; name one"
            )
        if filed and self.file is None:
            raise ValueError("source.file: has to be set with source.label=file, as labels.npy")
        if self.labels < 2:
            raise ValueError("policy.labels=1: one label tells nothing apart; set 2 or more")
        if self.edges is not None:
            self.refuse_edges(self.edges)

    def refuse_edges(self, edges: Sequence[float]) -> None:
        """Raises ValueError for edges that part another number of labels, or do not rise."""
        if len(edges) != self.labels - 1:
            raise ValueError(
                f"source.edges={list(edges)}: parts {len(edges) + 1} labels; set "
                f"policy.labels={len(edges) + 1} (it is {self.labels})"
            )
        if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
            raise ValueError(f"source.edges={list(edges)}: has to rise from number to number")

    def outcome(
        self, recording: Recording, frames: NDArray, after: NDArray
    ) -> tuple[NDArray, NDArray]:
        """What came of every step [S], and where that is known [S] bool."""
        if self.label in ("obs", "change"):
            known, column = after >= 0, np.asarray(recording.obs[:, self.column])
            came = column[np.maximum(after, 0)]
            if self.label == "change":
                came = (came - column[: len(came)]) / frames
            return came, known
        if recording.reward is None:
            raise ValueError(
                f"data={self.path}: it holds no rewards, which source.label={self.label} is of; "
                "set source.label=obs source.column=N, or label=file source.file=labels.npy"
            )
        reward = np.asarray(recording.reward, np.float64)
        if self.label == "return":
            came = np.add.reduceat(reward, recording.starts).repeat(recording.lengths)
        else:
            total = np.concatenate([[0.0], reward.cumsum()])
            step = np.arange(len(reward))
            came = (total[step + frames] - total[step]) / frames
        return came, np.ones(len(came), bool)

    def parted(self, came: NDArray, usable: NDArray) -> NDArray:
        """The label [S] of outcomes [S]; says where the parts begin, if nobody told."""
        edges = self.edges
        if edges is None:
            shares = np.arange(1, self.labels) / self.labels
            edges = [float(edge) for edge in np.quantile(came[usable], shares)]
            text = "data=%s: labels of equal shares, source.edges=[%s]"
            log.info(text, self.path, ",".join(map(repr, edges)))
        return np.searchsorted(edges, came, side="right")

    def given(self, recording: Recording) -> tuple[NDArray, NDArray]:
        """The labels of the file [S], and which of them are one. Raises ValueError."""
        told = f"source.file={self.file}"
        try:
            label = np.load(expanded(str(self.file)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{told}: cannot be read as .npy: {error}") from error
        steps, episodes = len(recording.action), len(recording.ends)
        shape = getattr(label, "shape", None)
        if shape not in ((steps,), (episodes,)) or label.dtype.kind not in "iu":
            what = "no array" if shape is None else f"{label.dtype} of the shape {list(shape)}"
            raise ValueError(
                f"{told}: holds {what}; data={self.path} asks for whole numbers, one for each of "
                f"its {steps:,} steps or its {episodes:,} episodes"
            )
        label = label.astype(np.int64)
        if shape == (episodes,) and episodes != steps:
            label = label.repeat(recording.lengths)
        low, high = int(label.min()), int(label.max())
        if low < UNLABELLED or high >= self.labels:
            raise ValueError(
                f"{told}: holds numbers from {low} to {high}; labels are 0 to {self.labels - 1} "
                f"(policy.labels={self.labels}), and -1 where there is none"
            )
        before = np.frombuffer(self.digest.encode(), np.uint8)
        self.digest = fingerprint([before, label])  # a run goes on with these labels alone
        return label, label > UNLABELLED

    def rows(self, step: Tensor) -> Labelled:
        """Windows of the steps [B] and their labels."""
        found = self.windows(step)
        return Labelled(found.obs, found.action, self.target[step])


def counted(counts: NDArray) -> str:
    """'0: 12, 1: 30'."""
    return ", ".join(f"{label}: {count:,}" for label, count in enumerate(counts))
