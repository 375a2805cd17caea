"""Speed put on from outside: algorithms never mention precision or compilation.

On many CPUs float32 products run at half the machine's rate by default, because the "medium"
precision of torch selects another kernel library that is faster and as exact; on CPUs with bfloat16
units the same switch really lowers precision. So it is measured here before it is used, and used
for updates only: at batch 1 the default kernels are several times faster.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

MAX_RELATIVE_ERROR = 3e-6  # about ten float32 roundings of a 256-term dot product
MODES = ("off", "precision", "compile")


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


def with_precision(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`fn` run under a matrix-product precision."""

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with precision(name):
            return fn(*args, **kwargs)

    return wrapped


def fast(algo: Any, mode: str) -> Callable[..., Any]:
    """`algo.update` at the speed asked for.

    "precision" uses the faster product where it is exact enough; "compile" also compiles the
    functions that the algorithm lists in `pure` (its losses). "off" changes nothing.
    """
    if mode not in MODES:
        raise ValueError(f"fast={mode} is not one of {', '.join(MODES)}")
    update = algo.update
    if mode == "off":
        return update
    torch.set_flush_denormal(True)
    if mode == "compile":
        for name in algo.pure:
            setattr(algo, name, torch.compile(getattr(algo, name), dynamic=False))
    on_gpu = algo.generator.device.type == "cuda"
    if on_gpu:
        return with_precision(update, "high")
    return with_precision(update, "medium") if medium_is_exact() else update
