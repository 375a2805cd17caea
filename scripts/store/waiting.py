"""What a run does when the disk refuses: one policy for all that it writes while it trains.

What is refused waits in memory and is tried again, after a pause that doubles. After five refusals
in a row of one kind (rows, files of evaluations, checkpoints) the run ends with code 3; the last
good checkpoint is kept, and whatever waited comes again when the run goes on from it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from rheo.errors import MACHINE, RheoError

logger = logging.getLogger("rheo")
REFUSALS = 5  # in a row
PAUSE = 1.0  # seconds after the first one


class Patience:
    """How often in a row the disk refused things of one kind."""

    def __init__(self) -> None:
        self.refusals, self.until = 0, 0.0

    @property
    def due(self) -> bool:
        """Whether it is time to try again."""
        return monotonic() >= self.until

    def refused(self, what: str, meanwhile: str, error: OSError) -> None:
        """Warns. Raises RheoError (code 3) where it was one time too many."""
        self.until = monotonic() + PAUSE * 2**self.refusals
        self.refusals += 1
        message = f"{what} not written: {error.strerror or error}"
        if self.refusals >= REFUSALS:
            raise RheoError(f"{message}; {REFUSALS} failures in a row", MACHINE) from error
        logger.warning("%s; going on, %s", message, meanwhile)

    def served(self) -> None:
        """Begins to count anew."""
        self.refusals, self.until = 0, 0.0


class Waiting:
    """Things of one kind on their way to the disk, in their order.

    place: where they go, and unit: what they are, for messages. write: writes all of a list, or
    raises OSError and is given all of it again.
    """

    def __init__(self, place: Path, unit: str, write: Callable[[list[Any]], None]) -> None:
        self.place, self.unit, self.write = place, unit, write
        self.things: list[Any] = []
        self.patience = Patience()

    def add(self, thing: Any) -> None:
        """Writes a thing, after those that wait. Raises RheoError as `Patience` does."""
        self.things.append(thing)
        self.flush()

    def flush(self, now: bool = False) -> None:
        """Writes what waits, where it is time to try or `now`."""
        if not self.things or not (now or self.patience.due):
            return
        try:
            self.write(self.things)
        except OSError as error:
            what = f"{self.place}: {len(self.things)} {self.unit}"
            self.patience.refused(what, "they are kept in memory", error)
            return
        self.things = []
        self.patience.served()

    def close(self) -> None:
        """Tries for a last time."""
        things, self.things = self.things, []
        try:
            if things:
                self.write(things)
        except (OSError, RheoError) as error:
            text = "%s: %d %s not written (%s); they come again when the run goes on"
            logger.warning(text, self.place, len(things), self.unit, error)
