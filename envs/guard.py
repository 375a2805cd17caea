"""What keeps broken numbers out of the physics and out of the replay, and what others' code raises.

MuJoCo answers a non-finite control by ignoring it and a diverged state by resetting itself inside
`mj_step`; both look like an ordinary step from outside. Actions are therefore checked before the
step, and the warning counters that MuJoCo raises when it resets a state are compared after it.

An environment is code of somebody else's: whatever it raises becomes one message, with the place it
was raised at. What our own code raises is a fault of ours and stays a traceback.
"""

import logging
import signal
import traceback
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from .mujoco.physics import mujoco

log = logging.getLogger("rheo")
LARGEST = 1e18  # of an observation or reward: float32 cannot hold the square of more
_said: set[Hashable] = set()


def sound(numbers: NDArray) -> bool:
    """Whether something can be learned from numbers: they are finite, and so are their squares."""
    return bool(np.abs(numbers).max(initial=0) <= LARGEST)  # nan is not


def once(key: Hashable, text: str) -> None:
    """Warns once a process; what a worker warns of so, the learner says once for all of them."""
    if key not in _said:
        _said.add(key)
        log.warning("%s", text, extra={"once": key})


def reset_warnings() -> slice:
    """The mjtWarning members that come with a reset of the state (mj_checkPos, Vel and Acc)."""
    kinds = mujoco.mjtWarning
    return slice(int(kinds.mjWARN_BADQPOS), int(kinds.mjWARN_BADQACC) + 1)


class NonFiniteAction(FloatingPointError):
    """An action with NaN or Inf, refused before any environment moved.

    `env_id` and `index` name the environment, `step` is the step of its episode that was refused.
    action: None where the environments are on a device, which went on without that row.
    """

    def __init__(self, env_id: str, index: int, step: int, action: NDArray | None) -> None:
        self.env_id, self.index, self.step = env_id, index, step
        shown, then = "", "its episode was cut there"
        if action is not None:
            shown = f" {np.array2string(np.asarray(action), precision=4, threshold=12)}"
            then = "nothing was stepped"
        super().__init__(
            f"{env_id}: action{shown} for environment {index} at step {step} of its episode is "
            f"not finite; {then}. Check the policy's loss and gradients for NaN"
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


LONGEST = 300  # characters of somebody else's message


def ours(error: BaseException) -> bool:
    """Whether an error was raised in a line of this package."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = frames[-1].f_globals.get("__name__", "") if frames else ""
    return name.partition(".")[0] == __name__.partition(".")[0]


def of_signal(error: BaseException) -> bool:
    """Whether a handler of a signal raised it: a real Ctrl-C stays one wherever it comes."""
    handlers: list[Any] = [signal.getsignal(number) for number in signal.valid_signals()]
    if isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return True  # it leaves no trace
    codes = [getattr(handler, "__code__", None) for handler in handlers]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def own(error: BaseException) -> bool:
    """Whether what came out of an environment is its own: not a signal's, nor a fault of ours."""
    return not of_signal(error) and not ours(error)


def told(error: BaseException) -> str:
    """An error of somebody else's code in a line: its kind, its text and where it was raised."""
    text = " ".join(str(error).split())[:LONGEST]
    lines = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"


def close(env: gymnasium.Env, name: str) -> None:
    """Closes an environment; what it raises then is told, and nothing is lost for it."""
    try:
        env.close()
    except BaseException as error:
        if of_signal(error):
            raise
        log.warning("%s: closing it raised %s", name, told(error))


def shown(value: Any) -> str:
    """What somebody else's code returned, in a few words."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        if getattr(value, "size", 0) == 1:
            return f"{value!r}"
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"


def number(value: Any) -> float | None:
    """A float of anything that holds one real number, arrays of size one included; else None."""
    try:
        array = np.asarray(value)
        return float(array.item()) if array.size == 1 and array.dtype.kind in "fiub" else None
    except Exception:  # noqa: BLE001 - whatever a foreign type raises, it is no number
        return None


def truth(value: Any) -> bool | None:
    """Whether any entry of a flag, of numbers or of an array of them is true; None: no flag."""
    try:
        array = np.asarray(value)
        flags = array.size and array.dtype.kind in "fiub" and not np.isnan(array).any()
        return bool(array.any()) if flags else None
    except Exception:  # noqa: BLE001 - likewise
        return None


def place(env_id: str, index: int, seed: int, episode: int, step: int) -> str:
    """'Id-v0, environment 1 (seed 7, episode 3), step 12'; a negative seed is none."""
    seeded = f"seed {seed}, " if seed >= 0 else "no seed, "
    when = f"step {step}" if step else "reset"
    return f"{env_id}, environment {index} ({seeded}episode {episode}), {when}"
