"""The process of one tracker: orders come as lines of JSON, each is answered by one.

    python -m rheo.scripts.store.tracker_process STATE

STATE is a file in the run's folder with the tracker's id of the run and the last row that was sent
({"id": ..., "sent": [step, rows of that step]}), so a run that goes on from a checkpoint goes on
there, and no row is sent twice. When orders end without a farewell, the run has died.
"""

import fcntl
import importlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rheo.files import put_text

from .services import FAILED, About, Service
from .waiting import Patience
from .where import one_line


def main(state: Path) -> int:
    """Does what it is told until it is told to end; whatever fails is the last answer."""
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no package may ask for a password here
    os.dup2(2, 1)  # nor print among the answers
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # a scheduler's are the run's, which says farewell
    try:
        with open(f"{state}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # what an earlier start left may still be on its way
            for answer in served(map(json.loads, orders), state):
                told(answers, answer)
    except Exception as error:
        logging.exception("it ends here")
        told(answers, {"died": f"{type(error).__name__}: {one_line(error)}"})
        return 1
    return 0


def told(answers: TextIO, answer: Mapping[str, Any]) -> None:
    """Answers, where somebody still listens."""
    try:
        print(json.dumps(answer), file=answers)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())


def served(orders: Iterator[Any], state: Path) -> Iterator[dict[str, Any]]:
    """The answer to every order: the first one names the tracker, the others are rows."""
    first = next(orders)
    sys.path += [path for path in first["paths"] if path not in sys.path]
    module, _, name = first["target"].rpartition(".")
    service: Service = getattr(importlib.import_module(module), name)(**first["values"])
    known = json.loads(state.read_text()) if state.exists() else {"id": None, "sent": [-1, 0]}
    sent, here = tuple(known["sent"]), (-1, 0)
    identity, where = service.begin(About(**first["about"], id=known["id"]))
    patience = Patience()  # with the disk, of which only the next start needs something
    keep(state, identity, sent, patience)
    yield {"begun": where}
    for order in orders:
        if "end" in order:
            service.end(order["end"], order["final"])
            yield {"ended": True}
            return
        step = order["step"]
        here = (step, here[1] + 1 if here[0] == step else 1)
        if here > sent:
            service.add(step, {key: float(value) for key, value in order["row"].items()})
            sent = here
            keep(state, identity, sent, patience)
        yield {"sent": here}
    service.end(FAILED, {})


def keep(state: Path, identity: str, sent: tuple[int, ...], patience: Patience) -> None:
    """Writes down how far this is. Raises RheoError when the disk has refused it five times."""
    try:
        put_text(state, json.dumps({"id": identity, "sent": sent}) + "\n")
    except OSError as error:
        patience.refused(str(state), "the tracker has the row", error)
    else:
        patience.served()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
