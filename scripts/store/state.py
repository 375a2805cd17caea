"""The state of an algorithm: what of it a checkpoint holds, and how it comes back."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from rheo.algos.contract import completed
from rheo.errors import RheoError

CONTAINERS = (list, dict, set)
ROUNDED = 1e-6  # of a learning rate that is kept in float32
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what Adam keeps of a parameter


def capture(algo: Any) -> dict[str, Any]:
    """The state of every part of an algorithm: modules, optimisers, generators, tensors, counters.

    Numbers that came in through the constructor are settings, not state: the configuration holds
    them. Raises TypeError for containers, whose contents would silently be lost, unless a dataclass
    that it inherits from has them as settings.
    """
    settings = inspect.signature(type(algo)).parameters
    handed = {one.name for one in fields(algo) if one.init} if is_dataclass(algo) else set()
    state = {}
    for name, part in vars(algo).items():
        if isinstance(part, torch.Generator):
            state[name] = part.get_state()
        elif name in settings and not hasattr(part, "state_dict"):
            continue
        elif isinstance(part, Tensor) or type(part) in (int, float):
            state[name] = part
        elif hasattr(part, "state_dict"):
            state[name] = part.state_dict()
        elif isinstance(part, CONTAINERS) and name not in handed:
            raise TypeError(
                f"{type(algo).__name__}.{name} is a {type(part).__name__}, which checkpoints do "
                "not hold: keep state in tensors, modules and numbers"
            )
    return state


def divided(algo: Any, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `capture` took: the part that all ranks have alike, and the rest, each rank's own.

    Their own are generators, and what a part says is `apart`.
    """
    common, own = {}, {}
    for name, value in state.items():
        part, apart = vars(algo)[name], getattr(vars(algo)[name], "apart", ())
        if isinstance(part, torch.Generator):
            own[name] = value
        elif apart:
            own[name] = {key: each for key, each in value.items() if key in apart}
            common[name] = {key: each for key, each in value.items() if key not in apart}
        else:
            common[name] = value
    return common, own


def united(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A captured state with a rank's own part in it."""
    nested = {
        name: {**common[name], **value} for name, value in own.items() if isinstance(value, Mapping)
    }
    return {**common, **own, **nested}


def restore(algo: Any, state: Mapping[str, Any], *, generators: bool = True) -> None:
    """Puts back what `capture` took. Raises RheoError naming the first part that does not fit.

    Without `generators` the noise is not restored: its state belongs to one kind of device.
    """
    parts, state = capture(algo), completed(type(algo)).upgrade(state)
    for name in sorted(set(parts) ^ set(state)):
        where = "the checkpoint" if name in parts else type(algo).__name__
        raise RheoError(f"checkpoint part algo.{name} does not fit: {where} has none")
    for name in parts:
        part, value = vars(algo)[name], state[name]
        try:
            if hasattr(part, "load_state_dict") or isinstance(part, Tensor | torch.Generator):
                put_back(part, value, generators)
            elif type(value) not in (int, float):
                raise ValueError(f"{value!r} is no number")
            else:
                setattr(algo, name, value)
        except (RuntimeError, ValueError) as error:
            raise RheoError(f"checkpoint part algo.{name} does not fit: {error}") from error
        except (AttributeError, LookupError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RheoError(f"checkpoint part algo.{name} does not fit ({what})") from error


def put_back(part: Any, value: Any, generators: bool) -> None:
    """Puts what was captured of a part back into it. Raises RuntimeError, ValueError."""
    if isinstance(part, Tensor):
        put(part, value)
    elif not isinstance(part, torch.Generator):
        for place, optimizer in of_part("", part):  # of a part of its own by the field's name
            refuse_strange(optimizer.state_dict(), value[place[1:]] if place else value)
        part.load_state_dict(copied(value))
        for _, optimizer in of_part("", part):
            refuse_odd_steps(optimizer)
    elif generators:
        part.set_state(value.cpu())


def copied(node: Any) -> Any:
    """A state with its tensors in torch's own memory: optimisers keep what they are given, and a
    checkpoint's memory is not aligned.
    """
    if isinstance(node, Tensor):
        return node.clone()
    if isinstance(node, Mapping):
        return {key: copied(value) for key, value in node.items()}
    return [copied(value) for value in node] if isinstance(node, list) else node


def optimizers(algo: Any) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """The optimisers of an algorithm and of its parts, by their places."""
    for name, part in vars(algo).items():
        yield from of_part(name, part)


def of_part(name: str, part: Any) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """A part that is an optimiser, or those that it has, by their places."""
    if isinstance(part, torch.optim.Optimizer):
        yield name, part
        return
    for field, inner in getattr(part, "__dict__", {}).items():
        if isinstance(inner, torch.optim.Optimizer):
            yield f"{name}.{field}", inner


def refuse_strange(mine: Mapping[str, Any], theirs: Any) -> None:
    """Raises ValueError for an optimiser's state of other parameters."""
    groups = theirs["param_groups"]
    if [group["params"] for group in groups] != [g["params"] for g in mine["param_groups"]]:
        raise ValueError("it is of other parameters")
    known = {number for group in groups for number in group["params"]}
    more = [key for key in theirs["state"] if key not in known]
    if more:
        raise ValueError(f"it has no parameter {more[0]!r}")


def refuse_odd_steps(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError for an optimiser whose next step a restored state would break, or bend:
    torch takes whatever it is given. Settings are the configuration's; schedules, and a run that
    has gone back, lower the learning rate, and a step that is recorded is `capturable`.
    """
    for group in optimizer.param_groups:
        for key, usual in optimizer.defaults.items():
            value: Any = group.get(key)
            fits = like(value, usual)
            if fits and key == "lr":
                fits = 0 <= float(value) <= float(usual) * (1 + ROUNDED)
            elif fits and key != "capturable":
                fits = list(value) == list(usual) if isinstance(usual, tuple) else value == usual
            if not fits:
                raise ValueError(f"its {key} is {value!r}, and it was made with {usual!r}")
        for parameter in group["params"]:
            adam = isinstance(optimizer, torch.optim.Adam)
            refuse_odd_moments(parameter, optimizer.state.get(parameter, {}), adam)


def refuse_odd_moments(parameter: Tensor, held: Mapping[str, Any], adam: bool) -> None:
    """Raises ValueError where what an optimiser keeps of a parameter is not what it should be."""
    if held and adam and not held.keys() >= MOMENTS:
        raise ValueError(f"it lacks {', '.join(MOMENTS - held.keys())} of a parameter")
    for key, value in held.items():
        shape = parameter.shape if key != "step" else torch.Size([])
        if not isinstance(value, Tensor) or value.shape != shape:
            raise ValueError(f"its {key} of a parameter is no tensor of {tuple(shape)}")
        if key in ("step", "exp_avg_sq") and not bool((value >= 0).all()):
            raise ValueError(f"its {key} of a parameter is negative, or no number")


def like(value: Any, usual: Any) -> bool:
    """Whether a setting of an optimiser is of its kind: a number, a switch, or several."""
    if isinstance(usual, tuple | list):
        fits = isinstance(value, tuple | list) and len(value) == len(usual)
        return fits and all(map(like, value, usual))
    if usual is None or isinstance(usual, bool):
        return value is None or isinstance(value, bool)
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


@torch.no_grad()
def put(part: Tensor, value: Tensor) -> None:
    """Copies a saved tensor. Raises ValueError for another shape, which `copy_` might broadcast."""
    if part.shape != value.shape:
        raise ValueError(f"shape {tuple(value.shape)} instead of {tuple(part.shape)}")
    part.copy_(value)


def not_finite(node: Any, place: str) -> str | None:
    """The place of the first tensor in a tree that holds a NaN or an infinity."""
    for name, tensor in tensors(node, place):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return name
    return None


def tensors(node: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a tree with their places."""
    if isinstance(node, Tensor):
        yield place, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from tensors(value, f"{place}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from tensors(value, f"{place}.{index}")


def generator_states(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place of a checkpoint that holds a torch generator's state: its dict and key."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "generator" and isinstance(value, Tensor):
                yield node, key
            else:
                yield from generator_states(value)


def holds_generators(tree: Any, shape: torch.Size) -> bool:
    """Whether a checkpoint's generators are of the kind of device that has states of this shape."""
    return all(node[key].shape == shape for node, key in generator_states(tree))


def with_generators(tree: Any, generator: torch.Generator) -> Any:
    """The checkpoint with new states for its generators, each drawn from `generator`."""
    for node, key in generator_states(tree):
        seeds = torch.randint(2**62, (1,), generator=generator, device=generator.device)
        node[key] = torch.Generator(generator.device).manual_seed(int(seeds)).get_state()
    return tree


def refuse_other_weights(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], who: str
) -> None:
    """Raises RheoError unless two state dicts are the same."""
    other = other_shape(mine, theirs)
    if other is not None:
        raise RheoError(f"{who}: another policy than the run's: {other}")
    for name, value in mine.items():
        if not torch.equal(value.cpu(), theirs[name].cpu()):
            raise RheoError(f"{who}: another policy than the run's: {name} has other weights")


def other_shape(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str | None:
    """The first tensor that two state dicts do not share, in words."""
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        here, there = (tuple(d[name].shape) if name in d else "none" for d in (mine, theirs))
        if here != there:
            return f"{name} is {there} there and {here} here"
    return None
