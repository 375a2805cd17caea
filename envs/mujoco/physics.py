"""N simulations of one MuJoCo model on a thread pool, with contact forces where a task reads them.

`mujoco.batch` runs `mj_step` for every simulation but not `mj_rnePostConstraint`, which fills
`cfrc_ext` from the constraint forces of the last (sub-)stage. That state lives only in the MjData
that was stepped, so contact forces need a persistent batch (one MjData per simulation). MuJoCo's C
interface runs a C function on all of them in its thread pool (`mjb_apply`), and a call that
computes nothing (`mjb_forward` up to mjSTAGE_NONE) then copies the result out. The Python class
exposes neither, so `PooledForces` speaks to the C interface itself; where that is not possible
`LoopedForces` copies every MjData and calls the function in a loop: the same numbers, slower.
"""

import ctypes
import functools
import logging
import weakref
from pathlib import Path
from typing import Any

import mujoco as _mujoco
import numpy as np
from numpy.typing import NDArray

from ..packages import bound_packages

log = logging.getLogger("rheo")
mujoco: Any = _mujoco  # the names of its extension modules carry no types

INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION.value
FORCES = "cfrc_ext"


def pool_remedy() -> str:
    """How to get a MuJoCo with the batched stepper without breaking what is installed."""
    bound = bound_packages()
    if not bound:
        return "pip install 'mujoco>=3.17'"
    return (
        f"keep this MuJoCo, which {' and '.join(bound)} need (constraints-manipulation.txt), and "
        "install mujoco>=3.17 into another virtual environment"
    )


def available() -> bool:
    """Whether this MuJoCo has the batched stepper (3.17 and later)."""
    try:
        import mujoco.batch  # noqa: F401
    except ImportError:
        return False
    return True


class Physics:
    """A `mujoco.batch.Batch`: live state rows [N, nstate] and bound fields [N, ...].

    warnings [N, mjNWARNING]: live counters of the simulations' MuJoCo warnings.
    """

    persistent = False

    def __init__(self, model: Any, count: int, threads: int) -> None:
        from mujoco.batch import Batch

        self._batch = Batch(model, count, threads, self.persistent)
        self.state: NDArray = self._batch.state
        self.warnings: NDArray = self._batch.warning[:, :, 1]

    def bind(self, name: str) -> NDArray:
        """The live array of an MjData field: views of `state`, or outputs of the last call."""
        return self._batch.bind(name)

    def own(self, name: str) -> NDArray:
        """The live array [N, ...] of an MjModel field, of which each simulation has its own."""
        return self._batch.expand(name)

    def step(self, ids: NDArray | None, count: int) -> None:
        """`count` calls of mj_step for the simulations ids (int32, sorted; None: all)."""
        self._batch.step(ids, count)

    def forward(self, ids: NDArray | None) -> None:
        """mj_forward for the simulations ids."""
        self._batch.forward(ids)


class LoopedForces(Physics):
    """Contact forces through a copy of every stepped MjData."""

    persistent = True

    def __init__(self, model: Any, count: int, threads: int) -> None:
        super().__init__(model, count, threads)
        self._model, self._data = model, mujoco.MjData(model)
        self._forces = np.zeros((count, model.nbody, 6))

    def bind(self, name: str) -> NDArray:
        return self._forces if name == FORCES else super().bind(name)

    def step(self, ids: NDArray | None, count: int) -> None:
        super().step(ids, count)
        for i in range(len(self._forces)) if ids is None else ids:
            self._batch.get_data(int(i), self._data)
            mujoco.mj_rnePostConstraint(self._model, self._data)
            self._forces[i] = self._data.cfrc_ext

    def forward(self, ids: NDArray | None) -> None:
        super().forward(ids)
        self._forces[slice(None) if ids is None else ids] = 0


class Synced(Physics):
    """Derived fields of the state after the step, touch and force sensors of its last substep.

    One MjData per simulation begins its next step where the last one left off, so that this costs
    nothing.
    """

    persistent = True

    def step(self, ids: NDArray | None, count: int) -> None:
        self._batch.step(ids, count, mujoco.mjtStage.mjSTAGE_VEL.value)


class _Config(ctypes.Structure):
    """mjBatchConfig with room to spare for later members."""

    _fields_ = [
        ("nthread", ctypes.c_int),
        ("persistent", ctypes.c_ubyte),
        ("_", ctypes.c_byte * 248),
    ]


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mjb_defaultConfig": (None, [_POINTER]),
    "mjb_makeBatch": (_POINTER, [_POINTER, _INT, _POINTER, ctypes.c_char_p, _INT]),
    "mjb_deleteBatch": (None, [_POINTER]),
    "mjb_nstate": (_INT, [_POINTER]),
    "mjb_state": (_POINTER, [_POINTER]),
    "mjb_stateComponent": (_POINTER, [_POINTER, _INT, _POINTER]),
    "mjb_output": (_POINTER, [_POINTER, ctypes.c_char_p, _POINTER, _POINTER]),
    "mjb_warning": (_POINTER, [_POINTER]),
    "mjb_step": (_INT, [_POINTER, _POINTER, _INT, _INT, _INT]),
    "mjb_forward": (_INT, [_POINTER, _POINTER, _INT, _INT]),
    "mjb_apply": (_INT, [_POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "mjb_status": (_POINTER, [_POINTER]),
    "mjb_error": (ctypes.c_char_p, [_POINTER, _INT]),
}


@functools.cache
def _library() -> ctypes.CDLL:
    """MuJoCo's shared library, the one the bindings have loaded. Raises OSError, AttributeError."""
    folder = Path(mujoco.__file__).parent
    found = sorted(
        p for p in folder.glob("*mujoco*") if p.suffix in (".dll", ".dylib") or ".so." in p.name
    )
    if len(found) != 1:
        raise OSError(f"MuJoCo's library was not found in {folder}: {[p.name for p in found]}")
    library = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _array(address: int, shape: tuple[int, ...], kind: Any = ctypes.c_double) -> NDArray:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape)


class PooledForces(Physics):
    """Contact forces computed inside MuJoCo's thread pool."""

    persistent = True

    def __init__(self, model: Any, count: int, threads: int) -> None:
        self._c = _library()
        self._count = count
        config, error = _Config(), ctypes.create_string_buffer(1024)
        self._c.mjb_defaultConfig(ctypes.byref(config))
        config.nthread, config.persistent = threads, 1
        made = self._c.mjb_makeBatch(model._address, count, ctypes.byref(config), error, 1024)
        if not made:
            raise OSError(error.value.decode(errors="replace"))
        self._handle = made
        self._release = weakref.finalize(self, self._c.mjb_deleteBatch, made)
        self._template = mujoco.MjData(model)
        width = mujoco.mj_stateSize(model, INTEGRATION)
        if self._c.mjb_nstate(made) != width:
            raise OSError("mjb_nstate disagrees with mj_stateSize")
        self.state = _array(self._c.mjb_state(made), (count, width))
        kinds = int(mujoco.mjtWarning.mjNWARNING)
        self.warnings = _array(self._c.mjb_warning(made), (count, kinds, 2), _INT)[:, :, 1]
        self._function = ctypes.cast(self._c.mj_rnePostConstraint, ctypes.c_void_p)
        self._forces = self.bind(FORCES)
        self._acc = int(mujoco.mjtStage.mjSTAGE_ACC)

    def bind(self, name: str) -> NDArray:
        shape = getattr(self._template, name).shape
        part = getattr(mujoco.mjtState, f"mjSTATE_{name.upper()}", None)
        if part is not None:
            first = self._c.mjb_stateComponent(self._handle, part.value, None)
            offset = (first - self._c.mjb_state(self._handle)) // 8
            return self.state[:, offset : offset + int(np.prod(shape))]
        size = ctypes.c_int()
        address = self._c.mjb_output(self._handle, name.encode(), ctypes.byref(size), None)
        if not address or size.value != int(np.prod(shape)):
            raise OSError(f"mjb_output does not bind {name}")
        return _array(address, (self._count, *shape))

    def _check(self, failed: int) -> None:
        if failed:
            status = _array(self._c.mjb_status(self._handle), (self._count,), _INT)
            index = int(np.flatnonzero(status)[0])
            message = self._c.mjb_error(self._handle, index).decode(errors="replace")
            raise RuntimeError(f"MuJoCo raised in {failed} simulations ({index}: {message})")

    def step(self, ids: NDArray | None, count: int) -> None:
        address, n = (None, 0) if ids is None else (ids.ctypes.data, len(ids))
        self._check(self._c.mjb_step(self._handle, address, n, count, 0))
        self._check(self._c.mjb_apply(self._handle, address, n, self._function, None, 0))
        self._check(self._c.mjb_forward(self._handle, address, n, 0))

    def forward(self, ids: NDArray | None) -> None:
        address, n = (None, 0) if ids is None else (ids.ctypes.data, len(ids))
        self._check(self._c.mjb_forward(self._handle, address, n, self._acc))
        self._forces[slice(None) if ids is None else ids] = 0


@functools.cache
def _forces_kind() -> type[Physics]:
    """PooledForces where it reproduces mj_step with mj_rnePostConstraint, else LoopedForces."""
    try:
        if _pooled_is_exact():
            return PooledForces
        reason = "its contact forces differ from mj_rnePostConstraint's"
    except (OSError, AttributeError, ValueError) as error:
        reason = str(error)
    log.warning(
        "MuJoCo's C batch interface is not used (%s); contact forces cost more time", reason
    )
    return LoopedForces


PROBE = """<mujoco><option integrator="RK4"/><worldbody><geom type="plane" size="9 9 1"/>
<body pos="0 0 .2"><freejoint/><geom type="capsule" size=".1 .2" euler="80 0 0"/></body>
</worldbody></mujoco>"""


def _pooled_is_exact(steps: int = 60) -> bool:
    """Two falling capsules, one of them left out of every third step, against MjData."""
    model = mujoco.MjModel.from_xml_string(PROBE)
    pooled = PooledForces(model, 2, 1)
    data = [mujoco.MjData(model) for _ in range(2)]
    forces, qpos = pooled.bind(FORCES), pooled.bind("qpos")
    for i, d in enumerate(data):
        mujoco.mj_getState(model, d, pooled.state[i], INTEGRATION)
    pooled.forward(None)
    for k in range(steps):
        rows = [0] if k % 3 == 0 else [0, 1]
        pooled.step(np.array(rows, np.int32), 2)
        for i in rows:
            mujoco.mj_step(model, data[i], nstep=2)
            mujoco.mj_rnePostConstraint(model, data[i])
        same = all(np.array_equal(forces[i], d.cfrc_ext) for i, d in enumerate(data))
        if not same or not all(np.array_equal(qpos[i], d.qpos) for i, d in enumerate(data)):
            return False
    return bool(np.abs(forces).max() > 0)


def simulate(model: Any, count: int, threads: int, forces: bool, synced: bool = False) -> Physics:
    """`count` simulations of the model; with `forces`, `cfrc_ext` can be bound too; or `Synced`."""
    kind = Synced if synced else _forces_kind() if forces else Physics
    return kind(model, count, threads)
