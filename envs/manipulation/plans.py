"""What scripts are made of: plans, and what is seen by them."""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..seeded import drawing_from

Seen = Mapping[str, Any]  # parts of an observation by their names
Plan = Generator[NDArray, Seen, Seen]  # an action in [-1, 1] for all that is seen, without an end


class Script(NamedTuple):
    """A plan, and what noise added to its actions is multiplied with, per dimension.

    sees: what a plan is shown of the environment; None: what is kept of an observation, or all
    that robosuite observes.
    """

    plan: Callable[[Seen], Plan]
    spread: tuple[float, ...]
    sees: Callable[[gymnasium.Env], Seen] | None = None


def drawing(plan: Plan, bits: np.random.BitGenerator) -> Plan:
    """A plan that draws from `bits` what it draws from numpy's global generator."""
    with drawing_from(bits):
        action = next(plan)
    while True:
        seen = yield action
        with drawing_from(bits):
            action = plan.send(seen)
