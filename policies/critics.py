"""Critics: an ensemble of action values as one module, values of states and inside chains."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import Count
from .narrow import hidden
from .nets import Stack, activation_fn, expand_lead
from .normalize import Normalizer, statistics

BLOCK_ROWS = 2048  # of a hidden layer at a time: 2 MiB at width 256


class QEnsemble(nn.Module):
    """E action-value networks with stacked parameters [E, out, in], evaluated together.

    forward(obs [..., O], action [..., T, Da]) -> [E, ...]. The first matrix is split in an
    observation and an action part, so obs [B, O] (or [B, 1, O]) with action [B, N, T, Da] is
    projected B times, not B N times. Initialised as torch.nn.Linear, every member on its own.
    obs_norm: statistics of the observations, the identity when there are none.

    Args:
        members: Critics in the ensemble, of whose values mostly the smallest counts: more are more
            pessimistic.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        members: Count,
        width: Count,
        depth: Count,
        layer_norm: bool,
        activation: str,
    ):
        super().__init__()
        self.obs_norm = statistics(obs_dim, obs_norm)
        if members < 1 or depth < 1:
            raise ValueError(f"members={members}, depth={depth}: both must be at least 1")
        self.members, self.width = members, width
        self.activation_name, self.activation = activation, activation_fn(activation)
        fan_in = obs_dim + horizon * action_dim
        self.obs_weight = uniform((members, width, obs_dim), fan_in)
        self.action_weight = uniform((members, width, horizon * action_dim), fan_in)
        outs = [width] * (depth - 1) + [1]
        self.weights = nn.ParameterList(uniform((members, out, width), width) for out in outs)
        fans = [fan_in] + [width] * depth
        sizes = [width] * depth + [1]
        self.biases = nn.ParameterList(
            uniform((members, o), i) for o, i in zip(sizes, fans, strict=True)
        )
        count = depth if layer_norm else 0
        ones, zeros = torch.ones(members, width), torch.zeros(members, width)
        self.gains = nn.ParameterList(nn.Parameter(ones.clone()) for _ in range(count))
        self.shifts = nn.ParameterList(nn.Parameter(zeros.clone()) for _ in range(count))

    def fits(self, obs: Tensor, action: Tensor) -> bool:
        """Whether observations [..., O] and chunks [..., T, Da] are of the sizes it judges."""
        sizes = self.obs_weight.shape[-1], self.action_weight.shape[-1]
        return (obs.shape[-1], action.shape[-2] * action.shape[-1]) == sizes

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        obs = self.obs_norm(obs)
        obs = expand_lead(obs, action.ndim - 2, 1)
        action = action.flatten(-2)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or action.ndim < 3:
            return self._members(obs, action)
        # Without a gradient nothing is kept, so blocks that stay in the cache are faster.
        size = max(1, BLOCK_ROWS // max(1, action[0, ..., 0].numel()))
        if len(action) <= size:
            return self._members(obs, action)
        blocks = action.split(size)
        several = obs.split(size) if obs.shape[0] == action.shape[0] else [obs] * len(blocks)
        values = [self._members(o, a) for o, a in zip(several, blocks, strict=True)]
        return torch.cat(values, 1)

    def _members(self, obs: Tensor, action: Tensor) -> Tensor:
        # unbind once per stack: its gradient is one stack instead of a zero-filled add per member
        tensors = [self.obs_weight, self.action_weight]
        tensors += [*self.weights, *self.biases, *self.gains, *self.shifts]
        members = zip(*(tensor.unbind(0) for tensor in tensors), strict=True)
        return torch.stack([self._member(obs, action, list(parts)) for parts in members])

    def _member(self, obs: Tensor, action: Tensor, parts: list[Tensor]) -> Tensor:
        depth = len(self.weights)
        h = self._within(obs, action, parts)
        return F.linear(h, parts[1 + depth], parts[2 + 2 * depth]).squeeze(-1)

    @hidden
    def _within(self, obs: Tensor, action: Tensor, parts: list[Tensor]) -> Tensor:
        """What the last layer of a member sees."""
        depth = len(self.weights)
        weights, biases = parts[2 : 2 + depth], parts[2 + depth : 3 + 2 * depth]
        norms = parts[3 + 2 * depth :]
        in_place = not torch.is_grad_enabled() and self.activation is F.relu
        h = F.linear(action, parts[1])
        seen = F.linear(obs, parts[0], biases[0])
        h = h + seen if torch.is_grad_enabled() else h.add_(seen)
        for index, weight in enumerate(weights):
            if norms:
                h = F.layer_norm(h, (self.width,), norms[index], norms[index + len(self.gains)])
            h = F.relu_(h) if in_place else self.activation(h)
            if index < depth - 1:
                h = F.linear(h, weight, biases[index + 1])
        return h


class Value(nn.Module):
    """State value: forward(obs [..., O]) -> [...]."""

    def __init__(
        self,
        obs_dim: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        layer_norm: bool,
        activation: str,
    ):
        super().__init__()
        self.obs_norm = statistics(obs_dim, obs_norm)
        self.net = Stack([obs_dim] + [width] * depth + [1], activation, layer_norm)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.obs_norm(obs)).squeeze(-1)


class StepValue(nn.Module):
    """Value of a point inside a denoising chain, x [..., T, Da] at the time t [...]: [...].

    forward(obs [..., O], x, t): one network, to which the time is one more row of the chunk.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: Count,
        depth: Count,
        layer_norm: bool,
        activation: str,
    ):
        super().__init__()
        words: dict[str, Any] = {"layer_norm": layer_norm, "activation": activation}
        size = {"members": 1, "width": width, "depth": depth}
        self.net = QEnsemble(obs_dim, action_dim, horizon + 1, obs_norm, **size, **words)

    def forward(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        when = t[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
        return self.net(obs, torch.cat([x, when], -2))[0]


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """First weights of a layer as torch.nn.Linear draws them."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
