"""Reverse flow matching in normalised units: the box of actions is the same box in any of them."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.reverse import Reverse
from rheo.algos.rfm import RFM
from rheo.policies.normalize import Normalizer

SHIFT, STD, T = 0.1, 0.25, 1.0
VALUES: dict[str, Any] = {
    **{"control": "ridge", "walls": 1.0, "start_candidates": 1, "choice_temperature": 0.0},
    "support": "box", "self_share": 0.75, "self_scale": 1.3, "spread_floor": 0.1, "ridge": 0.1,
    "replay_share": 0.0, "weighting": "ramp", "anneal_moves": 2, "anneal_step": 0.5,
}  # fmt: skip


class Hill(nn.Module):
    """Q of an action: 3 a - 2 (a - 0.7)^2 summed over the dimensions, of two members."""

    def forward(self, obs, action):
        value = (3 * action - 2 * (action - 0.7).square()).sum((-1, -2))
        return torch.stack([value, value])


class Far(nn.Module):
    """Q = -(a - 0.9)^2, of two members."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        value = -(action - 0.9).square().sum((-1, -2))
        return torch.stack([value, value])


def fitted(kind, dim=1):
    """Statistics of actions of mean 0.1 and deviation 0.25, a range of -0.4 to 0.6."""
    norm = Normalizer(dim, kind=kind)
    spread = STD if kind == "gaussian" else 0.5
    norm.fit(torch.tensor([SHIFT - spread, SHIFT + spread])[:, None].expand(2, dim))
    return norm


def with_units(flow, kind, dim=1, horizon=1):
    policy = flow(2, dim, horizon)
    policy.action_norm = fitted(kind, dim)
    return policy


def expected(norm, x, A, B, dA, dB):
    """v at one x by quadrature over actions in environment units, which know of no statistics."""
    a = torch.linspace(-1, 1, 40_001, dtype=torch.float64)
    point = (a - norm.shift.double()) / norm.scale.double()
    eps = (x - A * point) / B
    q = 3 * a - 2 * (a - 0.7).square()
    weight = torch.softmax(q / T - eps.square() / 2, 0)
    return dA * (weight * point).sum() + dB * (weight * eps).sum()


@pytest.mark.parametrize("kind", ["none", "minmax", "gaussian"])
@pytest.mark.parametrize(
    ("estimator", "proposal"),
    [*(("noise", each) for each in ("truncated", "self", "annealed")), ("combined", "self")],
)
def test_the_velocity_is_that_of_the_whole_box_in_any_units(flow, kind, estimator, proposal):
    torch.manual_seed(0)
    policy = with_units(flow, kind, dim=2)
    reverse = Reverse(particles=65_536, estimator=estimator, proposal=proposal, **VALUES)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9])
    x = torch.tensor([[-0.9, 0.4], [0.2, 1.1], [0.6, -0.3], [1.5, 0.8]])[:, None]
    generator = torch.Generator().manual_seed(0)
    draws = reverse.draw(policy, 4, generator)
    velocity, *_ = reverse.target(
        policy, Hill(), torch.zeros(4, 2), x, t, torch.zeros(4, 1, 2), draws.uniform,
        torch.tensor(T), torch.full((2,), 0.5), draws.moves,
    )  # fmt: skip
    for row in range(4):
        path = [float(c) for c in policy.path.coefficients(t[row])]
        for dim in range(2):
            norm = fitted(kind)
            right = expected(norm, float(x[row, 0, dim]), *path).item()
            scale = 1 / (1 - t[row].item())  # of the error of a posterior mean in the velocity
            assert velocity[row, 0, dim].item() == pytest.approx(right, abs=0.05 * scale)


@pytest.mark.learns
@pytest.mark.parametrize("kind", ["none", "minmax", "gaussian"])
def test_the_best_action_is_found_outside_the_datas_spread(flow, settings, kind):
    """Actions of 0.1 +- 0.25 were recorded and 0.9 is the best: it was sought in +- one deviation.

    With statistics the policy then ended at their edge, 0.35 (gaussian) or 0.6 (minmax).
    """
    torch.manual_seed(0)
    policy = with_units(flow, kind)
    given = settings(
        "rfm_box", temperature=0.02, policy_lr=3e-3, ema_rate=0.1, policy_every=1, policy_batch=256
    )
    judge: Any = Far()
    algo = RFM(policy, judge, torch.Generator().manual_seed(0), **given)
    obs, action = torch.zeros(256, 2), torch.zeros(256, 1, 1)
    for _ in range(200):
        loss, _, _ = algo.policy_loss(obs, action, algo.draw(256), torch.tensor(0.02))
        algo.policy_opt.zero_grad()
        loss.backward()
        algo.policy_opt.step()
    with torch.no_grad():
        sample = policy.act(torch.zeros(2000, 2), policy.noise(2000, None)).flatten()
    assert sample.mean().item() == pytest.approx(0.85, abs=0.12)
    assert (sample > 0.65).float().mean() > 0.85
