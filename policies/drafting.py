"""Plans that begin at a draft: a recurrent network foretells, a flow refines.

Trajectory Diffuser's way (arXiv:2407.16142), whose draft is of a transformer. Legend: `plan`.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..ranges import Count, Share
from .nets import Net
from .paths import spans
from .plan import PlanPolicy
from .steer import NEAR


class Draft(nn.Module):
    """A gated recurrent network that foretells a plan, step by step from its own states.

    forward(seen [..., S], state [..., Do]) -> [..., T, Do + Da] in normalised units. The first
    state is the given one; each step tells its action and the change to the next state.
    arXiv:1406.1078's cell, spelled out, so that a program of it can be exported.
    """

    def __init__(self, seen: int, state: int, action: int, horizon: int, width: int) -> None:
        super().__init__()
        self.horizon, self.sizes = horizon, [action, state]
        self.begin = nn.Linear(seen, width)
        self.inlet, self.memory = nn.Linear(state, 3 * width), nn.Linear(width, 3 * width)
        self.outlet = nn.Linear(width, action + state)

    def forward(self, seen: Tensor, state: Tensor) -> Tensor:
        h, rows = self.begin(seen).tanh(), []
        for _ in range(self.horizon):
            h = self.cell(state, h)
            action, change = self.outlet(h).split(self.sizes, -1)
            rows.append(torch.cat([state, action], -1))
            state = state + change
        return torch.stack(rows, -2)

    def cell(self, state: Tensor, h: Tensor) -> Tensor:
        """What is remembered after a state [..., Do], [..., width]."""
        r, z, n = self.inlet(state).chunk(3, -1)
        hr, hz, hn = self.memory(h).chunk(3, -1)
        r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
        return torch.lerp((n + r * hn).tanh(), h, z)


class DraftedPolicy(PlanPolicy):
    """A plan's flow that sets out from a draft: x = A(begin) draft + B(begin) noise there.

    So few steps are left, and a plan stays near what was foretold. Raises ValueError for
    path=betas, whose levels a beginning between them would miss.

    Args:
        begin: Time of the flow at which deployed plans set out from the draft: 0 ignores it, 1 is
            the draft itself; between, the flow refines it in the steps that are left.
        draft_width: Units of the recurrent network that drafts plans.
    """

    def __init__(self, net: Net, *, begin: Share, draft_width: Count, **kept: Any) -> None:
        super().__init__(net, **kept)
        if kept["path"] == "betas":
            raise ValueError(
                "policy.path=betas: a plan that begins at a draft would be asked for between its "
                "noise levels; set policy.path=linear (or cosine) policy.levels=null"
            )
        self.begin = begin
        sizes = net.obs_dim, self.state_dim, self.action_dim, net.horizon  # type: ignore[attr-defined]
        self.draft = Draft(*sizes, draft_width)

    def drafted(self, obs: Tensor, strength: Tensor, told: Tensor) -> Tensor:
        """Drafts [..., T, D] in normalised units for observations [..., O] and what is told."""
        return self.draft(self.net.seen(self.obs_norm(obs), strength, told), self._now(obs))

    def _begun(
        self, obs: Tensor, noise: Tensor, point: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.begin == 0:
            return noise, point, times
        draft = self.draft(self.net.wanted(self.obs_norm(obs)), self._now(obs)).expand_as(noise)
        if self.begin == 1:
            return draft, draft, times[-1:]
        passed = accumulate(spans(len(times) - 1, self.grid))
        ahead = next(k for k, t in enumerate(passed, 1) if t > self.begin + NEAR)
        times = torch.cat([times.new_tensor([self.begin]), times[ahead:]])
        c = self.path.coefficients(times[0])
        return c.a * draft + c.b * noise, draft, times
