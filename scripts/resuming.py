"""What `rheo resume` looks at before it goes on."""

import logging
from typing import Any

from rheo import ranks
from rheo.algos.contract import Algorithm
from rheo.errors import RheoError, command

from .store.run import Run
from .store.state import holds_generators, refuse_other_weights, with_generators
from .store.where import shown

log = logging.getLogger("rheo")


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
