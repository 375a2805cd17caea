"""`rheo resume`: a run goes on from its last checkpoint, and what is looked at before."""

import logging
from typing import Any

from rheo import ranks
from rheo.algos.contract import Algorithm
from rheo.errors import REQUEUE, Halted, RheoError, command

from .assemble import assemble
from .config.verbs import Resuming
from .ending import curve
from .loop import Loop
from .sight import encode_data
from .stopping import stop_signals
from .store.fields import fitting, refuse_partial
from .store.lost import refuse, restart
from .store.run import Run
from .store.state import holds_generators, refuse_other_weights, with_generators
from .store.where import shown
from .together import announce, own_part, refuse_unequal, run_kind, together
from .train import through
from .worlds import as_saved

log = logging.getLogger("rheo")


def resume(asked: Resuming) -> int:
    """Continues a run from its last checkpoint; a new `steps` extends it.

    A run that was cut before its first checkpoint begins as a new one does. Where its checkpoints
    are gone it begins anew only if that was asked for.
    """
    name, words, anew, sparing = asked
    several = together(lambda: Run.open(name, words.again).config["device"])
    with several, stop_signals() as stop, run_kind().open(name, words.again, write=True) as run:
        announce(run.config)
        if anew:
            restart(run)
        tree = None if anew else run.load(sparing=sparing)
        if sparing and "left_out" not in run.told:
            log.warning("--without-damaged: no row is damaged, so none is left out")
        if tree is None:
            refuse(run, anew)
        else:
            refuse_partial(tree, run.loaded, "algo", "source", "sizes", "loop")
            with fitting(run.loaded):
                tree = own_part(tree, run)
            if over(run, tree["loop"]):
                return nothing_to_do(run, words.options)
        with fitting(run.loaded):
            config = as_saved(run.config, tree)
        loop = Loop(run, assemble(config), stop)
        if tree is None:
            try:
                loop.begin()
            except Halted:
                raise RheoError(f"{stop.why()} before its first step", REQUEUE) from None
        else:
            with fitting(run.loaded):
                loop.restore(fitted(tree, loop.algo, words.options))
            encode_data(loop.algo, loop.source)
            refuse_unequal(loop.algo, run.step)
        run.go_on(tree is not None)
        return through(loop)


def over(run: Run, loop: dict[str, Any]) -> bool:
    """Whether nothing is left to do of a run's length; loop: the training loop's part of its state.

    A signal may have cut its last evaluation, or its last update.
    """
    cut = ranks.largest(int(loop["fresh"] or loop.get("since") is not None))
    return not cut and run.config["steps"] <= run.step


def nothing_to_do(run: Run, options: list[str]) -> int:
    """Says that a run is at its end. Raises RheoError for `steps` below what it has reached."""
    steps, more = run.config["steps"], command("resume", shown(run.path), f"steps={2 * run.step}")
    if steps < run.step and any(word.startswith("steps=") for word in options):
        raise RheoError(
            f"steps={steps}: {run.path} has reached step {run.step} already, and nothing was "
            f"changed; to go on give more than that, for example {more}"
        )
    if ranks.leads():
        run.tidy()  # a kill may have come between the last save and what follows it
        curve(run)
        end = f"is at its end, step {run.step} of {steps}"
        print(f"{run.path} {end}: nothing to do; {more} extends it")
    return 0


def fitted(tree: dict[str, Any], algo: Algorithm, options: list[str]) -> dict[str, Any]:
    """The checkpoint for this device. Raises RheoError when policy.path= is another program.

    A generator's state belongs to one kind of device: on another one its noise begins anew.
    """
    if any(word.startswith("policy.path=") for word in options):
        refuse_other_weights(algo.policy.state_dict(), tree["algo"]["policy"], "policy.path")
    state = algo.generator.get_state()
    if holds_generators(tree, state.shape):
        return tree
    log.warning("device: another kind than the checkpoint's, so the run's noise begins anew")
    return with_generators(tree, algo.generator)
