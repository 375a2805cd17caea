"""Observation, reward and starts of ten tasks of DeepMind Control, over N at once.

Every formula is that of dm_control's suite (arXiv:1801.00690), restated over arrays with a leading
environment axis: equal to it step by step, from the same draws. Those of cheetah, walker, hopper
and cartpole take torch tensors too, so that they run on MuJoCo Warp.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .control import Control, linear, quadratic, tolerance
from .physics import mujoco
from .tasks import Array

INFINITE = float("inf")
X, Z = 0, 2  # of a vector
XX, XZ, ZX, ZZ = 0, 2, 6, 8  # of a matrix, row by row


class CheetahRun(Control):
    """Forward speed of the centre of mass, 1 from 10 m/s on."""

    domain, seconds = "cheetah", 0.01
    fields = ("sensordata",)
    full_speed = 10.0
    settling = 200  # steps in which the drawn pose comes to rest
    rests = True

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.speed = self.sensors("torso_subtreelinvel")[X]

    def moved(self, limited: NDArray, hinge: NDArray) -> NDArray:
        return limited

    def place(self, data: Any, rng: np.random.Generator) -> None:
        """The first substep still has the forces of the pose before the draw, as in dm_control."""
        super().place(data, rng)
        mujoco.mj_step2(self.model, data)
        mujoco.mj_step(self.model, data, nstep=self.settling - 1)
        mujoco.mj_step1(self.model, data)
        data.time = 0

    def skim(self, rng: np.random.Generator) -> None:
        super().place(self.scratch, rng)

    def look(self) -> dict[str, Array]:
        return {"position": self.qpos[:, 1:], "velocity": self.qvel}

    def reward(self, control: Array) -> Array:
        speed = self.views["sensordata"][:, self.speed]
        return tolerance(speed, self.full_speed, INFINITE, self.full_speed, 0.0, linear)


class WalkerWalk(Control):
    """Torso upright at 1.2 m, times forward speed."""

    domain, seconds = "walker", 0.025
    fields = ("xpos", "xmat", "sensordata")
    full_speed = 1.0
    height = 1.2

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.torso = model.body("torso").id
        self.speed = self.sensors("torso_subtreelinvel")[X]

    def look(self) -> dict[str, Array]:
        orientations = self.views["xmat"][:, 1:, XX : XZ + 1 : XZ].reshape(len(self.qpos), -1)
        height = self.views["xpos"][:, self.torso, Z:]
        return {"orientations": orientations, "height": height, "velocity": self.qvel}

    def reward(self, control: Array) -> Array:
        full = self.full_speed
        high = self.views["xpos"][:, self.torso, Z]
        standing = tolerance(high, self.height, INFINITE, self.height / 2)
        upright = (1 + self.views["xmat"][:, self.torso, ZZ]) / 2
        speed = self.views["sensordata"][:, self.speed]
        moving = tolerance(speed, full, INFINITE, full / 2, 0.5, linear)
        return (3 * standing + upright) / 4 * (5 * moving + 1) / 6


class WalkerRun(WalkerWalk):
    full_speed = 8.0


class HopperHop(Control):
    """Torso above the foot, times forward speed."""

    domain, seconds = "hopper", 0.02
    fields = ("xipos", "sensordata")
    full_speed = 2.0
    heights = (0.6, 2.0)

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.torso, self.foot = model.body("torso").id, model.body("foot").id
        self.speed = self.sensors("torso_subtreelinvel")[X]
        toe, heel = self.sensors("touch_toe", "touch_heel")
        self.touch = slice(toe, heel + 1)  # no list, which a device would have to be sent

    def look(self) -> dict[str, Array]:
        touch = self.xp.log1p(self.views["sensordata"][:, self.touch])
        return {"position": self.qpos[:, 1:], "velocity": self.qvel, "touch": touch}

    def reward(self, control: Array) -> Array:
        full, xipos = self.full_speed, self.views["xipos"]
        standing = tolerance(xipos[:, self.torso, Z] - xipos[:, self.foot, Z], *self.heights)
        speed = self.views["sensordata"][:, self.speed]
        return standing * tolerance(speed, full, INFINITE, full / 2, 0.5, linear)


class CartpoleSwingup(Control):
    """Pole up, cart in the middle, little force, little speed; begins with the pole down."""

    domain, seconds = "cartpole", 0.01
    fields = ("xmat",)

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.pole = model.body("pole_1").id

    def place(self, data: Any, rng: np.random.Generator) -> None:
        data.qpos[:] = [0, np.pi] + 0.01 * rng.standard_normal(2)
        data.qvel[:] = 0.01 * rng.standard_normal(2)

    def look(self) -> dict[str, Array]:
        xmat = self.views["xmat"][:, self.pole]
        position = [self.qpos[:, :1], xmat[:, ZZ:], xmat[:, XZ : XZ + 1]]
        return {"position": self.xp.hstack(position), "velocity": self.qvel}

    def reward(self, control: Array) -> Array:
        upright = (self.views["xmat"][:, self.pole, ZZ] + 1) / 2
        centred = (1 + tolerance(self.qpos[:, 0], margin=2)) / 2
        gentle = (4 + tolerance(control[:, 0], margin=1, at_margin=0, fall=quadratic)) / 5
        slow = (1 + tolerance(self.qvel[:, 1], margin=5)) / 2
        return upright * gentle * slow * centred


class Finger(Control):
    """Two links that push a body on a hinge."""

    domain, seconds = "finger", 0.02
    fields = ("sensordata",)

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.angles = self.sensors("proximal", "distal")
        speeds = ("proximal_velocity", "distal_velocity", "hinge_velocity")
        self.speeds, self.touch = self.sensors(*speeds), self.sensors("touchtop", "touchbottom")
        places = (self.sensors(name) for name in ("tip", "spinner"))
        self.tip, self.hinge = ([place[X], place[Z]] for place in places)

    def place(self, data: Any, rng: np.random.Generator) -> None:
        self.scatter_apart(data, rng)

    def reached(self) -> NDArray:
        """The body's tip seen from its hinge [N, 2]: x and z, m."""
        values = self.views["sensordata"]
        return values[:, self.tip] - values[:, self.hinge]

    def look(self) -> dict[str, NDArray]:
        values = self.views["sensordata"]
        position = np.hstack([values[:, self.angles], self.reached()])
        touch = np.log1p(values[:, self.touch])
        return {"position": position, "velocity": values[:, self.speeds], "touch": touch}


class FingerSpin(Finger):
    """1 while the body turns at 15 rad/s or more."""

    full_speed = 15.0

    @classmethod
    def change(cls, model: Any) -> None:
        model.dof_damping[model.joint("hinge").dofadr] = 0.03

    def reward(self, control: NDArray) -> NDArray:
        speed = self.views["sensordata"][:, self.speeds[-1]]
        return (speed <= -self.full_speed).astype(np.float64)


class FingerTurnHard(Finger):
    """1 while the body's tip is in a ball of 3 cm around a place on its circle."""

    fields = ("sensordata", "userdata")
    drawn = 2
    radius = 0.03

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.middle = model.body_pos[model.body("spinner").id][[X, Z]]
        self.length = float(model.geom_size[model.geom("cap1").id].sum())

    def place(self, data: Any, rng: np.random.Generator) -> None:
        angle = rng.uniform(-np.pi, np.pi)
        data.userdata[:] = self.middle + self.length * np.array([np.sin(angle), np.cos(angle)])
        super().place(data, rng)

    def target(self) -> NDArray:
        """Seen from the hinge [N, 2]."""
        return self.userdata - self.views["sensordata"][:, self.hinge]

    def gap(self) -> NDArray:
        """Distance of the tip from the ball [N], negative inside, m."""
        return np.linalg.norm(self.target() - self.reached(), axis=1) - self.radius

    def look(self) -> dict[str, NDArray]:
        aim = {"target_position": self.target(), "dist_to_target": self.gap()[:, None]}
        return {**super().look(), **aim}

    def reward(self, control: NDArray) -> NDArray:
        return (self.gap() <= 0).astype(np.float64)


class Fish(Control):
    """A body in water: tail and fins."""

    domain, seconds = "fish", 0.04
    bend = 0.2  # of its joints at the start, rad

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.torso = model.body("torso").id

    def place(self, data: Any, rng: np.random.Generator) -> None:
        quaternion = rng.standard_normal(4)
        data.qpos[3:7] = quaternion / np.linalg.norm(quaternion)
        data.qpos[7:] = rng.uniform(-self.bend, self.bend, len(data.qpos) - 7)

    def uprightness(self) -> NDArray:
        """Cosine of the angle between the torso's axis and the vertical [N]."""
        return self.views["xmat"][:, self.torso, ZZ]

    def aim(self) -> dict[str, NDArray]:
        """What else is observed."""
        return {}

    def look(self) -> dict[str, NDArray]:
        upright = self.uprightness()[:, None]
        return {
            "joint_angles": self.qpos[:, 7:],
            "upright": upright,
            **self.aim(),
            "velocity": self.qvel,
        }


class FishUpright(Fish):
    """Torso upright."""

    fields = ("xmat",)

    def reward(self, control: NDArray) -> NDArray:
        return tolerance(self.uprightness(), 1, 1, margin=1)


class FishSwim(Fish):
    """The mouth at a place in the water, a little for being upright."""

    fields = ("xmat", "geom_xpos", "geom_xmat", "userdata")
    drawn = 3
    corners = ((-0.4, -0.4, 0.1), (0.4, 0.4, 0.3))  # of the box in which the target is drawn, m

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.mouth = model.geom("mouth").id
        self.radii = float(model.geom_size[[self.mouth, model.geom("target").id], 0].sum())

    def place(self, data: Any, rng: np.random.Generator) -> None:
        super().place(data, rng)
        data.userdata[:] = rng.uniform(*self.corners)

    def target(self) -> NDArray:
        """From the mouth to the target in the mouth's frame [N, 3], m."""
        gap = self.userdata - self.views["geom_xpos"][:, self.mouth]
        frame = self.views["geom_xmat"][:, self.mouth].reshape(-1, 3, 3)
        return np.einsum("nj,njk->nk", gap, frame)

    def aim(self) -> dict[str, NDArray]:
        return {"target": self.target()}

    def reward(self, control: NDArray) -> NDArray:
        distance = np.linalg.norm(self.target(), axis=1)
        inside = tolerance(distance, 0, self.radii, margin=2 * self.radii)
        return (7 * inside + (self.uprightness() + 1) / 2) / 8


class HumanoidWalk(Control):
    """Head at 1.4 m, torso upright, little force, times speed of the centre of mass."""

    domain, seconds = "humanoid", 0.025
    fields = ("xpos", "xmat", "sensordata")
    full_speed = 1.0
    height = 1.4

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.torso, self.head = model.body("torso").id, model.body("head").id
        names = ("left_hand", "left_foot", "right_hand", "right_foot")
        self.limbs = [model.body(name).id for name in names]
        self.speed = self.sensors("torso_subtreelinvel")

    def place(self, data: Any, rng: np.random.Generator) -> None:
        self.scatter_apart(data, rng)

    def look(self) -> dict[str, NDArray]:
        xpos, xmat = self.views["xpos"], self.views["xmat"]
        arms = xpos[:, self.limbs] - xpos[:, [self.torso]]
        seen = np.einsum("nlj,njk->nlk", arms, xmat[:, self.torso].reshape(-1, 3, 3))
        return {
            "joint_angles": self.qpos[:, 7:],
            "head_height": xpos[:, self.head, [Z]],
            "extremities": seen.reshape(len(seen), -1),
            "torso_vertical": xmat[:, self.torso, ZX:],
            "com_velocity": self.views["sensordata"][:, self.speed],
            "velocity": self.qvel,
        }

    def reward(self, control: NDArray) -> NDArray:
        head = self.views["xpos"][:, self.head, Z]
        standing = tolerance(head, self.height, INFINITE, self.height / 4)
        vertical = self.views["xmat"][:, self.torso, ZZ]
        upright = tolerance(vertical, 0.9, INFINITE, 1.9, 0.0, linear)
        gentle = tolerance(control, margin=1, at_margin=0, fall=quadratic).mean(1)
        speed = np.linalg.norm(self.views["sensordata"][:, self.speed[:2]], axis=1)
        moving = tolerance(speed, self.full_speed, INFINITE, self.full_speed, 0.0, linear)
        return (4 + gentle) / 5 * standing * upright * (5 * moving + 1) / 6


TASKS: dict[str, type[Control]] = {
    "dm_control/cheetah-run-v0": CheetahRun,
    "dm_control/walker-walk-v0": WalkerWalk,
    "dm_control/walker-run-v0": WalkerRun,
    "dm_control/hopper-hop-v0": HopperHop,
    "dm_control/cartpole-swingup-v0": CartpoleSwingup,
    "dm_control/finger-spin-v0": FingerSpin,
    "dm_control/finger-turn_hard-v0": FingerTurnHard,
    "dm_control/fish-swim-v0": FishSwim,
    "dm_control/fish-upright-v0": FishUpright,
    "dm_control/humanoid-walk-v0": HumanoidWalk,
}
