"""The first tensor that broke: every update is looked at, and done again when one went wrong.

Looking costs next to nothing: on the CPU the metrics that an update returns anyway, on other
devices nothing until they are read. What lets an update be done again is a copy of the algorithm
and the batches since, which are held, not copied. A copy is made where SHARE of the time since the
last pays for it, and at once where what is held takes HELD or will be overwritten. What a copy
costs is what the cheapest of the latest took: one that was made while other programs had the
processors would else leave batches of minutes in memory.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rheo import ranks
from rheo.algos.optim import shown
from rheo.envs.batch import Rollout

from .store.state import capture, copied, not_finite, optimizers, restore, tensors

Update = Callable[[Any], dict[str, Any]]
SHARE = 0.003  # of a run's time, for copies
HELD, FEW = 128e6, 8  # bytes of batches behind a copy, and how many they are at least
TENSOR = 512  # bytes that a tensor takes besides its numbers
LARGEST = 5  # gradient norms that are told


class Finding(NamedTuple):
    """What broke first, and what it was made from.

    norms: of the gradients at that step or, where that had none, the one before; [name, norm] of
    the largest. state: of the algorithm before the update. metrics: of the update as far as it got.
    """

    what: str
    norms: list[tuple[str, float]]
    state: dict[str, Any]
    batch: Any
    metrics: dict[str, Any]


class Broke(Exception):
    """An update whose numbers broke."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what)
        self.finding = finding


class Found(Exception):
    """Ends an update at what broke in it."""


class Watch:
    """An algorithm's update that raises Broke where its numbers break.

    Updates on the CPU are looked at one by one, those on a device when a copy is made and when
    `find` is asked. careful: each by itself, and its weights too, so that the broken one is the
    last and can be undone. Of several ranks, which would have to do it again together, none looks.
    """

    def __init__(self, algo: Any, update: Update, careful: bool) -> None:
        self.algo, self.update, self.careful = algo, update, careful
        self.at_once = careful or algo.generator.device.type == "cpu"
        self.harmless: set[str] = set()  # metrics that are not finite although nothing broke
        self.state: dict[str, Any] | None = None
        self.batches: list[tuple[Any, list[Tensor]]] = []  # with the noise that each one met
        self.costs: deque[float] = deque(maxlen=8)  # seconds of the latest copies
        self.held = self.taken = 0.0

    def __call__(self, batch: Any) -> dict[str, Any]:
        """An update, its metrics. Raises Broke; the algorithm is then as it was before."""
        if ranks.size() > 1:
            return self.update(batch)
        self.keep(batch)
        metrics = self.update(batch)
        if self.at_once and self.suspicious(metrics):
            finding = self.find()
            if finding is not None:
                raise Broke(finding)
            self.harmless |= {name for name, value in metrics.items() if not finite(value)}
        return metrics

    def suspicious(self, metrics: Mapping[str, Any]) -> bool:
        """Whether an update is to be done again under a glass."""
        if any(not finite(value) for name, value in metrics.items() if name not in self.harmless):
            return True
        return self.careful and not sound(weights(self.algo))

    def keep(self, batch: Any) -> None:
        """What the next update is made from."""
        now = perf_counter()
        full = self.held >= HELD and len(self.batches) >= FEW
        # the first copy of all may be dear by itself, so that a second one follows it soon
        soon = len(self.costs) == 1 and len(self.batches) >= FEW
        due = full or soon or now - self.taken >= min(self.costs, default=0.0) / SHARE
        if self.state is None or due or isinstance(batch, Rollout):
            state = capture(self.algo)
            if self.state is not None and not sound(state):  # on a device: not seen until now
                finding = self.find()
                if finding is not None:
                    raise Broke(finding)
            self.state, self.batches, self.held = copied(state), [], 0.0
            self.taken = perf_counter()
            self.costs.append(self.taken - now)
        # acting draws too between updates, and what it drew is not done again
        noise = [each.get_state() for each in self.generators()]
        self.batches.append((batch, noise))
        self.held += size_of({"batch": as_tree(batch), "noise": noise})

    def find(self, beyond: Callable[[Mapping[str, Any]], str | None] = lambda _: None) -> Any:
        """The Finding of the first kept update that breaks, None where all are sound.

        They are done again from the copy, watched closely. The algorithm is afterwards as it was
        before the broken one, or as it was. beyond: what is wrong with the last one's metrics.
        """
        if self.state is None:
            return None
        present = copied(capture(self.algo))
        self.put(self.state)
        norms: list[tuple[str, float]] = []
        for count, (batch, noise) in enumerate(self.batches):
            last = count == len(self.batches) - 1
            self.tune(noise)
            given = norms, beyond if last else None
            what, norms, metrics = examined(self.algo, self.update, batch, *given)
            if what is not None:
                return Finding(what, norms, self.rewound(count), batch, metrics)
        self.put(present)
        return None

    def rewound(self, count: int) -> dict[str, Any]:
        """Puts the algorithm back to where `count` of the kept updates were done; its state."""
        assert self.state is not None
        self.put(self.state)
        with plain(self.algo):
            for batch, noise in self.batches[:count]:
                self.tune(noise)
                self.update(batch)
        self.tune(self.batches[count][1])
        state = copied(capture(self.algo))
        self.state, self.batches, self.held = state, [], 0.0
        return state

    def generators(self) -> list[torch.Generator]:
        """All that the algorithm draws from."""
        return [part for part in vars(self.algo).values() if isinstance(part, torch.Generator)]

    def tune(self, noise: list[Tensor]) -> None:
        """Puts the generators to where they were."""
        for generator, state in zip(self.generators(), noise, strict=True):
            generator.set_state(state)

    def put(self, state: dict[str, Any]) -> None:
        """Restores a state; what was recorded of updates is recorded anew."""
        restore(self.algo, state)
        again = vars(self.algo).get("learn_from")
        if again is not None:
            again.forget()


def examined(
    algo: Any,
    update: Update,
    batch: Any,
    before: list[tuple[str, float]],
    beyond: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> tuple[str | None, list[tuple[str, float]], dict[str, Any]]:
    """An update with every loss, gradient and weight looked at: what broke first, the largest
    gradient norms and the metrics. before: norms of the update before.
    """
    broken = not_finite(as_tree(batch), "batch")
    if broken is not None:
        return f"{broken} is not finite", before, {}
    look = Inspector(algo)
    metrics: dict[str, Any] = {}
    try:
        with plain(algo), shown(look), look.hooked():
            metrics = update(batch)
    except Found:
        return look.what, look.largest() or before, metrics
    place = not_finite(capture(algo), "algo")
    what = None if place is None else f"{place} is not finite"
    if what is None and beyond is not None:
        what = beyond(metrics)
    return what, look.largest() or before, metrics


class Inspector:
    """Is shown every step of an update, and ends it at the first number that is not finite."""

    def __init__(self, algo: Any) -> None:
        self.algo = algo
        self.what, self.first = "", ""
        self.names = dict(parameter_names(algo))
        self.optimizers = {id(each): name for name, each in optimizers(algo)}
        self.norms: dict[str, float] = {}

    def __call__(self, stage: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Looks at a stage of a step. Raises Found."""
        who = self.optimizers.get(id(optimizer), "an optimiser")
        if stage == "loss":
            if not finite(loss):
                begins = f", from {self.first} on" if self.first else ""
                self.found(f"the loss of {who} is {float(loss.detach()):g}{begins}")
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        named = [(self.names.get(id(p), f"{who}[{i}]"), p) for i, p in enumerate(parameters)]
        if stage == "gradient":
            named = [(name, p.grad) for name, p in named if p.grad is not None]
            self.norms |= {name: float(g.double().norm()) for name, g in named}
        for name, tensor in named:
            if not bool(tensor.isfinite().all()):
                kind = "weight" if stage == "weight" else "gradient"
                self.found(f"the {kind} {name} is {broken_value(tensor)}, in a step of {who}")

    def found(self, what: str) -> None:
        """Ends the update."""
        self.what = what
        raise Found

    def largest(self) -> list[tuple[str, float]]:
        """The largest gradient norms; what is no number is larger than any."""
        order = sorted(self.norms.items(), key=lambda item: (finite(item[1]), -item[1]))
        return order[:LARGEST]

    def hooked(self) -> "hooks":
        """Context in which `first` becomes the name of the module whose output broke first."""
        return hooks(self)


class hooks:
    """Context that looks at what the modules of an algorithm return."""

    def __init__(self, look: Inspector) -> None:
        self.look, self.handles = look, []

    def __enter__(self) -> None:
        for part, module in modules(self.look.algo):
            for name, inner in module.named_modules():
                place = f"{part}.{name}" if name else part
                self.handles.append(inner.register_forward_hook(self.note(place)))

    def note(self, place: str) -> Callable[..., None]:
        """The hook of one module."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self.look.first and not_finite(as_tree(output), "it"):
                self.look.first = f"the output of {place}"

        return hook

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


class plain:
    """Context in which an algorithm's functions are its class's: neither compiled nor recorded."""

    def __init__(self, algo: Any) -> None:
        self.own, names = vars(algo), ("learn_from", *algo.pure)
        self.quick = {name: self.own[name] for name in names if name in self.own}

    def __enter__(self) -> None:
        for name in self.quick:
            del self.own[name]

    def __exit__(self, *exc: object) -> None:
        self.own.update(self.quick)


def modules(algo: Any) -> Iterator[tuple[str, nn.Module]]:
    """The networks of an algorithm, those that learn first: a copy may share parts with them."""
    parts = [(name, part) for name, part in vars(algo).items() if isinstance(part, nn.Module)]
    return iter(
        sorted(parts, key=lambda pair: not any(p.requires_grad for p in pair[1].parameters()))
    )


def parameter_names(algo: Any) -> Iterator[tuple[int, str]]:
    """Parameters by their identity; the first name of one that several parts share comes last."""
    found = [
        (id(p), f"{part}.{name}")
        for part, net in modules(algo)
        for name, p in net.named_parameters()
    ]
    singles = [
        (id(value), f"{name}.{field}")
        for name, part in vars(algo).items()
        if not isinstance(part, nn.Module | torch.optim.Optimizer)
        for field, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, Tensor)
    ]
    return reversed([*found, *singles])


def finite(value: Any) -> bool:
    """Whether a number, or a tensor of one, is finite."""
    return math.isfinite(float(value.detach() if isinstance(value, Tensor) else value))


def broken_value(tensor: Tensor) -> str:
    """'nan (3 of 64 numbers not finite)'."""
    nan, count = int(tensor.isnan().sum()), int((~tensor.isfinite()).sum())
    first = "nan" if nan else "infinite"
    return f"{first} ({count} of {tensor.numel()} numbers not finite)"


def weights(algo: Any) -> dict[str, list[Tensor]]:
    """All that an algorithm's optimisers move."""
    return {
        name: [p.detach() for group in each.param_groups for p in group["params"]]
        for name, each in optimizers(algo)
    }


def sound(tree: Any) -> bool:
    """Whether all numbers of a tree are finite; one question per device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for _, tensor in tensors(tree, ""):
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor.abs().amax())
    return all(
        bool(torch.stack(list(map(Tensor.double, each))).isfinite().all())
        for each in by_device.values()
    )


def as_tree(batch: Any) -> Any:
    """A batch's named tensors as a tree."""
    return batch._asdict() if hasattr(batch, "_asdict") else batch


def size_of(tree: Any) -> float:
    """Bytes that the tensors of a tree take."""
    return sum(t.numel() * t.element_size() + TENSOR for _, t in tensors(tree, ""))
