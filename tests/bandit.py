"""A bandit of four modes in the box of two actions, whose law is known by quadrature."""

import torch
from torch import nn

from rheo.envs.batch import Batch

MODES = torch.tensor([[-0.6, -0.5], [0.6, 0.5], [-0.5, 0.7], [0.85, -0.6]])
WIDTHS = torch.tensor([0.15, 0.2, 0.12, 0.18])
SHARES = torch.tensor([0.2, 0.35, 0.2, 0.25])


class Bandit(nn.Module):
    """A fixed critic: log density of four modes in the unit box, any observation."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        gap = (action.flatten(-2)[..., None, :] - MODES).square().sum(-1)
        value = torch.logsumexp(SHARES.log() - gap / (2 * WIDTHS**2) - 2 * WIDTHS.log(), -1)
        return value[None].expand(2, *value.shape) + 0 * self.unused


def batch_of(rows, obs_dim, action_dim, generator, horizon=1):
    """Uniform actions, everything else zero."""
    action = 2 * torch.rand((rows, horizon, action_dim), generator=generator) - 1
    obs = torch.zeros(rows, obs_dim)
    return Batch(obs, action, torch.zeros(rows), torch.zeros(rows), obs)


def histogram(points, cells=20):
    """Share of points [S, 2] of the box in each cell."""
    index = ((points + 1) / 2 * cells).long().clamp(0, cells - 1)
    count = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2)
    return count / len(points)


def target_histogram(cells=20, fine=10):
    """The target's mass in each cell, by quadrature."""
    axis = (torch.arange(cells * fine) + 0.5) / (cells * fine) * 2 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = torch.softmax(Bandit()(None, grid[:, None])[0].detach(), 0)
    index = ((grid + 1) / 2 * cells).long().clamp(0, cells - 1)
    return torch.zeros(cells**2).index_add_(0, index[:, 0] * cells + index[:, 1], mass)
