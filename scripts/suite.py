"""`rheo suite NAME`: the field's suites, trained and evaluated over tasks and seeds by a sweep."""

from rheo.errors import command

from . import sweep
from .config.sweeps import Sweep
from .info import of_suites
from .store.where import locate, shown


def main(asked: Sweep | None) -> int:
    """Runs what is not done yet of a suite, or lists the suites; returns the exit status."""
    if asked is None:
        print("\n".join(of_suites(98)))
        return 0
    code = sweep.main(asked)
    print(f"pages of it: {command('report', shown(locate(asked.name)))}")
    return code
