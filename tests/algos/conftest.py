"""Small real objects shared by the algorithm tests."""

from functools import cache
from typing import Any

import pytest
import torch
from shipped import config

from rheo.policies.critics import QEnsemble
from rheo.policies.fewstep import FewStepPolicy
from rheo.policies.flow import FlowPolicy
from rheo.policies.guidance import GuidedPolicy
from rheo.policies.heads import Deterministic, Gaussian
from rheo.policies.labelled import LabelledPolicy
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer
from rheo.scripts.assemble import make_part

# of algorithms that act by the noisy chain of a table of noise levels
DIFFUSION: dict[str, Any] = {
    "path": "betas", "levels": 5, "betas": "vp", "prediction": "eps", "clip_a": True, "eta": 1.0,
}  # fmt: skip


def make_flow(
    obs_dim,
    action_dim,
    horizon=1,
    *,
    width=64,
    depth=2,
    **changes: Any,
):
    """A small flow policy with velocity prediction, or with other settings."""
    net = MLP(
        obs_dim, action_dim, horizon, width=width, depth=depth, encoder_depth=1, activation="silu"
    )
    settings: dict[str, Any] = {
        "path": "linear",
        "levels": None,
        "prediction": "v",
        "steps": 5,
        "sampler": "euler",
        "eta": 0.0,
        "clip_x": False,
        "clip_a": False,
        "squash": "clip",
        "obs_norm": Normalizer(obs_dim, kind="none"),
        "action_norm": Normalizer(action_dim, kind="none"),
    }
    if "guidance" in changes:
        return GuidedPolicy(net, **(settings | changes))
    if "labels" in changes:
        return LabelledPolicy(net, **(settings | changes))
    return FlowPolicy(net, **(settings | changes))


def make_few_step(obs_dim, action_dim, horizon=1, *, width=64):
    """A small policy of average velocities with a slow time embedding."""
    net = MLP(
        obs_dim, action_dim, horizon, width=width, depth=2, encoder_depth=1, activation="silu",
        time_periods=1.0,
    )  # fmt: skip
    return FewStepPolicy(
        net, path="linear", levels=None, prediction="v", steps=1, sampler="euler", eta=0.0,
        clip_x=False, clip_a=False, squash="clip", obs_norm=Normalizer(obs_dim, kind="none"),
        action_norm=Normalizer(action_dim, kind="none"),
    )  # fmt: skip


def make_critic(obs_dim, action_dim, horizon=1, *, width=32, members=2):
    """A small ensemble of critics, of two."""
    return QEnsemble(
        obs_dim,
        action_dim,
        horizon,
        members=members,
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
def diffusion():
    """Makes small diffusion policies of few levels: `diffusion(obs_dim, action_dim, **changes)`."""

    def make(obs_dim, action_dim, horizon=1, **changes: Any):
        return make_flow(obs_dim, action_dim, horizon, **(DIFFUSION | changes))

    return make


@pytest.fixture
def few_step():
    """Makes small few-step policies with a slow time embedding."""
    return make_few_step


@pytest.fixture
def critic():
    """Makes small twin critics."""
    return make_critic


@pytest.fixture
def shipped_as():
    """The configuration of an algorithm as it ships: `shipped_as(name)`."""
    return config


@pytest.fixture
def settings():
    """The shipped values of an algorithm, with changes, as constructor arguments."""

    def read(name, **changes):
        values = dict(config(name)["algo"])
        values.pop("_target_")
        return {**values, **changes}

    return read


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


def small_policy(node, obs_dim, action_dim):
    """A small policy of the kind that a configuration's node names."""
    kind, size = node["_target_"].split(".")[-1], {"width": 64, "depth": 2, "activation": "relu"}
    if kind == "Deterministic":
        return Deterministic(obs_dim, action_dim, 1, **size)
    if kind == "Gaussian":
        return Gaussian(obs_dim, action_dim, 1, std=0.6, **size)
    if kind == "FewStepPolicy":
        return make_few_step(obs_dim, action_dim)
    guided = {key: node[key] for key in ("guidance", "labels", "label") if key in node}
    return make_flow(obs_dim, action_dim, **(DIFFUSION if node["eta"] else {}), **guided)


def make_learner(
    name,
    obs_dim,
    action_dim,
    *,
    policy=None,
    critic=None,
    run_updates=1000,
    executed=None,
    **changes,
):
    """A small algorithm for recorded data: its shipped values with changes, small networks."""
    tree = config(name)
    node = dict(tree["algo"])
    for key, value in changes.items():
        node[key] = {**node[key], **value} if isinstance(value, dict) else value
    if "value" in node:
        small: dict[str, Any] = {
            "width": 32,
            "obs_norm": {**node["value"]["obs_norm"], "kind": "none"},
        }
        node["value"] = {**node["value"], **small}
    if policy is None:
        policy = small_policy(tree["policy"], obs_dim, action_dim)
    critic = make_critic(obs_dim, action_dim, width=64) if critic is None else critic
    shape: dict[str, Any] = {"obs_dim": obs_dim, "images": {}, "action_dim": action_dim}
    shape["horizon"] = policy.horizon
    given = {"generator": torch.Generator().manual_seed(0), "run_updates": run_updates}
    given["executed"] = executed
    return make_part(node, "algo", shape, policy=policy, critic=critic, **given)


@pytest.fixture
def learner():
    """Makes small algorithms for recorded data."""
    return make_learner


@cache
def normal_weights(std):
    """Weights of a flow of 2 observations, 1 action that is matched to N(0, std^2)."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make_flow(2, 1)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(300):
        action = std * torch.randn((256, 1, 1), generator=generator)
        obs = torch.randn((256, 2), generator=generator)
        t = torch.rand(256, generator=generator)
        loss = policy.match(obs, action, policy.noise(256, generator), t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.state_dict()


@pytest.fixture
def clone_normal():
    """Makes a flow of 2 observations, 1 action one to N(0, std^2): `clone_normal(policy, std)`."""
    return lambda policy, std: policy.load_state_dict(normal_weights(std))
