"""Learning rates of a running algorithm, all at once."""

from collections.abc import Iterator
from typing import Any

from torch import nn, optim

from .store.state import optimizers


def slow(algo: Any, factor: float, *, groups: bool = True) -> None:
    """Multiplies an algorithm's learning rates: its settings, from which schedules set those of
    optimisers, and these themselves. groups=False: they have come from a checkpoint, slowed.
    """
    if factor == 1.0:
        return
    for holder in holders(algo):
        for name, value in vars(holder).items():
            if isinstance(value, float) and (name == "lr" or name.endswith("_lr")):
                setattr(holder, name, value * factor)
    for _, optimizer in optimizers(algo) if groups else ():
        for group in optimizer.param_groups:
            group["lr"] *= factor  # in place where it is a tensor


def holders(algo: Any) -> Iterator[Any]:
    """An algorithm and what groups some of its settings."""
    yield algo
    for part in vars(algo).values():
        if hasattr(part, "__dict__") and not isinstance(part, nn.Module | optim.Optimizer):
            yield part
