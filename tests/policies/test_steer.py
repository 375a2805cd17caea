"""Steering without training, against closed forms of tilted normals and order statistics."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rheo.policies import steer
from rheo.policies.nets import MLP

SHIPPED = {"words": ["best"], "n": 4, "temperature": 0.1, "weight": 1.5, "particles": 8}
SHIPPED |= {"tilt": 0.1, "rounds": 5, "rate": 0.1}


def settings(**changes):
    return steer.Settings(**SHIPPED | changes)


class Linear(nn.Module):
    """Q = slope times the sum of the action; the second member is worth more."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, obs, action):
        value = self.slope * action.sum((-1, -2))
        return torch.stack([value, value + 1.0])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def noise_of(generator, *lead):
    return torch.randn((*lead, 1, 1), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("path", "prediction"), [("linear", "v"), ("cosine", "eps")])
@pytest.mark.parametrize("guide", [steer.value_guided, steer.doob_guided])
def test_guided_steps_reach_the_tilted_normal(gaussian_policy, generator, path, prediction, guide):
    """exp(g a / tau) tilts N(mu, s^2) to N(mu + s^2 g / tau, s^2), s that of the discrete chain."""
    policy = gaussian_policy(path, prediction, mu=0.1, spread=0.2, steps=40)
    obs = torch.zeros(4000, 1, dtype=torch.float64)
    plain = guide(policy, Linear(0.0), obs, noise_of(generator, 4000), generator, 16, 1.0)
    action = guide(policy, Linear(1.0), obs, noise_of(generator, 4000), generator, 64, 0.2)
    assert plain.mean().item() == pytest.approx(0.1, abs=0.01)
    assert plain.std().item() == pytest.approx(0.2, abs=0.035)
    assert action.mean().item() == pytest.approx(0.1 + 5 * plain.var().item(), abs=0.012)
    assert action.std().item() == pytest.approx(plain.std().item(), rel=0.05)


def test_interpolation_ends_at_both_policies_and_is_affine(gaussian_policy, generator):
    tuned, base = gaussian_policy(mu=0.3, spread=0.2), gaussian_policy(mu=-0.1, spread=0.2)
    obs, noise = torch.zeros(50, 1, dtype=torch.float64), noise_of(generator, 50)
    ends = {w: steer.interpolated(tuned, base, obs, noise, w) for w in (0.0, 0.5, 1.0, 1.5)}
    assert torch.equal(ends[1.0], tuned.act(obs, noise))
    assert torch.equal(ends[0.0], base.act(obs, noise))
    for weight in (0.5, 1.5):  # equal variances: the geometric mean moves the mean alone
        expected = torch.lerp(ends[0.0], ends[1.0], weight)
        torch.testing.assert_close(ends[weight], expected)
    near = steer.interpolated(tuned, base, obs, noise, 1.0 - 1e-9)
    torch.testing.assert_close(near, ends[1.0])  # the combined walk, not a shortcut


@pytest.mark.parametrize(("count", "expected"), [(2, 0.564), (4, 1.029), (16, 1.766)])
def test_the_best_of_n_normals(gaussian_policy, generator, count, expected):
    policy = gaussian_policy(mu=0.0, spread=0.1, steps=30)
    chain = steer.Chain(policy, Linear(1.0), None, settings(n=count))
    policy.start = lambda lead, g: noise_of(g, lead)  # double precision, as the field
    obs = torch.zeros(6000, 1, dtype=torch.float64)
    std = policy.act(obs, noise_of(generator, 6000)).std().item()
    assert chain(obs, generator).mean().item() / std == pytest.approx(expected, abs=0.05)


def test_ascent_on_a_quadratic_and_on_a_line():
    """(I - eta H)^T (a0 - a*) exactly; eta g T for a line; never worse than the start."""

    class Quadratic(nn.Module):
        def forward(self, obs, action):
            return -0.5 * (2.0 * (action - 0.2).square()).sum((-1, -2))[None]

    start = torch.rand(20, 3, 1, 1).double() - 0.5
    obs = torch.zeros(20, 1, 1).double()
    found = steer.climbed(Quadratic(), obs, start, rounds=7, rate=0.1)
    torch.testing.assert_close(found - 0.2, (1 - 0.1 * 2.0) ** 7 * (start - 0.2))
    found = steer.climbed(Linear(0.3), obs, start, rounds=4, rate=0.1)
    torch.testing.assert_close(found, start + 4 * 0.1 * 0.3)
    wild = steer.climbed(Quadratic(), obs, start, rounds=7, rate=5.0)
    gain = Quadratic()(obs, wild) - Quadratic()(obs, start)
    assert (gain >= 0).all() and wild.abs().max() <= 1


def test_known_parts_of_a_chunk_stay_and_the_rest_is_filled_in(policy_of, generator):
    net = MLP(2, 1, 4, width=32, depth=1, encoder_depth=1, activation="silu")
    nn.init.normal_(net.outlet.weight, std=0.3)
    policy = policy_of(net, steps=6)
    obs, noise = torch.randn(9, 2), torch.randn(9, 4, 1)
    known, mask = torch.full((9, 4, 1), 0.7), torch.zeros(9, 4, 1, dtype=torch.bool)
    torch.testing.assert_close(
        steer.inpainted(policy, obs, noise, known, mask), policy.act(obs, noise)
    )
    mask[:, :2] = True
    action = steer.inpainted(policy, obs, noise, known, mask)
    assert (action[:, :2] == 0.7).all()
    assert not torch.equal(action[:, 2:], policy.act(obs, noise)[:, 2:])  # it sees what is known


def test_what_starts_on_the_way_keeps_the_rest_near_what_is_there(policy_of, generator):
    net = MLP(2, 1, 4, width=32, depth=1, encoder_depth=1, activation="silu")
    nn.init.normal_(net.outlet.weight, std=0.3)
    policy = policy_of(net, steps=5)
    obs, noise = torch.randn(9, 2), torch.randn(9, 4, 1)
    known, mask = torch.rand(9, 4, 1) - 0.5, torch.zeros(9, 4, 1, dtype=torch.bool)
    whole = steer.inpainted(policy, obs, noise, known, mask, start=0.0)
    torch.testing.assert_close(whole, policy.act(obs, noise))  # on this path A(0) = 0
    feat, x = policy.features(obs), 0.6 * known + 0.4 * noise
    for t, s in ((0.6, 0.8), (0.8, 1.0)):
        x = policy.step(x, torch.tensor(t), torch.tensor(s), feat)[0]
    found = steer.inpainted(policy, obs, noise, known, mask, start=0.6)
    torch.testing.assert_close(found, x.clamp(-1, 1))
    between = steer.inpainted(policy, obs, 0 * noise, known, mask, start=0.99)
    assert (between - known).abs().max() < 0.1 < (whole - known).abs().max()


def test_words_combine(policy_of, generator):
    net = MLP(2, 1, 2, width=16, depth=1, encoder_depth=1, activation="silu")
    policy, other = policy_of(net), policy_of(net)
    obs = torch.randn(5, 2)
    for words in ("svdd,best", "rlg,soft", "doob,climb,best", "climb"):
        chain = steer.Chain(policy, Linear(1.0), other, settings(words=words.split(",")))
        action = chain(obs, generator)
        assert action.shape == (5, 2, 1) and action.abs().max() <= 1


@pytest.mark.parametrize(
    ("words", "lacks", "message"),
    [
        ("best", "critic", "steer=best: needs a critic of actions"),
        ("climb", "critic", "steer=climb: needs a critic"),
        ("rlg", "reference", "needs another policy; add steer.reference=RUN"),
        ("svdd", "noise", "needs a stochastic sampler"),
        ("svdd,doob", "", "one sampler of rlg, svdd, doob"),
        ("best,soft", "", "one choice of best, soft"),
        ("bst", "", "choose from best, soft"),
        ("inpaint", "", "continues plans, which `rheo eval` does"),
    ],
)
def test_what_a_word_lacks_is_said(policy_of, words, lacks, message):
    net = MLP(2, 1, 2, width=16, depth=1, encoder_depth=1, activation="silu")
    policy = policy_of(net)
    base = SimpleNamespace() if lacks == "noise" else policy
    critic = None if lacks == "critic" else Linear(1.0)
    with pytest.raises(ValueError, match=message):
        other = None if lacks == "reference" else policy
        steer.Chain(base, critic, other, settings(words=words.split(",")), 2)


@pytest.mark.parametrize("words", ["inpaint", "inpaint,best"])
def test_a_plan_keeps_what_the_one_before_left_until_its_episode_ends(policy_of, generator, words):
    net = MLP(2, 1, 3, width=16, depth=1, encoder_depth=1, activation="silu")
    policy, obs = policy_of(net), torch.randn(4, 2)
    chain = steer.Chain(policy, Linear(1.0), None, settings(words=words.split(",")), 1)
    first, second = chain(obs, generator), chain(obs, generator)
    torch.testing.assert_close(second[:, :2], first[:, 1:])
    assert not torch.equal(second[:, 2], first[:, 2])
    chain.ended(torch.tensor([False, True, False, False]))
    third = chain(obs, generator)
    kept = (third[:, :2] - second[:, 1:]).abs().amax((1, 2)) < 1e-6
    assert kept.tolist() == [True, False, True, True]
    assert chain(obs[:1], generator).shape == (1, 3, 1)  # other environments: nothing is kept
