"""Speed put on from outside: algorithms never mention precision or compilation.

On many CPUs float32 products run at half the machine's rate by default, because the "medium"
precision of torch selects another kernel library that is faster and as exact; on CPUs with bfloat16
units the same switch really lowers precision. So it is measured here before it is used, and used
for updates only: at batch 1 the default kernels are several times faster.
"""

import ctypes
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch

from rheo.errors import RheoError
from rheo.policies.narrow import bfloat16

from .graph import recorded

log = logging.getLogger("rheo")
MAX_RELATIVE_ERROR = 3e-6  # about ten float32 roundings of a 256-term dot product
MODES = ("off", "precision", "compile", "graph")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt (malloc.h)
KEPT_BYTES = 1 << 30


@functools.cache
def medium_error(size: int = 256) -> float:
    """Largest relative error of a "medium" float32 product on this machine, against float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with precision("medium"):
        approximate = a @ b
    return float((approximate.double() - exact).abs().max() / exact.abs().max())


def medium_is_exact() -> bool:
    """Whether "medium" keeps float32 accuracy on this CPU."""
    return medium_error() < MAX_RELATIVE_ERROR


class precision:
    """Context that sets the float32 matrix-product precision and restores it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.name)

    def __exit__(self, *exc: object) -> None:
        torch.set_float32_matmul_precision(self.before)


class one_thread:
    """Context in which torch uses one thread: for many small calls beside a simulator's own.

    Tens of rows gain nothing from more, and threads that wait for the next product take cores from
    the physics: a rollout of Hopper took 6.2 s instead of 8.0 on two cores.
    """

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *exc: object) -> None:
        torch.set_num_threads(self.before)


def with_precision(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`fn` run under a matrix-product precision."""

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with precision(name):
            return fn(*args, **kwargs)

    return wrapped


def mode_of(value: str | bool) -> str:
    """The mode that a configuration names; YAML reads a bare `off` as false. Raises RheoError."""
    if isinstance(value, bool):
        return "precision" if value else "off"
    if value not in MODES:
        raise RheoError(f"fast={value}: must be one of {', '.join(MODES)}")
    return value


def settle(value: str | bool) -> None:
    """Settings of the process, unless fast=off.

    Numbers below the normal range count as zero: they are slow on most CPUs, and training and
    evaluation have to treat them alike. Freed memory stays with the process.
    """
    on = mode_of(value) != "off"
    torch.set_flush_denormal(on)
    if on:
        keep_memory()


@functools.cache
def keep_memory() -> bool:
    """Tells glibc to keep freed buffers; whether it did (other C libraries are left alone).

    By default it hands large ones back to the kernel, which clears them page by page at their
    next use: that can be half the time of a critic on thousands of actions.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT_BYTES) == 1 for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))


def narrow(fn: Callable[..., Any], algo: Any, numbers: str) -> Callable[..., Any]:
    """`fn`, what an algorithm does, with networks in the format of `precision=`.

    Raises RheoError for a GPU without it.
    """
    if numbers == "float32":
        return fn
    device = algo.generator.device
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RheoError(
            f"precision={numbers}: {torch.cuda.get_device_name(device)} has no bfloat16, which "
            "came with Ampere; leave it out"
        )

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with bfloat16(device):
            return fn(*args, **kwargs)

    return wrapped


def exploring(algo: Any, numbers: str, on_policy: bool) -> Callable[..., Any]:
    """`algo.act` in float32; on policy as updates see networks.

    Likelihoods of what was done are kept there, and updates take ratios to them, 1 at first.
    """

    def act(obs: torch.Tensor) -> Any:
        return algo.act(obs)  # whatever that is by then

    return narrow(act, algo, numbers if on_policy else "float32")


def fast(algo: Any, value: str | bool, numbers: str = "float32") -> Callable[..., Any]:
    """`algo.update` at the speed asked for, and with networks in that format (`precision=`).

    "precision" uses the faster product where it is exact enough; "compile" also compiles the
    functions that the algorithm lists in `pure` (its losses); "graph" records what an update does
    on a GPU and replays it (`graph.py`). "off" changes nothing. Raises RheoError where a mode is
    not to be had.
    """
    mode = mode_of(value)
    settle(mode)
    if numbers != "float32" and algo.generator.device.type == "cpu":
        log.warning(
            "precision=%s: a CPU without units for it takes many times as long; it is for GPUs",
            numbers,
        )
    update = narrow(algo.update, algo, numbers)
    if mode == "off":
        return update
    if mode == "compile":
        for name in algo.pure:
            setattr(algo, name, torch.compile(getattr(algo, name), dynamic=False))
    if mode == "graph":
        algo.learn_from = recorded(algo)
    if algo.generator.device.type == "cuda":
        return with_precision(update, "high")
    return with_precision(update, "medium") if medium_is_exact() else update


def fast_deploy(algo: Any, value: str | bool, rows: int) -> Callable[..., Any]:
    """`algo.deploy` for `rows` observations at a time: the faster product from 8 rows on."""
    on_cpu = algo.generator.device.type == "cpu"
    if mode_of(value) == "off" or rows < 8 or not on_cpu or not medium_is_exact():
        return algo.deploy
    return with_precision(algo.deploy, "medium")
