"""robosuite's control step without what its loop does anew in every substep.

That loop looks up names, asks for limits and Jacobians several times, tells a gripper the same
again and moves the clock of every observable, 25 times a step. Here robosuite's own controllers set
their goals once a step, and its observables are sampled when they are due; what is left of a
substep is MuJoCo's step and the torques of operational space control (Khatib, 1987). They are
computed on MuJoCo's own arrays, in the order of robosuite's operations and with its compiled
functions, and so are robosuite's to the last bit. Not kept are a robot's `recent_` buffers.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvError
from ..mujoco.physics import mujoco


class Loop:
    """Steps one of robosuite's environments: by itself where its robots are not `simple`.

    env: never ends an episode and has no window.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.parts: list[Any] = []
        self.arms: list[Arm] = []
        self.observables: list[Any] = []

    def step(self, action: NDArray) -> tuple[dict[str, Any], float]:
        """Observations and reward, the first two of what the environment's own step returns."""
        parts = [robot.composite_controller for robot in self.env.robots]
        if parts != self.parts:  # every reset makes new ones
            self._prepare(parts)
        return self._step(action) if self.arms else self.env.step(action)[:2]

    def _prepare(self, parts: list[Any]) -> None:
        env = self.env
        each = env._observables.values()
        self.observables = [observable for observable in each if observable.is_enabled()]
        lean = all(map(simple, env.robots)) and alike(self.observables)
        self.arms = [Arm(env.sim, robot) for robot in env.robots] if lean else []
        self.parts = parts

    def _step(self, action: NDArray) -> tuple[dict[str, Any], float]:
        env, model, data = self.env, self.env.sim.model._model, self.env.sim.data._data
        before, after = mujoco.mj_step1, mujoco.mj_step2
        if not env.lite_physics:
            before, after = mujoco.mj_forward, mujoco.mj_step
        if len(action) != env.action_dim:
            raise EnvError(f"an action of {len(action)} numbers, and it takes {env.action_dim}")
        env.timestep += 1
        self._read_clock()
        for substep in range(int(env.control_timestep / env.model_timestep)):
            before(model, data)
            if substep == 0:
                self._set_goals(action)
            else:
                for arm in self.arms:
                    arm.sense()
                    arm.drive()
            after(model, data)
            self._observe()
        self._write_clocks()
        env.cur_time += env.control_timestep
        reward, _, _ = env._post_action(action)
        return env._get_observations(), reward

    def _set_goals(self, action: NDArray) -> None:
        """Has one robot after the other set goals from its part of the action, and move."""
        first = 0
        for parts, arm in zip(self.parts, self.arms, strict=True):
            last = first + max(end for _, end in parts._action_split_indexes.values())
            parts.update_state()
            if arm.own.new_update:  # not in the first step, where robosuite does not look either
                arm.sense()
            parts.set_goal(action[first:last])
            arm.begin()
            first = last

    def _observe(self) -> None:
        """robosuite's `_update_observables`; where nothing is due, only their common clock."""
        if not self.sampled:
            self._write_clocks()
            self.env._update_observables()
            self._read_clock()
            return
        self.time += self.env.model_timestep
        if self.time >= self.period:
            self.time, self.sampled = self.time % self.period, False

    def _read_clock(self) -> None:
        self.time, self.sampled, self.period = clock(self.observables[0])

    def _write_clocks(self) -> None:
        for each in self.observables:
            each._time_since_last_sample, each._sampled = self.time, self.sampled


class Arm:
    """A robot's arm and gripper. The state of their control stays in robosuite's controllers."""

    def __init__(self, sim: Any, robot: Any) -> None:
        self.model, self.data = sim.model._model, sim.data._data
        name, gripper = names(robot)
        self.own, self.grip = (robot.part_controllers[part] for part in (name, gripper))
        motors = robot._ref_actuators_indexes_dict
        self.motors, self.fingers = (Motors(sim, motors[part]) for part in (name, gripper))
        equations = importlib.import_module("robosuite.utils.control_utils")
        self.turned, self.matrices = equations.orientation_error, equations.opspace_matrices
        self.centring = equations.nullspace_torques
        self._watch(sim.model.site_name2id(self.own.ref_name))

    def _watch(self, site: int) -> None:
        """Takes views of what `sense` copies from, and lets what it writes stand end to end."""
        own, data, size = self.own, self.data, self.model.nv
        joints, speeds = row(own.qpos_index), row(own.qvel_index)
        self.site, self.pos = site, data.site_xpos[site]
        self.ori = data.site_xmat[site].reshape(3, 3)
        self.joint_pos, self.joint_vel = data.qpos[joints], data.qvel[speeds]
        self.bias, self.qvel, self.inertia = data.qfrc_bias[speeds], data.qvel, data.qM
        self.jacobians, self.full = np.zeros((2, 3, size)), np.zeros((size, size))
        self.own_jacobians, self.mass = self.jacobians[:, :, speeds], self.full[speeds, speeds]
        self.error, self.force = np.zeros((2, 6))
        self.velocity = np.concatenate([own.ref_pos_vel, own.ref_ori_vel])
        own.ref_pos_vel, own.ref_ori_vel = self.velocity[:3], self.velocity[3:]
        own.J_pos, own.J_ori = own.J_full[:3], own.J_full[3:]

    def sense(self) -> None:
        """The controller's `update`."""
        own, (jac_pos, jac_ori) = self.own, self.jacobians
        if not own.lite_physics:
            mujoco.mj_forward(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, jac_pos, jac_ori, self.site)
        mujoco.mj_fullM(self.model, self.full, self.inertia)
        own.ref_pos[:], own.ref_ori_mat[:] = self.pos, self.ori
        np.dot(jac_pos, self.qvel, out=own.ref_pos_vel)
        np.dot(jac_ori, self.qvel, out=own.ref_ori_vel)
        own.J_pos[:], own.J_ori[:] = self.own_jacobians
        own.joint_pos, own.joint_vel = self.joint_pos.copy(), self.joint_vel.copy()
        own.mass_matrix = self.mass.copy("F")  # the order of robosuite's, for bits depend on it
        own.new_update = False

    def begin(self) -> None:
        """Moves towards goals that were just set. They and the gripper's hold for a step."""
        own = self.own
        self.goal_pos, self.goal_ori = own.goal_pos, own.goal_ori
        if own.input_ref_frame == "base":
            self.goal_pos = own.origin_pos + np.dot(own.origin_ori, own.goal_pos)
            self.goal_ori = np.dot(own.origin_ori, own.goal_ori)
        self.drive()
        self.fingers.turn(self.grip.run_controller())

    def drive(self) -> None:
        """Torques J^T W + b + N^T M (10 (q0 - q) - 2 sqrt(10) v), with W = L (kp e - kd J v).

        q, v [7]: joints and their speeds, q0 [7] at the start; J [6, 7]: Jacobian; b [7]: gravity
        and Coriolis forces; M [7, 7]: inertia; e [6]: pose aimed at - pose; L = (J M^-1 J^T)^-1,
        or its blocks of position and of rotation alone; N = 1 - M^-1 J^T L J.
        """
        own, error, force = self.own, self.error, self.force
        np.subtract(self.goal_pos, own.ref_pos, out=error[:3])
        error[3:] = self.turned(self.goal_ori, own.ref_ori_mat)
        wanted = error * own.kp + -self.velocity * own.kd
        both, of_pos, of_ori, null = self.matrices(
            own.mass_matrix, own.J_full, own.J_pos, own.J_ori
        )
        if own.uncoupling:
            np.dot(of_pos, wanted[:3], out=force[:3])
            np.dot(of_ori, wanted[3:], out=force[3:])
        else:
            np.dot(both, wanted, out=force)
        own.torques = np.dot(own.J_full.T, force) + self.bias
        own.torques += self.centring(
            own.mass_matrix, null, own.initial_joint, own.joint_pos, own.joint_vel
        )
        own.new_update = True
        self.motors.turn(own.torques)


class Motors:
    """Some of the simulator's actuators."""

    def __init__(self, sim: Any, indices: Sequence[int]) -> None:
        self.ctrl = sim.data._data.ctrl[row(indices)]
        self.low, self.high = sim.model._model.actuator_ctrlrange[row(indices)].T.copy()

    def turn(self, values: NDArray) -> None:
        """Sets them, each in its range."""
        np.minimum(np.maximum(values, self.low), self.high, out=self.ctrl)


def names(robot: Any) -> tuple[str, str]:
    """What robosuite calls the parts of a robot with one arm."""
    return robot.arms[0], robot.get_gripper_name(robot.arms[0])


def row(indices: Sequence[int]) -> slice:
    """Indices that follow each other, as a slice."""
    return slice(indices[0], indices[-1] + 1)


@functools.cache
def kinds() -> tuple[type, ...]:
    """robosuite's classes of a robot, its control, that of its arm and of its gripper."""
    return tuple(
        getattr(importlib.import_module(f"robosuite.{module}"), name)
        for module, name in (
            ("robots.fixed_base_robot", "FixedBaseRobot"),
            ("controllers.composite.composite_controller", "CompositeController"),
            ("controllers.parts.arm.osc", "OperationalSpaceController"),
            ("controllers.parts.gripper.simple_grip", "SimpleGripController"),
        )
    )


def simple(robot: Any) -> bool:
    """Whether it stands still, has one arm and one gripper, and goals that hold for a step."""
    parts, whole = list(robot.part_controllers.values()), robot.composite_controller
    if tuple(map(type, (robot, whole, *parts))) != kinds():
        return False
    arm, grip = parts
    model = robot.sim.model._model
    base = robot.sim.model.site_name2id(f"{arm.naming_prefix}{arm.part_name}_center")
    indices = [arm.qpos_index, arm.qvel_index, *robot._ref_actuators_indexes_dict.values()]
    return (
        model.body_weldid[model.site_bodyid[base]] == 0
        and all(robot.enabled(part) for part in robot.part_controllers)
        and arm.interpolator_pos is arm.interpolator_ori is grip.interpolator is None
        and all(np.all(np.diff(each) == 1) for each in indices)
    )


def clock(observable: Any) -> tuple[float, bool, float]:
    """Time since it was sampled last, whether it was in this period, and the period, in s."""
    return observable._time_since_last_sample, observable._sampled, observable._sampling_timestep


def alike(observables: Sequence[Any]) -> bool:
    """Whether they are sampled at the same times, without delay."""
    prompt = importlib.import_module("robosuite.utils.observables").NO_DELAY
    return len({clock(each) for each in observables}) == 1 and all(
        each._delayer is prompt and each._current_delay == 0 for each in observables
    )
