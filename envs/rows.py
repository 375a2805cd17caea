"""Rows of a table that only grows, as a checkpoint takes them: those written once stay written."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Rows:
    """Consecutive rows of an endless table, of which none is ever changed; they may be views.

    parts: the number of a part's first row, and the part [n, W]; each goes on where the one before
    ends. saved: belongs to whoever saves them, who notes there what lies where. It is of this table
    alone: who reads a checkpoint and goes on keeps a copy. lost: how many of the table's rows are
    not here, left out where they were damaged; the others are counted anew, from 0.
    """

    parts: list[tuple[int, Tensor]]
    saved: dict[str, Any] = field(default_factory=dict)
    lost: int = 0

    @property
    def begin(self) -> int:
        """The number of the first row."""
        return self.parts[0][0]

    @property
    def end(self) -> int:
        """The number after that of the last row."""
        first, part = self.parts[-1]
        return first + len(part)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        part = self.parts[0][1]
        return part.shape[1] * part.element_size()

    def take(self, begin: int, end: int) -> Tensor:
        """The rows from `begin` up to `end`."""
        found = [
            part[max(begin - first, 0) : end - first]
            for first, part in self.parts
            if first < end and begin < first + len(part)
        ]
        return found[0] if len(found) == 1 else torch.cat(found or [self.parts[0][1][:0]])

    def __eq__(self, other: object) -> bool:
        """Whether these are the same rows, however they are parted."""
        if not isinstance(other, Rows):
            return NotImplemented
        spans = [(one.begin, one.end, one.width) for one in (self, other)]
        return spans[0] == spans[1] and torch.equal(*(one.take(*one.span) for one in (self, other)))

    @property
    def span(self) -> tuple[int, int]:
        """`begin` and `end`."""
        return self.begin, self.end

    def on_host(self) -> "Rows":
        """A copy in the host's memory, of which nothing is saved."""
        return Rows([(first, part.detach().cpu().clone()) for first, part in self.parts])
