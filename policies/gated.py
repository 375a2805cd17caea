"""A velocity that is a pull towards a point, as strong as a gate lets it be."""

from typing import Any

import torch
from torch import Tensor, nn

from .nets import MLP, zero_

OPEN = 5.0  # the gate's first logit: nearly open everywhere


class Gated(MLP):
    """`MLP` whose velocity is g (c - x), with g in (0, 1) and c unbounded (arXiv:2509.25756).

    An Euler step of length h is then a gated recurrent unit: x + h g (c - x) lies between x and c,
    so that neither the chain nor a gradient along it grows with the number of steps. At birth g is
    nearly 1 and c is 0: noise is drawn towards the middle. Here both come from one body; the
    released code has a network for each.
    """

    def __init__(self, obs_dim: int, action_dim: int, horizon: int, **kept: Any) -> None:
        super().__init__(obs_dim, action_dim, horizon, **kept)
        self.gate = zero_(nn.Linear(self.outlet.in_features, horizon * action_dim))
        nn.init.constant_(self.gate.bias, OPEN)

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        h = self.within(x, emb, feat)
        gate, centre = torch.sigmoid(self.gate(h)), self.outlet(h)
        shape = self.horizon, self.action_dim
        return gate.unflatten(-1, shape) * (centre.unflatten(-1, shape) - x)
