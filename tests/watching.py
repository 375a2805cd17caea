"""Counts what would make a GPU wait for the host, on tensors that lie on the CPU."""

from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TAKEN = ("tolist", "cpu", "numpy")  # whole tensors that go to the host
ASKED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")


class Watcher:
    """While it is entered, `reads` names every operation that asks a device for values.

    Those take tensors out (`tolist`, `cpu`, `numpy`), or a number (`item`, `bool`, `int`), or have
    shapes that depend on values (`nonzero`, boolean indices).
    """

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.stack = ExitStack()

    def __enter__(self) -> "Watcher":
        self.stack.enter_context(Taken(self.reads))
        self.stack.enter_context(Asked(self.reads))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()


class Taken(TorchFunctionMode):
    """Notes methods of tensors by which they leave torch."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in TAKEN:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


class Asked(TorchDispatchMode):
    """Notes operations whose result, or its shape, is known only when values are."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in ASKED or masked:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))
