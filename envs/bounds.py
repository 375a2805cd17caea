"""What an environment declares of its observations, and what is said of one that lies beyond.

One rule for all backends: it is told once, with the number and the bound, and goes on, since the
declaration may be what is wrong. A device remembers the extremes that it has met, and is asked for
them where its counters are read anyway.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .guard import once

SLACK = 1e-2  # of a bound: what an observation may lie beyond it by rounding and by habit


class Declared:
    """The bounds [Do] of an observation space; `low` and `high` have the slack in them."""

    def __init__(self, env_id: str, space: Any) -> None:
        self.id, self.space = env_id, space
        slack = SLACK * np.maximum(np.abs([space.low, space.high]), 1.0).astype(np.float64)
        self.low, self.high = space.low - slack[0], space.high + slack[1]
        self.silent = not np.isfinite(
            [self.low, self.high]
        ).any()  # nothing is declared, or all said

    def beyond(self, obs: NDArray) -> tuple[int, int] | None:
        """Row and number of the first of observations [N, Do] that lies outside."""
        outside = (obs < self.low) | (obs > self.high)
        if not np.count_nonzero(outside):
            return None
        return int(np.nonzero(outside)[0][0]), int(np.nonzero(outside)[1][0])

    def tell(self, place: str, number: int, value: float) -> None:
        """Says it, once."""
        low, high = self.space.low[number], self.space.high[number]
        once(
            (self.id, "bounds"),
            f"{place}: number {number} of the observation is {value:g}, but its observation_space "
            f"says {low:g} to {high:g}; one of them is wrong",
        )
        self.silent = True


class Extremes:
    """The least and the largest of every number of observations on a device, without reading it."""

    def __init__(self, declared: Declared, device: torch.device) -> None:
        self.declared = declared
        bounds = np.stack([declared.low, declared.high])
        self.bounds = torch.as_tensor(bounds, dtype=torch.float32, device=device)
        self.met = torch.zeros_like(self.bounds).clamp_(self.bounds[0], self.bounds[1])

    def note(self, obs: Tensor, sound: Tensor) -> None:
        """Observations [N, Do], of which the rows `sound` [N] count."""
        seen = torch.where(sound[:, None], obs, self.met[0])
        torch.minimum(self.met[0], seen.amin(0), out=self.met[0])
        seen = torch.where(sound[:, None], obs, self.met[1])
        torch.maximum(self.met[1], seen.amax(0), out=self.met[1])

    def outside(self) -> Tensor:
        """How many numbers have been outside, 0-d on the device."""
        return ((self.met[0] < self.bounds[0]) | (self.met[1] > self.bounds[1])).sum()

    def tell(self) -> None:
        """Says the first of them; reads the device."""
        (low, high), declared = self.met.cpu().numpy(), self.declared
        found = declared.beyond(np.stack([low, high]))
        if found is not None:
            row, number = found
            place = f"{declared.id}, one of the environments"
            declared.tell(place, number, float((low, high)[row][number]))
