"""robosuite's tasks as robomimic rolls them out (arXiv:2108.03298): `robosuite/Lift-v0` and others.

Observations are robomimic's low-dimensional keys in its order, actions those of an operational
space controller, rewards 1 in a step that is solved and 0 in all others, horizons robomimic's.
A step is robosuite's to the last bit, in a shorter loop (`osc.Loop`).
"""

import copy
import functools
import importlib
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ...errors import EnvError, nearest
from ..cameras import SIZE, Cameras
from ..parts import usual
from ..pixels import SUFFIX
from ..seeded import drawing_from
from .osc import Loop

VERSION = "1.5.1"
# robomimic's public sets were recorded with robosuite 1.4 and older, whose arms move in the world's
# frame; that of the arm's base, 1.5's own choice, is turned by a quarter in Transport.
OSC_POSE = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05] * 3 + [0.5] * 3,
    "output_min": [-0.05] * 3 + [-0.5] * 3, "kp": 150, "damping_ratio": 1,
    "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_ratio_limits": [0, 10],
    "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True,
    "input_type": "delta", "input_ref_frame": "world", "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
TASKS = {  # robosuite's name: arms, robomimic's horizon
    "Lift": (1, 400),
    "PickPlaceCan": (1, 400),
    "NutAssemblySquare": (1, 400),
    "ToolHang": (1, 700),
    "TwoArmTransport": (2, 700),
}
# A controller's keys in robosuite 1.4 and in 1.5, which takes the old ones without a word.
RENAMED = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
# What is decided here, whatever a file's env_args say.
OURS = {
    "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
    "ignore_done": True, "use_object_obs": True, "reward_shaping": False,
}  # fmt: skip
CAMERAS = ("camera_names", "camera_heights", "camera_widths", "camera_depths")
HIDDEN = (0,)  # group of geometries: what collides, which robosuite's own images do not show
FULL_PHYSICS = (1, 4, 1)  # versions up to this one computed every quantity in every substep
OTHER_OBJECT = (1, 5)  # versions before this one made `object` in another way: see `before`
# What `object` was made of then: objects with their pose from the gripper too, or parts as they are
POSED = {
    "PickPlaceCan": ("Can",), "NutAssemblySquare": ("SquareNut",),
    "ToolHang": ("base", "frame", "tool"),
}  # fmt: skip
BESIDE = {
    "ToolHang": ("frame_is_assembled", "tool_on_frame"),
    "TwoArmTransport": (
        "payload_pos", "payload_quat", "trash_pos", "trash_quat", "lid_handle_pos",
        "lid_handle_quat", "target_bin_pos", "trash_bin_pos", "gripper0_to_payload",
        "gripper0_to_lid_handle", "gripper1_to_payload", "gripper1_to_trash",
        "payload_in_target_bin", "trash_in_trash_bin",
    ),
}  # fmt: skip


@functools.cache
def package() -> Any:
    """The package robosuite, without what it says. Raises EnvError for another version."""
    os.environ.setdefault("MUJOCO_GL", "egl")  # else it looks for a display
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # five lines about packages that nothing here needs
    try:
        robosuite = importlib.import_module("robosuite")
    finally:
        logging.disable(level)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    if robosuite.__version__ != VERSION:
        raise EnvError(
            f"robosuite {robosuite.__version__} is installed, and its tasks run with {VERSION}: "
            f"pip install -c constraints-manipulation.txt robosuite=={VERSION}"
        )
    return robosuite


class Robosuite(gymnasium.Env):
    """One of TASKS. Its randomness is numpy's global generator (`seeded.Seeded` wraps it).

    env_args decide arms, controller, control frequency and, by their version, what `object` is
    (`before`); without any they are those of robomimic's public sets with the `object` of the
    installed version. Images are packed behind the numbers (`pixels`). Raises EnvError for env_args
    of another task, an unknown controller and unknown obs_keys.

    Args:
        task: Robosuite's name of the task, which the id decides.
        env_args: How the task is set up, as a robomimic file tells it (JSON or a tree); null: as in
            robomimic's public sets.
        obs_keys: Observations of the task, side by side; CAMERA_image is one as well; null:
            robomimic's usual ones.
        cameras: Cameras whose images are observed too; null: none but those of obs_keys.
        size: Pixels of a side of the images, or [height, width].
        stop: Whether success ends an episode, as robomimic evaluates; else every solved step pays 1
            until the time is up (DPPO, arXiv:2409.00588).
        hard_reset: Whether every reset builds the model anew, which takes a second and draws Lift's
            cube in another size.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    repeats = True  # a seed and actions give the same episode to the last bit
    hidden = HIDDEN

    def __init__(
        self,
        task: str,
        env_args: str | Mapping[str, Any] | None = None,
        obs_keys: list[str] | None = None,
        cameras: list[str] | None = None,
        size: int | list[int] = SIZE,
        stop: bool = True,
        hard_reset: bool = False,
    ) -> None:
        settings = arguments(task, env_args) | {"hard_reset": hard_reset}
        version = read(env_args).get("env_version")
        self.before = version is not None and numbers(version) < OTHER_OBJECT
        self.task, self.stop = task, stop
        with drawing_from(np.random.MT19937(0)):
            self.env = package().make(task, **settings)
        self.loop = Loop(self.env)
        first = self.env._get_observations(force_update=True)
        self.seen = self._named(first)  # of the latest step
        held = {name: np.size(value) for name, value in self.seen.items()}
        asked = list(obs_keys or usual(held))
        views = [key.removesuffix(SUFFIX) for key in asked if key.endswith(SUFFIX)]
        views += [name for name in cameras or [] if name not in views]
        self.cameras = Cameras(views, size, HIDDEN)
        self.obs_images = self.cameras.images
        self.obs_keys = [key for key in asked if key not in self.obs_images]
        for key in self.obs_keys:
            if key not in held:
                raise EnvError(
                    f"obs_keys: {task} observes no {key!r}{nearest(key, held)}; it observes "
                    + ", ".join(held)
                )
        self.obs_parts = {key: held[key] for key in self.obs_keys}
        self.obs_parts |= {key: math.prod(size) for key, size in self.obs_images.items()}
        self.observation_space = spaces.Box(-np.inf, np.inf, self._flat(first).shape)
        low, high = self.env.action_spec
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def _named(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers of a step by their names, `object` as the version of the file made it."""
        seen = named(observations)
        return seen | {"object": before(self.task, seen)} if self.before else seen

    def _flat(self, observations: Mapping[str, Any]) -> NDArray:
        """The parts side by side, [Do]."""
        self.seen = self._named(observations)
        rows = [np.ravel(self.seen[key]).astype(np.float64) for key in self.obs_keys]
        return np.concatenate([*rows, self.look()] if self.obs_images else rows)

    def look(self) -> NDArray:
        """What the cameras see, packed."""
        sim = self.env.sim
        return self.cameras.look(sim.model._model, sim.data._data)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._flat(self.env.reset()), {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict[str, Any]]:
        observations, reward = self.loop.step(np.asarray(action, np.float64))
        success = bool(self.env._check_success())
        ends = self.stop and success
        return self._flat(observations), float(reward), ends, False, {"success": success}

    def shown(self) -> dict[str, NDArray]:
        """What robomimic keeps of the latest step, all of the arms and `object`, and obs_keys."""
        kept = [key for key in self.seen if key.startswith(("robot", "object"))]
        return {key: np.array(self.seen[key]) for key in dict.fromkeys([*kept, *self.obs_keys])}

    def sim_state(self) -> NDArray:
        """The simulator's state: time, positions, velocities."""
        return np.array(self.env.sim.get_state().flatten())

    def model_xml(self) -> str:
        """The simulator's model as XML."""
        return self.env.sim.model.get_xml()

    @property
    def model(self) -> Any:
        """MuJoCo's model, for pictures; `hidden` groups of geometries are left out of them."""
        return self.env.sim.model._model

    @property
    def dt(self) -> float:
        """Seconds of a step."""
        return float(self.env.control_timestep)

    @property
    def data(self) -> Any:
        """MuJoCo's data, whose warnings the guards read; another one after a hard reset."""
        return self.env.sim.data._data

    def close(self) -> None:
        self.env.close()


def named(observations: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a step under robomimic's names: without joint pictures, `object` for all objects.

    robosuite gives everything of an arm, or of all objects, once more end to end (`-state`).
    """
    parts = {"object" if key == "object-state" else key: v for key, v in observations.items()}
    return {key: v for key, v in parts.items() if not key.endswith("-state") and np.ndim(v) < 2}


def before(task: str, seen: Mapping[str, Any]) -> NDArray:
    """`object` as robosuite made it before 1.5, which robomimic's public sets were recorded with.

    Lift's last part was hand - cube, now it is cube - hand. Of every object of can, square and tool
    hang the pose came first, then that pose from the gripper at the same step; now the latter comes
    first, is 0 at the start and is of the object's place one step earlier. Transport told at its
    end whether it is done, now in the middle.
    """
    if task == "Lift":
        cube = seen["cube_pos"]
        return np.concatenate([cube, seen["cube_quat"], seen["robot0_eef_pos"] - cube])
    poses = importlib.import_module("robosuite.utils.transform_utils")
    parts: list[Any] = []
    for name in POSED.get(task, ()):
        pose = seen[f"{name}_pos"], seen[f"{name}_quat"]
        hand = poses.pose2mat((seen["robot0_eef_pos"], seen["robot0_eef_quat"]))
        turned = poses.pose_in_A_to_pose_in_B(poses.pose2mat(pose), poses.pose_inv(hand))
        parts += [*pose, *poses.mat2pose(turned)]
    parts += [seen[name] for name in BESIDE.get(task, ())]
    return np.concatenate([np.ravel(part) for part in parts])


def arguments(task: str, env_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of `robosuite.make` from a file's env_args, or those of robomimic's sets."""
    arms = TASKS[task][0]
    told = read(env_args)
    name = told.get("env_name", task)
    if name != task:
        raise EnvError(f"env_args: they are of {name}, and this environment is {task}")
    settings: dict[str, Any] = {"robots": ["Panda"] * arms, "control_freq": 20}
    settings |= {"env_configuration": "opposed"} if arms == 2 else {}
    settings |= copy.deepcopy(dict(told.get("env_kwargs") or {}))
    old = settings.pop("controller_configs", OSC_POSE)
    old = old if isinstance(old, list) else [old] * arms
    robots = settings["robots"]
    robots = robots if isinstance(robots, list) else [robots]
    configs = [controller(one, robot) for one, robot in zip(old, robots, strict=True)]
    version = told.get("env_version")
    if version is not None:
        settings.setdefault("lite_physics", numbers(version) > FULL_PHYSICS)
    for key in CAMERAS:
        settings.pop(key, None)
    return settings | OURS | {"controller_configs": configs if arms > 1 else configs[0]}


def described(
    task: str, env_args: str | Mapping[str, Any] | None = None, hard_reset: bool = False, **_: Any
) -> dict[str, Any]:
    """A task with its options in robomimic's words, from which its tools make the same one.

    The version is that of the env_args, if they tell one: it says what `object` is.
    """
    settings = arguments(task, env_args) | {"hard_reset": hard_reset}
    return {
        "env_name": task,
        "env_version": read(env_args).get("env_version") or package().__version__,
        "type": 1,
        "env_kwargs": settings,
    }


def read(env_args: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """env_args as a tree. Raises EnvError for what is none."""
    if not isinstance(env_args, str):
        return dict(env_args or {})
    try:
        tree = json.loads(env_args)
    except json.JSONDecodeError as error:
        raise EnvError(f"env_args: not JSON ({error}); take a robomimic file's attribute") from None
    if not isinstance(tree, dict):
        raise EnvError(f"env_args={tree!r}: not a tree with env_name and env_kwargs")
    return tree


def numbers(version: str) -> tuple[int, ...]:
    """1.4.1 as (1, 4, 1)."""
    return tuple(int(part) for part in str(version).split(".") if part.isdigit())


def controller(old: Mapping[str, Any], robot: str) -> dict[str, Any]:
    """A controller of any version as robosuite 1.5 has it: one for each part of the body."""
    package()
    controllers = importlib.import_module("robosuite.controllers")
    if "body_parts" in old:
        return copy.deepcopy(dict(old))
    kind = old.get("type")
    if kind not in controllers.ALL_PART_CONTROLLERS:
        raise EnvError(
            f"env_args: its controller {kind!r} is not one of robosuite {VERSION}'s: "
            + ", ".join(sorted(controllers.ALL_PART_CONTROLLERS))
        )
    new = {RENAMED.get(key, key): value for key, value in old.items()}
    if "control_delta" in new:
        new["input_type"] = "delta" if new.pop("control_delta") else "absolute"
    new.setdefault("input_ref_frame", "world")
    factory = importlib.import_module(
        "robosuite.controllers.composite.composite_controller_factory"
    )
    return factory.refactor_composite_controller_config(new, robot, ["right"])


def register() -> None:
    """Makes `robosuite/TASK-v0` known to gymnasium."""
    package()
    for task, (_, horizon) in TASKS.items():
        env_id = f"robosuite/{task}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id, f"{__name__}:Robosuite", max_episode_steps=horizon, kwargs={"task": task}
            )
