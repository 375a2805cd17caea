"""A policy with one action chunk per observation: the actor of TD3."""

from torch import Tensor, nn

from .nets import Stack
from .normalize import Normalizer


class Deterministic(nn.Module):
    """a = tanh(net(obs)) in [-1, 1] (arXiv:1802.09477): forward(obs [..., O]) -> [..., T, Da].

    depth hidden layers of `width`. obs_norm: statistics of the observations, the identity when
    there are none.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        horizon: int,
        obs_norm: Normalizer | None = None,
        *,
        width: int,
        depth: int,
        activation: str,
    ):
        super().__init__()
        self.obs_norm = Normalizer(obs_dim, kind="none") if obs_norm is None else obs_norm
        self.obs_dim, self.action_dim, self.horizon = obs_dim, action_dim, horizon
        self.net = Stack([obs_dim] + [width] * depth + [horizon * action_dim], activation)

    def forward(self, obs: Tensor) -> Tensor:
        raw = self.net(self.obs_norm(obs))
        return raw.unflatten(-1, (self.horizon, self.action_dim)).tanh()
