"""Networks over action chunks, all with one protocol.

`encode(obs [..., O]) -> feat [..., W]` runs once per action, `embed(t [...]) -> emb [..., W]` once
per time grid, and `forward(x [..., T, Da], emb, feat) -> [..., T, Da]` once per denoising step.
The leading dimensions of the three broadcast: feat [B, 1, W] with x [B, N, T, Da] serves N
particles of a state with one encoding. time_periods: the highest frequency of the time embedding.
"""

import copy
import math
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import Count, Positive
from .narrow import hidden

Module = TypeVar("Module", bound=nn.Module)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (arXiv:1908.08681).

    torch's own is not vectorised on the CPU: 20 times the cost of silu. There it is written as
    x n / (n + 2) with w = e^x and n = w (w + 2), about 5 times faster and equal to rounding.
    """
    if x.is_cuda:
        return F.mish(x)
    w = x.clamp(max=20).exp()  # beyond 20 the factor is 1 in float32
    n = w * (w + 2)
    return x * (n / (n + 2))


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2 x) - 1, within 2e-7: a third of the time of torch's own on the CPU."""
    return torch.tanh(x) if x.is_cuda else torch.sigmoid(2 * x).mul(2).sub_(1)


_ACTIVATIONS = {"relu": F.relu, "silu": F.silu, "mish": mish, "gelu": F.gelu, "tanh": tanh}


class Net(Protocol):
    """What a generative policy asks of its network."""

    horizon: int
    action_dim: int

    def encode(self, obs: Tensor) -> Tensor: ...

    def embed(self, t: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def activation_fn(name: str):
    """The elementwise function of that name; ValueError lists the known ones."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation={name!r}: choose one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def expand_lead(value: Tensor, lead: int, tail: int) -> Tensor:
    """Insert axes of size 1 behind the leading ones so that `value` has `lead` of them.

    `tail` counts the axes at the end that belong to one sample: obs [B, O] (tail 1) for chunks
    [B, N, T, Da] (lead 2) becomes [B, 1, O], which broadcasts over the N particles of each state.
    """
    missing = lead + tail - value.ndim
    if missing <= 0:
        return value
    cut = value.ndim - tail
    return value.reshape(value.shape[:cut] + (1,) * missing + value.shape[cut:])


class Stack(nn.Module):
    """Linear layers with an activation between them; the last one is linear. x [..., in]."""

    def __init__(self, sizes: list[int], activation: str, layer_norm: bool = False):
        super().__init__()
        self.activation = activation_fn(activation)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in sizes[1:-1] if layer_norm)

    @torch.no_grad()
    def scale_outlet(self, factor: float) -> None:
        """Scales the last layer, so that outputs start near 0 or at it."""
        for parameter in self.layers[-1].parameters():
            parameter.mul_(factor)

    @hidden
    def within(self, x: Tensor) -> Tensor:
        """What the last layer sees."""
        for index, layer in enumerate(islice(self.layers, len(self.layers) - 1)):
            x = layer(x)
            x = self.activation(self.norms[index](x) if len(self.norms) else x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[-1](self.within(x))


class TimeEmbedding(nn.Module):
    """t and its sinusoids at 16 frequencies, then two layers. t [...] in [0, 1] -> [..., width].

    Frequencies run geometrically from 1/4 to `periods` periods over [0, 1]. With 16 neighbouring
    points of a grid with tens of steps are told apart without a network that must amplify small
    differences; what is learnt from a derivative in time wants few, since that amplifies them.
    """

    frequencies: Tensor

    def __init__(self, width: int, periods: float = 16.0):
        super().__init__()
        rates = torch.logspace(-2, math.log2(periods), 16, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi * rates, persistent=False)
        self.net = Stack([33, 64, width], "silu")

    def waves(self, t: Tensor) -> Tensor:
        """The fixed features [..., 33] that the layers see."""
        t = t[..., None]
        angle = t * self.frequencies
        return torch.cat([t, angle.sin(), angle.cos()], -1)

    def forward(self, t: Tensor) -> Tensor:
        return self.net(self.waves(t))


class Conditioned(nn.Module):
    """What every network over chunks begins with: `encode` and `embed`, to [..., width].

    Args:
        encoder_depth: Layers that encode the observation, once per action.
        time_periods: Periods over the path of the time embedding's fastest wave: lower makes the
            network smoother in time.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        width: int,
        encoder_depth: int,
        activation: str,
        time_periods: float,
    ) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.horizon = sizes
        self.activation_name, self.activation = activation, activation_fn(activation)
        self.encoder = Stack([self.obs_dim] + [width] * encoder_depth, activation)
        self.time = TimeEmbedding(width, time_periods)

    def encode(self, obs: Tensor) -> Tensor:
        return self.encoder(obs)

    def embed(self, t: Tensor) -> Tensor:
        return self.time(t)


class MLP(Conditioned):
    """Residual network on the flattened chunk, conditioned by addition at its input.

        h = Wx x + feat + emb;   h <- h + W_i act(h), i = 1..depth;   out = Wo act(h)

    Adding projections at the input is the concatenation [x, obs, t] of common policies with its
    first matrix split in three, which is what allows observation and time to be encoded apart. The
    output layer starts at zero.

    Args:
        depth: Number of residual layers between inlet and output.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        *,
        width: Count,
        depth: Count,
        encoder_depth: Count,
        activation: str,
        time_periods: Positive = 16.0,
    ):
        sizes = obs_dim, action_dim, horizon
        super().__init__(sizes, width, encoder_depth, activation, time_periods)
        self.inlet = nn.Linear(horizon * action_dim, width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outlet = zero_(nn.Linear(width, horizon * action_dim))

    @hidden
    def within(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        """What the output layer sees."""
        h = self.inlet(x.flatten(-2)) + (feat + emb)
        lean = not torch.is_grad_enabled()  # nothing is kept for a backward pass: add in place
        for layer in self.layers:
            y = layer(self.activation(h))
            h = h.add_(y) if lean else h + y
        return self.activation(h)

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        out = self.outlet(self.within(x, emb, feat))
        return out.unflatten(-1, (self.horizon, self.action_dim))


class UNet1d(Conditioned):
    """Convolutions along the chunk with skips between resolutions, FiLM-conditioned.

    The layout of diffusion policies (arXiv:2303.04137): one level per entry of `widths`, each two
    residual blocks down and one up, halved in time by a strided convolution and restored by
    interpolation to the length of its skip, so every horizon works, 1 included.

    Args:
        width: Units of the condition, which encodes observation and time.
        widths: Channels of each resolution, from the full one to the coarsest; multiples of groups.
        kernel: Length of the convolutions in steps of the chunk; an odd number.
        groups: Groups of the group normalisation; a divisor of every entry of widths.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        *,
        width: Count,
        widths: list[Count],
        kernel: Count,
        groups: Count,
        encoder_depth: Count,
        activation: str,
        time_periods: Positive = 16.0,
    ):
        sizes = obs_dim, action_dim, horizon
        super().__init__(sizes, width, encoder_depth, activation, time_periods)
        if kernel % 2 == 0 or not widths or any(size % groups for size in widths):
            raise ValueError(
                f"kernel={kernel} must be odd, widths={widths} multiples of groups={groups}"
            )

        def block(i: int, o: int) -> _FilmBlock:
            return _FilmBlock(i, o, width, kernel, groups, activation)

        self.down = nn.ModuleList(
            nn.ModuleList([block(i, o), block(o, o)]) for i, o in pairwise([action_dim, *widths])
        )
        self.shrink = nn.ModuleList(nn.Conv1d(o, o, 3, 2, 1) for o in widths[:-1])
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(block(big + o, o) for o, big in pairwise(widths))
        self.outlet = zero_(nn.Conv1d(widths[0], action_dim, 1))

    @hidden
    def within(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        """What the output layer sees, [R, C, T]."""
        shape, condition = x.shape, self.activation(emb + feat)
        h = x.reshape(-1, self.horizon, self.action_dim).transpose(1, 2)  # [R, Da, T]
        skips = []
        for level, pair in enumerate(self.down):
            for block in pair:  # type: ignore[attr-defined]
                h = block(h, condition, shape[:-2])
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        h = self.middle(h, condition, shape[:-2])
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            h = torch.cat([F.interpolate(h, skip.shape[-1]), skip], 1)
            h = block(h, condition, shape[:-2])
        return h

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        return self.outlet(self.within(x, emb, feat)).transpose(1, 2).reshape(x.shape)


class _FilmBlock(nn.Module):
    """Two convolutions; between them h <- (1 + scale) h + shift from the condition."""

    def __init__(self, i: int, o: int, width: int, kernel: int, groups: int, activation: str):
        super().__init__()
        self.first = nn.Conv1d(i, o, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(o, o, kernel, padding=kernel // 2)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, o) for _ in range(2))
        self.film = nn.Linear(width, 2 * o)
        self.skip = nn.Conv1d(i, o, 1) if i != o else nn.Identity()
        self.activation = activation_fn(activation)

    def forward(self, h: Tensor, condition: Tensor, lead: torch.Size) -> Tensor:
        film = self.film(condition)  # on the condition's own rows, before it meets the particles
        film = film.expand(*lead, film.shape[-1]).reshape(len(h), -1, 1)
        scale, shift = film.chunk(2, 1)
        y = self.activation(self.norms[0](self.first(h))) * (1 + scale) + shift
        return self.activation(self.norms[1](self.second(y))) + self.skip(h)


class Transformer(Conditioned):
    """Self-attention over the steps of the chunk and one condition token feat + emb.

    Pre-norm blocks (arXiv:2002.04745) with learned positions.

    Args:
        width: Width of a token, which stands for one step of the chunk; a multiple of heads.
        depth: Number of attention blocks.
        heads: Attention heads of each block; a divisor of width.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        *,
        width: Count,
        depth: Count,
        heads: Count,
        encoder_depth: Count,
        activation: str,
        time_periods: Positive = 16.0,
    ):
        sizes = obs_dim, action_dim, horizon
        super().__init__(sizes, width, encoder_depth, activation, time_periods)
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.inlet = nn.Linear(action_dim, width)
        self.position = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(_Attention(width, heads, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outlet = zero_(nn.Linear(width, action_dim))

    @hidden
    def within(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        """What the output layer sees, [R, T, W]."""
        tokens = self.inlet(x) + self.position
        token = (emb + feat)[..., None, :].expand(*x.shape[:-2], 1, tokens.shape[-1])
        h = torch.cat([token, tokens], -2).reshape(-1, self.horizon + 1, tokens.shape[-1])
        for block in self.blocks:
            h = block(h)
        return self.norm(h[:, 1:])

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        return self.outlet(self.within(x, emb, feat)).reshape(x.shape)


class _Attention(nn.Module):
    """One pre-norm block: h + attention(norm h), then h + stack(norm h). h [R, L, W]."""

    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.stack = Stack([width, 4 * width, width], activation)

    def forward(self, h: Tensor) -> Tensor:
        heads = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [R, heads, L, W / heads]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        h = h + self.merge(mixed)
        return h + self.stack(self.norms[1](h))


def zero_(layer: Module) -> Module:
    """Set every parameter of `layer` to zero and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def clone(module: Module, frozen: bool = True) -> Module:
    """A deep copy; a frozen one takes no gradient and is in evaluation mode."""
    twin = copy.deepcopy(module)
    return twin.requires_grad_(False).eval() if frozen else twin


@torch.no_grad()
def lerp_(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Exponential moving average in place: target <- target + rate (source - target).

    Parameters are averaged, buffers (statistics, tables) are copied.
    """
    mine: list[Tensor] = list(target.parameters())
    theirs: list[Tensor] = list(source.parameters())
    torch._foreach_lerp_(mine, theirs, rate)  # pyright: ignore[reportPrivateImportUsage]
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)
