"""Networks from an image [B, 3, H, W] to features [B, width]."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .narrow import hidden

GROUPS = 8  # of a group normalisation; ResNet18's have channels of 16


class SpatialCNN(nn.Module):
    """Four convolutions, two of them strided, and where each channel looks (arXiv:1504.00702).

    Features are the means of a softmax over places, in [-1, 1]: two numbers for each of the
    2 `channels` of the last layer.
    """

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        if channels % GROUPS:
            raise ValueError(f"eye.channels={channels}: choose a multiple of {GROUPS}")
        sizes = [3, channels, channels, 2 * channels, 2 * channels]
        pairs = zip(pairwise(sizes), [2, 2, 1, 1], strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(*pair, 3, stride, 1) for pair, stride in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, count) for count in sizes[1:])
        self.width = 4 * channels

    @hidden
    def maps(self, x: Tensor) -> Tensor:
        """The channels of the last layer."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return spatial_softmax(self.maps(x))


def spatial_softmax(x: Tensor) -> Tensor:
    """Mean place of softmax(x) over the places of every channel: [B, C, H, W] -> [B, 2 C]."""
    height, width = x.shape[-2:]
    share = x.flatten(2).softmax(-1).unflatten(2, (height, width))
    down = torch.linspace(-1, 1, height, dtype=x.dtype, device=x.device)
    across = torch.linspace(-1, 1, width, dtype=x.dtype, device=x.device)
    return torch.cat([(share.sum(3) * down).sum(-1), (share.sum(2) * across).sum(-1)], -1)


class Block(nn.Module):
    """Two convolutions around which the input is carried (arXiv:1512.03385), group-normalised."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(groups(outside) for _ in range(2))
        same = inside == outside and stride == 1
        past = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.past = nn.Identity() if same else nn.Sequential(past, groups(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.past(x))


class ResNet18(nn.Module):
    """ResNet18 (arXiv:1512.03385) with group normalisation, averaged over places.

    As diffusion policies use it (arXiv:2303.04137): batch statistics would follow the averaged copy
    badly. Features: 8 `channels`; 64 are the paper's.
    """

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        if channels % 16:
            raise ValueError(f"eye.channels={channels}: choose a multiple of 16")
        widths = [channels, channels, 2 * channels, 4 * channels, 8 * channels]
        self.inlet = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.norm = groups(channels)
        blocks = []
        for stage, (inside, outside) in enumerate(pairwise(widths)):
            blocks += [Block(inside, outside, 2 if stage else 1), Block(outside, outside, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.width = widths[-1]

    @hidden
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.inlet(x)))
        return self.blocks(F.max_pool2d(x, 3, 2, 1)).mean((-2, -1))


def groups(channels: int) -> nn.GroupNorm:
    """Normalisation of groups of 16 channels."""
    return nn.GroupNorm(channels // 16, channels)


class ViT(nn.Module):
    """A small vision transformer with a spatial embedding (DPPO, arXiv:2409.00588, appendix).

    Patches come from two convolutions (kernel `patch` at half its stride, then 3 at stride 2) with
    a learned place, pass `depth` layers of `heads`, and channel c of all patches h_c [P] becomes
    z_e = sum_c W_ce relu(norm(A h_c))_e of `embedding` numbers.
    """

    def __init__(
        self, size: tuple[int, int], patch: int, depth: int, width: int, heads: int, embedding: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"eye.width={width}: not a multiple of eye.heads={heads}")
        stride = max(patch // 2, 1)
        sides = [((side - patch) // stride + 1 - 3) // 2 + 1 for side in size]
        if min(size) < patch or min(sides) < 1:
            raise ValueError(
                f"eye.patch={patch}: images of {size[0]} x {size[1]} have no whole patch; lower it"
            )
        count = math.prod(sides)
        self.inlet = nn.Conv2d(3, width, patch, stride)
        self.second = nn.Conv2d(width, width, 3, 2)
        self.place = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.spread, self.spread_norm = nn.Linear(count, embedding), nn.LayerNorm(embedding)
        self.weight = nn.Parameter(torch.randn(width, embedding) / math.sqrt(width))
        self.width = embedding

    @hidden
    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.inlet(x))).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            x = layer(x)
        y = self.norm(x).transpose(1, 2)  # [B, width, P]
        return (F.relu(self.spread_norm(self.spread(y))) * self.weight).sum(1)
