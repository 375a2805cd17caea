"""Plain actors against the same arithmetic in numpy."""

import numpy as np
import pytest
import torch

from rheo.policies.plain import PlainActor


def arrays(**changes):
    rng = np.random.default_rng(0)
    content = {
        "w0": rng.normal(size=(8, 5)),
        "b0": rng.normal(size=8),
        "w1": rng.normal(size=(3, 8)),
        "b1": rng.normal(size=3),
        "hidden_act": "tanh",
        "out_act": "clip",
    }
    return {k: v for k, v in {**content, **changes}.items() if v is not None}


def by_hand(a, obs, noise=None):
    h = obs
    if "obs_mean" in a:
        h = (h - a["obs_mean"]) / np.sqrt(a["obs_var"] + a["obs_eps"])
        h = np.clip(h, -a["obs_clip"], a["obs_clip"])
    if "in_shift" in a:
        h = (h - a["in_shift"]) / a["in_scale"]
    h = h @ a["w0"].T + a["b0"]
    h = np.tanh(h) if a["hidden_act"] == "tanh" else np.maximum(h, 0)
    mean = h @ a["w1"].T + a["b1"]
    if "out_shift" in a:
        mean = mean * a["out_scale"] + a["out_shift"]
    if noise is not None:
        std = np.exp(a["log_std"]) if "log_std" in a else None
        if std is None:
            std = np.exp(np.clip(h @ a["log_std_w"].T + a["log_std_b"], -20, 2))
        mean = mean + noise * std
    return np.tanh(mean) if a["out_act"] == "tanh" else np.clip(mean, -1, 1)


RNG = np.random.default_rng(1)
KINDS = {
    "clip": {},
    "tanh": {"out_act": "tanh", "hidden_act": "relu", "log_std": RNG.normal(size=3)},
    "statistics": {
        "obs_mean": RNG.normal(size=5),
        "obs_var": RNG.uniform(0.1, 2, 5),
        "obs_eps": 1e-3,
        "obs_clip": 0.7,
    },
    "scales": {
        **{"in_shift": RNG.normal(size=5), "in_scale": RNG.uniform(0.5, 2, 5)},
        **{"out_shift": RNG.normal(size=3), "out_scale": RNG.uniform(0.1, 2, 3)},
        "out_act": "identity",
        "log_std": RNG.normal(size=3) - 1,
    },
    "state-dependent": {"log_std_w": 3 * RNG.normal(size=(3, 8)), "log_std_b": RNG.normal(size=3)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_actions_equal_the_arithmetic_by_hand(kind):
    content = arrays(**KINDS[kind])
    actor = PlainActor(content)
    obs, noise = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 3))
    given = torch.tensor(obs, dtype=torch.float32)
    assert np.allclose(actor(given), by_hand(content, obs), atol=1e-5)
    assert (actor.obs_dim, actor.action_dim) == (5, 3)
    sampled = any(key.startswith("log_std") for key in content)
    assert actor.stochastic == sampled
    drawn = torch.tensor(noise, dtype=torch.float32)
    if sampled:
        assert np.allclose(actor(given, drawn), by_hand(content, obs, noise), atol=1e-4)
    else:
        with pytest.raises(ValueError, match="has no log_std"):
            actor(given, drawn)


def test_missing_inputs_are_zeros():
    actor = PlainActor(arrays())
    obs = torch.randn(4, 3)
    padded = torch.cat([obs, torch.zeros(4, 2)], 1)
    assert torch.equal(actor(obs), actor(padded))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b1": None}, "no array 'b1'; it holds w0"),
        ({"w0": None}, "no array 'w0'"),
        ({"hidden_act": None}, "no array 'hidden_act'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' must be one of tanh, relu"),
        ({"out_act": "sigmoid"}, "out_act='sigmoid' must be one of"),
        ({"w1": np.zeros((3, 9))}, r"w1 \(3, 9\) and b1 \(3,\) do not follow a layer of 8"),
        ({"b0": np.zeros(7)}, r"b0 \(7,\) do not follow"),
        ({"obs_mean": np.zeros(5)}, "no array 'obs_var'"),
        ({"log_std_w": np.zeros((3, 8))}, "no array 'log_std_b'"),
    ],
)
def test_an_actor_that_does_not_fit_together_names_the_array(changes, message):
    with pytest.raises(ValueError, match="my.npz: .*" + message):
        PlainActor(arrays(**changes), "my.npz")
