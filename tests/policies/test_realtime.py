"""Plans that go on from what is executed, against closed forms for Gaussian actions."""

import math

import pytest
import torch
from torch import nn

from rheo.policies import realtime
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer


def test_weights_fall_from_what_is_executed_to_what_nobody_planned() -> None:
    found = realtime.weights(steps=6, frozen=2, left=4)
    e = math.e
    c = [2 / 3, 1 / 3]
    soft = [each * (math.exp(each) - 1) / (e - 1) for each in c]
    torch.testing.assert_close(found, torch.tensor([1, 1, *soft, 0, 0], dtype=torch.float64))
    assert realtime.weights(3, 0, 0).tolist() == [0, 0, 0]
    assert realtime.weights(3, 3, 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("limit", [0.7, 5.0, 1e9])
def test_every_transition_is_the_closed_form_of_a_gaussian(gaussian_policy, path, limit) -> None:
    """E[a|x] = mu + g (x - A mu), g = A s^2 / (A^2 s^2 + B^2): so J = g, and by hand in floats."""
    mu, spread, steps, frozen = 0.1, 0.3, 7, 1
    policy = gaussian_policy(path, "v", mu=mu, spread=spread, horizon=4, steps=steps)
    left = torch.tensor([0.3, 0.2, -0.1], dtype=torch.float64)
    noise = torch.randn(2, 4, 1, dtype=torch.float64)
    obs = torch.zeros(2, 1, dtype=torch.float64)
    action = realtime.continued(policy, obs, noise, left.expand(2, 3)[..., None], frozen, limit)
    pull, planned = realtime.weights(4, frozen, 3).tolist(), [*left.tolist(), 0.0]
    for row in range(2):
        for i in range(4):
            x = noise[row, i].item()
            for k in range(steps):
                t, s = k / steps, (k + 1) / steps
                a0, b0, slope_a, slope_b = coefficients(path, t)
                a1, b1, *_ = coefficients(path, s)
                gain = a0 * spread**2 / (a0**2 * spread**2 + b0**2)
                guess = mu + gain * (x - a0 * mu)
                det = abs(a0 * slope_b - slope_a * b0)
                size = min(limit, det * (a0**2 + b0**2) / (a0 * b0) if a0 * b0 else math.inf)
                push = size * gain * pull[i] * (planned[i] - guess)
                noise_part = (x - a0 * guess) / b0
                x = a1 * (guess + b0 * push / det) + b1 * (noise_part - a0 * push / det)
            wanted = planned[i] if i < frozen else min(max(x, -1), 1)
            assert action[row, i].item() == pytest.approx(wanted, abs=1e-6)  # times are float32


def coefficients(path: str, t: float) -> tuple[float, float, float, float]:
    """A, B and their derivatives."""
    if path == "linear":
        return t, 1 - t, 1.0, -1.0
    angle = t * math.pi / 2
    return math.sin(angle), math.cos(angle), math.cos(angle) * math.pi / 2, -math.sin(
        angle
    ) * math.pi / 2  # fmt: skip


class Tied(nn.Module):
    """The exact velocity of chunks of two actions, N(0, spread^2) each, correlated by rho."""

    def __init__(self, spread: float, rho: float) -> None:
        super().__init__()
        self.covariance = nn.Parameter(
            spread**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
        )
        self.horizon, self.action_dim = 2, 1

    def encode(self, obs):
        return obs

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        t, unit = emb[..., 0, None, None], torch.eye(2, dtype=torch.float64)
        spread = t**2 * self.covariance + (1 - t) ** 2 * unit
        seen = torch.linalg.solve(spread, x)
        return self.covariance @ (t * seen) - (1 - t) * seen


def test_what_is_frozen_decides_what_follows(policy_of) -> None:
    """Of actions correlated by .9 the second follows the first: N(.9 a1, .19 s^2), nearly.

    In units of the actions' deviation, which the guidance takes for its own; its limit costs some.
    """
    units = Normalizer(1, kind="gaussian").double()
    units.fit(0.3 * torch.randn(100_000, 1, dtype=torch.float64))
    policy = policy_of(Tied(1.0, 0.9), steps=60, action_norm=units)
    obs = torch.zeros(3000, 1, dtype=torch.float64)
    noise = torch.randn(3000, 2, 1, dtype=torch.float64)
    assert policy.act(obs, noise)[:, 1].mean().item() == pytest.approx(0, abs=0.02)
    left = torch.full((3000, 1, 1), 0.4, dtype=torch.float64)
    action = realtime.continued(policy, obs, noise, left, 1, limit=1e9)
    assert (action[:, 0] == 0.4).all()
    assert action[:, 1].mean().item() == pytest.approx(0.36, abs=0.04)
    assert action[:, 1].std().item() == pytest.approx(0.3 * 0.19**0.5, abs=0.015)
    assert realtime.continued(policy, obs, noise, left, 1)[:, 1].mean() > 0.28


def flow(policy_of, **changes):
    net = MLP(2, 1, 4, width=32, depth=1, encoder_depth=1, activation="silu")
    nn.init.normal_(net.outlet.weight, std=0.3)
    return policy_of(net, steps=5, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"path": "cosine", "prediction": "eps"}, {"squash": "tanh"}]
)
def test_nothing_known_changes_nothing(policy_of, changes) -> None:
    policy = flow(policy_of, **changes)
    obs, noise = torch.randn(9, 2), torch.randn(9, 3, 4, 1)
    found = realtime.continued(policy, obs, noise, torch.zeros(9, 0, 1), 0)
    torch.testing.assert_close(found, policy.act(obs[:, None], noise))


def test_a_policy_acts_so_as_long_as_it_is_told(policy_of) -> None:
    policy = flow(policy_of)
    obs, noise, left = torch.randn(9, 2), torch.randn(9, 4, 1), torch.full((9, 3, 1), 0.7)
    before = policy.act(obs, noise)
    with realtime.continuing(policy, left, 2) as calls:
        action = policy.act(obs, noise)
    assert calls == [9] and (action[:, :2] == 0.7).all()
    assert (action[:, 2] - 0.7).abs().mean() < (before[:, 2] - 0.7).abs().mean()
    assert torch.equal(policy.act(obs, noise), before)
