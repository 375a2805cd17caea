"""What keeps broken numbers out of the physics and out of the replay.

MuJoCo answers a non-finite control by ignoring it and a diverged state by resetting itself inside
`mj_step`; both look like an ordinary step from outside. Actions are therefore checked before the
step, and the warning counters that MuJoCo raises when it resets a state are compared after it.
"""

import numpy as np
from numpy.typing import NDArray

from .physics import mujoco


def reset_warnings() -> slice:
    """The mjtWarning members that come with a reset of the state (mj_checkPos, Vel and Acc)."""
    kinds = mujoco.mjtWarning
    return slice(int(kinds.mjWARN_BADQPOS), int(kinds.mjWARN_BADQACC) + 1)


class NonFiniteAction(FloatingPointError):
    """An action with NaN or Inf, refused before any environment moved.

    `env_id` and `index` name the environment, `step` is the step of its episode that was refused.
    """

    def __init__(self, env_id: str, index: int, step: int, action: NDArray) -> None:
        self.env_id, self.index, self.step = env_id, index, step
        shown = np.array2string(np.asarray(action), precision=4, threshold=12)
        super().__init__(
            f"{env_id}: action {shown} for environment {index} at step {step} of its episode is "
            "not finite; nothing was stepped. Check the policy's loss and gradients for NaN"
        )


def refuse_non_finite(action: NDArray, rows: NDArray | None, env_id: str, elapsed: NDArray) -> None:
    """Raise NonFiniteAction for the first row of action [N, Da] with NaN or Inf.

    `rows` are the indices that will be stepped, None for all; other rows are not looked at.
    """
    finite = np.isfinite(action)
    if np.count_nonzero(finite) == finite.size:
        return
    broken = np.flatnonzero(~finite.all(axis=1))
    if rows is not None:
        broken = np.intersect1d(broken, rows)
    if broken.size:
        index = int(broken[0])
        raise NonFiniteAction(env_id, index, int(elapsed[index]) + 1, action[index])
