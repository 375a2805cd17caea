"""Room for what is collected: asked for before, and found on another disk where it lacks."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rheo.envs.memory import size_text
from rheo.errors import MACHINE, RheoError
from rheo.files import FULL, Unwritten, room

COMPRESSED = 10  # to this part of its size a data set may shrink; images do, states hardly
log = logging.getLogger("rheo")


def ask_room(size: int, what: str, out: Path) -> None:
    """Asks for room for `size` bytes before anything is collected; `what` they are, in words.

    A warning where only compression can make it fit. Raises RheoError where that cannot either.
    """
    free = room(next(p for p in out.absolute().parents if p.exists()))
    if free is None:
        return
    text = f"out={out}: {what} take {size_text(size)} before they are compressed, and "
    text += f"{size_text(free)} are free there"
    if size > COMPRESSED * free:
        raise RheoError(f"{text}; make room, or name another place", MACHINE)
    if size > free:
        log.warning("%s", text)


def kept(write: Callable[[Path], object], out: Path) -> tuple[Path, RheoError | None]:
    """Where `write` wrote a file: `out`, or, where that has no room, a new folder of the system's.

    It took long to collect. Then with the error that ends the program once all is told. Raises
    Unwritten where that is the same disk, or has no room either.
    """
    try:
        write(out)
        return out, None
    except Unwritten as refused:
        spare = rescued(write, out, refused)
        return spare, RheoError(f"{refused}. What was collected is in {spare}", refused.code)


def rescued(write: Callable[[Path], object], out: Path, refused: Unwritten) -> Path:
    """The file in a new folder of the system's. Raises the refusal where that cannot be."""
    spare = Path(tempfile.gettempdir())
    if refused.errno not in FULL or os.stat(spare).st_dev == os.stat(out.parent).st_dev:
        raise refused
    folder = Path(tempfile.mkdtemp(prefix="rheo-", dir=spare))
    try:
        write(folder / out.name)
    except Unwritten:
        folder.rmdir()
        raise refused from None
    return folder / out.name
