"""Processes that learn together, as torchrun starts them: who each is, and what all agree on.

Alone, whatever is asked here gives back what it was given. With others every function that agrees
is called by all ranks at the same places: each waits there for the rest. torch is imported only
then.
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from . import shared
from .errors import RheoError

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(hours=1)  # for a rank that lives and does not answer; an evaluation is shorter
SILENCE = 10.0  # seconds for the first rank to tell everybody's mistake
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
PLACES = ("MASTER_ADDR", "MASTER_PORT")


class Lost(RuntimeError):
    """Another rank is gone, or does not answer. kept: what of the run is left."""

    kept = ""


class Place(NamedTuple):
    """Who a process is among those that learn together."""

    rank: int = 0
    size: int = 1
    local: int = 0  # of those on this machine
    beside: int = 1  # how many are on this machine


ALONE = Place()
_place = ALONE
_hosts: Any = None  # the group that numbers of the host travel in
_table: shared.Table | None = None  # where they meet instead, on one machine
_store: Any = None  # where words are left that outlive who said them
_met = 0  # how often this process has become one of several


def rank() -> int:
    """Which of them this process is, from 0."""
    return _place.rank


def size() -> int:
    """How many there are; 1: it is alone."""
    return _place.size


def beside() -> int:
    """How many are on this machine, which share its cores and its memory."""
    return _place.beside


def local() -> int:
    """Which of those on this machine it is, from 0: the number of its GPU."""
    return _place.local


def leads() -> bool:
    """Whether this one writes, shows and evaluates for all."""
    return _place.rank == 0


# ---- coming together -----------------------------------------------------------------------------


def asked(environ: Mapping[str, str] | None = None) -> Place:
    """Who torchrun says that this process is. Raises RheoError where it says only a part."""
    words = os.environ if environ is None else environ
    if words.get("WORLD_SIZE", "1") in ("", "1"):
        return ALONE
    lacking = [name for name in (*NAMES, *PLACES) if not words.get(name)]
    remedy = f"start with {launched('rheo train ...', 2)}, or unset WORLD_SIZE"
    said = f"WORLD_SIZE={words['WORLD_SIZE']} in the environment"
    if lacking:
        raise RheoError(f"{said}, and {', '.join(lacking)} are missing; {remedy}")
    try:
        place = Place(*(int(words[name]) for name in NAMES))
    except ValueError as error:
        raise RheoError(f"{said}: {', '.join(NAMES)} must be numbers; {remedy}") from error
    if not (0 <= place.rank < place.size and 0 <= place.local < place.beside <= place.size):
        raise RheoError(f"{said} and RANK={place.rank} contradict each other; {remedy}")
    return place


def launched(command: str, count: int | None = None) -> str:
    """A command of ours as it is typed for so many ranks; None: as many as there are."""
    count = _place.beside if count is None else count
    if count == 1:
        return command
    return f"torchrun --nproc_per_node={count} $(which rheo) {command.removeprefix('rheo ')}"


def take(place: Place) -> None:
    """From now on this process is that one."""
    global _place
    _place = place


def join(cuda: bool) -> None:
    """Waits for the others: gradients travel by NCCL between GPUs, all else by gloo.

    What processes of one machine add up meets in memory that they share, where there is such.
    """
    global _hosts, _table, _store, _met
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    given = next(iter(rendezvous("env://", timeout=PATIENCE)))
    _met += 1
    kept = dist.PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    _store = kept(f"rheo/{_met}", given[0])
    how: Any = {"rank": _place.rank, "world_size": _place.size, "timeout": PATIENCE}
    dist.init_process_group("nccl" if cuda else "gloo", store=_store, **how)
    _hosts = dist.new_group(backend="gloo", timeout=PATIENCE) if cuda else dist.group.WORLD
    if _place.beside == _place.size:
        table = shared.set_up(_place.rank, _place.size, _store, PATIENCE.total_seconds())
        lacks = largest(int(table is None))
        if table is not None and lacks:
            table.leave()
        _table = None if lacks else table


def leave() -> None:
    """Lets go of the others, who notice when they wait for this one; it is alone from now on."""
    global _hosts, _table, _store, _place
    import torch.distributed as dist

    if _table is not None:
        _table.leave()
    if dist.is_initialized():
        dist.destroy_process_group()
    _hosts = _table = _store = None
    _place = ALONE


def let_first_speak() -> None:
    """Before ranks have met a mistake is everybody's: the first on a machine tells it for all.

    torchrun ends the others then. Where it does not, the mistake is this one's own.
    """
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    if several and not _met and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(SILENCE)


def leave_word(kind: str, text: str) -> None:
    """Leaves a word of this rank for the others, who may read it after it has ended."""
    _store.set(f"{kind}/{_place.rank}", text)


def words(kind: str) -> dict[int, str]:
    """The words of a kind that ranks have left."""
    keys = {each: f"{kind}/{each}" for each in range(_place.size)}
    return {each: _store.get(key).decode() for each, key in keys.items() if _store.check([key])}


def _say(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """An exchange. Raises Lost when it failed: then somebody is gone."""
    try:
        return call(*args, **more)
    except RuntimeError as error:
        raise Lost(str(error).partition("\n")[0]) from error


# ---- agreeing ------------------------------------------------------------------------------------


def average_(tensors: "list[Tensor]") -> None:
    """Puts their means over the ranks into tensors of one device and kind, in one exchange."""
    if _place.size == 1:
        return
    import torch

    flat = _summed(torch.cat([each.detach().reshape(-1) for each in tensors])) / _place.size
    parts = flat.split([each.numel() for each in tensors])
    for each, part in zip(tensors, parts, strict=True):
        each.detach().copy_(part.view_as(each))


def mean(*tensors: "Tensor") -> "tuple[Tensor, ...]":
    """Means over the ranks of tensors of one device and kind, in one exchange."""
    if _place.size == 1:
        return tensors
    copies = [each.detach().clone() for each in tensors]
    average_(copies)
    return tuple(copies)


def most(tensor: "Tensor") -> "Tensor":
    """The largest over the ranks, of every element."""
    if _place.size == 1:
        return tensor
    import torch

    return _folded(tensor.detach().clone(memory_format=torch.contiguous_format), "MAX")


def largest(number: int) -> int:
    """The largest number of any rank."""
    if _place.size == 1:
        return number
    import torch

    return int(most(torch.tensor(number)))


def total(number: int) -> int:
    """The sum of a number over the ranks."""
    if _place.size == 1:
        return number
    import torch

    return int(_summed(torch.tensor(number)))


def moments(values: "Tensor") -> "tuple[Any, Tensor, Tensor]":
    """Count, mean and sum of squared deviations of the values [n] of all ranks."""
    if _place.size == 1:
        mean = values.mean()
        return len(values), mean, (values - mean).square().sum()
    import torch

    count = torch.full_like(values[:1], len(values)).sum()
    count, whole = _summed(torch.stack([count, values.sum()]))
    mean = whole / count
    return count, mean, _summed((values - mean).square().sum())


def spread(values: "Tensor") -> "tuple[Tensor, Tensor]":
    """Mean and standard deviation of the values [n] of all ranks."""
    if _place.size == 1:
        return values.mean(), values.std(correction=0)
    count, mean, square = moments(values)
    return mean, (square / count).sqrt()


def gathered(thing: Any) -> list[Any]:
    """What every rank has, in the order of ranks, for the first one; the others get nothing."""
    if _place.size == 1:
        return [thing]
    import torch.distributed as dist

    found: list[Any] = [None] * _place.size if leads() else []
    _say(dist.gather_object, thing, found if leads() else None, dst=0, group=_hosts)
    return found


def _summed(tensor: "Tensor") -> "Tensor":
    """The sum over the ranks, in place."""
    return _folded(tensor, "SUM")


def _folded(tensor: "Tensor", how: str) -> "Tensor":
    """The sum or largest over the ranks, in place of a contiguous tensor.

    NCCL carries those of GPUs; those of the host meet in shared memory, or gloo carries them.
    """
    import torch.distributed as dist

    host = tensor.device.type == "cpu"
    if host and _table is not None:
        _say(_table.fold_, tensor, how == "MAX")
    else:
        kind = getattr(dist.ReduceOp, how)
        _say(dist.all_reduce, tensor, op=kind, group=_hosts if host else None)
    return tensor
