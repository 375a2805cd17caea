"""N worlds of one MuJoCo model on MuJoCo Warp, in float32: physics alone, recorded once as a graph.

What a task reads and writes are torch tensors on the simulator's own memory. On a GPU a step is the
replay of a CUDA graph, on the CPU that of warp's own recording; neither asks the device anything.
"""

import contextlib
import copy
import dataclasses
import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import EnvError
from ..memory import available, size_text
from .physics import mujoco

log = logging.getLogger("rheo")
SHARE = 0.8  # of free memory that worlds may take
SCRATCH = 1.5  # what a recorded step needs for itself, as a factor on the worlds' own memory
PATIENCE = 10.0  # seconds of compiling between two lines about it
# Equalities whose rows turn with the bodies. MuJoCo Warp computes these rows by the speeds of the
# substep before, even of the episode before: here the speeds come first.
TURNING = (int(mujoco.mjtEq.mjEQ_CONNECT), int(mujoco.mjtEq.mjEQ_WELD))
STATE = ("qpos", "qvel", "qacc_warmstart", "act", "time")  # what the next step depends on


class Room(NamedTuple):
    """How many contacts and constraint rows of a world there is room for.

    Contacts lie in one pool of all worlds, rows in each world's own; what does not fit is lost, and
    the worlds that may have lost some are flagged.
    """

    contacts: int
    rows: int


# A capsule meets the floor in two points and each contact has four rows (pyramidal cone), to which
# limits of joints come: more than this there cannot be. The humanoids also touch themselves (126
# pairs), so theirs is twice what three ways of falling about reached: 16 and 30 contacts, 66 and
# 121 rows. So do the hands: random actions, kept for 1 to 60 steps, and fists thrown about reached
# 32, 18, 11 and 33 contacts, 166, 125, 93 and 188 rows. So does the arm, which random actions, held
# for 1 to 50 steps, and ones that press on the table and the object brought to 19, 22, 20 and 24
# contacts, 85, 118, 100 and 135 rows. DeepMind Control's walkers came to 5, 7 and 8 contacts, 21,
# 28 and 33 rows.
ROOMS = {
    "HalfCheetah": Room(16, 72),
    "Hopper": Room(16, 64),
    "Walker2d": Room(16, 64),
    "Ant": Room(26, 112),
    "Humanoid": Room(96, 144),
    "HumanoidStandup": Room(96, 256),
    "Pusher": Room(28, 64),
    "AdroitHandDoor": Room(64, 336),
    "AdroitHandHammer": Room(40, 256),
    "AdroitHandPen": Room(40, 256),
    "AdroitHandRelocate": Room(68, 384),
    "FetchReach": Room(40, 176),
    "FetchPush": Room(48, 240),
    "FetchSlide": Room(40, 208),
    "FetchPickAndPlace": Room(48, 272),
    "dm_control/cheetah-run": Room(16, 56),
    "dm_control/walker-walk": Room(16, 64),
    "dm_control/walker-run": Room(16, 64),
    "dm_control/hopper-hop": Room(20, 80),
    "Swimmer": Room(1, 8),  # nothing touches here and below
    "Reacher": Room(1, 8),
    "InvertedPendulum": Room(1, 8),
    "InvertedDoublePendulum": Room(1, 8),
    "dm_control/cartpole-swingup": Room(1, 8),
}


class Worlds:
    """`count` worlds of a model on a device; `step` advances all of them by `substeps` mj_steps.

    forces: contact forces (`cfrc_ext`) are computed after them. room: as above, None for the
    engine's own. name: of the environment, for messages. own: fields of the model that each world
    has for itself (`field`). places: whether there is a `place`. synced: derived positions, and
    sensors of positions and speeds, are of the state after the step, other sensors of its last
    substep. state: views of STATE that are not empty. lost: the bits of `overflow` that say that a
    step was not computed whole. Raises EnvError for a model that MuJoCo Warp does not simulate, and
    for more worlds than memory holds.
    """

    def __init__(
        self, model: Any, count: int, device: torch.device, *, substeps: int, forces: bool,
        room: Room | None, name: str, own: Sequence[str] = (), places: bool = False,
        synced: bool = False,
    ) -> None:  # fmt: skip
        self._warp, self._engine = engine()
        self.device, self._substeps, self._forces = device, substeps, forces
        self._synced = synced
        self._place = self._on(device)
        model = solvable(model, name)
        sizes = {} if room is None else {"nconmax": room.contacts, "njmax": room.rows}
        with self._warp.ScopedDevice(self._place):
            try:
                self._model = self._engine.put_model(model, batch_sizes=dict.fromkeys(own, count))
                self._refuse_many(model, count, sizes, name)
                self._data = self._engine.make_data(model, nworld=count, **sizes)
            except NotImplementedError as error:
                raise EnvError(
                    f"{name}: MuJoCo Warp does not simulate this model ({error}); use "
                    "env.backend=native"
                ) from error
        self._model.opt.warn_overflow = 0  # seen in `overflow`; kernels that print are slow
        if device.type == "cuda" and not self._warp.is_conditional_graph_supported():
            self._model.opt.graph_conditional = False
            log.warning(
                "%s: the NVIDIA driver is older than CUDA 12.4, so every step makes all iterations "
                "of its solver; a newer driver is quicker", name,
            )  # fmt: skip
        kinds = self._engine.OverflowType
        self.lost = int(kinds.ALL & ~(kinds.ITERATIONS | kinds.LS_ITERATIONS))
        self.overflow = self.bind("overflow")
        views = {part: self.bind(part) for part in STATE}
        self.state = {part: view for part, view in views.items() if view.numel()}
        self._stream: Any = None
        self._welded = bool(np.isin(model.eq_type, TURNING).any())
        self._graph = self._record(name, self.unrecorded)
        self._places = self._record(name, self._positions) if places else None

    def bind(self, name: str) -> Tensor:
        """A tensor [N, ...] on the simulator's own memory."""
        return self._warp.to_torch(getattr(self._data, name))

    def field(self, name: str) -> Tensor:
        """A field of the model that each world has of its own, [N, ...]; to be written to."""
        return self._warp.to_torch(getattr(self._model, name))

    @property
    def bytes(self) -> int:
        """Memory of all worlds, without what a step needs for itself."""
        return footprint(self._data)

    def step(self) -> None:
        """Advances every world, in the order of the work that torch has given the device."""
        self._replay(self._graph)

    def place(self) -> None:
        """Where everything is in the state as it stands: what is derived of positions, no more."""
        self._replay(self._places)

    def _replay(self, graph: Any) -> None:
        if self.device.type == "cpu":
            self._warp.capture_launch(graph)
            return
        current = torch.cuda.current_stream(self.device)
        if self._stream is None or self._stream.cuda_stream != current.cuda_stream:
            self._stream = self._warp.stream_from_torch(current)
        self._warp.capture_launch(graph, stream=self._stream)

    def unrecorded(self) -> None:
        """The step call by call: what the recording holds."""
        for _ in range(self._substeps):
            if self._welded:
                self._positions()
                self._engine.com_vel(self._model, self._data)
            self._engine.step(self._model, self._data)
        if self._forces:
            self._engine.rne_postconstraint(self._model, self._data)
        if self._synced:
            self._positions()
            self._engine.com_vel(self._model, self._data)
            self._engine.sensor_pos(self._model, self._data)
            self._engine.sensor_vel(self._model, self._data)

    def _positions(self) -> None:
        self._engine.kinematics(self._model, self._data)
        self._engine.com_pos(self._model, self._data)

    def _record(self, name: str, work: Callable[[], None]) -> Any:
        """The graph of some work. Compiles its kernels; the worlds are as they were afterwards."""
        before = {part: view.clone() for part, view in self.state.items()}
        with self._warp.ScopedDevice(self._place), patient(name, str(self._cache())):
            self._warp.synchronize_device(self._place)  # with torch's streams too
            work()
            with self._warp.ScopedCapture() as capture:
                work()
            self._warp.synchronize_device(self._place)
        for part, view in self.state.items():
            view.copy_(before[part])
        self.overflow.zero_()
        return capture.graph

    def _cache(self) -> Any:
        return self._warp.config.kernel_cache_dir

    def _on(self, device: torch.device) -> str:
        """Warp's name of a device. Raises EnvError where warp cannot use it."""
        if device.type == "cpu":
            return "cpu"
        if device.type != "cuda":
            raise EnvError(f"env.backend=warp runs on cuda or cpu; device={device} is neither")
        if not self._warp.is_cuda_available():
            raise EnvError(
                f"env.backend=warp: torch sees {device}, but warp does not (its driver may be too "
                "old for warp's CUDA toolkit): update the NVIDIA driver, or set device=cpu"
            )
        return str(self._warp.device_from_torch(device))

    def _refuse_many(self, model: Any, count: int, sizes: dict[str, int], name: str) -> None:
        """Says what the worlds take. Raises EnvError where that is more than there is."""
        one, two = (
            footprint(self._engine.make_data(model, nworld=worlds, **sizes)) for worlds in (1, 2)
        )
        needed, free = SCRATCH * (two - one) * count, free_memory(self.device)
        text = f"{name}: {count} worlds take about {size_text(needed)} on {self.device}"
        if free is not None and needed > SHARE * free:
            raise EnvError(f"{text}, and {size_text(free)} are free; lower env.num_envs")
        log.info(text)


def engine() -> tuple[Any, Any]:
    """The modules warp and mujoco_warp.

    Warp says nothing but warnings, and not that there is no GPU: who needs one is told so by us.
    """
    warp: Any = importlib.import_module("warp")
    level = max(warp.config.log_level, warp.LOG_WARNING)
    warp.config.log_level = warp.LOG_ERROR
    warp.init()
    warp.config.log_level = level
    return warp, importlib.import_module("mujoco_warp")


def solvable(model: Any, name: str) -> Any:
    """A copy of the model with a solver that MuJoCo Warp has.

    It lacks PGS, which the humanoids name. Newton's method finds the same minimum: in MuJoCo the
    two differ by 4e-7 in a position after 20 control steps of Humanoid-v5.
    """
    model = copy.copy(model)
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        log.info("%s: MuJoCo Warp has no PGS solver; contacts are solved by Newton's method", name)
        model.opt.solver, model.opt.iterations = mujoco.mjtSolver.mjSOL_NEWTON, 100
    return model


def footprint(data: Any) -> int:
    """Bytes of all arrays of a record of warp's."""
    if dataclasses.is_dataclass(data):
        return sum(footprint(getattr(data, field.name)) for field in dataclasses.fields(data))
    return int(getattr(data, "capacity", 0))


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where the system does not say."""
    return available() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


@contextlib.contextmanager
def patient(name: str, cache: str) -> Iterator[None]:
    """Says now and then that kernels are being compiled, and at the end how long it took."""
    done, start = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(PATIENCE):
            log.info("%s: compiling kernels, %d s so far", name, time.monotonic() - start)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    took = time.monotonic() - start
    if took > PATIENCE:
        log.info("%s: kernels compiled in %d s and kept in %s", name, took, cache)
