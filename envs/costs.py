"""What a step costs beside its reward, as `env.cost` says: cost = {kind: speed, limit: X}."""

import math
from collections.abc import Mapping
from typing import Any

from ..errors import EnvError, nearest

AUTO = "auto"
# Speed limits by robot, of Safety-Gymnasium's velocity tasks, version 1 (arXiv:2310.12567; half of
# what an unconstrained PPO reaches). They charge the forward speed, of Ant and Humanoid that in the
# plane.
SPEEDS = {
    "HalfCheetah": 3.2096,
    "Hopper": 0.7402,
    "Walker2d": 2.3415,
    "Ant": 2.6222,
    "Humanoid": 1.4149,
    "Swimmer": 0.2282,
}


def speed_limit(env_id: str, backend: str, cost: Mapping[str, Any]) -> float | None:
    """The speed above which a step costs 1; None: nothing costs. Raises EnvError."""
    if not cost:
        return None
    told, known = f"env.cost={dict(cost)}", ("kind", "limit")
    for key in cost:
        if key not in known:
            raise EnvError(f"env.cost.{key}: {' and '.join(known)} can be set{nearest(key, known)}")
    if cost.get("kind", "speed") != "speed":
        raise EnvError(f"{told}: the kind that there is is speed; set env.cost.kind=speed")
    robot = env_id.rpartition("-v")[0]
    if robot not in SPEEDS:
        raise EnvError(f"{told}: {env_id} has no speed to charge; it is of {', '.join(SPEEDS)}")
    if backend != "native":
        raise EnvError(
            f"{told}: {backend} environments do not tell their speed; set env.backend=native, "
            "without cameras, or leave env.cost out"
        )
    limit = cost.get("limit", AUTO)
    if limit == AUTO:
        return SPEEDS[robot]
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise EnvError(f"env.cost.limit={limit!r}: a speed above 0, or {AUTO} ({SPEEDS[robot]})")
    return float(limit)
