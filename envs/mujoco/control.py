"""What DeepMind Control's tasks (arXiv:1801.00690) share: the soft indicator, resets, observations.

Derived fields (xpos, xmat, sensordata, ...) are those of the state after the step, as dm_control's
`mj_step2, mj_step1` leaves them; touch sensors alone are those of the last substep. All rewards lie
in [0, 1] and no task ever ends by itself. The tasks are in `control_tasks.py`, the models in
`dmc.py`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .physics import INTEGRATION, mujoco
from .tasks import Array, Task, namespace

MATRICES = {"xmat", "geom_xmat"}  # fields that hold a matrix a body, row by row


def gaussian(distance: Array, at_one: float) -> Array:
    """at_one^(d^2)"""
    return at_one ** (distance**2)


def linear(distance: Array, at_one: float) -> Array:
    """1 - (1 - at_one) d, not below 0"""
    return (1 - (1 - at_one) * distance).clip(0)


def quadratic(distance: Array, at_one: float) -> Array:
    """1 - (1 - at_one) d^2, not below 0"""
    return (1 - (1 - at_one) * distance**2).clip(0)


def tolerance(
    x: Array,
    low: float = 0.0,
    high: float = 0.0,
    margin: float = 0.0,
    at_margin: float = 0.1,
    fall: Callable[[Array, float], Array] = gaussian,
) -> Array:
    """1 where low <= x <= high, falling to `at_margin` at a distance of `margin` (without one: 0).

    fall: the shape, of the distance in margins.
    """
    outside = namespace(x).maximum(low - x, x - high).clip(0)
    return fall(outside / margin, at_margin) if margin else 1.0 * (outside == 0)


class Control(Task):
    """A task of one domain on the live arrays of a batch.

    domain: name of the model's file. seconds: of one action. drawn: numbers of an episode beside
    its state (a target's place); they are kept in MuJoCo's `userdata`, which is part of the state.
    """

    domain: ClassVar[str]
    seconds: ClassVar[float]
    drawn: ClassVar[int] = 0
    synced = True
    whole = True

    def bind(self, model: Any) -> None:
        self.model = model
        for name in self.views.keys() & MATRICES:  # MuJoCo Warp has them as 3 x 3
            view = self.views[name]
            self.views[name] = view.reshape(*view.shape[:2], 9)
        if self.drawn:
            self.userdata = self.views["userdata"]
        kinds, limited = model.jnt_type, model.jnt_limited.astype(bool)
        hinge, free = (int(getattr(mujoco.mjtJoint, f"mjJNT_{n}")) for n in ("HINGE", "FREE"))
        chosen = self.moved(limited, kinds == hinge)
        span = np.where(limited[:, None], model.jnt_range, [-np.pi, np.pi])[chosen]
        self.joints, (self.low, self.high) = model.jnt_qposadr[chosen], span.T
        self.floats = kinds[0] == free
        self.scratch = mujoco.MjData(model)

    def moved(self, limited: NDArray, hinge: NDArray) -> NDArray:
        """Which joints a reset draws: within their limits, and angles without any in [-pi, pi]."""
        return limited | hinge

    @classmethod
    def change(cls, model: Any) -> None:
        """What the task changes in its domain's model."""

    def sensors(self, *names: str) -> list[int]:
        """Columns of `sensordata` of these sensors."""
        found = [self.model.sensor(name) for name in names]
        return [int(s.adr[0]) + k for s in found for k in range(int(s.dim[0]))]

    # ---- a new episode ----

    def begin(self, index: int, row: NDArray, rng: np.random.Generator) -> None:
        self.draw(self.scratch, rng)
        mujoco.mj_getState(self.model, self.scratch, row, INTEGRATION)

    def draw(self, data: Any, rng: np.random.Generator) -> None:
        """A new episode's first state into an MjData, drawn in dm_control's order."""
        mujoco.mj_resetData(self.model, data)
        mujoco.mj_forward(self.model, data)
        self.place(data, rng)

    def place(self, data: Any, rng: np.random.Generator) -> None:
        """Positions, velocities and `userdata` of a new episode."""
        self.scatter(data.qpos, rng)

    def scatter(self, qpos: NDArray, rng: np.random.Generator) -> None:
        """Joints uniform in their ranges; a free body is turned by a uniform vector of [0, 1]^4."""
        if self.floats:
            quaternion = rng.random(4)
            qpos[3:7] = quaternion / np.linalg.norm(quaternion)
        qpos[self.joints] = rng.uniform(self.low, self.high)

    def scatter_apart(self, data: Any, rng: np.random.Generator) -> None:
        """As `scatter`, again until nothing touches."""
        self.scatter(data.qpos, rng)
        mujoco.mj_forward(self.model, data)
        while data.ncon:
            self.scatter(data.qpos, rng)
            mujoco.mj_forward(self.model, data)

    # ---- a step ----

    def look(self) -> dict[str, Array]:
        """The named parts of an observation, each [N, width], in order."""
        raise NotImplementedError

    def parts(self) -> dict[str, int]:
        """Their widths."""
        return {name: value.shape[1] for name, value in self.look().items()}

    def observe(self, out: Array) -> None:
        self.xp.concatenate(list(self.look().values()), axis=1, out=out)

    def reward(self, control: Array) -> Array:
        """Of the state after the step [N]; control [N, Da] is what was asked for, not clipped."""
        raise NotImplementedError

    def score(self, action: Array, speed: Array, obs: Array) -> tuple[Array, None]:
        return self.reward(action), None
