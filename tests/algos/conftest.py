"""Small real objects shared by the algorithm tests."""

from typing import Any

import pytest
import torch

from rheo.policies.critics import QEnsemble
from rheo.policies.flow import FlowPolicy
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer
from rheo.scripts.config import compose


def make_flow(
    obs_dim,
    action_dim,
    horizon=1,
    *,
    width=64,
    depth=2,
    steps=5,
    path: Any = "linear",
    squash: Any = "clip",
):
    """A small flow policy with velocity prediction."""
    net = MLP(
        obs_dim, action_dim, horizon, width=width, depth=depth, encoder_depth=1, activation="silu"
    )
    return FlowPolicy(
        net,
        path=path,
        levels=None,
        prediction="v",
        steps=steps,
        sampler="euler",
        eta=0.0,
        clip_x=False,
        clip_a=False,
        squash=squash,
        obs_norm=Normalizer(obs_dim, kind="none"),
        action_norm=Normalizer(action_dim, kind="none"),
    )


def make_critic(obs_dim, action_dim, horizon=1, *, width=32):
    """A small twin critic."""
    return QEnsemble(
        obs_dim,
        action_dim,
        horizon,
        members=2,
        width=width,
        depth=2,
        layer_norm=False,
        activation="relu",
    )


@pytest.fixture
def flow():
    """Makes small flow policies."""
    return make_flow


@pytest.fixture
def critic():
    """Makes small twin critics."""
    return make_critic


@pytest.fixture
def settings():
    """The shipped values of an algorithm, with changes, as constructor arguments."""

    def read(name, **changes):
        values = dict(
            compose([f"algo={name}", "data=."] if name == "bc" else [f"algo={name}"])["algo"]
        )
        values.pop("_target_")
        return {**values, **changes}

    return read


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)
