"""bfloat16 within networks (`precision=bf16`), put on from outside; which layers are in it.

Inside `bfloat16` the hidden layers of networks multiply numbers of bfloat16, three digits, and add
up in float32. Weights and their gradients, last layers, statistics and all that lies between
networks stay float32: a value of hundreds would else be known to a unit.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Layers = TypeVar("Layers", bound=Callable[..., Any])
_devices: list[str] = []  # the kind of each context that was entered and not left


class bfloat16:
    """Context in which the hidden layers of networks on a device are in bfloat16."""

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type

    def __enter__(self) -> None:
        _devices.append(self.kind)

    def __exit__(self, *exc: object) -> None:
        _devices.pop()


def narrowed() -> bool:
    """Whether networks are in bfloat16."""
    return bool(_devices)


def hidden(layers: Layers) -> Layers:
    """A network's layers up to its last one: inside `bfloat16` in that, and float32 behind.

    Casts of weights are not kept for the next call, before which a step may have moved them.
    """

    @functools.wraps(layers)
    def chosen(*args: Any) -> Any:
        if not _devices:
            return layers(*args)
        with torch.autocast(_devices[-1], torch.bfloat16, cache_enabled=False):
            return layers(*args).float()

    return chosen  # type: ignore[return-value]
