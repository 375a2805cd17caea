"""Mirror descent by matching against closed forms: weights, temperature, a step of it."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.mirror import Met, Mirror, divergence, effective, weigh
from rheo.algos.returns import dual_step
from rheo.envs.batch import Batch

ONE = torch.ones(())


def judge(critic: nn.Module) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return critic


class Slope(nn.Module):
    """Q = g . a of the first step of a plan, both members."""

    members = 2

    def __init__(self, g=1.0):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(g))

    def forward(self, obs, action):
        value = self.g * action[..., 0, :].sum(-1)
        return torch.stack([value, value])


class Bowl(nn.Module):
    """Q = -(a - 0.5)^2 of both members."""

    members = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, obs, action):
        value = -(action - 0.5).square().sum((-2, -1))
        return torch.stack([value, value]) + 0 * self.unused


class Law(nn.Module):
    """Stands where the old policy samples: actions of N(mean, std^2)."""

    eta = 0.0

    def __init__(self, mean=0.1, std=0.2):
        super().__init__()
        self.mean, self.std = mean, std

    def noise(self, lead, generator):
        return torch.randn((lead, 1, 1), generator=generator)

    def drawn(self, obs, noise, generator, eta):
        return self.mean + self.std * noise


# ---- weights -----------------------------------------------------------------------------------


def test_weights_are_the_deformed_exponentials_that_average_one():
    """Of z = (0, .5, -1): by hand, nu = -.25 for p = 1 and nu = .25 - sqrt(7) / 4 for p = 2."""
    q = torch.tensor([[0.0, 1.0, -2.0]])
    T = torch.tensor(2.0)
    soft = torch.tensor([[0.0, 0.5, -1.0]]).softmax(1) * 3
    torch.testing.assert_close(weigh(q, T, "softmax"), soft)
    linear = torch.tensor([[0.25, 0.75, 0.0]]) * 3
    torch.testing.assert_close(weigh(q, T, "linear"), linear)
    nu = 0.25 - math.sqrt(7) / 4
    square = torch.tensor([[nu**2, (0.5 - nu) ** 2, 0.0]]) * 3
    torch.testing.assert_close(weigh(q, T, "square"), square)
    positive = torch.tensor([[1 / 3, 4 / 3, 0.0]])
    torch.testing.assert_close(weigh(q, T, "positive"), positive)


@pytest.mark.parametrize("kind", ["softmax", "linear", "square"])
def test_any_values_give_weights_that_average_one_and_flat_ones_when_it_is_hot(kind):
    q = 30 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    for T in (0.1, 1.0, 100.0):
        weight = weigh(q, torch.tensor(T), kind)
        torch.testing.assert_close(weight.mean(1), torch.ones(50))
        assert (weight >= 0).all() and (weight.argmax(1) == q.argmax(1)).all()
    torch.testing.assert_close(
        weigh(q, torch.tensor(1e7), kind), torch.ones(50, 64), atol=1e-3, rtol=0
    )


def test_the_divergence_is_that_of_shares_from_uniform_ones():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    half = math.log(4) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    torch.testing.assert_close(divergence(weight), torch.tensor([0.0, math.log(4), half]))
    torch.testing.assert_close(divergence(0.1 * weight), divergence(weight))


def test_the_effective_share_is_that_of_so_many_equal_weights():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 0.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0]])
    torch.testing.assert_close(effective(weight), torch.tensor([1.0, 0.25, 0.5]))
    torch.testing.assert_close(effective(0.1 * weight), effective(weight))


@pytest.mark.parametrize("ess", [0.3, 0.5, 0.8])
def test_the_temperature_settles_where_the_effective_share_meets_its_target(ess):
    """Of Q ~ N(0, sigma^2) weights e^(Q / T) have the share e^(-sigma^2 / T^2) as K grows."""
    generator, sigma = torch.Generator().manual_seed(0), 3.0
    log_inverse, tail = torch.zeros(()), []
    for k in range(400):
        q = sigma * torch.randn((64, 1024), generator=generator)
        share = effective(weigh(q, (-log_inverse).exp(), "softmax")).mean()
        dual_step(log_inverse, 1 / share, 1 / ess, 0.1)
        if k >= 200:
            tail.append((-log_inverse).exp().item() / sigma)
    exact = 1 / math.sqrt(-math.log(ess))
    assert sum(tail) / len(tail) == pytest.approx(exact, rel=0.03)


# T / sigma for Q ~ N(0, sigma^2): numerical root of the mean divergence over 4e4 rows of K values
DUALS = [(64, 0.5, 0.973), (64, 1.0, 0.660), (64, 2.0, 0.396), (16, 0.5, 0.896), (16, 1.0, 0.556),
         (16, 2.0, 0.226)]  # fmt: skip


@pytest.mark.parametrize(("K", "kl", "expected"), DUALS)
def test_the_temperature_settles_where_the_divergence_meets_its_target(K, kl, expected):
    """As K grows it is sigma / sqrt(2 kl): 1, .707, .5; with few actions it is smaller."""
    generator, sigma = torch.Generator().manual_seed(0), 3.0
    log_inverse, tail = torch.zeros(()), []
    for k in range(600):
        q = sigma * torch.randn((256, K), generator=generator)
        weight = weigh(q, (-log_inverse).exp(), "softmax")
        dual_step(log_inverse, divergence(weight).mean(), kl, 0.1)
        if k >= 300:
            tail.append((-log_inverse).exp().item() / sigma)
    assert sum(tail) / len(tail) == pytest.approx(expected, rel=0.03)


# ---- one step ----------------------------------------------------------------------------------


def met_of(algo, rows=64):
    """What the policy is matched to from a known old policy, without the box's walls near."""
    algo.old = Law()
    return algo.meet(torch.zeros(rows, 1))


@pytest.mark.parametrize("T", [0.1, 0.4])
def test_the_weighed_samples_are_the_tilted_gaussian(learner, T):
    """N(.1, .2^2) by exp(g a / T): N(.1 + g .04 / T, .2^2); g = .5."""
    algo = learner("dpmd", 1, 1, critic=judge(Slope(0.5)), particles=4096, temperature=T,
                   target_kl=None, sample_noise=0.0)  # fmt: skip
    met, metrics = met_of(algo)
    action, weight = met.action.flatten(1), met.weight
    mean = (weight * action).mean()
    std = (weight * (action - mean).square()).mean().sqrt()
    assert mean.item() == pytest.approx(0.1 + 0.5 * 0.04 / T, abs=0.005)
    assert std.item() == pytest.approx(0.2, abs=0.005)
    assert metrics["policy/kl"].item() == pytest.approx((0.5 * 0.2 / T) ** 2 / 2, rel=0.05)
    assert metrics["policy/temperature"].item() == pytest.approx(T)


def test_an_infinite_temperature_distils_the_old_policy(learner):
    algo = learner("dpmd", 1, 1, critic=judge(Slope()), temperature=1e9, target_kl=None)
    met, metrics = met_of(algo)
    torch.testing.assert_close(met.weight, torch.ones(64, 32))
    assert metrics["policy/kl"].abs() < 1e-5


def test_noise_of_the_samples_widens_them_inside_the_box(learner):
    algo = learner("dpmd", 1, 1, critic=judge(Slope()), particles=64, sample_noise=0.3)
    met, metrics = met_of(algo, 512)
    assert met.action.std().item() == pytest.approx(math.hypot(0.2, 0.3), rel=0.03)
    assert metrics["policy/spread"].item() == pytest.approx(math.hypot(0.2, 0.3), rel=0.03)
    algo.sample_noise = 50.0
    assert met_of(algo)[0].action.abs().max() == 1.0


def test_times_are_levels_of_the_table_and_mean_nothing_about_the_place(learner):
    met, _ = met_of(learner("dpmd", 1, 1, critic=judge(Slope())), 320)
    counts = (met.t * 5).round().long().flatten().bincount(minlength=5)
    assert counts.tolist() == [2048] * 5
    place = torch.arange(10_240.0)
    assert abs(torch.corrcoef(torch.stack([place, met.t.flatten()]))[0, 1]) < 0.05


def test_the_best_is_weighed_by_its_advantage_and_uniform_actions_by_a_share(learner):
    algo = learner("qvpo", 1, 1, critic=judge(Slope(2.0)), particles=16)
    met, metrics = met_of(algo, 256)
    assert met.action.shape == (256, 11, 1, 1) and met.t.shape == met.weight.shape == (256, 11)
    assert "policy/temperature" not in metrics
    algo.kept, algo.uniform = None, 0
    algo.generator.manual_seed(3)
    every, _ = met_of(algo, 256)
    algo.kept, algo.uniform = 1, 10
    algo.generator.manual_seed(3)
    met, _ = met_of(algo, 256)
    q = 2.0 * every.action.flatten(1)
    best = q.argmax(1)
    rows = torch.arange(256)
    assert torch.equal(met.action[:, 0], every.action[rows, best])
    advantage = q[rows, best] - q.mean(1)
    torch.testing.assert_close(met.weight[:, 0], advantage / advantage.mean(), rtol=1e-4, atol=0)
    share = (0.02 * met.weight[:, :1]).expand(-1, 10)
    torch.testing.assert_close(met.weight[:, 1:], share)
    uniform = met.action[:, 1:]
    assert uniform.min() < -0.99 and uniform.max() > 0.99 and abs(uniform.mean()) < 0.05
    assert uniform.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.03)


def test_the_cap_holds_errors_above_it_alone(learner):
    """Errors of elements are 0 to 9: each counts as itself, or as 3."""
    algo = learner("dpmd", 1, 2, critic=judge(Slope()))
    noise = torch.tensor([[[[1.0, 3.0]]], [[[-1.5, -2.0]]]])  # a fresh net predicts 0
    met = Met(torch.zeros(2, 1, 1, 2), torch.tensor([[2.0], [1.0]]), noise, torch.zeros(2, 1))
    loss = algo.policy_loss(torch.zeros(2, 1), met)
    assert loss.item() == pytest.approx((2 * (1 + 3) / 2 + (2.25 + 3) / 2) / 2)
    algo.cap = None
    loss = algo.policy_loss(torch.zeros(2, 1), met)
    assert loss.item() == pytest.approx((2 * (1 + 9) / 2 + (2.25 + 4) / 2) / 2)


def test_steps_that_are_not_executed_are_not_matched(diffusion, learner):
    policy = diffusion(1, 1, 4)
    algo = learner("dpmd", 1, 1, policy=policy, critic=judge(Slope()), executed=1, cap=None)
    noise = torch.randn(8, 3, 4, 1)
    met = Met(torch.zeros(8, 3, 4, 1), torch.ones(8, 3), noise, torch.zeros(8, 3))
    expected = noise[:, :, 0].square().mean()
    assert algo.policy_loss(torch.zeros(8, 1), met).item() == pytest.approx(expected.item())


# ---- the algorithms ----------------------------------------------------------------------------


def batch_of(rows=64):
    obs = torch.zeros(rows, 1)
    return Batch(obs, torch.zeros(rows, 1, 1), torch.zeros(rows), torch.zeros(rows), obs)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_old_policy_is_the_policy_again_after_so_many_updates(learner):
    algo = learner("dpmd", 1, 1, old_every=4, policy_every=2)
    first = flat(algo.policy)
    for _ in range(3):
        algo.update(batch_of())
    assert torch.equal(flat(algo.old), first) and not torch.equal(flat(algo.policy), first)
    algo.update(batch_of())
    assert torch.equal(flat(algo.old), flat(algo.policy))
    assert learner("qvpo", 1, 1).old is None  # which samples from the policy itself


def test_the_temperature_moves_towards_the_target_or_stays(learner):
    """An actor's log temperature: dual_rate times the log ratio of divergences, at most 1."""
    algo = learner("dpmd", 1, 1, critic=judge(Slope(0.0)), target_kl=1.0, dual_rate=0.2)
    algo.update_policy(torch.zeros(16, 1))
    assert algo.T().item() == pytest.approx(math.exp(-0.2))  # nothing to tell apart
    algo = learner("dpmd", 1, 1, critic=judge(Slope(1e4)), target_kl=1.0, dual_rate=0.2)
    metrics = algo.update_policy(torch.zeros(16, 1))
    expected = math.exp(0.2 * math.log(metrics["policy/kl"].item()))
    assert algo.T().item() == pytest.approx(expected, rel=1e-4) and expected > 1
    algo = learner("dpmd", 1, 1, critic=judge(Slope()), target_kl=None, temperature=0.3)
    algo.update_policy(torch.zeros(16, 1))
    assert algo.T().item() == pytest.approx(0.3) and algo.learned == {}
    changes = {"target_kl": None, "target_ess": 0.5, "dual_rate": 0.2}
    algo = learner("dpmd", 1, 1, critic=judge(Slope(1e4)), **changes)
    metrics = algo.update_policy(torch.zeros(16, 1))
    share = metrics["policy/ess"].item()
    assert algo.T().item() == pytest.approx(max(share, 0.5 / math.e) ** -0.2 * 0.5**0.2, rel=1e-4)
    assert share < 0.2 and algo.learned == {"log_inverse": "temperature"}


class Mean(nn.Module):
    """The velocity at pure noise of a law with mean .2: E[a] - x."""

    horizon = action_dim = 1

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def encode(self, obs):
        return obs

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        return 0.2 - x


def test_a_flow_of_one_step_is_off_its_law_by_the_laws_variance(flow):
    """W2^2 of its one action to N(.2, .2^2), by sorted samples."""
    policy = flow(1, 1, steps=1)
    policy.net = Mean()
    action = policy.drawn(torch.zeros(20_000, 1), policy.noise(20_000, None), None, 0.0).flatten()
    law = 0.2 + 0.2 * torch.randn(20_000)
    distance = (action.sort().values - law.sort().values).square().mean()
    assert distance.item() == pytest.approx(0.04, rel=0.03)


@pytest.mark.learns
def test_a_matched_flow_of_one_step_acts_by_the_mean_of_its_tilted_law(learner, flow):
    """N(.1, .2^2) by exp(.5 a / .2): N(.2, .2^2), of which it acts .2 whatever the noise."""
    torch.manual_seed(0)
    changes = {"temperature": 0.2, "target_kl": None, "sample_noise": 0.0, "policy_lr": 6e-3}
    changes |= {"particles": 16, "ema_rate": 0.02}
    algo = learner("fpmd", 1, 1, policy=flow(1, 1, steps=1), critic=judge(Slope(0.5)), **changes)
    algo.old = Law()
    for _ in range(250):
        algo.update_policy(torch.zeros(32, 1))
    action = algo.deploy(torch.zeros(2000, 1), torch.Generator().manual_seed(0))
    assert action.std() < 0.1  # up to .058 over seeds, where the law has .2
    assert action.mean().item() == pytest.approx(0.2, abs=0.05)  # .202 to .224


@pytest.mark.learns
@pytest.mark.parametrize("name", ["dpmd", "fpmd", "qvpo"])
def test_the_best_action_of_a_bandit_is_found(learner, name):
    """Q = -(a - .5)^2."""
    torch.manual_seed(0)
    changes: dict[str, Any] = {"policy_lr": 6e-3, "ema_rate": 0.1, "particles": 16}
    changes["deploy_candidates"] = 1
    changes |= {} if name == "qvpo" else {"old_every": 25, "dual_rate": 0.1}
    algo = learner(name, 1, 1, critic=judge(Bowl()), **changes)
    for _ in range(125):
        algo.update_policy(torch.zeros(32, 1))
        algo.updates += 1
        if algo.old is not None and algo.updates % algo.old_every == 0:
            algo.old.load_state_dict(algo.policy.state_dict())
    action = algo.deploy(torch.zeros(2000, 1), torch.Generator().manual_seed(0))
    assert (action - 0.5).abs().mean() < 0.25  # .005, .016 and .1; .5 where it begins


def test_it_explores_with_noise_and_deploys_without(learner, flow):
    algo = learner("fpmd", 1, 1, policy=flow(1, 1, steps=1), explore_noise=0.2)
    obs = torch.zeros(4000, 1)
    explored, noise = algo.act(obs), algo.deploy(obs, torch.Generator().manual_seed(0))
    assert torch.equal(noise, algo.deploy(obs, torch.Generator().manual_seed(0)))
    assert explored.abs().max() == 1.0 and explored.shape == noise.shape


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("dpmd", {"target_kl": 2.1}, "at most 2.08, or algo.particles=34"),
        ("dpmd", {"target_kl": 0.0}, "algo.target_kl=0 with algo.particles=32"),
        ("dpmd", {"weights": "exp"}, "algo.weights='exp'"),
        ("dpmd", {"join": "lcb"}, "algo.join='lcb'"),
        ("dpmd", {"particles": 1}, "algo.particles=1"),
        ("dpmd", {"temperature": None}, "algo.temperature=null with algo.weights=softmax"),
        ("dpmd", {"kept": 4}, "algo.kept=4 with algo.weights=softmax"),
        ("qvpo", {"kept": 33}, "algo.kept=33: of algo.particles=32"),
        ("qvpo", {"temperature": 0.2}, "algo.temperature=0.2: algo.weights=positive has no"),
        ("qvpo", {"target_kl": 1.0}, "algo.target_kl=1: algo.weights=positive has no"),
        ("qvpo", {"target_ess": 0.5}, "algo.target_ess=0.5: algo.weights=positive has no"),
        ("dpmd", {"target_ess": 0.5}, "algo.target_kl=1.5 algo.target_ess=0.5: one temperature"),
        ("dpmd", {"target_kl": None, "target_ess": 0.1}, "algo.target_ess=0.1 with .* from 0.13"),
        ("dpmd", {"target_kl": None, "target_ess": 1.0}, "algo.target_ess=1 with"),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    flow, critic, settings, generator, name, changes, told
):
    with pytest.raises(ValueError, match=told):
        Mirror(flow(1, 1), critic(1, 1), generator, **settings(name, **changes))


def test_a_target_at_the_bound_and_a_higher_one_with_more_actions_are_taken(learner):
    assert learner("dpmd", 1, 1, target_kl=0.59 * math.log(32)).target_kl > 2
    assert learner("dpmd", 1, 1, target_kl=2.1, particles=34).target_kl == 2.1
