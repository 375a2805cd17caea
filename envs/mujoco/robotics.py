"""gymnasium-robotics on MuJoCo 3.12 and later, where its Fetch, hands and Kitchen fail to be made.

Its assertions ask whether a joint's type, a number of numpy's, is `in` a tuple of MuJoCo's names.
Since 3.12 a name that stands on the left of such a number is not equal to it any more, and on the
left is where `in` has it. Nothing else of the package is in the way.
"""

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from .physics import mujoco


class Plain:
    """MuJoCo's module with the types of joints as plain numbers."""

    mjtJoint = SimpleNamespace(  # noqa: N815
        **{name: int(member.value) for name, member in mujoco.mjtJoint.__members__.items()}
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(mujoco, name)


@functools.cache
def mend() -> None:
    """Lets gymnasium-robotics' functions see types of joints as numbers, where that is needed."""
    if np.int32(0) not in (mujoco.mjtJoint.mjJNT_FREE,):
        utils: Any = importlib.import_module("gymnasium_robotics.utils.mujoco_utils")
        utils.mujoco = Plain()
