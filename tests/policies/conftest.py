"""A field whose answers are known: the policy a ~ N(mu, s^2 I), on any path, in any form."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.policies import paths
from rheo.policies.flow import FlowPolicy
from rheo.policies.normalize import Normalizer


class GaussianField(nn.Module):
    """The exact prediction for Gaussian data; its time embedding is t itself."""

    def __init__(self, path, prediction, mu, spread, horizon, action_dim):
        super().__init__()
        self.path, self.prediction = path, prediction
        self.mu = nn.Parameter(torch.tensor(mu, dtype=torch.float64))
        self.spread, self.horizon, self.action_dim = spread, horizon, action_dim

    def encode(self, obs):
        return obs

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        c = self.path.coefficients(emb[..., 0]).over_chunk()
        variance = c.a**2 * self.spread**2 + c.b**2
        a = self.mu + c.a * self.spread**2 / variance * (x - c.a * self.mu)
        if self.prediction == "a":
            return a
        noise = c.b / variance * (x - c.a * self.mu)  # E[eps | x], no division by B
        return noise if self.prediction == "eps" else c.da * a + c.db * noise


@pytest.fixture
def gaussian_policy():
    def make(path: Any = "linear", prediction="v", mu=0.4, spread=0.5, horizon=1, **changes):
        levels = changes.pop("levels", 50 if path == "betas" else None)
        route = paths.make_path(path, levels, changes.get("betas", "cosine"))
        net = GaussianField(route, prediction, mu, spread, horizon, 1)
        return make_policy(net, path=path, levels=levels, prediction=prediction, **changes)

    return make


@pytest.fixture
def policy_of():
    return make_policy


def make_policy(net, **changes):
    settings: dict[str, Any] = {
        "path": "linear",
        "levels": None,
        "prediction": "v",
        "steps": 4,
        "sampler": "euler",
        "eta": 0.0,
        "clip_x": False,
        "clip_a": False,
        "squash": "clip",
        "obs_norm": Normalizer(getattr(net, "obs_dim", 1), kind="none"),
        "action_norm": Normalizer(net.action_dim, kind="none"),
    }
    return FlowPolicy(net, **(settings | changes))
