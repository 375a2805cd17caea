"""Preferences and regressions of log ratios against closed forms; what they do to a policy."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.prefer import Group, Prefer
from rheo.algos.preferences import (
    bradley_terry,
    centred,
    kto,
    listwise,
    mapo,
    odds,
    preferred,
)

BETA = 0.7
REFERENCE = torch.tensor([0.3, 0.05, 0.1, 0.2, 0.15, 0.08, 0.12])
SCORE = torch.tensor([0.4, -1.0, 1.5, 0.0, -0.3, 0.9, 0.2])
TILT = (REFERENCE.log() + SCORE / BETA).softmax(0)


def divergence(logits):
    """KL of the tilt of seven actions from a policy of these logits."""
    return (TILT * (TILT.log() - logits.log_softmax(0))).sum().item()


def fitted(loss, steps=400):
    """Logits of seven actions, all of a group, that a loss of their log ratios is least at."""
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(logits.log_softmax(0) - REFERENCE.log())
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach()


# ---- with exact log ratios ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [centred, listwise])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_regression_is_least_at_the_tilt_of_the_reference(kind, shift):
    """pi_ref e^(r / beta), whatever is added to the scores of a state."""
    logits = fitted(lambda ratio: kind(ratio[None], SCORE[None] + shift, BETA))
    assert divergence(logits) < 1e-6
    assert divergence(REFERENCE.log()) > 0.3


def test_preferences_are_least_at_the_tilt_where_labels_are_drawn_and_beyond_it_where_not():
    generator = torch.Generator().manual_seed(0)
    score = SCORE.expand(20_000, 7)
    means = {}
    for labels in ("drawn", "hard"):
        sign = preferred(score, labels, generator)
        logits = TILT.log().clone().requires_grad_()
        ratio = (logits.log_softmax(0) - REFERENCE.log()).expand(20_000, 7)
        bradley_terry(ratio, sign, BETA).backward()
        assert logits.grad is not None
        means[labels] = logits.grad.norm().item()
    assert means["drawn"] < 0.003 and means["hard"] > 20 * means["drawn"]


def test_all_pairs_are_the_centred_square_up_to_a_number():
    """The mean over pairs of (beta (l_i - l_j) - (r_i - r_j))^2 is 2 K / (K - 1) times it."""
    ratio, score = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), torch.rand(5, 6)
    gap = BETA * ratio - score
    square = (gap[:, :, None] - gap[:, None, :]).square().sum((1, 2)) / (6 * 5)
    torch.testing.assert_close(square.mean(), 12 / 5 * centred(ratio, score, BETA))


def test_at_the_reference_the_gradients_are_those_of_advantages():
    """centred: -2 beta (r - mean r) / K; listwise: beta (1 / K - softmax r)."""
    ratio = torch.zeros(1, 7, requires_grad=True)
    (found,) = torch.autograd.grad(centred(ratio, SCORE[None], BETA), ratio)
    torch.testing.assert_close(found[0], -2 * BETA * (SCORE - SCORE.mean()) / 7)
    (found,) = torch.autograd.grad(listwise(ratio, SCORE[None], BETA), ratio)
    torch.testing.assert_close(found[0], BETA * (1 / 7 - SCORE.softmax(0)))


@pytest.mark.parametrize("wrong", [0.1, 0.3])
def test_labels_that_are_wrong_so_often_shrink_the_gap_to_their_log_odds(wrong):
    rows = 1000
    sign = torch.zeros(rows, 2, 2)
    sign[:, 0, 1] = torch.where(torch.arange(rows) < wrong * rows, -1.0, 1.0)
    sign[:, 1, 0] = -sign[:, 0, 1]
    gap = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([gap], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = bradley_terry(torch.stack([gap, 0 * gap]).expand(rows, 2), sign, BETA)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert BETA * gap.item() == pytest.approx(math.log((1 - wrong) / wrong), rel=1e-3)


def test_a_gaussian_moves_by_slope_times_variance_over_beta():
    """The tilt of N(m, s^2) by Q = g a is N(m + g s^2 / beta, s^2)."""
    m, s, g = 0.2, 0.5, 1.4
    action = m + s * torch.randn((64, 16), generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(m, requires_grad=True)
    optimizer = torch.optim.LBFGS([mean], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        ratio = ((action - m).square() - (action - mean).square()) / (2 * s**2)
        loss = centred(ratio, g * action, BETA)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert mean.item() == pytest.approx(m + g * s**2 / BETA, rel=1e-4)


def test_labels_are_of_the_larger_score_or_drawn_by_their_difference():
    score = torch.tensor([[0.0, 1.0, 1.0]]).expand(100_000, 3)
    generator = torch.Generator().manual_seed(0)
    hard = preferred(score[:1], "hard", generator)[0]
    assert hard.tolist() == [[0, -1, -1], [1, 0, 0], [1, 0, 0]]
    drawn = preferred(score, "drawn", generator)
    assert torch.equal(drawn, -drawn.mT) and (drawn.diagonal(dim1=1, dim2=2) == 0).all()
    won = (drawn > 0).float().mean(0)
    assert won[1, 0].item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.005)
    assert won[1, 2].item() == pytest.approx(0.5, abs=0.005)


def test_the_odds_of_an_error_are_the_published_function():
    error = torch.tensor([0.0, 1e-3, 2.0], dtype=torch.float64, requires_grad=True)
    value = odds(error)
    expected = [1.0, 1 - 2.5e-4, 1 / (math.e - 1)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=value.dtype), rtol=1e-6, atol=0)
    slope = torch.autograd.grad(value.sum(), error)[0]
    assert slope[0].item() == pytest.approx(-0.25) and (slope < 0).all()


def test_the_margin_loss_by_hand():
    error = torch.tensor([[0.2, 0.5]])
    sign = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
    f = [0.5 * x / math.expm1(0.5 * x) for x in (0.2, 0.5)]
    expected = 0.2 + 0.1 * math.log1p(math.exp(-1000 * (f[0] - f[1])))
    assert mapo(error, sign).item() == pytest.approx(expected, rel=1e-5)
    worse = mapo(error, -sign).item()
    assert worse == pytest.approx(0.5 + 0.1 * 1000 * (f[0] - f[1]), rel=1e-3)


def test_good_and_bad_actions_saturate():
    """The value by hand; and as ratios grow the right way it goes to 0 with its gradient."""
    ratio = torch.tensor([[1.0, -1.0, 3.0]])
    z = 1.0
    expected = (1 / (1 + math.exp(0.5 * (1 - z))) + 1 / (1 + math.exp(0.5 * (z - -1)))) / 2
    score = torch.tensor([[1.0, -1.0, 0.0]])
    assert kto(ratio, score, 0.5).item() == pytest.approx(expected, rel=1e-5)
    far = (100 * score).requires_grad_()
    loss = kto(far, score, 0.5)
    assert loss.item() < 1e-6 and torch.autograd.grad(loss, far)[0].abs().max() < 1e-6


# ---- a policy ----------------------------------------------------------------------------------


class Slope(nn.Module):
    """Q = g . a of the first step of a plan, both members."""

    members = 2

    def __init__(self, g=1.0):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(g))

    def forward(self, obs, action):
        value = self.g * action[..., 0, :].sum(-1)
        return torch.stack([value, value])


@pytest.fixture
def learner(flow, settings, generator):
    """A small policy that is tuned by a known critic."""

    def make(name, policy=(), **changes: Any):
        judge: Any = changes.pop("critic", Slope())
        return Prefer(flow(1, 1, **dict(policy)), judge, generator, **settings(name, **changes))

    return make


WAYS = {
    "crd": ("crd", {}, {}),
    "prdp": ("crd", {"ratio_limit": 2.0, "anchor_coef": 0.0, "anchor_scaled": False}, {}),
    "gdro": ("crd", {"loss": "listwise"}, {}),
    "dpo": ("dpo", {}, {}),
    "kto": ("dpo", {"loss": "kto", "anchor_coef": 0.1}, {}),
    "mapo": ("dpo", {"loss": "mapo"}, {}),
    "d3po": ("d3po", {}, {"eta": 1.0}),
}


@pytest.mark.learns
@pytest.mark.parametrize("way", WAYS)
def test_every_loss_moves_the_policy_to_what_the_critic_prefers(learner, way):
    name, changes, policy = WAYS[way]
    algo = learner(name, policy, **changes, policy_lr=3e-3, old_every=10)
    obs, draws = torch.zeros(64, 1), torch.Generator().manual_seed(5)
    before = algo.average.drawn(torch.zeros(2000, 1), algo.policy.noise(2000, draws), draws,
                                algo.policy.eta).mean()  # fmt: skip
    for step in range(1, 61):
        _, metrics = algo.meet(obs, torch.zeros(64, 1, 1))
        algo.update_policy(obs, torch.zeros(64, 1, 1))
        if step % algo.old_every == 0:
            algo.old.load_state_dict(algo.policy.state_dict())
    after = algo.average.drawn(torch.zeros(2000, 1), algo.policy.noise(2000, draws), draws,
                               algo.policy.eta).mean()  # fmt: skip
    assert after > before + 0.1


@pytest.mark.parametrize(("name", "policy"), [("crd", {}), ("dpo", {}), ("d3po", {"eta": 1.0})])
def test_the_first_step_has_log_ratios_of_nothing(learner, name, policy):
    algo = learner(name, policy)
    group, _ = algo.meet(torch.randn(16, 1), torch.zeros(16, 1, 1))
    loss, metrics = algo.policy_loss(torch.randn(16, 1), group)
    assert metrics["policy/log_ratio"].item() == 0.0 if name != "d3po" else True
    if name == "dpo":
        assert loss.item() == pytest.approx(math.log(2))


def test_a_chains_ratio_is_that_of_its_densities(learner):
    """Against densities of single transitions, step by step."""
    algo = learner("d3po", {"eta": 1.0, "steps": 3})
    for parameter in algo.policy.parameters():
        parameter.data.add_(0.05)
    obs = torch.randn(8, 1)
    group, _ = algo.meet(obs, torch.zeros(8, 1, 1))
    found = algo.log_ratio(obs, group, torch.zeros(()), torch.ones(()))
    times = algo.policy.times()
    for k in range(3):
        logp = []
        for policy in (algo.policy, algo.base):
            feat = policy.features(obs)[:, None]
            mean, std = policy.step(group.chain[:, :, k], times[k], times[k + 1], feat, eta=1.0)
            law = torch.distributions.Normal(mean, std.clamp(min=0.05).expand_as(mean))
            logp.append(law.log_prob(group.chain[:, :, k + 1]).sum((-1, -2)))
        torch.testing.assert_close(found[:, :, k], logp[0] - logp[1], rtol=1e-3, atol=1e-4)
    assert found.abs().max() > 0.01


def test_a_matching_ratio_is_the_gap_of_errors_on_shared_points(learner):
    algo = learner("crd", {}, reference="base", pairs=3)
    for parameter in algo.policy.parameters():
        parameter.data.add_(0.05)
    obs = torch.randn(8, 1)
    group, _ = algo.meet(obs, torch.zeros(8, 1, 1))
    t, action = group.t[..., None, None], group.action[:, :, None]
    x, goal = t * action + (1 - t) * group.noise, action - group.noise
    errors = []
    for policy in (algo.policy, algo.base):
        feat = policy.features(obs)[:, None, None]
        velocity = policy.velocity(x, group.t.expand(8, 8, 3), feat.expand(8, 8, 3, -1))
        errors.append((velocity - goal).square().mean((-1, -2, -3)))
    error = errors[0]
    found = algo.log_ratio(obs, group, error, torch.ones(()))
    torch.testing.assert_close(found, errors[1] - errors[0], rtol=1e-4, atol=1e-5)


def test_the_replayed_action_joins_its_group_and_the_critics_say_who_wins(learner):
    """SePPO's gate: where the old copy's action is the better one, the sign is the other one."""
    algo = learner("dpo", {}, particles=1, recorded=True, labels="hard")
    replayed = torch.linspace(-1, 1, 33)[:, None, None]
    group, _ = algo.meet(torch.zeros(33, 1), replayed)
    assert torch.equal(group.action[:, 1], replayed)
    better = (replayed - group.action[:, 0]).flatten().sign()
    assert torch.equal(group.sign[:, 1, 0], better)
    assert (better > 0).any() and (better < 0).any()


def test_losers_are_pushed_no_further_than_their_limit(learner):
    algo = learner("dpo", {}, loser_limit=0.5)
    error = torch.tensor([[0.3, 0.9, 0.9]], requires_grad=True)
    score = torch.tensor([[-1.0, -1.0, 2.0]])
    capped = algo.capped(error, score)
    assert capped.tolist() == [[pytest.approx(0.3), 0.5, pytest.approx(0.9)]]
    assert torch.autograd.grad(capped.sum(), error)[0].tolist() == [[1, 0, 1]]


def test_the_anchor_holds_good_actions_more(learner):
    """Weights (1 + r / clip) / 2 of the distance to the base."""
    algo = learner("crd", {}, anchor_coef=1.0, score_clip=2.0)
    for parameter in algo.policy.parameters():
        parameter.data.add_(0.1)
    obs = torch.zeros(4, 1)
    group, _ = algo.meet(obs, torch.zeros(4, 1, 1))
    lone = torch.full_like(group.score, -2.0)
    lone[:, 0] = 2.0
    held = Group(group.action, lone, group.sign, group.noise, group.t, None)
    points = torch.cat([held.action[:, :1]], 1)
    one = Group(points, lone[:, :1], group.sign[:, :1, :1], group.noise, group.t, None)
    whole = algo.policy_loss(obs, held)[1]["policy/drift"]
    first = algo.policy_loss(obs, one)[1]["policy/drift"]
    torch.testing.assert_close(whole, first / held.score.shape[1])


@pytest.mark.parametrize(
    ("name", "policy", "changes", "told"),
    [
        ("crd", {}, {"loss": "square"}, "algo.loss='square': choose centred, listwise"),
        ("crd", {}, {"ratio": "exact"}, "algo.ratio='exact'"),
        ("crd", {}, {"reference": "none"}, "algo.reference='none'"),
        ("dpo", {}, {"labels": "soft"}, "algo.labels='soft'"),
        ("crd", {}, {"particles": 1}, "algo.particles=1 with algo.recorded=false"),
        ("dpo", {}, {"loss": "kto"}, "algo.anchor_coef=0 with algo.loss=kto"),
        ("dpo", {}, {"anchor_scaled": True}, "algo.anchor_scaled=true with algo.anchor_coef=0"),
        (
            *("dpo", {}, {"pulls": [{"kind": "velocity", "coef": 1.0, "every": 5}]}),
            "algo.reference=base with an entry of algo.pulls",
        ),
        ("dpo", {}, {"loss": "mapo", "ratio_limit": 1.0}, "algo.loss=mapo has no log ratio"),
        ("crd", {}, {"loser_limit": 1.0}, "algo.loser_limit=1: of matching errors"),
        ("d3po", {"eta": 0.0}, {}, "policy.eta=0 with algo.ratio=chain"),
        ("d3po", {"eta": 1.0}, {"recorded": True}, "algo.recorded=true with algo.ratio=chain"),
    ],
)
def test_values_that_do_not_go_together_are_refused(learner, name, policy, changes, told):
    with pytest.raises(ValueError, match=told):
        learner(name, policy, **changes)
