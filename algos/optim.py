"""Optimisers and the one way a loss becomes a step."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .. import ranks

# shown every step in three stages ("loss", "gradient", "weight") with its optimiser and loss
Look = Callable[[str, torch.optim.Optimizer, Tensor], None]
_looking: list[Look] = []


class shown:
    """Context in which `look` is shown every step: loss, gradients and the weights behind it."""

    def __init__(self, look: Look) -> None:
        self.look = look

    def __enter__(self) -> None:
        _looking.append(self.look)

    def __exit__(self, *exc: object) -> None:
        _looking.remove(self.look)


def show(stage: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Shows a stage of a step to whoever looks."""
    for look in _looking:
        look(stage, optimizer, loss)


def adam(
    parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """AdamW on `parameters`; fused, because the for-loop form costs up to a third of an update."""
    return torch.optim.AdamW(list(parameters), lr=lr, weight_decay=weight_decay, fused=True)


def step(
    optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = None
) -> Tensor | None:
    """One descent step on `loss` [] over the optimiser's parameters; others keep their grads.

    Of several ranks the step follows the mean of all gradients, so that their weights stay equal.
    Returns the gradient's norm [] before it was limited, where there is a limit.
    """
    optimizer.zero_grad(set_to_none=True)
    show("loss", optimizer, loss)
    loss.backward()
    norm = None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if ranks.size() > 1:
        ranks.average_([p.grad for p in parameters if p.grad is not None])
    show("gradient", optimizer, loss)
    if max_norm is not None:
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    show("weight", optimizer, loss)
    return norm


def restart(optimizer: torch.optim.Optimizer) -> None:
    """Forgets all that steps have left, in place: the next one is as the first."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def anneal(optimizer: torch.optim.Optimizer, lr: float, share: float, floor: float) -> None:
    """Sets the learning rate of a point of the run: a cosine from `lr` to `lr * floor`."""
    set_rate(optimizer, lr * cosine(share, 0.0, floor))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate; where it is a tensor that recorded steps read, in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def recordable(optimizer: torch.optim.Optimizer) -> None:
    """From now on its steps can be recorded: whatever changes between them is a tensor."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            device = group["params"][0].device
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=device)
        group["capturable"] = True
    # torch warns of steps that are not recorded, and the first ones are not
    optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]


def cosine(progress: float, warmup: float, floor: float) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine from 1 to `floor`.

    `progress` and `warmup` are shares of the whole training in [0, 1].
    """
    if progress < warmup:
        return progress / warmup
    share = (progress - warmup) / max(1.0 - warmup, 1e-12)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


class frozen:
    """Context in which a module's parameters collect no gradient (its inputs still do)."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *exc: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)
