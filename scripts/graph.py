"""`fast=graph`: the device's part of an update, recorded once as a CUDA graph and replayed.

A replay does the same work on the same memory and runs no Python: of small networks, whose updates
are bound by launches, it costs one. What an update reads has therefore to lie where it lay, batches
are copied there, and whatever changes between two updates has to be a tensor. An algorithm that
divides `update` into `begin` (the host's part: counts and rates) and `learn_from` (the device's)
keeps to that; `tests/algos/test_recorded.py` replays every one on the CPU.

What only a GPU does is `Cuda`.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from rheo import ranks
from rheo.algos.optim import recordable
from rheo.errors import RheoError

from .store.state import optimizers
from .watching import Watcher

WARM = 3  # calls of a kind before it is recorded: libraries and optimisers make what they need
OTHERS = "use fast=precision or fast=compile"
Work = Callable[[], dict[str, Tensor]]


class Recorder(Protocol):
    """How work is recorded on a device."""

    def warm(self, work: Work) -> dict[str, Tensor]:
        """Does it as it will be recorded."""
        ...

    def record(self, work: Work) -> tuple[dict[str, Tensor], Callable[[], object]]:
        """Does it once. Returns where its results lie, and what does it again."""
        ...


class Cuda:
    """CUDA graphs; the generator's noise goes on from replay to replay."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def warm(self, work: Work) -> dict[str, Tensor]:
        """On a stream of its own, as torch's notes on graphs ask for."""
        device = self.generator.device
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            out = work()
        current.wait_stream(stream)
        return out

    def record(self, work: Work) -> tuple[dict[str, Tensor], Callable[[], object]]:
        """A capture does nothing yet, so it is replayed at once."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.device(self.generator.device), torch.cuda.graph(graph):
            out = work()
        graph.replay()
        return out, graph.replay


class Recording(NamedTuple):
    """Work on the memory `given`, whose results lie in `out`."""

    given: list[Any]
    out: dict[str, Tensor]
    again: Callable[[], object]


class Recorded:
    """`learn_from` of an algorithm; one recording for every kind of call.

    Calls are of one kind whose tensors have equal shapes, whose other arguments are equal, and in
    which the same parts are due (`due`). The first WARM of a kind are done as they come, the next
    is recorded, all others are replays. Raises RheoError for work that cannot be recorded.
    """

    def __init__(self, algo: Any, recorder: Recorder) -> None:
        self.algo, self.work, self.recorder = algo, algo.learn_from, recorder
        self.seen: dict[Hashable, int] = {}
        self.recordings: dict[Hashable, Recording] = {}

    def __call__(self, *given: Any) -> dict[str, Tensor]:
        kind = due(self.algo), tuple(map(likeness, tree_leaves(given)))
        if kind not in self.recordings:
            return self.first(kind, given)
        recording = self.recordings[kind]
        for mine, value in zip(recording.given, tree_leaves(given), strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(value)
        recording.again()
        return copies(recording.out)

    def first(self, kind: Hashable, given: tuple[Any, ...]) -> dict[str, Tensor]:
        """A call of a kind that is not recorded yet."""
        if not self.seen:
            for _, optimizer in optimizers(self.algo):
                recordable(optimizer)
        self.seen[kind] = count = self.seen.get(kind, 0) + 1
        if count < WARM:
            return self.recorder.warm(lambda: self.work(*given))
        if count == WARM:
            with Watcher() as watcher:
                out = self.recorder.warm(lambda: self.work(*given))
            if watcher.reads:
                what = f"{watcher.reads[0]} at {watcher.places[0]}"
                raise self.refused(f"it asks the device for values ({what})")
            return out
        given = tree_map_only(Tensor, torch.clone, given)
        try:
            out, again = self.recorder.record(lambda: self.work(*given))
        except RuntimeError as error:
            raise self.refused(str(error).partition("\n")[0]) from error
        self.recordings[kind] = Recording(tree_leaves(given), out, again)
        return copies(out)

    def forget(self) -> None:
        """Records anew: what the work read lies elsewhere now."""
        self.seen.clear()
        self.recordings.clear()

    def refused(self, why: str) -> RheoError:
        """What is said of an update that cannot be recorded."""
        name = type(self.algo).__name__
        return RheoError(f"fast=graph: an update of {name} cannot be recorded: {why}; {OTHERS}")


def recorded(algo: Any) -> Recorded:
    """`learn_from` of an algorithm on a GPU, recorded. Raises RheoError where it cannot be."""
    name, device = type(algo).__name__, algo.generator.device
    if device.type != "cuda":
        raise RheoError(
            f"fast=graph: what is recorded are launches of a GPU, and this is device={device}; "
            f"{OTHERS}"
        )
    if ranks.size() > 1:
        raise RheoError(f"fast=graph: an update of several ranks is not recorded; {OTHERS}")
    if not hasattr(algo, "learn_from"):
        raise RheoError(
            f"fast=graph: {name}.update is not divided into begin() and learn_from(batch), so the "
            f"host's part of it cannot be told; {OTHERS}"
        )
    return Recorded(algo, Cuda(algo.generator))


def due(algo: Any) -> tuple[bool, ...]:
    """Which parts of an update are due: by the number of updates, of every field `*_every`."""
    periods = [value for name, value in sorted(vars(algo).items()) if name.endswith("_every")]
    return tuple(algo.updates % period == 0 for period in periods)


def likeness(leaf: Any) -> Hashable:
    """What two arguments must share to be of one kind."""
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def copies(out: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results, before the next replay writes over them."""
    return {name: value.detach().clone() for name, value in out.items()}
