"""What the finished episodes of a source come to."""

from typing import Any

import torch
from torch import Tensor

from .chunk import ChunkStep


class EpisodeStats:
    """Returns, lengths, successes and costs of finished episodes, averaged when they are drained.

    env/success: share of the episodes that were solved at any of their steps; only where the
    environment says so. env/cost: summed costs of an episode's steps, likewise. device: of the
    environments; theirs are summed there and read when drained.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.returns: list[float] = []
        self.lengths: list[float] = []
        self.solved: list[bool] = []  # as long as the others once the environment reports success
        self.costs: list[float] = []  # as long as the others where steps cost
        self.sums: Tensor | None = None  # [3] episodes, returns and lengths on a device
        if device is not None:
            self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, step: ChunkStep) -> None:
        """Takes the rows of a chunk step that ended."""
        done = step.terminated | step.truncated
        if self.sums is not None:
            returns = torch.where(done, step.episode_return, 0.0).sum()
            lengths = torch.where(done, step.episode_length, 0).sum()
            self.sums += torch.stack([done.sum().double(), returns.double(), lengths.double()])
        elif bool(done.any()):
            self.returns += step.episode_return[done].tolist()
            self.lengths += step.episode_length[done].tolist()
            if step.success_once is not None:
                self.solved += step.success_once[done].tolist()
            if step.episode_cost is not None:
                self.costs += step.episode_cost[done].tolist()

    def drain(self) -> dict[str, float]:
        """Means since the last call; nothing when no episode ended."""
        if self.sums is not None:
            count, *sums = self.sums.tolist()
            self.sums.zero_()
            means = (total / max(count, 1.0) for total in sums)
            names = ("env/return", "env/length", "env/episodes")
            return dict(zip(names, [*means, count], strict=True)) if count else {}
        if not self.returns:
            return {}
        count = len(self.returns)
        means = {
            "env/return": sum(self.returns) / count,
            "env/length": sum(self.lengths) / count,
            "env/episodes": float(count),
        }
        if self.solved:
            means["env/success"] = sum(self.solved) / len(self.solved)
        if self.costs:
            means["env/cost"] = sum(self.costs) / len(self.costs)
        self.returns, self.lengths, self.solved, self.costs = [], [], [], []
        return means

    def state_dict(self) -> dict[str, Any]:
        """Episodes not yet drained."""
        if self.sums is not None:
            return {"sums": self.sums.tolist()}
        state = {"returns": self.returns, "lengths": self.lengths, "solved": self.solved}
        state |= {"costs": self.costs} if self.costs else {}
        return {name: list(values) for name, values in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        if self.sums is not None:
            self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
            return
        self.returns, self.lengths = list(state["returns"]), list(state["lengths"])
        self.solved, self.costs = list(state["solved"]), list(state.get("costs", ()))
