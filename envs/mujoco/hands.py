"""gymnasium-robotics' four Adroit tasks: a hand that opens a door, hammers, turns a pen, relocates.

Formulas and draws are those of gymnasium-robotics 1.4 (envs/adroit_hand), over arrays as in
`tasks.py`. What a reset places is drawn into the model, so each simulation has those fields for
itself. Nothing here ends by itself; the reward is dense, or sparse: 10 where solved, else -0.1.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .tasks import Array, Score, Task, dot, norm

TINY = float(np.finfo(np.float64).eps)
Draw = tuple[str, int, float, float]  # name in the model, axis, lowest, highest
X, Y, Z = range(3)


class Hand(Task):
    """What the four share.

    bodies, sites: what a reset places and between which bounds, in metres, in the order drawn.
    """

    fields = ("site_xpos", "xpos")
    reports = True
    bodies: ClassVar[tuple[Draw, ...]] = ()
    sites: ClassVar[tuple[Draw, ...]] = ()

    def bind(self, model: Any) -> None:
        self.model = model
        self.sparse = self.options["reward_type"].lower() == "sparse"
        low, high = model.actuator_ctrlrange.T
        self.middle = self.alike(np.mean(model.actuator_ctrlrange, axis=1))
        self.half = self.alike(0.5 * (high - low))
        self.won, self.lost = self.alike(np.array(10.0)), self.alike(np.array(-0.1))
        self.grasp = model.site("S_grasp").id

    def actuate(self, action: Array) -> Array:
        return self.middle + self.xp.clip(action, -1.0, 1.0) * self.half

    def begin(self, index: int, row: NDArray, rng: np.random.Generator) -> None:
        for name, axis, low, high in self.bodies:
            self.views["body_pos"][index, self.model.body(name).id, axis] = rng.uniform(low, high)
        for name, axis, low, high in self.sites:
            self.views["site_pos"][index, self.model.site(name).id, axis] = rng.uniform(low, high)
        super().begin(index, row, rng)

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        return self.init_qpos, self.init_qvel

    def site(self, number: int) -> Array:
        """Where a site is [N, 3], m."""
        return self.views["site_xpos"][:, number]

    def body(self, number: int) -> Array:
        """Where a body is [N, 3], m."""
        return self.views["xpos"][:, number]

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        if self.sparse:
            return self.xp.where(self.success(), self.won, self.lost), None
        return self.dense(), None

    def dense(self) -> Array:
        """The shaped reward [N]."""
        raise NotImplementedError


class Door(Hand):
    """Turn the latch and pull the door open, 1.35 rad and more."""

    own = ("body_pos",)
    fields = ("site_xpos",)
    bodies = (("frame", X, -0.3, -0.2), ("frame", Y, 0.25, 0.35), ("frame", Z, 0.252, 0.35))

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.handle = model.site("S_handle").id
        self.hinge = int(model.joint("door_hinge").dofadr[0])

    def observe(self, out: Array) -> None:
        palm, handle, angle = self.site(self.grasp), self.site(self.handle), self.angle()
        out[:, :27] = self.qpos[:, 1:-2]
        out[:, 27], out[:, 28] = self.qpos[:, -1], angle
        out[:, 29:32], out[:, 32:35], out[:, 35:38] = palm, handle, palm - handle
        out[:, 38] = 2.0 * (angle > 1.0) - 1.0

    def angle(self) -> Array:
        """Of the door [N], rad."""
        return self.qpos[:, self.hinge]

    def success(self) -> Array:
        return self.angle() >= 1.35

    def dense(self) -> Array:
        angle = self.angle()
        reward = 0.1 * norm(self.site(self.grasp) - self.site(self.handle))
        reward += -0.1 * (angle - 1.57) * (angle - 1.57)
        reward += -1e-5 * (self.qvel**2).sum(1)
        for least, bonus in ((0.2, 2.0), (1.0, 8.0), (1.35, 10.0)):
            reward += bonus * (angle > least)
        return reward


class Hammer(Hand):
    """Pick up the hammer and drive the nail into the board, to 1 cm and less."""

    own = ("body_pos",)
    fields = ("site_xpos", "xpos", "xquat", "sensordata")
    bodies = (("nail_board", Z, 0.1, 0.25),)

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.thing = model.body("Object").id
        names = ("tool", "S_target", "nail_goal")
        self.head, self.nail, self.goal = (model.site(name).id for name in names)
        self.touch = model.sensor("S_nail").id  # which gymnasium-robotics takes for the column

    def observe(self, out: Array) -> None:
        impact = self.views["sensordata"][:, self.touch]
        out[:, :27] = self.qpos[:, :-6]
        out[:, 27:33] = self.xp.clip(self.qvel[:, -6:], -1.0, 1.0)
        out[:, 33:36], out[:, 36:39] = self.site(self.grasp), self.body(self.thing)
        out[:, 39:42] = euler(self.views["xquat"][:, self.thing], self.xp)
        out[:, 42:45] = self.site(self.nail)
        out[:, 45] = self.xp.clip(impact, -1.0, 1.0)

    def depth(self) -> Array:
        """Of the nail from its goal [N], m."""
        return norm(self.site(self.nail) - self.site(self.goal))

    def success(self) -> Array:
        return self.depth() < 0.01

    def dense(self) -> Array:
        thing, head, depth = self.body(self.thing), self.site(self.head), self.depth()
        reward = 0.1 * norm(self.site(self.grasp) - thing)
        reward -= norm(head - self.site(self.nail))
        reward -= 10 * depth
        reward -= 1e-2 * norm(self.qvel)
        reward += 2.0 * ((thing[:, Z] > 0.04) & (head[:, Z] > 0.04))
        reward += 25.0 * (depth < 0.02)
        reward += 75.0 * (depth < 0.01)
        return reward


class Pen(Hand):
    """Turn a pen in the hand to a drawn direction. lengths: of pen and target, m."""

    own = ("body_quat",)
    keeps: ClassVar[dict[str, int]] = {"lengths": 2}

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.thing, self.target = model.body("Object").id, model.body("target").id
        self.centre = model.site("eps_ball").id
        names = ("object_top", "object_bottom", "target_top", "target_bottom")
        self.tips = [model.site(name).id for name in names]

    def begin(self, index: int, row: NDArray, rng: np.random.Generator) -> None:
        about_x, about_y = rng.uniform(low=-1, high=1), rng.uniform(low=-1, high=1)
        sine, cosine = np.sin(about_x / 2), np.cos(about_x / 2)
        other, least = np.sin(-about_y / 2), np.cos(-about_y / 2)
        turned = [least * cosine, least * sine, -(other * cosine), -(other * sine)]
        self.views["body_quat"][index, self.target] = turned
        super().begin(index, row, rng)

    def settle(self, rows: NDArray) -> None:
        for k, each in enumerate(self.axes()):
            self.kept["lengths"][rows, k] = norm(each)[rows]

    def axes(self) -> tuple[Array, Array]:
        """From end to end of the pen and of its target, [N, 3] each, m."""
        top, bottom, target_top, target_bottom = (self.site(number) for number in self.tips)
        return top - bottom, target_top - target_bottom

    def directions(self) -> tuple[Array, Array]:
        """Where the pen and its target point, [N, 3] each."""
        lengths = self.kept["lengths"]
        pen, target = self.axes()
        return pen / lengths[:, :1], target / lengths[:, 1:]

    def away(self) -> Array:
        """From the target's place to the pen [N, 3], m."""
        return self.body(self.thing) - self.site(self.centre)

    def observe(self, out: Array) -> None:
        pen, target = self.directions()
        out[:, :24], out[:, 24:27] = self.qpos[:, :-6], self.body(self.thing)
        out[:, 27:33], out[:, 33:36], out[:, 36:39] = self.qvel[:, -6:], pen, target
        out[:, 39:42], out[:, 42:45] = self.away(), pen - target

    def closeness(self) -> tuple[Array, Array]:
        """Distance [N], m, and cosine of the angle to the target [N]."""
        return norm(self.away()), dot(*self.directions())

    def success(self) -> Array:
        far, alike = self.closeness()
        return (far < 0.075) & (alike > 0.95)

    def dense(self) -> Array:
        far, alike = self.closeness()
        reward = -far + alike
        reward += 10.0 * ((far < 0.075) & (alike > 0.9))
        reward += 50.0 * ((far < 0.075) & (alike > 0.95))
        reward -= 5.0 * (self.body(self.thing)[:, Z] < 0.075)
        return reward


class Relocate(Hand):
    """Carry a ball to a place in the air, to 10 cm and less."""

    own = ("body_pos", "site_pos")
    bodies = (("Object", X, -0.15, 0.15), ("Object", Y, -0.15, 0.3))
    sites = (("target", X, -0.2, 0.2), ("target", Y, -0.2, 0.2), ("target", Z, 0.15, 0.35))

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.thing, self.target = model.body("Object").id, model.site("target").id

    def ways(self) -> tuple[Array, Array, Array]:
        """From object to palm, target to palm and target to object, [N, 3] each, m."""
        palm, thing, target = self.site(self.grasp), self.body(self.thing), self.site(self.target)
        return palm - thing, palm - target, thing - target

    def observe(self, out: Array) -> None:
        out[:, :30] = self.qpos[:, :-6]
        out[:, 30:33], out[:, 33:36], out[:, 36:39] = self.ways()

    def success(self) -> Array:
        return norm(self.ways()[2]) < 0.1

    def dense(self) -> Array:
        reach, carry, left = (norm(way) for way in self.ways())
        lifted = self.body(self.thing)[:, Z] > 0.04
        reward = 0.1 * reach
        reward += 1.0 * lifted
        reward -= 0.5 * carry * lifted
        reward -= 0.5 * left * lifted
        reward += 10.0 * (left < 0.1)
        reward += 20.0 * (left < 0.05)
        return reward


def euler(quat: Array, xp: Any) -> Array:
    """Angles [N, 3] of unit quaternions [N, 4], as gymnasium-robotics' quat2euler, rad."""
    w, x, y, z = (quat[:, k] for k in range(4))
    scale = 2.0 / (quat * quat).sum(-1)
    sx, sy, sz = x * scale, y * scale, z * scale
    first = [1.0 - (y * sy + z * sz), x * sy - w * sz, x * sz + w * sy]
    second = [x * sy + w * sz, 1.0 - (x * sx + z * sz), y * sz - w * sx]
    return angles([first, second, [None, None, 1.0 - (x * sx + y * sy)]], xp)


def angles(m: list[list[Array]], xp: Any) -> Array:
    """Angles [N, 3] of rotations by their entries [N], as gymnasium-robotics' mat2euler, rad.

    At the poles, where the other two turn about one axis, the first is 0. Of the last row only the
    last entry is looked at.
    """
    level = (m[2][2] * m[2][2] + m[1][2] * m[1][2]) ** 0.5
    plain = level > 4.0 * TINY
    last = xp.where(plain, -xp.arctan2(m[0][1], m[0][0]), -xp.arctan2(-m[1][0], m[1][1]))
    first = xp.where(plain, -xp.arctan2(m[1][2], m[2][2]), 0.0 * level)
    return xp.stack([first, -xp.arctan2(-m[0][2], level), last], -1)


_KINDS: dict[str, type[Hand]] = {
    "AdroitHandDoor": Door,
    "AdroitHandHammer": Hammer,
    "AdroitHandPen": Pen,
    "AdroitHandRelocate": Relocate,
}
TASKS: dict[str, type[Task]] = {
    f"{name}{reward}-v1": kind for name, kind in _KINDS.items() for reward in ("", "Sparse")
}
