"""gymnasium-robotics' four Fetch tasks: an arm that reaches, pushes, slides, picks up and places.

Formulas and draws are those of gymnasium-robotics 1.4 (envs/fetch), over arrays as in `tasks.py`;
the model, where the arm has settled and the bounds of what is drawn are its class's. An action
sets a mocap body off from where the hand is, and the hand is welded to it. Nothing here ends by
itself; the reward is sparse, 0 nearer than 5 cm to the goal and else -1, or dense, -distance.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvError
from .hands import angles
from .tasks import Array, Options, Score, Task

REACH = 0.05  # m that an action of 1 sets the mocap body off
TURN = (1.0, 0.0, 1.0, 0.0)  # of it, added to the hand's quaternion: down
APART = 0.1  # m between hand and object at the beginning, at least
HIGHEST = 0.45  # m above the table of a goal in the air
REWARDS = ("sparse", "dense")
X, Y, Z = range(3)


class Site(NamedTuple):
    """A place on a body. root: of the body's tree. moved: by which joints, 1 or 0 [nv]."""

    number: int
    root: int
    moved: Array


class Fetch(Task):
    """What the four share.

    goal [N, 3]: where to be, or where the object has to be, m. hand [N, 7]: position and
    quaternion of the hand, from which the next step sets out; as the class reads them they are a
    substep old where no `amend` follows a step.
    """

    fields = (
        *("site_xpos", "site_xmat", "xpos", "xquat", "cdof", "subtree_com"),
        *("mocap_pos", "mocap_quat"),
    )
    keeps: ClassVar[dict[str, int]] = {"goal": 3, "hand": 7}
    reports = True
    amends = True

    def __init__(self, template: Any, options: Options, views: dict[str, Array]) -> None:
        self.learn(template, options["reward_type"])
        super().__init__(template, options, views)

    @classmethod
    def beginning(cls, template: Any) -> tuple[NDArray, NDArray]:
        return template.initial_qpos, template.initial_qvel

    @classmethod
    def substeps(cls, template: Any) -> int:
        return int(template.n_substeps)

    def learn(self, own: Any, reward: str) -> None:
        """What the class fixes. Raises EnvError for a reward that it takes for the dense one."""
        if reward not in REWARDS:
            raise EnvError(
                f"{own.spec.id}: env.options.reward_type={reward}: can be {' or '.join(REWARDS)}"
            )
        self.sparse, self.near = reward == "sparse", own.distance_threshold
        self.settled, self.spread = own.initial_gripper_xpos.copy(), own.target_range

    def bind(self, model: Any) -> None:
        self.wrist = model.body("robot0:gripper_link").id
        self.turn = self.alike(np.array(TURN))
        names = [f"robot0:{side}_gripper_finger_joint" for side in "rl"]
        self.fingers = [int(model.joint(name).dofadr[0]) for name in names]
        self.grip = self.place(model, "robot0:grip")

    def place(self, model: Any, name: str) -> Site:
        """A site of the model."""
        number = model.site(name).id
        body, moved = int(model.site_bodyid[number]), np.zeros(model.nv)
        above = body
        while above:
            first = int(model.body_dofadr[above])
            moved[first : first + int(model.body_dofnum[above])] = 1
            above = int(model.body_parentid[above])
        return Site(number, int(model.body_rootid[body]), self.alike(moved))

    # ---- beginnings ----

    def begin(self, index: int, row: NDArray, rng: np.random.Generator) -> None:
        super().begin(index, row, rng)
        self.kept["goal"][index] = self.draw_goal(rng)

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        return self.init_qpos, self.init_qvel

    def draw_goal(self, rng: np.random.Generator) -> NDArray:
        """A goal [3], m."""
        return self.settled + rng.uniform(-self.spread, self.spread, size=3)

    # ---- a step ----

    def inputs(self, action: Array) -> dict[str, Array]:
        xp, hand = self.xp, self.kept["hand"]
        told = xp.clip(xp.asarray(action, dtype=xp.float32), -1.0, 1.0)  # as the class is told
        return {
            **self.press(told),
            "mocap_pos": (hand[:, :3] + REACH * told[:, :3])[:, None],
            "mocap_quat": (hand[:, 3:] + self.turn)[:, None],
        }

    def press(self, told: Array) -> dict[str, Array]:
        """What the fingers are told, where they have motors."""
        return {}

    def amend(self, rows: Any) -> None:
        """The fingers stay closed."""
        for finger in self.fingers:
            self.qpos[rows, finger] = 0.0

    def carried(self) -> dict[str, Array]:
        pose = (self.views["xpos"][:, self.wrist], self.views["xquat"][:, self.wrist])
        return {"hand": self.xp.concatenate(pose, 1)}

    # ---- what is seen and paid ----

    def at(self, site: Site) -> Array:
        """Where a site is [N, 3], m."""
        return self.views["site_xpos"][:, site.number]

    def motion(self, site: Site) -> tuple[Array, Array]:
        """How far a site goes and how far it turns in a step at these speeds, [N, 3] each, m, rad.

        As from mj_jacSite, by derived fields as they are and speeds as they are now.
        """
        xp, cdof = self.xp, self.views["cdof"] * site.moved[:, None]
        away = (self.at(site) - self.views["subtree_com"][:, site.root])[:, None]
        wx, wy, wz = (cdof[:, :, k] for k in range(3))
        rx, ry, rz = (away[:, :, k] for k in range(3))
        swung = (wy * rz - wz * ry, wz * rx - wx * rz, wx * ry - wy * rx)
        along = xp.stack([cdof[:, :, 3 + k] + swung[k] for k in range(3)], 1)
        about = xp.stack([wx, wy, wz], 1)
        speed = (1.0 * self.qvel)[:, :, None]
        return (along @ speed)[:, :, 0] * self.dt, (about @ speed)[:, :, 0] * self.dt

    def observe_fingers(self, out: Array, at: int) -> None:
        """Their places from column `at` on, and their speeds before the goal, which is last."""
        for k, finger in enumerate(self.fingers):
            out[:, at + k] = self.qpos[:, finger]
            out[:, k - 5] = self.qvel[:, finger] * self.dt
        out[:, -3:] = self.kept["goal"]

    def reached(self) -> Array:
        """What has to be at the goal [N, 3], m."""
        return self.at(self.grip)

    def distance(self) -> Array:
        """From the goal [N], m."""
        return self.xp.linalg.norm(self.reached() - self.kept["goal"], axis=1)

    def success(self) -> Array:
        return self.distance() < self.near

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        far = self.distance()
        return -(1.0 * (far > self.near)) if self.sparse else -far, None


class Reach(Fetch):
    """The hand to a goal in the air."""

    def observe(self, out: Array) -> None:
        out[:, :3], out[:, 5:8] = self.at(self.grip), self.motion(self.grip)[0]
        self.observe_fingers(out, 3)


class Push(Fetch):
    """An object to a goal; slide too, whose goal is out of reach."""

    def learn(self, own: Any, reward: str) -> None:
        super().learn(own, reward)
        self.range, self.offset = own.obj_range, own.target_offset
        self.height, self.airborne = own.height_offset, own.target_in_the_air

    def bind(self, model: Any) -> None:
        super().bind(model)
        self.thing = self.place(model, "object0")
        self.first = int(model.joint("object0:joint").qposadr[0])

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        qpos, under = self.init_qpos.copy(), self.settled[:2]
        spot = under
        while np.linalg.norm(spot - under) < APART:
            spot = under + rng.uniform(-self.range, self.range, size=2)
        qpos[self.first : self.first + 2] = spot
        return qpos, self.init_qvel

    def draw_goal(self, rng: np.random.Generator) -> NDArray:
        goal = super().draw_goal(rng) + self.offset
        goal[Z] = self.height
        if self.airborne and rng.uniform() < 0.5:
            goal[Z] += rng.uniform(0, HIGHEST)
        return goal

    def reached(self) -> Array:
        return self.at(self.thing)

    def observe(self, out: Array) -> None:
        hand, thing = self.at(self.grip), self.at(self.thing)
        out[:, :3], out[:, 3:6], out[:, 6:9] = hand, thing, thing - hand
        turned = self.views["site_xmat"][:, self.thing.number].reshape(-1, 9)
        rows = [[turned[:, 3 * i + j] for j in range(3)] for i in range(3)]
        out[:, 11:14] = angles(rows, self.xp)
        out[:, 20:23] = self.motion(self.grip)[0]
        going, out[:, 17:20] = self.motion(self.thing)
        out[:, 14:17] = going - out[:, 20:23]
        self.observe_fingers(out, 9)


class PickAndPlace(Push):
    """The same with fingers that open and close, and half of the goals in the air."""

    amends = False

    def bind(self, model: Any) -> None:
        super().bind(model)
        joints = model.actuator_trnid[:, 0]
        self.gripping = [int(model.jnt_qposadr[joint]) for joint in joints]

    def press(self, told: Array) -> dict[str, Array]:
        return {"ctrl": self.qpos[:, self.gripping] + told[:, 3:]}


_KINDS: dict[str, type[Task]] = {
    "FetchReach": Reach,
    "FetchPush": Push,
    "FetchSlide": Push,
    "FetchPickAndPlace": PickAndPlace,
}
TASKS: dict[str, type[Task]] = {
    f"{name}{reward}-v4": kind for name, kind in _KINDS.items() for reward in ("", "Dense")
}
