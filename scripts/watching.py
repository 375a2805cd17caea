"""Counts what makes a GPU wait for the host; on tensors that lie on the CPU, what would."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

TAKEN = ("tolist", "cpu", "numpy")  # whole tensors that go to the host
COPIES = ("_to_copy", "copy_")
ASKED = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"),
    "_linalg_check_errors",  # whether a matrix was singular
)
HERE = Path(__file__).resolve()


class Watcher:
    """While it is entered, `reads` names every operation that asks a device for values.

    Those take tensors out (`tolist`, `cpu`, `numpy`, a copy from a GPU to the host), or a number
    (`item`, `bool`, `int`), or have shapes that depend on values (`nonzero`, boolean indices).
    places: the line of ours that each comes from.
    """

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.places: list[str] = []
        self.stack = ExitStack()

    def __enter__(self) -> "Watcher":
        self.stack.enter_context(Taken(self))
        self.stack.enter_context(Asked(self))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def note(self, name: str, since: int | None = None) -> None:
        """One read; in place of those noted since there were so many."""
        since = len(self.reads) if since is None else since
        self.reads[since:], self.places[since:] = [name], [place()]


def place() -> str:
    """The innermost line of the library that is being run, this file's apart."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if HERE.parents[1] in file.parents and file != HERE and ".venv" not in file.parts:
            return f"{file.relative_to(HERE.parents[1])}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the library"


class Taken(TorchFunctionMode):
    """Notes methods of tensors by which they leave torch."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, name = len(self.watcher.reads), getattr(func, "__name__", "")
        out = func(*args, **(kwargs or {}))
        if name in TAKEN:
            self.watcher.note(name, before)  # whatever it does within is one read
        return out


class Asked(TorchDispatchMode):
    """Notes operations whose result, or its shape, is known only when values are."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in ASKED or masked:
            self.watcher.note(name)
        out = func(*args, **(kwargs or {}))
        if name in COPIES and on_host(out) and not all(on_host(each) for each in args):
            self.watcher.note(name)
        return out


def on_host(thing: Any) -> bool:
    """Whether it is no tensor, or one that lies on the CPU."""
    return not isinstance(thing, torch.Tensor) or thing.device.type == "cpu"
