"""A learned model of an environment: an ensemble of networks that foretell a step.

E members, B states, O numbers of an observation, Da action dimension.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranges import Count
from .critics import uniform
from .narrow import hidden
from .nets import activation_fn
from .normalize import REACH, Normalizer

LOG_VARS = (-10.0, 0.5)  # first bounds of a log-variance, in units of `change` (arXiv:1805.12114)


class Forecast(NamedTuple):
    """What the members expect of one step, in the units of the data."""

    next_obs: Tensor  # [E, B, O] means
    reward: Tensor  # [E, B] means
    std: Tensor  # [E, B, O + 1] of the next observation and the reward
    terminal: Tensor  # [E, B] probability that the task ends with the step
    disagreement: Tensor  # [B]


class Dynamics(nn.Module):
    """E networks with stacked parameters [E, out, in]: Gaussians of the change and the reward.

    forward(obs [B, O] or [E, B, O], action [B, Da] or [E, B, Da]) -> mean [E, B, O + 1] and
    log-variance of (next observation - observation, reward) in units of `change`, and the logit
    [E, B] of the task's end (arXiv:1805.12114, arXiv:1906.08253). Log-variances lie softly between
    two learned bounds. Inputs are normalised by the data's statistics; a member that is not trained
    foretells their mean.

    Args:
        members: Networks of the ensemble; how far they are apart says where the data do not reach.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        *,
        members: Count,
        width: Count,
        depth: Count,
        activation: str,
    ):
        super().__init__()
        self.obs_norm = Normalizer(obs_dim, kind="gaussian", feature="obs", reach=REACH)
        self.action_norm = Normalizer(action_dim, kind="gaussian", feature="action")
        self.change = Normalizer(obs_dim + 1, kind="gaussian", feature="change and reward")
        self.members, self.activation = members, activation_fn(activation)
        fans = [obs_dim + action_dim] + [width] * depth
        outs = [width] * depth + [2 * (obs_dim + 1) + 1]
        sizes = list(zip(outs, fans, strict=True))
        self.weights = nn.ParameterList(uniform((members, o, i), i) for o, i in sizes)
        self.biases = nn.ParameterList(uniform((members, 1, o), i) for o, i in sizes)
        low, high = (torch.full((members, 1, obs_dim + 1), value) for value in LOG_VARS)
        self.log_var_low, self.log_var_high = nn.Parameter(low), nn.Parameter(high)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.cat([self.obs_norm(obs), self.action_norm(action)], -1)
        h = self._within(h.expand(self.members, *h.shape[-2:]))
        h = torch.baddbmm(self.biases[-1], h, self.weights[-1].mT)
        size = (h.shape[-1] - 1) // 2
        mean, raw, logit = h.split([size, size, 1], -1)
        high = self.log_var_high - F.softplus(self.log_var_high - raw)
        return mean, self.log_var_low + F.softplus(high - self.log_var_low), logit.squeeze(-1)

    @hidden
    def _within(self, h: Tensor) -> Tensor:
        """What the last layers see, [E, B, width]."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = self.activation(torch.baddbmm(bias, h, weight.mT))
        return h

    def target(self, obs: Tensor, next_obs: Tensor, reward: Tensor) -> Tensor:
        """What a mean should be, [..., O + 1]."""
        return self.change(torch.cat([next_obs - obs, reward[..., None]], -1))

    @torch.no_grad()
    def predict(self, obs: Tensor, action: Tensor) -> Forecast:
        """The members' forecasts for obs [B, O] and action [B, Da].

        Their disagreement is the largest distance of a member's mean from the mean of all, root
        mean square over the numbers foretold, each in standard deviations of the data's changes
        (arXiv:2005.05951 takes that of two members).
        """
        mean, log_var, logit = self(obs, action)
        apart = (mean - mean.mean(0)).square().mean(-1).sqrt().amax(0)
        value, std = self.change.inverse(mean), (0.5 * log_var).exp() * self.change.scale
        return Forecast(obs + value[..., :-1], value[..., -1], std, logit.sigmoid(), apart)
