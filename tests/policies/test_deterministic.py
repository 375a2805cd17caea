"""The deterministic policy: one action chunk per observation, inside the box."""

import torch

from rheo.policies.heads import Deterministic
from rheo.policies.normalize import Normalizer


def actor(**changes):
    torch.manual_seed(0)
    return Deterministic(3, 2, 4, **changes, width=16, depth=2, activation="relu")


def test_every_observation_has_one_chunk_inside_the_box():
    obs = torch.randn(5, 7, 3)
    action = actor()(obs)
    assert action.shape == (5, 7, 4, 2) and action.abs().max() < 1
    torch.testing.assert_close(actor()(obs[2, 3]), action[2, 3])


def test_observations_are_normalised_before_the_network():
    norm = Normalizer(3, kind="gaussian")
    norm.fit(torch.randn(100, 3, generator=torch.manual_seed(0)) * 4 + 2)
    obs = torch.randn(5, 3)
    torch.testing.assert_close(actor(obs_norm=norm)(obs), actor()(norm(obs)))
