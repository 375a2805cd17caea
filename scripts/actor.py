"""A run's policy as a behaviour that is recorded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rheo.errors import RheoError

from .assemble import Sizes, prepare, revived
from .sight import frozen
from .store.run import Run
from .store.where import existing
from .worlds import elsewhere


class Actor(NamedTuple):
    """A run whose policy acts."""

    run: Run
    algo: Any
    sizes: Sizes
    node: dict[str, Any]  # the environment that it acts in


def acting(
    name: str, world: Sequence[str], flagged: Sequence[str], changed: Sequence[str] = ()
) -> Actor:
    """A run's policy, in the run's own environment unless `world` names another one.

    changed: words of values of the run that are other ones here. Raises RheoError without a
    checkpoint or an environment, and where what it acts on would not be recorded.
    """
    existing(name)
    run = Run.open(name, [*flagged, *changed])
    prepare(run.config)
    algo, sizes = revived(run)
    node = dict(run.config["env"] or {})
    if world:
        node = elsewhere(node, world, flagged)
    if node.get("id") is None:
        raise RheoError(f"{run.path} was trained without an environment; give env=NAME")
    if frozen(run.config):
        raise RheoError(
            f"{run.path} acts on features of images (eye.frozen=true), which are not recorded; "
            f"name a run that sees images itself, such as {run.config['init']}"
        )
    return Actor(run, algo, sizes, node)
