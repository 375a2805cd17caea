"""GuidedPolicy: a flow that is told whether an action is a good one, and acts by guidance."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ranges import NonNegative
from .flow import FlowPolicy
from .nets import Net

GOOD, BAD, UNTOLD = 0, 1, 2  # flags of an action


def code_width(net: Net) -> int:
    """The width W of an encoded observation."""
    start = next(iter(net.parameters())).new_zeros(1)
    with torch.no_grad():
        return net.embed(start).shape[-1]


class Sided(nn.Module):
    """A network, and what lies between its answers to two encodings (arXiv:2207.12598).

        u = u(x, t, plain) + weight (u(x, t, asked) - u(x, t, plain))

    feat [..., W] is of one encoding, feat [..., 2 W] of both, the plain one first.
    """

    def __init__(self, net: Net, weight: float) -> None:
        super().__init__()
        self.net, self.weight = net, weight
        self.horizon, self.action_dim = net.horizon, net.action_dim
        self.width = code_width(net)

    def embed(self, t: Tensor) -> Tensor:
        return self.net.embed(t)

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        if feat.shape[-1] == self.width:
            return self.net(x, emb, feat)
        plain, asked = feat.chunk(2, -1)
        if self.weight in (0.0, 1.0):
            return self.net(x, emb, asked if self.weight else plain)
        return torch.lerp(self.net(x, emb, plain), self.net(x, emb, asked), self.weight)


class Guided(Sided):
    """A network u(x, t, obs) with a flag: plain is untold, asked for are good actions.

    A flag moves the encoded observation by a learned vector, zero at first; untold, by none.
    """

    def __init__(self, net: Net, weight: float) -> None:
        super().__init__(net, weight)
        self.flags = nn.Parameter(torch.zeros(2, self.width))

    def encode(self, obs: Tensor) -> Tensor:
        """Both sides of observations [..., O], untold and good, [..., 2 W]."""
        feat = self.net.encode(obs)
        return torch.cat([feat, feat + self.flags[GOOD]], -1)

    def told(self, obs: Tensor, flag: Tensor) -> Tensor:
        """Observations [..., O] with flags [...] of GOOD, BAD or UNTOLD, [..., W]."""
        table = torch.cat([self.flags, torch.zeros_like(self.flags[:1])])
        return self.net.encode(obs) + table[flag]


class GuidedPolicy(FlowPolicy):
    """A flow or diffusion policy with a flag, whose field is guided wherever it is asked.

    Sampling, likelihoods and matching are those of the guided field, which is what is deployed and
    what another algorithm tunes; `match_told` alone is of the network under a flag. Guidance is of
    the network's output: of a velocity, a noise and an action alike, since each is a linear
    function of the others. Guided fields of normals of one variance, of means m (untold) and g, are
    that of N(m + guidance (g - m)); for other densities it is an approximation of
    p(a) (p(a | good) / p(a))^guidance.

    Args:
        guidance: How far deployed actions go from a clone of all (0) to one of the good (1), or
            further the same way (above 1); unless 0 or 1, each step asks the network twice.
    """

    net: Guided

    def __init__(self, net: Net, *, guidance: NonNegative, **kept: Any) -> None:
        super().__init__(Guided(net, guidance), **kept)

    def match_told(
        self, obs: Tensor, action: Tensor, noise: Tensor, t: Tensor, flag: Tensor
    ) -> Tensor:
        """Matching errors under flags [B], the mean over T * Da, [B].

        obs [B, O], action and noise [B, T, Da], t [B].
        """
        feat = self.net.told(self.obs_norm(obs), flag)
        return self.errors(feat, action, noise, t, self.prediction).mean((-2, -1))
