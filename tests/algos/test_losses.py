"""Weights, surrogates and expectiles against closed forms."""

import math

import pytest
import torch

from rheo.algos import losses
from rheo.algos.expectile import expectile_loss
from rheo.policies.candidates import choose, race


def test_the_positive_weight_is_an_exponential_with_a_lid():
    advantage = torch.tensor([-1.0, 0.0, 0.5, 1e4])
    weight = losses.exp_weight(advantage, beta=3.0, limit=100.0)
    assert weight.tolist() == pytest.approx([math.exp(-3), 1.0, math.exp(1.5), 100.0], rel=1e-5)


def test_group_advantages_are_centred_and_scaled_by_the_deviation_of_the_batch():
    advantage = losses.group_advantage(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), clip=5.0, limit=5.0)
    # methods: [-1, 1, 0, 0] / 0.7071; the 1e-4 in the divisor moves it by 2e-4
    assert advantage.tolist()[0] == pytest.approx([-(2**0.5), 2**0.5], abs=3e-4)
    assert advantage.tolist()[1] == [0.0, 0.0]


def test_a_deviation_per_state_weighs_all_states_alike():
    q = torch.tensor([[1.0, 3.0], [10.0, 410.0], [2.0, 2.0]])
    advantage = losses.group_advantage(q, clip=5.0, limit=1.0, deviation="state")
    torch.testing.assert_close(
        advantage, torch.tensor([[-0.2, 0.2], [-0.2, 0.2], [0.0, 0.0]]), atol=1e-4, rtol=0
    )


def test_group_advantages_are_clipped_and_ignore_how_good_the_state_is():
    q = torch.zeros(100, 4)
    q[0, 0] = 1000.0
    advantage = losses.group_advantage(q, clip=5.0, limit=0.5)
    assert advantage.max().item() == pytest.approx(0.5)
    shifted = losses.group_advantage(q + torch.arange(100.0)[:, None], clip=5.0, limit=0.5)
    assert torch.allclose(shifted, advantage, atol=1e-4)


def test_equal_actions_have_no_advantage_although_rounding_differs():
    q = torch.tensor([[1.0, 1.0 + 1e-7, 1.0, 1.0]])
    assert torch.equal(losses.group_advantage(q, 5.0, 1.0), torch.zeros(1, 4))


@pytest.mark.parametrize(("kind", "slope"), [("square", 1.0), ("ghuber", 2**-0.75)])
def test_the_surrogates_slope_weights_the_error(kind, slope):
    error = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.psi(error, kind), error)
    assert grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("kind", ["square", "huber", "ghuber"])
def test_surrogates_start_at_zero_with_a_finite_slope(kind):
    error = torch.zeros((), requires_grad=True)
    value = losses.psi(error, kind)
    (grad,) = torch.autograd.grad(value, error)
    assert value.item() == pytest.approx(0.0, abs=1e-6) and bool(grad.isfinite())


def test_time_weights_follow_their_formulas():
    t = torch.tensor([0.0, 0.5, 0.75, 1.0])
    assert losses.time_weight(t, "uniform").tolist() == [1, 1, 1, 1]
    assert losses.time_weight(t, "noise").tolist() == [1, 0.5, 0.25, 0]
    assert losses.time_weight(t, "noise2").tolist() == [1, 0.25, 0.0625, 0]
    assert losses.time_weight(t, "data2").tolist() == [0, 0.25, 0.5625, 1]
    assert losses.time_weight(t, "likelihood").tolist() == [0, 1, 3, losses.LIKELIHOOD_MAX]


@pytest.mark.parametrize(("weighting", "form"), [("data2", "eps"), ("noise2", "a")])
def test_squared_times_weigh_the_error_of_the_noise_and_of_the_action(flow, weighting, form):
    policy = flow(2, 3, 4)
    torch.nn.init.normal_(policy.net.outlet.weight, std=0.3)
    obs, action = torch.randn(50, 2), torch.rand(50, 4, 3)
    noise, t = torch.randn(50, 4, 3), torch.rand(50)
    met = losses.pairs(policy, obs, action, noise[:, None], t[:, None])
    weighed = met.error()[:, 0] * losses.time_weight(t, weighting)
    torch.testing.assert_close(weighed, policy.match(obs, action, noise, t, space=form))


@pytest.mark.parametrize(("executed", "size"), [(None, 12), (2, 6)])
def test_the_root_of_an_error_is_its_sum_over_the_root_of_its_size(flow, executed, size):
    given = torch.randn(5, 2), torch.rand(5, 4, 3), torch.randn(5, 2, 4, 3), torch.rand(5, 2)
    met = losses.pairs(flow(2, 3, 4), *given, executed)
    gap = (met.velocity - met.goal).flatten(2)
    assert gap.shape == (5, 2, size) and met.x.shape == (5, 2, 4, 3)
    torch.testing.assert_close(met.error("root"), gap.square().sum(-1) / size**0.5)
    torch.testing.assert_close(met.error(), gap.square().sum(-1) / size)


def test_stratified_times_hold_one_in_each_part(generator):
    t = losses.stratified((50, 4), generator, 0.2, 1.0)
    assert torch.equal(((t - 0.2) / 0.2).floor(), torch.arange(4.0).expand(50, 4))


def test_the_signed_loss_has_its_minimum_where_the_rule_says(generator):
    """min_v E[A (v - u)^2] + b (v - v_ref)^2 is (b v_ref + E[A u]) / (b + E[A])."""
    u = torch.randn(1000, generator=generator, dtype=torch.float64)
    advantage = torch.rand(1000, generator=generator, dtype=torch.float64) * 2 - 1
    anchor, pull = 0.3, 1.0
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = (advantage * losses.psi((v - u).square(), "square")).mean() + pull * (v - anchor) ** 2
    (grad,) = torch.autograd.grad(loss, v, create_graph=True)
    (curve,) = torch.autograd.grad(grad, v)
    expected = (pull * anchor + (advantage * u).mean()) / (pull + advantage.mean())
    assert (-grad / curve).item() == pytest.approx(expected.item(), abs=1e-6)  # a Newton step
    assert curve > 0


def test_a_pull_below_the_repulsion_is_refused_by_name():
    losses.refuse_unbounded(1.0, 1.0, "algo.anchor_coef")
    with pytest.raises(ValueError, match=r"algo\.anchor_coef.*without bound"):
        losses.refuse_unbounded(1.0, 0.99, "algo.anchor_coef")


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 0.25), (0.9, 0.75), (0.1, 1 / 28)])
def test_the_expectile_balances_weighted_gaps(expectile, expected):
    """Of values 0 (3 of 4) and 1 (1 of 4): tau (1 - v) / 4 = (1 - tau) v 3 / 4."""
    q = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    v = torch.tensor(expected, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(expectile_loss(q - v, expectile), v)
    assert grad.item() == pytest.approx(0.0, abs=1e-9)


def total(obs, action):
    """A critic with one member: the action itself."""
    return action.sum((-2, -1))[None]


def test_the_best_candidate_is_taken_at_temperature_zero():
    action = torch.tensor([[0.1, 0.9, 0.3], [0.2, -0.1, 0.0]])[..., None, None]
    assert choose(total, torch.zeros(2, 1), action).flatten().tolist() == pytest.approx([0.9, 0.2])


def test_soft_choice_draws_from_the_softmax_of_q(generator):
    action = torch.tensor([0.0, 0.5, 1.0]).expand(20_000, 3)[..., None, None]
    waiting = race(action, 0.5, generator)
    chosen = choose(total, torch.zeros(20_000, 1), action, 0.5, waiting).flatten()
    share = torch.stack([(chosen == level).float().mean() for level in (0.0, 0.5, 1.0)])
    expected = torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    assert torch.allclose(share, expected, atol=0.015)  # 4 standard errors of 20,000 draws
