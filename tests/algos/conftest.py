"""Small real objects shared by the algorithm tests."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.policies.critics import QEnsemble
from rheo.policies.fewstep import FewStepPolicy
from rheo.policies.flow import FlowPolicy
from rheo.policies.heads import Deterministic, Gaussian
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer
from rheo.scripts.assemble import make_part
from rheo.scripts.config.compose import HOME, compose

# of algorithms that act by the noisy chain of a table of noise levels
DIFFUSION: dict[str, Any] = {
    "path": "betas", "levels": 5, "betas": "vp", "prediction": "eps", "clip_a": True, "eta": 1.0,
}  # fmt: skip
NOISY = ("dac", "dpmd", "qsm", "qvpo")
READING = ("dataset", "transitions")  # sources of recorded data


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
    return FlowPolicy(net, **(settings | changes))


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
def diffusion():
    """Makes small diffusion policies of few levels: `diffusion(obs_dim, action_dim, **changes)`."""

    def make(obs_dim, action_dim, horizon=1, **changes: Any):
        return make_flow(obs_dim, action_dim, horizon, **(DIFFUSION | changes))

    return make


@pytest.fixture
def few_step():
    """Makes small few-step policies with a slow time embedding."""

    def make(obs_dim, action_dim, horizon=1, *, width=64):
        net = MLP(
            obs_dim, action_dim, horizon, width=width, depth=2, encoder_depth=1,
            activation="silu", time_periods=1.0,
        )  # fmt: skip
        return FewStepPolicy(
            net, path="linear", levels=None, prediction="v", steps=1, sampler="euler", eta=0.0,
            clip_x=False, clip_a=False, squash="clip", obs_norm=Normalizer(obs_dim, kind="none"),
            action_norm=Normalizer(action_dim, kind="none"),
        )  # fmt: skip

    return make


@pytest.fixture
def critic():
    """Makes small twin critics."""
    return make_critic


def shipped_config(name):
    """The configuration of an algorithm's file, from nothing but what it cannot do without."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "data.npz")
        np.savez(file, observations=np.zeros((4, 3)), actions=np.zeros((4, 2)), episode_ends=[4])
        text = (HOME / "algo" / f"{name}.yaml").read_text()
        words = [f"data={file}"] * any(f"/source: {each}" in text for each in READING)
        return compose([f"algo={name}", "init=scratch", *words])


def shipped(name):
    """The composed node of an algorithm's file."""
    return dict(shipped_config(name)["algo"])


@pytest.fixture
def shipped_as():
    """The configuration of an algorithm as it ships: `shipped_as(name)`."""
    return shipped_config


@pytest.fixture
def settings():
    """The shipped values of an algorithm, with changes, as constructor arguments."""

    def read(name, **changes):
        values = shipped(name)
        values.pop("_target_")
        return {**values, **changes}

    return read


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


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
    node = shipped(name)
    for key, value in changes.items():
        node[key] = {**node[key], **value} if isinstance(value, dict) else value
    if "value" in node:
        small: dict[str, Any] = {
            "width": 32,
            "obs_norm": {**node["value"]["obs_norm"], "kind": "none"},
        }
        node["value"] = {**node["value"], **small}
    small = {"width": 64, "depth": 2, "activation": "relu"}
    if policy is None and name in ("td3", "td3bc"):
        policy = Deterministic(obs_dim, action_dim, 1, **small)
    if policy is None and name == "iql_gaussian":
        policy = Gaussian(obs_dim, action_dim, 1, std=0.6, **small)
    if policy is None:
        policy = make_flow(obs_dim, action_dim, **(DIFFUSION if name in NOISY else {}))
    critic = make_critic(obs_dim, action_dim, width=64) if critic is None else critic
    shape = {"obs_dim": obs_dim, "action_dim": action_dim, "horizon": policy.horizon}
    given = {"generator": torch.Generator().manual_seed(0), "run_updates": run_updates}
    given["executed"] = executed
    return make_part(node, "algo", shape, policy=policy, critic=critic, **given)


@pytest.fixture
def learner():
    """Makes small algorithms for recorded data."""
    return make_learner


@pytest.fixture
def clone_normal():
    """Matches a policy of 2 observations, 1 action to N(0, std^2): `clone_normal(policy, std)`."""

    def match(policy, std):
        generator = torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
        for _ in range(300):
            action = std * torch.randn((256, 1, 1), generator=generator)
            obs = torch.randn((256, 2), generator=generator)
            t = torch.rand(256, generator=generator)
            loss = policy.match(obs, action, policy.noise(256, generator), t).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return match
