"""A run's deployed behaviour as a module without sizes of batches, noise or Python in it.

What an algorithm draws while it decides becomes inputs, and its decision for one observation is
mapped over the rows of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rheo.envs.pixels import pixels
from rheo.errors import RheoError
from rheo.policies.numpy_mlp import unquickened

from .policy import Policy

KINDS = ("normal", "exponential")  # of random numbers, in the order of a program's inputs


class Draw(NamedTuple):
    """Random numbers that a decision asks for."""

    kind: str  # normal or exponential
    numbers: int  # for each observation


class Recorder:
    """Gives random numbers in a generator's place, and notes what was asked for."""

    def __init__(self, rows: int) -> None:
        self.rows, self.draws = rows, list[Draw]()

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers."""
        return self.noted("normal", torch.randn(shape))

    def exponential(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers of the exponential distribution with mean 1."""
        return self.noted("exponential", torch.empty(shape).exponential_())

    def noted(self, kind: str, value: Tensor) -> Tensor:
        """Notes a draw."""
        self.draws.append(Draw(kind, value.numel() // self.rows))
        return value


class Given:
    """Hands out what somebody else drew: the inputs of a program, [B, numbers], piece by piece."""

    def __init__(self, **sources: Tensor) -> None:
        self.sources = sources
        self.at = dict.fromkeys(sources, 0)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """The next normal numbers."""
        return self.next("normal", shape)

    def exponential(self, shape: tuple[int, ...]) -> Tensor:
        """The next exponential numbers."""
        return self.next("exponential", shape)

    def next(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        """The next numbers of a kind in a shape whose first axis counts observations."""
        source, start = self.sources[kind], self.at[kind]
        numbers = 1
        for side in shape:
            numbers = numbers * side
        self.at[kind] = start + numbers // source.shape[0]
        return source[:, start : self.at[kind]].reshape(shape)


class Elementary(TorchFunctionMode):
    """Spells out what has a rule for mapped rows that writes their number into a program."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = ELEMENTARY.get(func, func)
        return plain(*args, **(kwargs or {}))


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """torch.nn.functional.layer_norm in elementary operations."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    scale = (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    return centred * scale * weight + bias


def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat as a sum of tensors that are padded to the whole."""
    axis = dim % tensors[0].ndim - tensors[0].ndim  # from the end, as padding counts
    widths = [each.shape[axis] for each in tensors]
    before = [sum(widths[:i]) for i in range(len(widths))]
    parts = [
        functional.pad(each, (0, 0) * (-axis - 1) + (start, sum(widths) - start - width))
        for each, start, width in zip(tensors, before, widths, strict=True)
    ]
    return torch.stack(parts).sum(0)


def pieces(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """torch.split as slices."""
    whole = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(x.narrow(dim, at, size) for at, size in zip(starts, sizes, strict=True))


ELEMENTARY: dict[Any, Any] = {
    **{functional.layer_norm: layer_norm, torch.cat: joined},
    **dict.fromkeys((torch.split, torch.Tensor.split), pieces),
}


class Input(NamedTuple):
    """An input of a program; the shape is that of one row."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str


class Program(nn.Module):
    """forward(obs [B, To Do], noise, ...) -> actions [B, T, Da] of an algorithm's deployment.

    B is any number; with images 1 (`single`).
    policy: whose; unit: whether actions stay in [-1, 1]. inputs: in the order of the arguments.
    """

    def __init__(self, policy: Policy, unit: bool) -> None:
        super().__init__()
        self.algo, self.eye, self.steps = policy.algo, policy.eye, policy.steps
        parts = {k: v for k, v in vars(policy.algo).items() if isinstance(v, nn.Module)}
        self.parts = nn.ModuleDict(parts)  # whose weights become the program's
        unquickened(self.parts)
        self.size = policy.horizon, len(policy.action_low)
        self.images = {key: tuple(size) for key, size in policy.images.items()}
        self.single = bool(self.images)  # a convolution is not mapped so: one observation a call
        self.state = sum(policy.obs_parts.values()) - pixels(policy.images)
        half = (policy.action_high - policy.action_low) / 2
        middle = (policy.action_high + policy.action_low) / 2
        self.identity = unit or bool((half == 1).all() and (middle == 0).all())
        self.register_buffer("half_range", torch.as_tensor(half, dtype=torch.float32))
        self.register_buffer("middle", torch.as_tensor(middle, dtype=torch.float32))
        self.draws = self.drawn()
        self.inputs = list(self.listed())

    def drawn(self) -> list[Draw]:
        """What a decision draws. Raises RheoError for an algorithm that draws by itself."""
        recorder = Recorder(2)
        obs = torch.zeros(
            2, self.steps * (self.state + sum(h * w for h, w in self.images.values()))
        )
        try:
            with torch.no_grad():
                self.algo.deploy(obs if self.eye is None else self.eye.encode(obs), recorder)
        except TypeError as error:
            name = type(self.algo).__name__
            raise RheoError(f"{name} draws its noise in a way of its own: {error}") from error
        return recorder.draws

    def listed(self) -> Iterator[Input]:
        """The inputs."""
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        for draw in self.draws:
            counts[draw.kind] += draw.numbers
        plan = counts["normal"] in (0, self.size[0] * self.size[1])
        told = "standard normal" if counts["normal"] else "not used: any numbers"
        yield Input("obs", (self.steps * self.state,), "float32", "observations, oldest first")
        yield Input("noise", self.size if plan else (counts["normal"],), "float32", told)
        if counts["exponential"]:
            told = "exponential with mean 1"
            yield Input("waiting", (counts["exponential"],), "float32", told)
        for key, size in self.images.items():
            yield Input(key, (self.steps, *size, 3), "uint8", "images, oldest first")

    def forward(self, *given: Tensor) -> Tensor:
        if self.single:
            return self.row(*(each[0] for each in given))[None]
        # Row by row, mapped over the batch: so no size of a batch is written into the program.
        with Elementary():
            return torch.vmap(self.row)(*given)

    def row(self, obs: Tensor, *rest: Tensor) -> Tensor:
        """The plan [T, Da] for an observation [To Do]."""
        count = len(self.inputs) - 1 - len(self.images)
        drawn = {k: x.flatten()[None] for k, x in zip(KINDS, rest[:count], strict=False)}
        seen = self.seen(obs, rest[count:])[None]
        if self.eye is not None:
            seen = self.eye.encode(seen)
        action = self.algo.deploy(seen, Given(**drawn))[0]
        return self.in_units(action)

    def in_units(self, action: Tensor) -> Tensor:
        """Actions of [-1, 1] as the program hands them out."""
        if self.identity:
            return action
        return action * self.get_buffer("half_range") + self.get_buffer("middle")

    def seen(self, obs: Tensor, images: Sequence[Tensor]) -> Tensor:
        """An observation as networks here take it: images as packed numbers behind each step's."""
        if not images:
            return obs
        weights = torch.tensor([65536.0, 256.0, 1.0])
        packed = [(image.float() * weights).sum(-1).flatten(1) for image in images]
        return torch.cat([obs.unflatten(0, (self.steps, self.state)), *packed], 1).flatten()
