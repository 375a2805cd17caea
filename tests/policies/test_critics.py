"""The stacked ensemble equals separate networks, member by member."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rheo.policies.critics import QEnsemble, Value
from rheo.policies.normalize import Normalizer
from rheo.policies.numpy_mlp import FEW, QuickValues, quicken


def ensemble(members=3, depth=2, layer_norm=False):
    torch.manual_seed(0)
    return QEnsemble(
        5, 2, 4, members=members, width=16, depth=depth, layer_norm=layer_norm, activation="relu"
    )


def quick(module):
    quicken(module)
    return module


def took_numpy(critic):
    assert isinstance(critic.forward, QuickValues)
    return critic.forward.held is not None


def separate(critic, member, obs, action):
    """One member written as plain layers on the concatenated input."""
    x = torch.cat([obs, action.flatten(-2)], -1)
    weight = torch.cat([critic.obs_weight[member], critic.action_weight[member]], -1)
    h = F.linear(x, weight, critic.biases[0][member])
    for index, weights in enumerate(critic.weights):
        if len(critic.gains):
            gain, shift = critic.gains[index][member], critic.shifts[index][member]
            h = F.layer_norm(h, h.shape[-1:], gain, shift)
        h = F.linear(h.relu(), weights[member], critic.biases[index + 1][member])
    return h.squeeze(-1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_member_equals_its_own_stack_of_layers_in_value_and_gradient(depth, layer_norm):
    critic, obs, action = ensemble(3, depth, layer_norm), torch.randn(6, 5), torch.randn(6, 4, 2)
    for gain in critic.gains:
        torch.nn.init.normal_(gain)
    action.requires_grad_()
    q = critic(obs, action)
    assert q.shape == (3, 6)
    expected = torch.stack([separate(critic, m, obs, action) for m in range(3)])
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(3, 6)
    wanted = [action, *critic.parameters()]
    mine = torch.autograd.grad((weights * q).sum(), wanted)
    theirs = torch.autograd.grad((weights * expected).sum(), wanted)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("activation", ["relu", "silu", "mish", "tanh"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_values_of_one_state_equal_the_plain_ones_and_follow_updates(layer_norm, activation, count):
    torch.manual_seed(0)
    critic = QEnsemble(
        5, 2, 4, Normalizer(5, kind="gaussian"), members=3, width=16, depth=2,
        layer_norm=layer_norm, activation=activation,
    )  # fmt: skip
    quick(critic)
    critic.obs_norm.fit(3 + 2 * torch.randn(50, 5))

    def gap():
        obs, action = 9 * torch.randn(1, 1, 5), torch.randn(1, count, 4, 2)
        plain = critic(obs, action)  # with gradients: the torch way
        with torch.no_grad():
            light = critic(obs, action)
        assert light.shape == plain.shape == (3, 1, count)
        return (plain - light).abs().max().item()

    assert gap() < 1e-5
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert took_numpy(critic) and gap() < 1e-5
    critic.load_state_dict({k: 2 * v for k, v in critic.state_dict().items()}, assign=True)
    assert gap() < 1e-5


def test_values_are_left_to_torch_where_numpy_cannot_give_them():
    state, action = torch.randn(1, 5), torch.randn(1, FEW, 4, 2)
    with torch.no_grad():
        several = quick(ensemble())
        several(state.expand(2, 5), action[0, :2])
        several(state, torch.cat([action, action[:, :1]], 1))
        assert not took_numpy(several)
        assert several.double()(state.double(), action.double()).dtype == torch.float64
        sizes: dict[str, Any] = {"members": 2, "width": 16, "depth": 2, "layer_norm": False}
        gelu = quick(QEnsemble(5, 2, 4, activation="gelu", **sizes))
        assert gelu(state, action).isfinite().all() and not took_numpy(gelu)


def test_members_differ_and_learn_apart():
    critic, obs, action = ensemble(), torch.randn(6, 5), torch.randn(6, 4, 2)
    q = critic(obs, action)
    assert (q[0] - q[1]).abs().min() > 1e-4 and (q[1] - q[2]).abs().min() > 1e-4
    q[1].sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].abs().max() > 0
        assert parameter.grad[[0, 2]].abs().max() == 0


def test_initial_weights_are_uniform_in_the_bound_of_a_linear_layer():
    critic = QEnsemble(30, 4, 5, members=2, width=200, depth=2, layer_norm=False, activation="relu")
    bound = 1 / math.sqrt(50)
    for weight in (critic.obs_weight, critic.action_weight, critic.biases[0]):
        assert 0.97 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert 0.97 / math.sqrt(200) < critic.weights[0].abs().max() <= 1 / math.sqrt(200)


@pytest.mark.parametrize("keep", [False, True])
def test_an_observation_serves_all_its_particles(keep):
    critic, obs, action = ensemble(), torch.randn(6, 5), torch.randn(6, 7, 4, 2)
    q = critic(obs[:, None] if keep else obs, action)
    repeated = critic(obs.repeat_interleave(7, 0), action.reshape(42, 4, 2))
    torch.testing.assert_close(q.reshape(3, 42), repeated, rtol=1e-5, atol=1e-6)
    leading = critic(obs[None], action.transpose(0, 1))  # particles first
    torch.testing.assert_close(leading, q.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_value_has_one_number_per_observation():
    value = Value(5, width=16, depth=2, layer_norm=True, activation="mish")
    assert value(torch.randn(6, 3, 5)).shape == (6, 3)
    linear, norms = (5 * 16 + 16) + (16 * 16 + 16) + (16 + 1), 2 * 2 * 16
    assert sum(p.numel() for p in value.parameters()) == linear + norms


def test_an_empty_ensemble_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ensemble(members=0)
