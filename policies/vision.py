"""What a network sees of an observation with images: numbers normalised, images encoded.

An observation stays one vector; its images are packed at the end of every step, one RGB pixel a
number (`envs.pixels`). An `Eye` stands where a network has its Normalizer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..ranges import Count, Natural
from .encoders import ResNet18, SpatialCNN, ViT
from .normalize import REACH, Normalizer

PIECE_GPU = 256  # images that are encoded at a time without gradients; on the CPU it is one
Kind = Literal["none", "minmax", "gaussian"]
Layout = Mapping[str, Sequence[int]]  # height and width of each image of a step, in order


def unpack(numbers: Tensor, height: int) -> Tensor:
    """65536 r + 256 g + b [B, H W] -> colours [B, 3, H, W] in [-0.5, 0.5], of the same type."""
    whole = numbers.to(torch.int32).unflatten(-1, (height, -1))
    colours = torch.stack([whole >> 16, (whole >> 8) & 255, whole & 255], -3)
    return colours.to(numbers.dtype) / 255 - 0.5


class View(NamedTuple):
    """What an eye must know of the observations and of its place."""

    dim: int  # numbers of an observation, To (Ds + those of its images, or of their features)
    images: Layout
    steps: int  # To
    kind: Kind  # of the statistics of the state
    feature: str = "obs"  # their name in messages
    holds: bool = True  # the encoders, where they are frozen: a run's policy does


class Eye(nn.Module):
    """Normalised numbers and encoded images of an observation: [..., dim] -> [..., out_dim].

    A step of an observation is [state, pixels of each image]; it becomes [normalised state,
    features of each image]. Every image has an encoder of its own, shared by all steps.

    A frozen one is given what `encode` makes of an observation, [state, features] of every step,
    and has only the state to normalise; both ways give the same numbers to the last bit. The
    encoders do not learn then, and only the eye that `holds` them has them.

    Without gradients images are encoded one at a time on the CPU: as fast as many together, the
    bits of one do not depend on the others, and memory stays small.

    Raises ValueError where the images do not fit the observation.

    Args:
        shift: Pixels by which images are moved at random in training, at most, in either direction;
            0: none.
        frozen: Whether the trained encoder of init=RUN stays as it is, so that the run learns from
            its features; false trains it.
    """

    def __init__(
        self, view: View, encoder: Callable[[tuple[int, int]], nn.Module], shift: int, frozen: bool
    ) -> None:
        super().__init__()
        self.steps, self.shift, self.frozen = view.steps, shift, frozen
        self.images = view.images
        sizes = [(int(height), int(width)) for height, width in view.images.values()]
        self.heights, self.sizes = [height for height, _ in sizes], [math.prod(s) for s in sizes]
        self.nets = nn.ModuleList(map(encoder, sizes))
        self.features = sum(int(net.width) for net in self.nets)  # type: ignore[arg-type]
        behind = self.features if frozen else sum(self.sizes)
        self.state_dim = view.dim // view.steps - behind
        if view.dim % view.steps or self.state_dim < 0:
            raise ValueError(
                f"{view.steps} times {behind} numbers of {', '.join(view.images)} do not fit an "
                f"observation of {view.dim}"
            )
        self.dim, self.feature = view.dim, view.feature
        self.out_dim = view.steps * (self.state_dim + self.features)
        own = view.kind if self.state_dim else "none"
        width = view.steps * self.state_dim
        self.affine = Normalizer(width, kind=own, feature=view.feature, reach=REACH)
        if frozen:
            self.nets = self.nets.requires_grad_(False) if view.holds else nn.ModuleList()

    @property
    def kind(self) -> str:
        """Of the state's statistics."""
        return self.affine.kind

    @property
    def ready(self) -> bool:
        """Whether there are statistics of the state."""
        return self.affine.ready

    def own(self, obs: Tensor) -> Tensor:
        """The numbers that the statistics are of, the states of all steps: [..., To Ds]."""
        return self._steps(obs[..., : self.dim])[..., : self.state_dim].flatten(-2)

    def encode(self, obs: Tensor) -> Tensor:
        """[state, pixels] of every step -> [state, features] of every step, nothing normalised."""
        return self.see(self._steps(obs)).flatten(-2)

    def see(self, step: Tensor) -> Tensor:
        """`encode` of single steps: [..., Ds + pixels] -> [..., Ds + features]."""
        state, pixels = step.split([self.state_dim, sum(self.sizes)], -1)
        images = pixels.reshape(-1, sum(self.sizes)).split(self.sizes, -1)
        seen = [
            look(net, image, height)
            for net, image, height in zip(self.nets, images, self.heights, strict=True)
        ]
        features = torch.cat(seen, -1).reshape(*pixels.shape[:-1], self.features)
        return torch.cat([state, features], -1)

    def forward(self, obs: Tensor) -> Tensor:
        if obs.shape[-1] != self.dim:
            raise ValueError(
                f"{self.feature} has {obs.shape[-1]} numbers, its images and numbers are {self.dim}"
            )
        steps = self._steps(obs if self.frozen else self.encode(obs))
        state, features = steps.split([self.state_dim, self.features], -1)
        state = self.affine(state.flatten(-2)).unflatten(-1, (self.steps, self.state_dim))
        return torch.cat([state, features], -1).flatten(-2)

    def _steps(self, obs: Tensor) -> Tensor:
        """[..., To D] -> [..., To, D]."""
        return obs.unflatten(-1, (self.steps, -1))


def look(net: nn.Module, numbers: Tensor, height: int) -> Tensor:
    """Features [B, width] of packed images [B, H W]."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return net(unpack(numbers, height))
    piece = PIECE_GPU if numbers.is_cuda else 1
    return torch.cat([net(unpack(part, height)) for part in numbers.split(piece)])


class CNNEye(Eye):
    """Through a small CNN that tells where each of its channels looks (`SpatialCNN`).

    Args:
        channels: Channels of the first two of four convolutions, a multiple of 8; the last two have
            twice as many.
    """

    def __init__(self, view: View, *, channels: Count, shift: Natural, frozen: bool) -> None:
        super().__init__(view, lambda size: SpatialCNN(size, channels), shift, frozen)


class ResNetEye(Eye):
    """Through a `ResNet18` with group normalisation.

    Args:
        channels: Channels of the first of four stages, a multiple of 16, doubled at each later one;
            64 is the published network.
    """

    def __init__(self, view: View, *, channels: Count, shift: Natural, frozen: bool) -> None:
        super().__init__(view, lambda size: ResNet18(size, channels), shift, frozen)


class ViTEye(Eye):
    """Through a small vision transformer (`ViT`).

    Args:
        patch: Side of an image patch in pixels; patches overlap by half.
        depth: Number of transformer layers.
        width: Width of a patch's token; a multiple of heads.
        heads: Attention heads of each layer; a divisor of width.
        embedding: Numbers that an image becomes, its features.
    """

    def __init__(
        self,
        view: View,
        *,
        patch: Count,
        depth: Count,
        width: Count,
        heads: Count,
        embedding: Count,
        shift: Natural,
        frozen: bool,
    ) -> None:
        sizes = (patch, depth, width, heads, embedding)
        super().__init__(view, lambda size: ViT(size, *sizes), shift, frozen)
