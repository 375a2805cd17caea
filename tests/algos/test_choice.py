"""One rule chooses among a policy's actions: acting, TD target, start of x and deployment."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.rfm import RFM
from rheo.algos.rfm_offline import RFMOffline
from rheo.envs.batch import Batch
from rheo.policies.candidates import choose, sample

VALUES = torch.tensor([0.3, 1.0, -0.5, 0.7])
ROWS = 20_000


class Line(nn.Module):
    """Q(s, a) = slope a, twice."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, obs, action):
        value = self.slope * action.sum((-2, -1))
        return torch.stack([value, value])


def line(slope=1.0) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return Line(slope)


def still(flow):
    """A policy whose action is its noise: its field is 0."""
    policy = flow(1, 1)
    nn.init.zeros_(policy.net.outlet.weight)
    nn.init.zeros_(policy.net.outlet.bias)
    return policy


def shares(action):
    """How often each of VALUES was chosen."""
    return torch.stack([(action.flatten() == value).float().mean() for value in VALUES])


def candidates():
    return VALUES.expand(ROWS, -1)[..., None, None]


@pytest.mark.parametrize(("choice", "rule"), [(1.0, "absolute"), (0.5, "absolute"), (1.0, "fixed")])
def test_a_choice_is_drawn_from_the_softmax_in_units_of_the_temperature(
    flow, settings, generator, choice, rule
):
    values = settings(
        "rfm_box", act_candidates=4, choice_temperature=choice, temperature=0.4,
        temperature_rule=rule,
    )  # fmt: skip
    algo = RFM(flow(1, 1), line(), generator, **values)
    algo.q_scale.fill_(2.0)
    obs = torch.zeros(ROWS, 1)
    chosen = shares(algo.choose(obs, candidates(), algo.options(ROWS, 4)[1]))
    T = 0.4 * choice * (1.0 if rule == "absolute" else 2.0)
    torch.testing.assert_close(chosen, (VALUES / T).softmax(0), atol=0.012, rtol=0)


def test_without_a_choice_temperature_the_best_is_taken_and_nothing_drawn(
    flow, settings, generator
):
    algo = RFM(flow(1, 1), line(), generator, **settings("rfm_box", choice_temperature=0.0))
    waiting = algo.options(ROWS, 4)[1]
    assert waiting is None
    chosen = shares(algo.choose(torch.zeros(ROWS, 1), candidates(), waiting))
    assert chosen[VALUES.argmax()] == 1


def test_numbers_drawn_ahead_decide_as_those_drawn_on_the_way():
    obs, action = torch.zeros(64, 1), torch.rand(64, 5, 1, 1)
    policy = SimpleNamespace(start=lambda count, generator: action.flatten(0, 1))
    policy.act = lambda obs, noise: noise
    generator = torch.Generator().manual_seed(5)
    one = sample(policy, line(), obs, generator, candidates=5, heat=0.3)
    waiting = torch.empty(64, 5).exponential_(generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(one, choose(line(), obs, action, 0.3, waiting))


def transitions(rows):
    obs = torch.zeros(rows, 1)
    return Batch(obs, torch.zeros(rows, 1, 1), torch.zeros(rows), torch.ones(rows), obs)


def test_a_td_target_is_chosen_by_the_critic_and_valued_by_the_target_critic(
    flow, settings, generator
):
    algo: Any = RFM(still(flow), line(0.0), generator, **settings("rfm_box", target_candidates=2))
    noise = torch.tensor([0.5, -0.25]).expand(3, 2)[..., None, None]
    for slope, expected in ((1.0, 0.5), (-1.0, -0.25)):  # the critic's best of the two actions
        algo.critic.slope.data.fill_(slope)
        algo.target.slope.data.fill_(3.0)
        loss, _ = algo.critic_loss(transitions(3), noise)
        assert loss.item() == pytest.approx((3.0 * expected) ** 2, rel=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.0)])
def test_the_noise_of_the_target_action_is_scaled(flow, settings, generator, scale, expected):
    algo: Any = RFM(still(flow), line(0.0), generator, **settings("rfm_box", target_noise=scale))
    algo.target.slope.data.fill_(3.0)
    loss, _ = algo.critic_loss(transitions(2), torch.full((2, 1, 1, 1), 0.5))
    assert loss.item() == pytest.approx((3.0 * expected) ** 2, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_noise": 0.0, "target_candidates": 4}, r"algo\.target_candidates=4"),
        ({"choice_temperature": 1.0}, r"algo\.choice_temperature=1\.0.*nothing to choose"),
    ],
)
def test_a_choice_without_anything_to_choose_from_is_refused(
    flow, critic, settings, generator, changes, words
):
    with pytest.raises(ValueError, match=words):
        RFM(flow(1, 1), critic(1, 1), generator, **settings("rfm_box", **changes))


@pytest.mark.parametrize("choice", [0.0, 1.0])
def test_x_starts_from_the_chosen_candidate(flow, settings, generator, choice):
    values = settings("rfm_box", start_candidates=4, choice_temperature=choice, temperature=0.2)
    algo = RFM(flow(1, 1), line(), generator, **values)
    draws = algo.reverse.draw(algo.policy, ROWS, generator)
    assert draws.start.shape == (ROWS, 4, 1, 1) and (draws.waiting is None) == (choice == 0)
    own, T = candidates(), torch.tensor(0.2)
    start = algo.reverse.chosen(
        algo.policy, algo.critic, torch.zeros(ROWS, 1), own, draws.waiting, T
    )
    expected = (VALUES / 0.2).softmax(0) if choice else (VALUES.max() == VALUES).float()
    torch.testing.assert_close(shares(start), expected, atol=0.012, rtol=0)


def test_acting_and_deployment_choose_among_as_many_as_they_say(flow, settings, generator):
    values = settings("rfm_box", act_candidates=2, deploy_candidates=5, explore_noise=0.0)
    algo = RFM(still(flow), line(), generator, **values)
    algo.average = algo.policy
    # the mean of the largest of M normal numbers, clipped to the box
    best = {m: torch.randn(200_000, m).amax(1).clamp(-1, 1).mean().item() for m in (2, 5)}
    obs = torch.zeros(ROWS, 1)
    assert algo.act(obs).mean().item() == pytest.approx(best[2], abs=0.02)
    assert algo.deploy(obs, generator).mean().item() == pytest.approx(best[5], abs=0.02)


def test_a_policy_of_recorded_data_explores_by_the_same_rule(flow, settings, learner, generator):
    algo: RFMOffline = learner("rfm_offline", 1, 1, critic=line(), act_candidates=8)
    algo.policy = still(flow)
    obs = torch.zeros(ROWS, 1)
    best = torch.randn(200_000, 8).amax(1).clamp(-1, 1).mean().item()
    assert algo.act(obs).mean().item() == pytest.approx(best, abs=0.02)
    algo.explore_noise = 0.5
    spread = algo.act(obs).std().item()
    algo.explore_noise, algo.act_candidates = 0.0, 1
    assert spread > 0.1
    single = torch.randn(200_000).clamp(-1, 1)
    assert algo.act(obs).std().item() == pytest.approx(single.std().item(), abs=0.02)


def test_an_absolute_temperature_does_not_follow_the_scale_of_q(flow, critic, settings, generator):
    values = settings("rfm_box", temperature=0.02, temperature_rule="absolute")
    algo = RFM(flow(1, 1), critic(1, 1), generator, **values)
    relative = RFM(flow(1, 1), critic(1, 1), generator, **settings("rfm_box", temperature=0.02))
    for one in (algo, relative):
        one.q_scale.fill_(30.0)
    assert algo.T().item() == pytest.approx(0.02)
    assert relative.T().item() == pytest.approx(0.6)


@pytest.mark.parametrize(("share", "sampled"), [(0.0, 64), (0.5, 32), (1.0, 16)])
def test_only_states_that_need_a_sample_of_the_policy_get_one(
    flow, critic, settings, generator, share, sampled
):
    """A quarter of the rows measures the width; the others start from given actions."""
    policy = flow(1, 1)
    algo = RFM(policy, critic(1, 1), generator, **settings("rfm_box", replay_share=share))
    seen, integrate = [], policy.integrate
    policy.integrate = lambda feat, noise: seen.append(len(feat)) or integrate(feat, noise)
    given = torch.rand(64, 1, 1)
    draws = algo.draw(64)
    loss, _, measured = algo.policy_loss(torch.zeros(64, 1), given, draws, torch.tensor(0.1))
    assert seen == [sampled + 16] and loss.isfinite() and measured.spread.shape == (1,)


@pytest.mark.parametrize("support", ["box", "tanh"])
def test_the_width_that_the_temperature_follows_is_that_of_actions(
    flow, critic, settings, generator, support
):
    """Latents of deviation 1 saturate: in actions the width is smaller, in their own units not."""
    policy = still(flow)
    tanh = support == "tanh"
    policy.squash = "tanh" if tanh else "clip"
    values = settings("rfm" if tanh else "rfm_box", policy_batch=ROWS)
    algo = RFM(policy, critic(1, 1), generator, **values)
    obs, given = torch.zeros(ROWS, 1), torch.zeros(ROWS, 1, 1)
    _, metrics, measured = algo.policy_loss(obs, given, algo.draw(ROWS), torch.tensor(0.1))
    latent = torch.randn(200_000)
    action = latent.tanh() if tanh else latent.clamp(-1, 1)
    own = latent if tanh else latent.clamp(-algo.reverse.walls, algo.reverse.walls)
    assert metrics["policy/spread"].item() == pytest.approx(action.std().item(), rel=0.03)
    assert measured.spread.item() == pytest.approx(own.std().item(), rel=0.03)
    assert action.std() < 0.9 * own.std()


@pytest.mark.learns
def test_an_untrained_critic_does_not_narrow_the_shipped_policy(flow, critic, settings, generator):
    """T begins hot: in proportion to what an untrained Q deviates, the policy would follow it."""

    def width(**changes):
        torch.manual_seed(0)
        values = settings("rfm", policy_batch=128, **changes)
        algo = RFM(flow(3, 2, squash="tanh"), critic(3, 2), generator, **values)
        zero, metrics = torch.zeros(128), {}
        for _ in range(150):
            obs, action = torch.randn(128, 3), torch.zeros(128, 1, 2)
            metrics = algo.update_policy(Batch(obs, action, zero, zero, obs))
        return metrics["policy/spread"].item()

    hot, cold = width(), width(temperature=0.01, temperature_rule="fixed")
    assert hot > 0.36 and cold < 0.75 * hot, (hot, cold)
