"""Plans: a flow over the states and actions of the next steps, begun at the present observation.

[...] leading dimensions, O flattened observation history, Do a step's observation, Da action
dimension, T horizon, D = Do + Da, C labels, W width of the network.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ranges import NonNegative, Share
from . import draw
from .field import Field
from .guidance import Sided
from .nets import Net, expand_lead
from .normalize import Normalizer
from .steer import filled


class Asked(Sided):
    """A network that is told how strong the labels of a plan are, each of them or not.

    It encodes the observation with C strengths and C marks of those that are told. As deployed,
    `encode`: nothing is told on the plain side, and `want` on the other; of no labels there is one
    side, and no guidance.
    """

    want: Tensor
    told_of: Tensor

    def __init__(self, net: Net, weight: float, want: list[float | None]) -> None:
        super().__init__(net, weight)
        told = [one is not None for one in want]
        wanted = [0.0 if one is None else one for one in want]
        self.register_buffer("want", torch.tensor(wanted), persistent=False)
        self.register_buffer("told_of", torch.tensor(told).float(), persistent=False)

    def seen(self, obs: Tensor, strength: Tensor, told: Tensor) -> Tensor:
        """What the network encodes of observations [..., O]: strengths and marks [..., C] too."""
        return torch.cat([obs, strength * told, told], -1)

    def told(self, obs: Tensor, strength: Tensor, told: Tensor) -> Tensor:
        """Observations [..., O] with strengths [..., C] where told [..., C] is 1, [..., W]."""
        return self.net.encode(self.seen(obs, strength, told))

    def wanted(self, obs: Tensor) -> Tensor:
        """What the network encodes of observations [..., O] when deployed."""
        want, told = (one.expand(*obs.shape[:-1], -1) for one in (self.want, self.told_of))
        return self.seen(obs, want, told)

    def encode(self, obs: Tensor) -> Tensor:
        """Both sides of observations [..., O], untold and wanted, [..., 2 W]; [..., W] of one."""
        feat = self.net.encode(self.wanted(obs))
        if not len(self.want):
            return feat
        nothing = torch.zeros_like(self.want).expand(*obs.shape[:-1], -1)
        return torch.cat([self.told(obs, nothing, nothing), feat], -1)


class PlanPolicy(Field):
    """A field over plans [T, Do + Da], whose first state is what is observed (arXiv:2205.09991).

    The observation is encoded, as for other policies, and put in as the plan's first state too:
    before every transition that entry is at A(t) obs + B(t) noise, where the flow of its own noise
    is once the encoding tells it (`steer.filled`). What is acted are the plan's first actions.

    Plans can be asked for by labels of the recorded windows, such as the return (arXiv:2211.15657):
    by guidance without classifier, from a plan of which nothing is asked to one that is.

    In its losses and its points a plan is in the place of an action: states in the units of
    `obs_norm`, actions in those of `action_norm`. Plans have no tanh, since states have no box, and
    go by Euler's steps without noise.

    Args:
        want: How strong the labels of deployed plans should be, in the order of source.labels: from
            0, less than all recorded windows, to 1, more; null asks nothing of a label.
        guidance: How far plans go from those of which nothing is asked (0) to those asked for (1),
            or further (above 1); unless 0 or 1, each step asks the network twice.
    """

    net: Asked
    known: Tensor

    def __init__(
        self, net: Net, *, want: list[Share | None], guidance: NonNegative, **kept: Any
    ) -> None:
        super().__init__(
            Asked(net, guidance, want), squash="clip", sampler="euler", eta=0.0, **kept
        )
        if not isinstance(self.obs_norm, Normalizer):
            raise ValueError(
                "policy: a plan is of states, and these observations hold images; leave them out "
                "(data.obs_keys=[...]), or use policy=flow with algo=bc"
            )
        self.action_dim = self.action_norm.dim
        self.state_dim = net.action_dim - self.action_dim
        known = torch.zeros(self.horizon, net.action_dim, dtype=torch.bool)
        known[0, : self.state_dim] = True
        self.register_buffer("known", known, persistent=False)

    @staticmethod
    def inner_sizes(node: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes that the network of a policy's node has, in a world of that shape."""
        state, labels = shape["obs_dim"] // shape["obs_steps"], len(node["want"])
        sizes = {"obs_dim": shape["obs_dim"] + 2 * labels}
        return {**shape, **sizes, "action_dim": shape["action_dim"] + state}

    # ---- acting --------------------------------------------------------------------------------

    def noise(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal points at t = 0, [*lead, T, D]."""
        return draw.chunks(self.net, lead, generator)

    def act(
        self, obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True
    ) -> Tensor:
        """The actions of `plan`, [..., T, Da]."""
        return self.plan(obs, noise, steps, clip)[..., self.state_dim :]

    def plan(
        self, obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True
    ) -> Tensor:
        """Plans [..., T, D] in environment units from observations [..., O].

        noise [..., T, D] may have more leading dimensions than obs. The first state is the latest
        observation itself.
        """
        obs = expand_lead(obs, noise.ndim - 2, 1)
        x, point, times = self._begun(obs, noise, self._first(self._now(obs)), self.times(steps))
        x = filled(self, self.features(obs), x, noise, point, self.known, times)
        now = self._first(obs[..., -self.state_dim :])
        return torch.where(self.known, now, self.to_plan(x, clip))

    def _begun(
        self, obs: Tensor, noise: Tensor, point: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the flow sets out, what is known of its end, and the grid from there on."""
        return noise, point, times

    def _first(self, state: Tensor) -> Tensor:
        """Plans of zeros but for a first state [..., Do], [..., T, D]."""
        return F.pad(state[..., None, :], (0, self.action_dim, 0, self.horizon - 1))

    # ---- units ---------------------------------------------------------------------------------

    def _now(self, obs: Tensor) -> Tensor:
        """The state that is observed [..., O], in normalised units, no further than they reach."""
        far = self.obs_norm.reach
        return self._state(obs[..., -self.state_dim :]).clamp(-far, far)

    @property
    def _units(self) -> tuple[Tensor, Tensor]:
        """Shift and scale of a state, those of the latest observation, [Do] each."""
        norm, size = self.obs_norm, self.state_dim
        return norm.shift[-size:], norm.scale[-size:]

    def _state(self, state: Tensor) -> Tensor:
        """States [..., Do] in normalised units."""
        shift, scale = self._units
        return (state - shift) / scale

    def to_latent(self, action: Tensor) -> Tensor:
        """The point at t = 1 of a plan [..., T, D] in environment units."""
        state, action = action.split([self.state_dim, self.action_dim], -1)
        return torch.cat([self._state(state), self.action_norm(action)], -1)

    def to_plan(self, x: Tensor, clip: bool = True) -> Tensor:
        """The plan in environment units of a point [..., T, D] at t = 1; `clip`: its actions."""
        state, action = x.split([self.state_dim, self.action_dim], -1)
        shift, scale = self._units
        return torch.cat([state * scale + shift, self.to_action(action, clip)], -1)

    def _bounded(self, x: Tensor) -> Tensor:
        """Points [..., T, D] with their actions clipped to where actions lie."""
        state, action = x.split([self.state_dim, self.action_dim], -1)
        return torch.cat([state, super()._bounded(action)], -1)

    # ---- losses --------------------------------------------------------------------------------

    def told(self, obs: Tensor, strength: Tensor, told: Tensor) -> Tensor:
        """Encoded observations [..., O] with strengths [..., C] where told [..., C] is 1."""
        return self.net.told(self.obs_norm(obs), strength, told)
