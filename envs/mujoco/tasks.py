"""Observation, reward, termination and reset noise of gymnasium's MuJoCo tasks, over N at once.

Every formula is gymnasium's (Farama gymnasium 1.x, envs/mujoco, v5 and v4), restated over arrays
with a leading environment axis, so that a task runs on `mujoco.batch` without a loop, and over
numpy arrays and torch tensors alike, so that it runs on MuJoCo Warp too. Derived fields (xpos,
cinert, ...) are those right after `mj_step`: with RK4 they belong to its last sub-stage, which is
also what gymnasium reads.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

Options = dict[str, Any]
Array = Any  # a numpy array or a torch tensor: what the simulations are kept in
Score = tuple[Array, Array | None]  # reward [N], terminated [N] or None: the task never ends


def namespace(array: Array) -> Any:
    """The module whose functions take an array: numpy's or torch's have the same names."""
    return torch if isinstance(array, torch.Tensor) else np


class Task:
    """One family of tasks on the live arrays of a batch.

    xp: the module of these arrays, `namespace`. A reset is drawn in numpy whatever they are.
    fields: derived MjData fields that are read besides qpos and qvel; `cfrc_ext` [N, nbody, 6]
    asks for contact forces. synced: they are those of the state after the step (`physics.Synced`).
    own: fields of the model in which a reset places something: each simulation has them for itself,
    and they are among the views. keeps: name -> width of what an episode remembers beside its
    state; `kept` has the arrays [N, width]. reports: whether there is a `success`. amends: whether
    every step ends with `amend`, whose state the derived positions are of then. whole: whether
    `begin` writes the whole row of the state. rests: whether it simulates what it drew (`skim`).
    """

    fields: tuple[str, ...] = ()
    own: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[dict[str, int]] = {}
    reports = False
    synced = False
    amends = False
    whole = False
    rests = False
    normal_velocity_noise = False  # reset noise of qvel: scaled normal instead of uniform

    def __init__(self, template: Any, options: Options, views: dict[str, Array]) -> None:
        """`template` is one gymnasium environment (model, dt, initial state, spaces)."""
        self.options = options
        self.qpos, self.qvel = views["qpos"], views["qvel"]
        self.xp = namespace(self.qpos)
        self.views = views
        self.dt = float(template.dt)
        self.init_qpos, self.init_qvel = (np.array(each) for each in self.beginning(template))
        self.noise_scale = options.get("reset_noise_scale", 0.0)
        self.skip = 0  # leading positions left out of the observation
        count = len(self.qpos)
        self.kept = {n: self.alike(np.zeros((count, width))) for n, width in self.keeps.items()}
        self.bind(template.model)

    def bind(self, model: Any) -> None:
        """Look up body ids, weights and option-dependent parts."""

    @classmethod
    def beginning(cls, template: Any) -> tuple[NDArray, NDArray]:
        """The state from which resets set out: qpos [nq], qvel [nv]."""
        return template.init_qpos, template.init_qvel

    @classmethod
    def substeps(cls, template: Any) -> int:
        """How many mj_steps a step is."""
        return int(template.frame_skip)

    @classmethod
    def derived(cls, options: Options) -> tuple[str, ...]:
        """The derived fields read under these options."""
        return cls.fields

    def begin(self, index: int, row: NDArray, rng: np.random.Generator) -> None:
        """A new episode in simulation `index`, whose state `row` holds MuJoCo's defaults."""
        self.qpos[index], self.qvel[index] = self.reset_state(rng)

    def skim(self, rng: np.random.Generator) -> None:
        """Draws what `begin` draws and no more, of tasks that rest."""
        raise NotImplementedError

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """A new episode's (qpos [nq], qvel [nv]), drawn in gymnasium's order."""
        scale = self.noise_scale
        qpos = self.init_qpos + rng.uniform(-scale, scale, self.init_qpos.size)
        if self.normal_velocity_noise:
            return qpos, self.init_qvel + scale * rng.standard_normal(self.init_qvel.size)
        return qpos, self.init_qvel + rng.uniform(-scale, scale, self.init_qvel.size)

    def settle(self, rows: NDArray) -> None:
        """What episodes that just began in these rows remember, once derived fields are there."""
        self.keep(rows)

    def keep(self, rows: Any) -> None:
        """What a step changes of what episodes remember, in these rows (numpy's arrays only)."""
        for name, value in self.carried().items():
            self.kept[name][rows] = value[rows]

    def carried(self) -> dict[str, Array]:
        """Name -> what every step puts in place of `kept` [N, width], a copy."""
        return {}

    def memory(self) -> dict[str, Array]:
        """What the next steps depend on beside the state, by name: `own` and `kept`, live."""
        return {**{name: self.views[name] for name in self.own}, **self.kept}

    def actuate(self, action: Array) -> Array:
        """What the actuators are told [N, nu], from physical actions [N, Da]."""
        return action

    def inputs(self, action: Array) -> dict[str, Array]:
        """All that a step is given, by the field of MjData [N, ...], from physical actions."""
        return {"ctrl": self.actuate(action)}

    def amend(self, rows: Any) -> None:
        """Change the state of these rows after a step, where the task does (`amends`)."""

    def alike(self, constant: NDArray) -> Array:
        """A constant array as those of the simulations are."""
        if isinstance(self.qpos, torch.Tensor):
            return torch.as_tensor(constant, dtype=self.qpos.dtype, device=self.qpos.device)
        return constant

    def position(self) -> Array | None:
        """What progress is measured on, [N], copied; None when the reward does not need it."""
        return None

    def spot(self) -> Array | None:
        """Where a robot is whose speed may cost, copied; None for what does not go anywhere.

        [N, 1] of what goes forward and backward, whose speed is that forward, [N, 2] in the plane.
        """
        return None

    def observe(self, out: Array) -> None:
        """Write the observations into out [N, Do]."""
        raise NotImplementedError

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        """Reward and termination after a step.

        action [N, Da] physical; speed [N]: change of `position` per second; obs [N, Do].
        """
        raise NotImplementedError

    def success(self) -> Array:
        """Which simulations are solved at this moment [N], where the task reports it."""
        raise NotImplementedError


def _einsum_dot(left: NDArray, right: NDArray) -> NDArray:
    return np.einsum("ij,ij->i", left, right)


_dot = getattr(np, "vecdot", _einsum_dot)  # vecdot came with NumPy 2.0


def dot(left: Array, right: Array) -> Array:
    """Row-wise product [N]."""
    return (_dot if type(left) is np.ndarray else torch.linalg.vecdot)(left, right)


def squared(value: Array) -> Array:
    """Row-wise sum of squares [N]."""
    return dot(value, value)


def norm(value: Array) -> Array:
    """Row-wise length [N]."""
    return squared(value) ** 0.5


def copied(value: Array) -> Array:
    """The same numbers in memory of their own."""
    return value.copy() if type(value) is np.ndarray else value.clone()


def between(value: Array, bounds: Any) -> Array:
    """low < value < high, False for NaN."""
    low, high = bounds
    return (value > low) & (value < high)


class Pendulum(Task):
    """InvertedPendulum: one per step while the pole is within 0.2 rad."""

    def observe(self, out: Array) -> None:
        out[:, :2] = self.qpos
        out[:, 2:] = self.qvel

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        terminated = ~(abs(obs[:, 1]) <= 0.2)
        return 1.0 * ~terminated, terminated


class DoublePendulum(Task):
    """InvertedDoublePendulum: a bonus while the tip is above 1 m, minus tip and speed penalties."""

    fields = ("site_xpos", "qfrc_constraint")
    normal_velocity_noise = True

    def observe(self, out: Array) -> None:
        xp = self.xp
        out[:, :1] = self.qpos[:, :1]
        xp.sin(self.qpos[:, 1:], out=out[:, 1:3])
        xp.cos(self.qpos[:, 1:], out=out[:, 3:5])
        xp.clip(self.qvel, -10, 10, out=out[:, 5:8])
        xp.clip(self.views["qfrc_constraint"][:, :1], -10, 10, out=out[:, 8:])

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        tip = self.views["site_xpos"][:, 0]
        terminated = tip[:, 2] <= 1
        far = 0.01 * tip[:, 0] ** 2 + (tip[:, 2] - 2) ** 2
        fast = 1e-3 * self.qvel[:, 1] ** 2 + 5e-3 * self.qvel[:, 2] ** 2
        return self.options["healthy_reward"] * ~terminated - far - fast, terminated


class Reacher(Task):
    """Fingertip to a random target on a disc of radius 0.2 m."""

    fields = ("xpos",)

    def bind(self, model: Any) -> None:
        self.tip, self.target = model.body("fingertip").id, model.body("target").id

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        qpos = rng.uniform(-0.1, 0.1, self.init_qpos.size) + self.init_qpos
        goal = rng.uniform(-0.2, 0.2, 2)
        while np.linalg.norm(goal) >= 0.2:
            goal = rng.uniform(-0.2, 0.2, 2)
        qpos[-2:] = goal
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-2:] = 0
        return qpos, qvel

    def gap(self) -> Array:
        """From target to fingertip [N, 3], m."""
        xpos = self.views["xpos"]
        return xpos[:, self.tip] - xpos[:, self.target]

    def observe(self, out: Array) -> None:
        self.xp.cos(self.qpos[:, :2], out=out[:, :2])
        self.xp.sin(self.qpos[:, :2], out=out[:, 2:4])
        out[:, 4:6] = self.qpos[:, 2:]
        out[:, 6:8] = self.qvel[:, :2]
        out[:, 8:] = self.gap()[:, :2]

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        distance = self.xp.linalg.norm(self.gap(), axis=1)
        near, control = self.options["reward_dist_weight"], self.options["reward_control_weight"]
        return -distance * near - squared(action) * control, None


class Pusher(Task):
    """Push a cylinder to a goal: distances tip-cylinder and cylinder-goal, and control cost."""

    fields = ("xpos",)

    def bind(self, model: Any) -> None:
        names = ("tips_arm", "object", "goal")
        self.tip, self.thing, self.goal = (model.body(name).id for name in names)

    def reset_state(self, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        qpos, place = self.init_qpos.copy(), np.zeros(2)
        while np.linalg.norm(place) <= 0.17:
            place = np.concatenate([rng.uniform(-0.3, 0, 1), rng.uniform(-0.2, 0.2, 1)])
        qpos[-4:-2], qpos[-2:] = place, 0
        qvel = self.init_qvel + rng.uniform(-0.005, 0.005, self.init_qvel.size)
        qvel[-4:] = 0
        return qpos, qvel

    def observe(self, out: Array) -> None:
        xpos = self.views["xpos"]
        out[:, :7] = self.qpos[:, :7]
        out[:, 7:14] = self.qvel[:, :7]
        out[:, 14:17], out[:, 17:20] = xpos[:, self.tip], xpos[:, self.thing]
        out[:, 20:23] = xpos[:, self.goal]

    def score(self, action: Array, speed: Array, obs: Array) -> Score:
        tip, thing, goal = obs[:, 14:17], obs[:, 17:20], obs[:, 20:23]
        near = self.xp.linalg.norm(thing - tip, axis=1) * self.options["reward_near_weight"]
        far = self.xp.linalg.norm(thing - goal, axis=1) * self.options["reward_dist_weight"]
        return -far - squared(action) * self.options["reward_control_weight"] - near, None
