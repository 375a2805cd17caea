"""A recording on the CPU that does what a CUDA graph does: the same operations on the same memory.

No Python of the work is run when it is done again, so that whatever the host would have decided,
counted or put elsewhere in the meantime stays as it was recorded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FROM_HOST = ("lift_fresh", "lift_fresh_copy")  # numbers of the host's, which a capture cannot take


class Tape(TorchDispatchMode):
    """While it is entered every operation is done and noted; `play` does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.from_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ in FROM_HOST:
            self.from_host.append(func.overloadpacket.__name__)
        self.calls.append((func, args, kwargs, tensors(out)))
        return out

    @torch.no_grad()
    def play(self) -> None:
        """Everything once more, each result where it lay."""
        for func, args, kwargs, kept in self.calls:
            for mine, new in zip(kept, tensors(func(*args, **kwargs)), strict=True):
                if mine.data_ptr() != new.data_ptr():
                    mine.copy_(new)


def tensors(out: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


class TapeRecorder:
    """Records work on tapes."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.played = 0

    def warm(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        tape = Tape()
        with tape:
            out = work()
        self.tapes.append(tape)

        def again() -> None:
            self.played += 1
            tape.play()

        return out, again
