"""`rheo suite NAME`: the field's suites, trained and evaluated over tasks and seeds by a sweep."""

import textwrap

from rheo.errors import command

from . import sweep
from .config.suites import suites
from .config.sweeps import Sweep
from .store.where import locate, shown


def main(asked: Sweep | None) -> int:
    """Runs what is not done yet of a suite, or lists the suites; returns the exit status."""
    if asked is None:
        for name, one in suites().items():
            print(f"{name}: {one['about']}")
            ((key, values),) = one["tasks"].items()
            print(textwrap.fill(f"{key}={','.join(values)}", 98, initial_indent="    ",
                                subsequent_indent="    ", break_on_hyphens=False))  # fmt: skip
        return 0
    code = sweep.main(asked)
    print(f"pages of it: {command('report', shown(locate(asked.name)))}")
    return code
