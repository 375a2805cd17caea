"""Whether an algorithm learns from the kind of batches that a source gives."""

from typing import Any, get_args, get_type_hints

from rheo.envs.batch import Aimed, Batch, Compared, Labelled, Rollout, Windows
from rheo.errors import RheoError

KINDS = {
    Windows: "windows of recorded steps",
    Labelled: "windows with labels",
    Batch: "transitions",
    Aimed: "transitions with places on the way",
    Compared: "chunks that are compared",
    Rollout: "rollouts of its own",
}


def taken(algo: Any) -> tuple[type, ...]:
    """The kinds that an algorithm's `update` is annotated with; none where it says nothing."""
    try:
        hints = [
            hint for name, hint in get_type_hints(type(algo).update).items() if name != "return"
        ]
    except (NameError, AttributeError, TypeError):  # of a user's code, known to type checkers alone
        return ()
    kinds = [kind for hint in hints for kind in get_args(hint) or (hint,)]
    return tuple(kind for kind in kinds if kind in KINDS)


def refuse_other(algo: Any, source: Any) -> None:
    """Raises RheoError for batches of a kind that an algorithm does not learn from.

    A source of the user's may give what it likes.
    """
    given, kinds = getattr(source, "gives", None), taken(algo)
    ours = type(source).__module__.startswith("rheo.")
    if ours and given is not None and kinds and given not in kinds:
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise RheoError(
            f"source: {type(source).__name__} gives {KINDS[given]}, and {type(algo).__name__} "
            f"learns from {wanted}; leave source= out, and the algorithm's own is taken"
        )
