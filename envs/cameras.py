"""Images of MuJoCo's cameras, without a window: of any environment that has a model and data."""

import atexit
import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import EnvError
from .guard import told
from .mujoco.physics import mujoco
from .pixels import SUFFIX, Images, pack, pixels

SIZE = 84  # pixels of a side where nobody says another
SHADOW = 8  # points of a shadow's map for a pixel of the image's side
SPARE = 1000  # geometries of a scene beside those of its model
REMEDY = (
    "install Mesa's EGL (Debian and Ubuntu: libegl1 libgl1-mesa-dri) or set MUJOCO_GL=osmesa with "
    "OSMesa, or leave the cameras out"
)


@functools.cache
def context() -> Any:
    """This process's drawing context: EGL where there is no display. Raises EnvError."""
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's own gain nothing for small images
    kind = os.environ.get("MUJOCO_GL", "").lower().strip()
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    try:
        if kind == "egl" or (headless and not kind):
            from mujoco.egl import GLContext
        elif kind == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        made = GLContext(SIZE, SIZE)
        made.make_current()
    except Exception as error:  # whatever a driver or its absence makes it raise
        raise EnvError(f"nothing can be rendered here ({told(error)}): {REMEDY}") from error
    atexit.register(leave, made)
    return made


def leave(drawing: Any) -> None:
    """Frees what is drawn on while the driver is still there, unless others have closed it."""
    with contextlib.suppress(Exception):
        for held in canvases.values():
            held.context.free()
        drawing.free()


class Canvas:
    """A model's meshes and textures where they are drawn, and the image that is read back.

    Drawn without multisampling and reflections, and with shadows no finer than the image: in
    software each costs as much as all else in small images or more. What they change is little:
    edges, and the shine of floors and tables (robosuite's Lift: 0.5 of 255 in the mean, at most
    12).
    """

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        context().make_current()
        quality, whole, (height, width) = model.vis.quality, model.vis.global_, size
        before = quality.offsamples, quality.shadowsize, whole.offwidth, whole.offheight
        quality.offsamples, whole.offwidth, whole.offheight = 0, width, height
        quality.shadowsize = min(before[1], 1 << (SHADOW * max(size) - 1).bit_length())
        self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        quality.offsamples, quality.shadowsize, whole.offwidth, whole.offheight = before
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.area, self.drawn = mujoco.MjrRect(0, 0, width, height), np.empty((*size, 3), np.uint8)

    def draw(self, scene: Any) -> NDArray:
        """The scene as an image, uint8 [H, W, 3], its first row at the top."""
        context().make_current()
        mujoco.mjr_render(self.area, scene, self.context)
        mujoco.mjr_readPixels(self.drawn, None, self.area, self.context)
        return self.drawn[::-1]


canvases: WeakValueDictionary[Any, Canvas] = WeakValueDictionary()


def canvas(model: Any, size: tuple[int, int]) -> Canvas:
    """The canvas of a model: one for all copies of an environment in a process."""
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    for name in ("mesh_vert", "mesh_face", "mesh_texcoord", "tex_data", "tex_rgb", "hfield_data"):
        digest.update(np.ascontiguousarray(getattr(model, name, np.empty(0))).tobytes())
    flat = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    digest.update(model.geom_size[flat].tobytes())
    key = digest.digest()
    held = canvases.get(key)
    if held is None:
        held = canvases[key] = Canvas(model, size)
    return held


class Cameras:
    """Some cameras of a model. names: in order. size: pixels of a side, or [height, width].

    hidden: groups of geometries that are not drawn. images: heights and widths by observation.
    Raises EnvError for what is no list of names and no size.

    blind: where it is not 0, what is seen is not drawn but kept, the latest so many times, to be
    drawn when somebody asks after all. Where things are costs microseconds, drawing milliseconds.
    """

    def __init__(self, names: Any, size: Any = SIZE, hidden: Sequence[int] = ()) -> None:
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise EnvError(f"cameras={names!r}: a list of names is needed, cameras=[NAME,...]")
        sides = [size, size] if isinstance(size, int) else size
        whole = isinstance(sides, list | tuple) and all(type(side) is int for side in sides)
        if not whole or len(sides) != 2 or min(sides) < 1:
            raise EnvError(f"size={size!r}: pixels of a side are needed, or [height,width]")
        self.names, self.size = list(names), (sides[0], sides[1])
        self.images: Images = {f"{name}{SUFFIX}": self.size for name in self.names}
        self.option, self.camera = mujoco.MjvOption(), mujoco.MjvCamera()
        for group in hidden:
            self.option.geomgroup[group] = 0
        self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.model: Any = None
        self.blind, self.turn = 0, 0

    def look(self, model: Any, data: Any) -> NDArray:
        """What the cameras see, packed: [C H W]; of `blind` ones a mark, for `develop`.

        Raises EnvError for a camera that is not there.
        """
        if model is not self.model:
            self.places = [place(model, name) for name in self.names]
            self.canvas, self.scenes = canvas(model, self.size), scenes(model, len(self.names))
            self.model, self.kept = model, []
        if not self.blind:
            self.arrange(data, self.scenes)
            return self.draw(self.scenes)
        self.turn = (self.turn + 1) % self.blind
        while len(self.kept) <= self.turn:
            self.kept.append(scenes(model, len(self.names)))
        self.arrange(data, self.kept[self.turn])
        return np.full(pixels(self.images), -1 - self.turn, np.float32)  # no pixel is below 0

    def arrange(self, data: Any, views: list[Any]) -> None:
        """Puts into a scene for each camera what it sees."""
        everything = mujoco.mjtCatBit.mjCAT_ALL
        for index, scene in zip(self.places, views, strict=True):
            self.camera.fixedcamid = index
            mujoco.mjv_updateScene(
                self.model, data, self.option, None, self.camera, everything, scene
            )

    def draw(self, views: list[Any]) -> NDArray:
        """The scenes of all cameras, packed."""
        return np.concatenate([pack(self.canvas.draw(scene)) for scene in views])

    def develop(self, obs: NDArray) -> None:
        """Draws in its place what an observation [Do] with a mark is of; no mark, nothing."""
        images = obs[-pixels(self.images) :]
        if images[0] < 0:
            images[:] = self.draw(self.kept[-1 - int(images[0])])


def scenes(model: Any, count: int) -> list[Any]:
    """Empty ones, without reflections."""
    room = model.ngeom + model.nsite + 2 * model.nwrap + SPARE
    made = [mujoco.MjvScene(model, room) for _ in range(count)]
    for scene in made:
        scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return made


def place(model: Any, name: str) -> int:
    """The number of a camera. Raises EnvError."""
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        named = [model.camera(i).name for i in range(model.ncam)]
        there = f"it has {', '.join(filter(None, named))}" if any(named) else "it has none"
        raise EnvError(f"cameras: there is no {name!r}; {there}")
    return index


class WithCameras(gymnasium.ObservationWrapper):
    """A vector observation with the images of cameras behind it.

    parts: of the whole, in order; `known` are those of the vector, None where it has no names.
    """

    def __init__(
        self, env: gymnasium.Env, known: dict[str, int] | None, names: Any, size: Any
    ) -> None:
        super().__init__(env)
        base: Any = env.unwrapped
        if not hasattr(base, "model") or not hasattr(base, "data"):
            raise EnvError("cameras: this environment has no model of MuJoCo's to be rendered")
        self.cameras = Cameras(names, size)
        self.look()
        box: Any = env.observation_space
        room = np.full(pixels(self.cameras.images), float((1 << 24) - 1))
        low, high = np.append(box.low, 0 * room), np.append(box.high, room)
        self.observation_space = spaces.Box(low, high, dtype=np.float64)
        self.parts = known or {"observation": box.shape[0]}
        self.parts |= {name: size[0] * size[1] for name, size in self.cameras.images.items()}

    def look(self) -> NDArray:
        """What the cameras see, packed."""
        base: Any = self.env.unwrapped
        return self.cameras.look(base.model, base.data)

    def observation(self, observation: NDArray) -> NDArray:
        return np.append(observation, self.look())
