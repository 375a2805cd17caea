"""A critic that sees actions from where a frozen base would put them."""

import copy

import pytest
import torch
from torch import nn

from rheo.policies.critics import QEnsemble
from rheo.policies.relative import FLOOR, Relative


class Base(nn.Module):
    """a = 2 w + the first of the observations, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.tensor(0.5)), 0

    def act(self, obs, noise):
        assert obs.ndim == 2
        self.calls += 1
        return self.weight * obs[:, :1, None] + 2 * noise


def make():
    torch.manual_seed(0)
    inner = QEnsemble(3, 2, 4, members=2, width=16, depth=2, layer_norm=False, activation="tanh")
    return Relative(inner, Base(), 4, 2)


def base_of(critic):
    return critic._base[0]


@pytest.mark.parametrize("lead", [(5,), (5, 7)])
def test_the_critic_within_sees_distances_in_spreads(lead):
    critic = make()
    critic.measure(torch.full((9, 4, 2), 0.25))
    torch.testing.assert_close(critic.spread, torch.full((4, 2), 0.5))
    obs = 0.3 * torch.randn(5, *[1] * (len(lead) - 1), 3)
    action = torch.randn(*lead, 4, 2)
    centre = 0.5 * obs[..., :1, None]
    expected = critic.critic(obs, (action - centre) / 0.5)
    torch.testing.assert_close(critic(obs, action), expected)
    assert base_of(critic).calls == 1
    told = critic(obs, action, centre.expand(*obs.shape[:-1], 4, 2))
    torch.testing.assert_close(told, expected)
    assert base_of(critic).calls == 1  # who brings the centre does not pay for it


def test_a_centre_beyond_the_box_is_where_it_is_executed():
    torch.testing.assert_close(make().centre(torch.full((1, 3), 8.0)), torch.ones(1, 4, 2))


def test_a_base_that_never_varies_does_not_divide_by_zero():
    critic = make()
    critic.measure(torch.zeros(9, 4, 2))
    torch.testing.assert_close(critic.spread, torch.full((4, 2), FLOOR))


def test_a_copy_shares_the_base_and_nothing_else():
    critic = make()
    critic.measure(torch.full((9, 4, 2), 0.25))
    twin = copy.deepcopy(critic)
    assert base_of(twin) is base_of(critic)
    assert torch.equal(twin.spread, critic.spread) and twin.spread is not critic.spread
    mine = {id(each) for each in critic.parameters()}
    assert mine.isdisjoint(id(each) for each in twin.parameters())
    assert id(base_of(critic).weight) not in mine  # nor is the base saved or trained with it
    assert not any("base" in name or name == "weight" for name in critic.state_dict())


def test_a_saved_critic_comes_back():
    critic, other = make(), make()
    critic.measure(torch.full((9, 4, 2), 0.25))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.1)
    assert critic.measured and not other.measured
    other.load_state_dict(critic.state_dict())
    assert other.measured and copy.deepcopy(other).measured
    obs, action = torch.randn(5, 3), torch.randn(5, 4, 2)
    torch.testing.assert_close(other(obs, action), critic(obs, action))
    other.load_state_dict(make().state_dict())  # as saved before the first update
    assert not other.measured
