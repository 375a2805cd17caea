"""What the environments of other packages need before they fit the vector contract.

gymnasium-robotics (Adroit, Fetch, mazes), OGBench and PushT are optional: nothing here imports them
until one of their environments is asked for. All but Adroit's hands (`mujoco/hands.py`) and Fetch's
arm (`mujoco/fetch.py`) are stepped in a loop, in the learner's process or, where a step costs more
than the way there (`STEP_MS`), in several workers' (`workers.py`).
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from numpy.typing import NDArray

from ..errors import EnvError, nearest
from . import cameras
from .chosen import ChosenParts
from .dicts import image, leaves, value
from .guard import close, of_signal, told
from .manipulation import registry
from .mujoco import dmc, robotics
from .mujoco.snapshot import PLAIN_WRAPPERS
from .packages import home, lacking
from .parts import listed_parts, usual
from .pixels import Images, last, pack
from .seeded import Seeded
from .vector import gymnasium_make, say, unmade

# One of each family, to see whether it runs with the installed versions.
SAMPLES = {
    "Adroit": "AdroitHandDoor-v1",
    "AntMaze": "AntMaze_UMaze-v5",
    "Fetch": "FetchReach-v4",
    "FrankaKitchen": "FrankaKitchen-v1",
    "HandManipulate": "HandManipulateBlock-v1",
    "HandReach": "HandReach-v3",
    "PointMaze": "PointMaze_UMaze-v3",
    "OGBench's mazes": "pointmaze-medium-navigate-singletask-v0",
    "OGBench's manipulation": "cube-single-play-singletask-v0",
    "PushT": "gym_pusht/PushT-v0",
    "ALOHA": "gym_aloha/AlohaTransferCube-v0",
    "DeepMind Control": "dm_control/cheetah-run-v0",
    "Kitchen's scored sets": "kitchen/mixed-v0",
    "Meta-World": "metaworld/reach-v3",
    "robosuite": "robosuite/Lift-v0",
}
# Milliseconds of a core that a step takes, by the beginning of the id: of those that take long to
# step and to make. Others: 0.05-0.4.
STEP_MS = {
    **{"robosuite/TwoArm": 9.0, "robosuite/": 4.0, "gym_aloha/": 5.0},
    **{"kitchen/": 2.9, "FrankaKitchen": 2.9, "Fetch": 1.8, "Hand": 1.8},
    **{"cube-": 1.5, "scene-": 1.5, "puzzle-": 1.5, "AdroitHand": 0.5, "metaworld/": 0.4},
}
# Environments whose actions are positions, by the beginning of the id: a 0 is a place to go to.
POSITIONS = ("AdroitHand", "HandReach", "HandManipulate", "gym_pusht/", "gym_aloha/")
ADDED = ("cameras", "obs_keys")  # options that any environment takes
# Where an environment says in a step's info that its task is solved at that moment.
SUCCESS_KEYS = ("success", "is_success", "goal_achieved")


def register(env_id: str) -> None:
    """Make sure the id is registered; EnvError with the nearest id or the missing package."""
    refuse_image(env_id)
    if ":" in env_id or env_id in gymnasium.registry:
        return
    module, package = home(env_id)
    if importlib.util.find_spec(module) is None:
        raise EnvError(lacking(env_id, package))
    try:
        if module == "dm_control":
            dmc.register()  # on its models; the package is not imported
        elif "/" in env_id and module in registry.SUITES:
            registry.register(module)
        else:
            with contextlib.redirect_stderr(io.StringIO()):  # notes on tasks that nobody asked for
                gymnasium.register_envs(importlib.import_module(module))
    except BaseException as error:
        if of_signal(error):
            raise
        raise EnvError(
            f"{env_id} needs the package {package}, which is installed but cannot be imported "
            f"({told(error)}): pip install --force-reinstall --no-deps {package}"
        ) from error
    if env_id not in gymnasium.registry and module != "ogbench":
        raise EnvError(f"unknown environment {env_id!r}{nearest(env_id, gymnasium.registry)}")


def refuse_image(env_id: str) -> None:
    """Raises EnvError for OGBench's tasks whose whole observation is an image."""
    task = env_id.removeprefix("visual-")
    if task != env_id:
        raise EnvError(
            f"{env_id} observes nothing but an image: cameras see other tasks as well, "
            f"env.id={task} env.options.cameras=[front]"
        )


def step_ms(env_id: str) -> float | None:
    """Milliseconds that a step is known to take; None for those that take little, or unknown."""
    return next((STEP_MS[start] for start in STEP_MS if env_id.startswith(start)), None)


def success_key(info: Mapping[str, Any]) -> str | None:
    """The key of a step's info under which this environment reports success, if it does."""
    return next((key for key in SUCCESS_KEYS if key in info), None)


def make(env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    """A registered environment with a 1-D Box observation. Raises EnvError.

    Two options are everybody's whose own constructor does not have them: `cameras` adds images of
    these to what it observes, of `size` pixels (an empty list adds none), and `obs_keys` says which
    parts are observed, in which order.
    """
    added = [key for key in ADDED if key in options and not takes(env_id, key)]
    held = {"size"} if "cameras" in added else set()
    env = vector(env_id, {k: options[k] for k in options if k not in held.union(added)})
    try:
        if "cameras" in added and options["cameras"] != []:
            size = options.get("size", cameras.SIZE)
            env = cameras.WithCameras(env, parts_of(env), options["cameras"], size)
        if "obs_keys" in added and options["obs_keys"] is not None:
            env = ChosenParts(env, parts_of(env), images_of(env), options["obs_keys"])
    except EnvError as error:
        close(env, env_id)
        raise EnvError(f"{env_id}: env.options.{error}") from error
    if isinstance(env, cameras.WithCameras | ChosenParts):
        say(f"{env_id}: observed are {listed_parts(env.parts)}, in this order")
    return env


def takes(env_id: str, option: str) -> bool:
    """Whether the constructor of a registered environment has an option of that name."""
    spec = gymnasium.registry.get(env_id)
    entry = None if spec is None else spec.entry_point
    try:
        made = load_env_creator(entry) if isinstance(entry, str) else entry
        return made is not None and option in inspect.signature(made).parameters
    except Exception:  # noqa: BLE001 - making it says what is wrong
        return False


def vector(env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    """`make` without cameras."""
    module = home(env_id)[0]
    if module == "gymnasium_robotics":
        robotics.mend()
    if module != "ogbench":
        env = gymnasium_make(env_id, options, functools.partial(installed, env_id))
        return flat_box(Seeded(env) if module == "robosuite" else env, env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing display, and the precision of its bounds
        registered = env_id in gymnasium.registry
        env = gymnasium_make(env_id, options) if registered else _ogbench(env_id, options)
        refuse_unseen_goal(env, env_id)
        return flat_box(Seeded(env), env_id)


def installed(env_id: str) -> str:
    """'; X 1.2 and mujoco 4.0 are installed, ...': the versions that an id depends on."""
    package = home(env_id)[1]
    if package == "gymnasium":
        return ""
    try:
        have = " and ".join(f"{name} {metadata.version(name)}" for name in (package, "mujoco"))
    except metadata.PackageNotFoundError:
        return ""
    return f"; {have} are installed"


def _ogbench(env_id: str, options: dict[str, Any]) -> gymnasium.Env:
    """The environment of an OGBench data set's name; no data is loaded or downloaded."""
    ogbench = importlib.import_module("ogbench")
    settings = {"disable_env_checker": True, **options}
    try:
        return ogbench.make_env_and_datasets(env_id, env_only=True, **settings)
    except gymnasium.error.Error as error:
        raise EnvError(
            f"unknown environment {env_id!r}: OGBench's names are TASK-DATA-singletask-v0, "
            f"for example antmaze-large-navigate-singletask-v0 ({error})"
        ) from error
    except BaseException as error:  # the package is somebody else's code
        if of_signal(error):
            raise
        raise EnvError(unmade(env_id, options, error) + installed(env_id)) from error


def refuse_unseen_goal(env: gymnasium.Env, env_id: str) -> None:
    """Raises EnvError for OGBench's goal-conditioned tasks: no observation shows their goal."""
    if getattr(env.unwrapped, "_reward_task_id", None) is None:
        name = env_id.removesuffix("-v0")
        raise EnvError(
            f"{env_id} draws a goal that its observation does not contain: use a single-task "
            f"environment, {name}-singletask-v0 or {name}-singletask-task1-v0 to -task5-v0"
        )


def flat_box(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """The environment with a 1-D Box observation; Dict (`PartsVector`) and Tuple are flattened."""
    for name in ("observation_space", "action_space"):
        if not hasattr(env, name):
            raise EnvError(f"{env_id} has no {name}: set it in its constructor")
    space = env.observation_space
    if isinstance(space, spaces.Dict) and space.is_np_flattenable:
        env = PartsVector(env, env_id)
        say(f"{env_id}: observed are {listed_parts(env.parts)}, in this order")
        if env.left_out:
            say(f"{env_id}: not observed are {', '.join(env.left_out)}")
    elif isinstance(space, spaces.Tuple) and space.is_np_flattenable:
        say(f"{env_id}: its Tuple observation is flattened")
        env = gymnasium.wrappers.FlattenObservation(env)
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise EnvError(
            f"{env_id} has the observation space {space}, but a vector (1-D Box) is needed: wrap "
            "the environment, for example in gymnasium.wrappers.FlattenObservation, and register it"
        )
    return env


class PartsVector(gymnasium.ObservationWrapper):
    """A dictionary observation as one vector of the parts that `parts.usual` names, in its order.

    parts: their widths, in that order. A part is laid out as gymnasium's FlattenObservation does;
    images (uint8 [H, W, 3]) are the last ones, packed (`pixels`). images: their sizes.
    """

    def __init__(self, env: gymnasium.Env, env_id: str) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        held = dict(leaves(env.observation_space))
        chosen = usual(held, env_id)
        self.images = {name: size for name in chosen if (size := image(held[name]))}
        self.held = {name: held[name] for name in last(chosen, self.images)}
        self.left_out = [name for name in held if name not in self.held]
        boxes: Any = [flat_space(part) for part in self.held.values()]
        self.parts = {name: box.shape[0] for name, box in zip(self.held, boxes, strict=True)}
        low, high = (
            np.concatenate([getattr(box, end) for box in boxes]).astype(np.float64)
            for end in ("low", "high")
        )
        self.observation_space = spaces.Box(low, high, dtype=np.float64)

    def observation(self, observation: Mapping[str, Any]) -> NDArray:
        rows: Any = [self.row(name, value(observation, name)) for name in self.held]
        return np.concatenate(rows)

    def row(self, name: str, part: Any) -> Any:
        """A part as numbers. Raises EnvError for an image of another type than its space says."""
        if name not in self.images:
            return spaces.flatten(self.held[name], part)
        try:
            return pack(np.asarray(part))
        except ValueError as error:
            raise EnvError(f"{name} is {error}") from error


def flat_space(part: spaces.Space) -> spaces.Space:
    """A part's space as a row of numbers, of an image one for each pixel."""
    size = image(part)
    if size is None:
        return spaces.flatten_space(part)
    return spaces.Box(0.0, float((1 << 24) - 1), (size[0] * size[1],))


def images_of(env: gymnasium.Env) -> Images:
    """Sizes of the images among the parts of the observation vector."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, cameras.WithCameras):
            return {**images_of(env.env), **env.cameras.images}
        if isinstance(env, PartsVector):
            return env.images
        if isinstance(env, ChosenParts):
            return images_of(env.env)
        if isinstance(env, gymnasium.ObservationWrapper):
            return {}
        env = env.env
    return getattr(env, "obs_images", {})


def cameras_of(env: gymnasium.Env) -> cameras.Cameras | None:
    """The cameras behind the observation vector, where nothing but who observes sees them.

    None where something of somebody else's may look at images within a step.
    """
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, cameras.WithCameras):
            return env.cameras
        if type(env).__name__ not in PLAIN_WRAPPERS:
            return None
        env = env.env
    own, module = getattr(env, "cameras", None), type(env).__module__
    ours = module.startswith(__name__.removesuffix("families"))  # not a class made of ours
    return own if ours and isinstance(own, cameras.Cameras) and own.images else None


def parts_of(env: gymnasium.Env) -> dict[str, int] | None:
    """Parts of the observation vector with their widths, in order; None where it has no names.

    An environment that its author flattened is looked into; one whose observations were changed
    in another way is not.
    """
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, PartsVector | cameras.WithCameras | ChosenParts):
            return env.parts
        if isinstance(env, gymnasium.wrappers.FlattenObservation):
            inner = env.env.observation_space
            named = leaves(inner) if isinstance(inner, spaces.Dict) else ()
            return {name: spaces.flatdim(part) for name, part in named} or None
        if isinstance(env, gymnasium.ObservationWrapper):
            return None
        env = env.env
    return getattr(env, "obs_parts", None)
