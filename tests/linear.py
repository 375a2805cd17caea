"""A task of which the value of every linear policy is known, and critics that hold exactly these.

s' = s + GAIN a, reward -(s^2 + COST a^2), discounted by GAMMA; all numbers. A policy a = -gain s +
std noise is worth -P s^2 - c.
"""

import torch
from torch import Tensor, nn

from rheo.envs.batch import Batch

GAIN, COST, GAMMA = 0.5, 0.5, 0.6


def worth(gain: float, std: float, obs: Tensor) -> Tensor:
    """The value of a policy at obs [..., 1], [...], by the fixed point of its own equation."""
    slope = (1 + COST * gain**2) / (1 - GAMMA * (1 - GAIN * gain) ** 2)
    rest = std**2 * (COST + GAMMA * slope * GAIN**2) / (1 - GAMMA)
    return -slope * obs[..., 0].square() - rest


def form(gain: float, std: float) -> Tensor:
    """Q of a policy as the weights [4] of a `Quadratic` member."""
    ends = worth(gain, std, torch.tensor([[0.0], [1.0]]))
    rest, slope = ends[0].item(), (ends[1] - ends[0]).item()
    own = torch.tensor([0.0, -1.0, 0.0, -COST])
    return own + GAMMA * torch.tensor([rest, slope, 2 * GAIN * slope, GAIN**2 * slope])


def recorded(rows: int, generator: torch.Generator) -> Batch:
    """Uniform actions at uniform states."""
    obs, action = 2 * torch.rand((2, rows, 1), generator=generator) - 1
    reward = -(obs.square() + COST * action.square())[:, 0]
    discount = torch.full((rows,), GAMMA)
    return Batch(obs, action[:, None], reward, discount, obs + GAIN * action)


class Linear(nn.Module):
    """The field of a = -gain s + std noise, in one step."""

    def __init__(self, gain: float, std: float) -> None:
        super().__init__()
        self.gain, self.std = nn.Parameter(torch.tensor(gain)), std

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def embed(self, t: Tensor) -> Tensor:
        return t[..., None]

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        return -self.gain * feat[..., None, :] - x + self.std * x


class Quadratic(nn.Module):
    """Members that are each a quadratic form of a state and an action."""

    def __init__(self, members: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0 * members).view(members, 4) / 8)
        self.members = members

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        a = action[..., 0, 0]
        s = obs[..., 0].expand(a.shape)
        form = torch.stack([torch.ones_like(a), s.square(), s * a, a.square()], -1)
        return torch.einsum("...f,ef->e...", form, self.weight)
