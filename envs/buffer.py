"""Where transitions are kept."""

from typing import Any

import torch
from torch import Tensor

from .batch import Batch
from .rows import Rows


class Buffer:
    """Ring of transitions, one packed row each, so that a batch is a single gather.

    A row is obs | action | next_obs | reward | discount | memo in float32, a memo of M rows of
    actions, and the cost where there are `costs`; memory is 4 capacity (2 O + (T + M) Da + 2)
    bytes, or 4 capacity more, and is touched only as it fills.
    Raises ValueError when the machine refuses that much.
    """

    def __init__(
        self,
        capacity: int,
        obs_size: int,
        horizon: int,
        action_dim: int,
        device: str,
        memo_rows: int = 0,
        costs: bool = False,
    ) -> None:
        self.capacity, self.horizon, self.action_dim = capacity, horizon, action_dim
        self.memo_rows, self.costs = memo_rows, costs
        self.splits = [obs_size, horizon * action_dim, obs_size, 1, 1, memo_rows * action_dim]
        self.splits += [1] * costs
        width = sum(self.splits)
        try:
            self.rows = torch.empty(capacity, width, device=device)
        except RuntimeError as error:  # torch has no MemoryError
            size = 4 * capacity * width / 2**30
            raise ValueError(
                f"source.capacity={capacity} needs {size:.1f} GiB on {device}, more than there is; "
                "lower it"
            ) from error
        self.size = self.cursor = 0
        self.added = 0  # rows since the beginning
        self.saved: dict[str, Any] = {}  # see Rows

    def add(self, batch: Batch, valid: Tensor, sound: int | None = None) -> None:
        """Appends the valid rows of a batch, overwriting the oldest when full.

        sound: how many they are, where that is known; else the device is asked.
        """
        columns = [batch.obs, batch.action.flatten(1), batch.next_obs]
        columns += [batch.reward[:, None], batch.discount[:, None]]
        if batch.memo is not None:
            columns.append(batch.memo.flatten(1))
        if self.costs:
            assert batch.cost is not None
            columns.append(batch.cost[:, None])
        packed = torch.cat(columns, 1).to(self.rows.device)
        count = int(valid.sum()) if sound is None else sound
        if count < len(packed):  # the valid ones first, in their order
            order = (~valid).to(torch.uint8).argsort(stable=True)
            packed = packed.index_select(0, order[:count].to(packed.device))
        if count > self.capacity:
            raise ValueError(f"{count} rows at once do not fit a buffer of {self.capacity}")
        head = min(count, self.capacity - self.cursor)
        self.rows[self.cursor : self.cursor + head] = packed[:head]
        self.rows[: count - head] = packed[head:]
        self.cursor = (self.cursor + count) % self.capacity
        self.size = min(self.size + count, self.capacity)
        self.added += count

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """`count` transitions drawn uniformly with replacement."""
        index = torch.randint(self.size, (count,), generator=generator, device=generator.device)
        rows = self.rows.index_select(0, index.to(self.rows.device))
        obs, action, next_obs, reward, discount, memo, *cost = rows.split(self.splits, 1)
        action = action.unflatten(1, (self.horizon, self.action_dim))
        kept = memo.unflatten(1, (self.memo_rows, self.action_dim)) if self.memo_rows else None
        paid = cost[0][:, 0] if cost else None
        return Batch(obs, action, reward[:, 0], discount[:, 0], next_obs, paid, kept)

    def state_dict(self) -> dict[str, Any]:
        """The filled rows, by when they came, and the ring's position."""
        begin, start = self.added - self.size, self.cursor - self.size
        parts = [(begin, self.rows[start : self.cursor])]
        if start < 0:  # the older ones lie behind the younger
            old, young = self.rows[start + self.capacity :], self.rows[: self.cursor]
            parts = [(begin, old), (begin + len(old), young)]
        return {
            "rows": Rows(parts, self.saved),
            "size": self.size,
            "cursor": self.cursor,
            "capacity": self.capacity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, but for rows that were left out (`Rows.lost`).

        Raises ValueError when the layout is another.
        """
        rows, size, cursor = state["rows"], state["size"], state["cursor"]
        if isinstance(rows, Tensor):  # as they lie in the ring: of earlier versions
            full = size == state["capacity"]
            old, young = (rows[cursor:], rows[:cursor]) if full else (rows, rows[:0])
            rows, added = Rows([(0, old), (len(old), young)]), size + cursor * full
        else:
            added, size = rows.end, size - rows.lost
            cursor = added if rows.lost else cursor  # a ring with a gap is one that is not yet full
        mine, saved = tuple(self.rows.shape), (state["capacity"], rows.parts[0][1].shape[1])
        if saved != mine:
            raise ValueError(f"a saved buffer of [rows, numbers] = {saved} does not fit {mine}")
        if (rows.end - rows.begin, added % self.capacity) != (size, cursor):
            raise ValueError(f"a saved buffer of {size} rows up to {cursor} has others")
        self.added, self.size, self.cursor = added, size, cursor
        self.saved = dict(rows.saved)
        for first, part in rows.parts:
            place = (added - rows.end + first) % self.capacity
            head = min(len(part), self.capacity - place)
            self.rows[place : place + head] = part[:head].to(self.rows.device)
            self.rows[: len(part) - head] = part[head:].to(self.rows.device)
