"""One episode of a file that keeps episodes apart: what keeps it from being read."""

from collections.abc import Iterator, Mapping

from numpy.typing import NDArray

from .recording import Fault
from .trees import NUMBERS, Header

LEAVE_OUT = "data.on_bad=drop leaves it out"


def misfits(
    index: int,
    name: str,
    held: Mapping[str, NDArray | Header | None],
    widths: Mapping[str, int],
    more: str,
) -> Iterator[Fault]:
    """Faults of one episode's arrays: missing, empty, of another shape or type, or ragged.

    held: its arrays or their headers, `actions` first; widths: the columns that each should have;
    more: how the keys begin that have a row more than there are actions ("" for none).
    """
    steps = None
    for key, table in held.items():
        if table is None:
            yield fault(key, index, f"missing in {name}; {LEAVE_OUT}")
        elif not fits(table, widths[key]):
            text = (
                f"{name} has {table.shape} {table.dtype}, expected numbers [steps, {widths[key]}]"
            )
            yield fault(key, index, f"{text}; {LEAVE_OUT}")
        elif key == "actions":
            steps = len(table)
            if not steps:
                yield fault(key, index, f"{name} is empty: it has no steps; {LEAVE_OUT}")
        elif steps is not None and len(table) != steps + bool(more and key.startswith(more)):
            what = "one more" if more and key.startswith(more) else "one of each for every step"
            text = f"{name} has {len(table)} rows and {steps} actions, expected {what}"
            yield fault(key, index, f"{text}; {LEAVE_OUT}")


def fits(table: NDArray | Header, width: int) -> bool:
    """Whether it holds numbers [T, width], or [T] for one column."""
    shaped = table.shape[1:] == (width,) or (table.ndim == 1 and width == 1)
    return shaped and table.dtype.kind in NUMBERS


def upright(table: NDArray) -> NDArray:
    """[T] as [T, 1]; tables stay."""
    return table[:, None] if table.ndim == 1 else table


def fault(key: str, index: int, text: str) -> Fault:
    """An error of one episode."""
    return Fault("error", key, index, None, None, text)
