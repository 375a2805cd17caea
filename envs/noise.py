"""Noise of episodes that run side by side, each its own."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AHEAD, NUMBERS = 32, 1 << 12  # draws, and about how many numbers, that a row prepares at a time
TILE = 8  # rows of a batch come in multiples of it


class EpisodeNoise(torch.Generator):
    """The noise of N rows of episodes: what a row is given depends on nothing of the other rows.

    The numbers of a draw follow from the seed, the row, how many episodes the row has begun and how
    often its episode has drawn before; so an episode is the same however many run beside it. Many
    draws of a row are made at once, by a generator of numpy's that is seeded with all of these.

    `rows` are the rows that the next draws are for, one may stand there several times. stream:
    tells two users of one seed apart. first: added to the numbers of the rows, where these are a
    part of more. Whoever draws by torch's own functions instead gets what they make of one
    generator with this seed, shared by all rows.
    """

    def __new__(
        cls, seed: int, count: int, device: str = "cpu", stream: int = 0, first: int = 0
    ) -> "EpisodeNoise":
        return super().__new__(cls, device)  # pyright: ignore[reportCallIssue] - as torch's does

    def __init__(
        self, seed: int, count: int, device: str = "cpu", stream: int = 0, first: int = 0
    ) -> None:
        self.manual_seed(seed)
        self.key, self.count, self.first = (seed, stream), count, first
        self.rows: NDArray = np.arange(count)
        self.episode = np.zeros(count, np.int64)
        self.blocks: dict[tuple[int, int], Block] = {}

    def begin(self, ended: NDArray) -> None:
        """The rows where `ended` [N] is true begin their next episode."""
        self.episode[ended] += 1
        for block in self.blocks.values():
            block.used[ended], block.turn[ended] = block.ahead, 0

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers; the first axis is that of `rows`, or rows times candidates."""
        return self._drawn(0, shape)

    def exponential(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers of the exponential distribution with mean 1; likewise."""
        return self._drawn(1, shape)

    def _drawn(self, kind: int, shape: tuple[int, ...]) -> Tensor:
        width, rest = divmod(math.prod(shape), len(self.rows))
        if rest:
            raise ValueError(f"noise of shape {shape} is not for {len(self.rows)} rows of episodes")
        if (kind, width) not in self.blocks:
            self.blocks[kind, width] = Block(self.count, width)
        block, rows = self.blocks[kind, width], self.rows
        empty = block.used[rows] == block.ahead
        if empty.any():
            for i in np.unique(rows[empty]).tolist():
                block.fill(i, (*self.key, self.first + i, int(self.episode[i]), kind, width))
        values = block.values[rows, block.used[rows]]
        block.used[rows] += 1  # once for a row that stands there several times
        return torch.from_numpy(values.reshape(shape))


class Block:
    """Draws of `width` numbers that rows have prepared, [N, ahead, width]."""

    def __init__(self, count: int, width: int) -> None:
        self.ahead = min(max(NUMBERS // width, 1), AHEAD)
        self.values = np.empty((count, self.ahead, width), np.float32)
        self.used = np.full(count, self.ahead)  # of each row's draws
        self.turn = np.zeros(count, np.int64)  # how often it has prepared some in its episode

    def fill(self, row: int, key: tuple[int, ...]) -> None:
        """A row's next draws."""
        seeds = np.random.SeedSequence((*key, int(self.turn[row])))
        generator = np.random.Generator(np.random.PCG64(seeds))
        normal = key[-2] == 0
        draw = generator.standard_normal if normal else generator.standard_exponential
        draw(dtype=np.float32, out=self.values[row])
        self.used[row], self.turn[row] = 0, self.turn[row] + 1


def filled(rows: NDArray, tile: int = TILE) -> NDArray:
    """Rows repeated up to a whole number of tiles.

    The last bits of a matrix product depend on how many rows it has: kernels treat whole tiles in
    one way and what is left over in another. Whole tiles alone keep a row's bits what they are
    beside more rows or fewer.
    """
    return np.resize(rows, -(-len(rows) // tile) * tile)
