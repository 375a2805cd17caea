"""Counts what would make a GPU wait for the host, on tensors that lie on the CPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique2")


class Watcher(TorchDispatchMode):
    """While it is entered, `reads` names every operation that asks for a tensor's values.

    Those are numbers taken out (`item`, `bool`, `tolist` of a scalar) and shapes that depend on
    values (`nonzero`, boolean indices). A whole tensor that goes to the host (`numpy`) is seen as
    such only where it is on a device, so `cpu` of one counts once and views of it do not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in ASKS or masked:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))
