"""`rheo train`: a new run, from its assembly to its end."""

from contextlib import closing
from typing import Any

from rheo.errors import REQUEUE, EnvError, Halted, RheoError

from .assemble import assemble
from .dry import show
from .ending import Back
from .loop import Loop
from .sight import encode_data
from .stopping import stop_signals
from .store.run import discard
from .store.where import default_name, locate
from .together import announce, run_kind, together
from .worlds import as_saved


def main(asked: tuple[dict[str, Any], bool]) -> int:
    """Trains a new run of a configuration, or shows what it would be."""
    config, dry = asked
    name = config["name"] or default_name(config)
    return show(config, name) if dry else train(config, name)


def train(config: dict[str, Any], name: str) -> int:
    """Makes a run and trains it to its end; a run that cannot be assembled leaves no folder."""
    path = locate(name)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    several = together(lambda: config["device"])
    grace = config["signal"]["grace"]
    with several, stop_signals(grace) as stop, run_kind().create(name, config) as run:
        try:
            announce(config)
            loop = Loop(run, assemble(config), stop)
            loop.begin()
        except BaseException as error:
            run.close()
            discard(path, made)
            if isinstance(error, Halted):
                raise RheoError(f"{stop.why()} before its first step", REQUEUE) from None
            raise
        try:
            return through(loop)
        except EnvError:  # it failed before any work
            run.close()
            discard(path, made)
            raise


def through(loop: Loop) -> int:
    """Trains to the end; returns the exit status. See `Back`."""
    run, stop = loop.run, loop.stop
    try:
        with closing(loop):
            return loop.finish()
    except Back as back:
        tree = back.begin(run)
    loop = Loop(run, assemble(as_saved(run.config, tree)), stop)
    loop.restore(tree)
    encode_data(loop.algo, loop.source)
    run.go_on(True)
    loop.breaking.slow_down()
    loop.save(run.step)
    with closing(loop):
        return loop.finish()
