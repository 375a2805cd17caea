"""Looking at one environment: pictures of it for a film, or a window on it."""

import contextlib
import os
import sys
import time
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..errors import EnvError, EnvFault
from . import families
from .cameras import canvas, context, place, scenes
from .guard import close, own, shown, told
from .mujoco.physics import mujoco

ASPECT = 4 / 3
USUAL = ("agentview", "corner3", "track")  # cameras from which a task is well seen
STEP = 0.05  # seconds of a step where an environment does not say


def step_seconds(env: gymnasium.Env) -> float:
    """The time that a step takes in an environment's own world."""
    base: Any = env.unwrapped
    for owner in (base, getattr(base, "env", None)):
        seconds = getattr(owner, "dt", None)
        if isinstance(seconds, float) and seconds > 0:
            return seconds
    rate = (base.metadata or {}).get("render_fps")
    return 1 / rate if rate else STEP


def seconds_of(env_id: str, options: dict[str, Any]) -> float:
    """The time that a step of an environment takes, which is made for it. Raises EnvError."""
    families.register(env_id)
    made = families.make(env_id, options)
    try:
        return step_seconds(made)
    finally:
        close(made, env_id)


def has_model(env: gymnasium.Env) -> bool:
    """Whether MuJoCo's model and data of an environment can be drawn from here."""
    base: Any = env.unwrapped
    return hasattr(base, "model") and hasattr(base, "data")


class Renderer:
    """A picture of an environment as it is now, uint8 [H, W, 3].

    height: in pixels; the width is 4/3 of it, where the environment does not draw itself. camera:
    of the model; None: the usual one of its suite, or one that follows the body that the task looks
    at. Raises EnvError for a camera that is not there, and where nothing can be rendered.
    """

    def __init__(self, env: gymnasium.Env, height: int, camera: str | None) -> None:
        self.env, self.camera_name = env, camera
        self.size = (height, 2 * round(height * ASPECT / 2))
        self.model: Any = None
        if camera is not None and not has_model(env):
            raise EnvError(f"camera={camera}: this environment draws itself; leave it out")

    def __call__(self) -> NDArray:
        base: Any = self.env.unwrapped
        if not has_model(self.env):
            return drawn(self.env)
        if base.model is not self.model:  # the first one, or a new one of a hard reset
            self.model = base.model
            context()
            self.canvas, (self.scene,) = canvas(self.model, self.size), scenes(self.model, 1)
            self.camera, self.option = camera_of(base, self.camera_name), mujoco.MjvOption()
            for group in getattr(base, "hidden", ()):
                self.option.geomgroup[group] = 0
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self.model, base.data, self.option, None, self.camera, everything, self.scene
        )
        return self.canvas.draw(self.scene).copy()


def drawn(env: gymnasium.Env) -> NDArray:
    """The picture that an environment draws of itself, uint8 [H, W, 3]. Raises EnvFault."""
    try:
        picture = env.render()
    except BaseException as error:
        if not own(error):
            raise
        raise EnvFault(f"render raised {told(error)}") from error
    image = np.asarray(picture)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] < 3:
        got = f"render returned {shown(picture)}"
        raise EnvFault(f"{got}, expected an array [height, width, 3] of uint8")
    return image[..., :3].copy()


class Window:
    """MuJoCo's own viewer on an environment, at `speed` times the pace of its world.

    Raises EnvError where no window can be opened, and when it was closed.
    """

    def __init__(self, env: gymnasium.Env, every: float) -> None:
        base: Any = env.unwrapped
        if not has_model(env):
            raise EnvError("window=true: is of environments with a model of MuJoCo's; make a film")
        displays = ("DISPLAY", "WAYLAND_DISPLAY")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
            # the window system would end the process
            raise EnvError("window=true: no display here (DISPLAY is not set); make a film")
        try:
            import mujoco.viewer as viewer

            self.viewer = viewer.launch_passive(base.model, base.data)
        except Exception as error:  # whatever a missing display makes the window system raise
            raise EnvError(f"window=true: no window here ({told(error)}); make a film") from error
        self.every, self.due = every, time.monotonic()

    def __call__(self) -> None:
        if not self.viewer.is_running():
            raise EnvError("the window was closed")
        self.viewer.sync()
        self.due = max(self.due + self.every, time.monotonic() - self.every)
        time.sleep(max(self.due - time.monotonic(), 0))


def camera_of(base: Any, name: str | None) -> Any:
    """The camera of that name, else the usual one, else a free one as gymnasium places it."""
    model, camera = base.model, mujoco.MjvCamera()
    kind = mujoco.mjtObj.mjOBJ_CAMERA
    there = [each for each in USUAL if mujoco.mj_name2id(model, kind, each) >= 0]
    if name is not None or there:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = place(model, name or there[0])
        return camera
    mujoco.mjv_defaultFreeCamera(model, camera)
    renderer = getattr(base, "mujoco_renderer", None)
    for key, value in (getattr(renderer, "default_cam_config", None) or {}).items():
        with contextlib.suppress(TypeError):
            if isinstance(value, np.ndarray):
                getattr(camera, key)[:] = value
            else:
                setattr(camera, key, value)
    if getattr(camera, "trackbodyid", -1) >= 0:
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    return camera
