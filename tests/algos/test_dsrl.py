"""Diffusion steering on bases whose map is known in closed form."""

import hashlib
import logging
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rheo.algos.dsrl import DSRL
from rheo.envs.batch import Batch
from rheo.envs.suites import chunked
from rheo.policies.coded import NoiseMap, coded_critic, coded_gaussian
from rheo.scripts.trial import Trial

GOAL = 0.9


class Base(nn.Module):
    """a = mean + spread f(w), unclipped; counts its calls."""

    def __init__(self, mean=0.4, spread=0.5, form=lambda w: w):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.spread, self.form, self.calls = spread, form, 0

    def act(self, obs, noise):
        self.calls += 1
        return self.mean + self.spread * self.form(noise)


def make(base=None, *, coded=False, horizon=1, rows=None, bound=1.5, **changes) -> Any:
    """A small DSRL; coded: the critic judges codes (DSRL-SAC)."""
    torch.manual_seed(0)
    rows = rows or horizon
    small: dict[str, Any] = {"width": 64, "depth": 2, "activation": "tanh"}
    judge = {**small, "members": 2, "layer_norm": False}
    actor = coded_gaussian(2, 1, rows=rows, **small, log_std_min=-5.0, log_std_max=2.0)
    settings: dict[str, Any] = {
        **{"latent_gradient": False, "relative": False, "prior_share": 0.5},
        **{"distill_every": 1, "distill_noises": 1},
        **{"base_cache": 8, "spread": "entropy"},
        **{"target_per_dim": 0.0, "policy_lr": 3e-3, "critic_lr": 3e-3, "alpha_lr": 3e-3},
        **{"alpha": 0.1, "target_rate": 0.05, "ema_rate": 1.0, "deploy_mean": True, "gate": 0.0},
    }
    return DSRL(
        Base() if base is None else base,
        coded_critic(2, 1, rows=rows if coded else horizon, **judge),
        torch.Generator().manual_seed(0),
        actor,
        NoiseMap(horizon, kind="interpolated", rows=rows, bound=bound),
        None if coded else coded_critic(2, 1, rows=rows, **judge),
        **{**settings, **changes},
    )


def bandit(algo, rows=256):
    """Transitions of a world that ends after one action, worth -(a - GOAL)^2."""
    obs = torch.randn((rows, 2), generator=algo.generator)
    choice = algo.act(obs)
    reward = -(choice.action - GOAL).square().sum((1, 2))
    return Batch(obs, choice.kept, reward, torch.zeros(rows), obs)


class Backwards(Base):
    """a = mean + spread w, which is undone by hand."""

    def invert(self, obs, action, rounds):
        return (action - self.mean) / self.spread


@pytest.mark.parametrize(
    ("kind", "rows"), [("interpolated", 4), ("interpolated", 2), ("lowrank", 3)]
)
def test_codes_are_found_back_from_the_noise_that_they_make(kind, rows):
    noise_map = NoiseMap(4, kind=kind, rows=rows, bound=1.5)
    code = 2 * torch.rand((6, rows, 2)) - 1
    torch.testing.assert_close(noise_map.code(noise_map(code)), code, rtol=1e-4, atol=1e-4)
    assert torch.equal(noise_map.code(9 * noise_map(code.sign())), code.sign())  # held to the bound


def test_recorded_actions_become_the_codes_that_the_base_answers_with_them():
    """As far as the bound lets it, and only those that are recorded: the others are codes."""
    algo = make(Backwards(), coded=True, horizon=4)
    code, recorded = 0.8 * torch.rand((6, 4, 1)) - 0.4, torch.arange(6) < 4
    action = algo.base.act(torch.zeros(6, 2), code)
    kept, zeros = torch.where(recorded[:, None, None], action, 0.25), torch.zeros(6)
    batch = Batch(torch.zeros(6, 2), kept, zeros, zeros, torch.zeros(6, 2), recorded=recorded)
    seen, told = algo.base.recoded(batch)
    torch.testing.assert_close(seen.action[:4], code[:4])
    assert torch.equal(seen.action[4:], kept[4:])
    assert told["base/recorded_gap"] < 1e-6
    far = batch._replace(action=torch.ones(6, 4, 1), recorded=torch.ones(6, dtype=torch.bool))
    seen, told = algo.base.recoded(far)  # 0.4 + 0.5 * 1.5 = 1.15 reaches 1
    torch.testing.assert_close(seen.action, torch.full((6, 4, 1), 0.6 / 0.75))
    near = far._replace(action=torch.full((6, 4, 1), -0.5))  # 0.4 - 0.75 does not
    seen, told = algo.base.recoded(near)
    assert torch.equal(seen.action, -torch.ones(6, 4, 1))
    assert told["base/recorded_gap"].item() == pytest.approx(0.15, abs=1e-5)


def test_an_update_from_recorded_actions_is_that_from_their_codes():
    """The same rows, once as recorded actions and once as the codes that the replay would keep."""
    ways = []
    for recorded in (True, False):
        algo = make(Backwards(), coded=True)
        generator = torch.Generator().manual_seed(2)
        obs, ahead = torch.randn((2, 32, 2), generator=generator)
        code = 1.6 * torch.rand((32, 1, 1), generator=generator) - 0.8
        action = algo.base.policy.act(obs, 1.5 * code) if recorded else code
        reward, known = torch.ones(32), torch.full((32,), recorded)
        batch = Batch(obs, action, reward, 0.9 * reward, ahead, recorded=known)
        ways.append(algo.update(batch)["critic/loss"])
    torch.testing.assert_close(*ways)


def digest(module):
    state = b"".join(value.numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(state).hexdigest()


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("bound", [1.0, 2.5])
def test_a_code_of_one_is_the_bound_for_both_forms(coded, bound):
    """4.T1."""
    algo = make(Base(spread=0.2), coded=coded, bound=bound, horizon=2)
    action = algo.base.act(torch.zeros(3, 2), torch.ones(3, 2, 1))
    torch.testing.assert_close(action, torch.full((3, 2, 1), 0.4 + 0.2 * bound))


@pytest.mark.parametrize("coded", [False, True])
def test_one_decoding_is_executed_and_what_is_kept_belongs_to_it(coded):
    """4.T2, before the first update (the base's own noise) and after."""
    algo = make(coded=coded, horizon=3)
    obs = torch.randn(5, 2)
    for updates in (0, 1):
        algo.updates, algo.policy.calls = updates, 0
        choice = algo.act(obs)
        assert algo.policy.calls == 1
        if coded:
            assert choice.kept.abs().max() <= 1
            torch.testing.assert_close(algo.base.act(obs, choice.kept), choice.action)
        else:
            assert choice.kept is choice.action


@pytest.mark.parametrize("mean", [True, False])
def test_an_averaged_actor_is_deployed_and_the_latest_explores(mean):
    algo = make(ema_rate=0.25, deploy_mean=mean)
    expected = {name: value.detach().clone() for name, value in algo.actor.named_parameters()}
    for _ in range(3):
        algo.update(bandit(algo))
        for name, value in algo.actor.named_parameters():
            expected[name] = expected[name].lerp(value.detach(), 0.25)
    torch.testing.assert_close(dict(algo.slow.named_parameters()), expected)
    obs, seeded = torch.randn(50, 2), torch.Generator().manual_seed(1)
    noise = algo.slow.noise(50, torch.Generator().manual_seed(1))
    code = algo.slow.mean(obs) if mean else algo.slow.sample(obs, noise)[0]
    torch.testing.assert_close(algo.deploy(obs, seeded), algo.base.act(obs, code))
    code = algo.sampled(obs, torch.Generator().manual_seed(1))[0]
    algo.generator.manual_seed(1)
    torch.testing.assert_close(algo.act(obs).action, algo.base.act(obs, code))
    assert make(ema_rate=1.0).slow is None


@pytest.mark.parametrize(("bound", "spread"), [(1.0, 0.628), (1.5, 0.942), (2.5, 1.570)])
def test_the_first_actor_is_about_the_prior(bound, spread):
    """4.T6."""
    algo = make(bound=bound)
    code, _ = algo.sampled(torch.randn(50_000, 2), torch.Generator().manual_seed(1))
    noise = algo.noise_map(code)
    assert noise.std().item() == pytest.approx(spread, rel=0.02)
    assert abs(noise.mean().item()) < 0.02 * spread


def taught(base, best, noises, steps=600):
    """An algorithm whose critic is known, -(a - best)^2, and whose noise critic was distilled."""
    algo = make(base, prior_share=1.0, distill_noises=noises)

    class Known(nn.Module):
        def forward(self, obs, action):
            value = -(action - best).square().sum((-1, -2))
            return torch.stack([value, value])

    algo.target = Known()
    obs, left = torch.zeros(256, 2), 1.0
    for _ in range(steps):
        code = algo.base.prior(len(obs), algo.generator).unflatten(0, (-1, noises))
        loss, metrics = algo.distill_loss(obs, code, algo.base.act(obs, code))
        algo.distill_opt.zero_grad()
        loss.backward()
        algo.distill_opt.step()
        left = float(metrics["critic/distill_left"])
    assert left < 0.8  # of one batch; up to .55 over seeds
    return algo


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(
    ("share", "noises", "states", "shown"),
    [(0.25, 1, 64, 16), (0.25, 3, 8, 16), (0.25, 5, 4, 16), (4.0, 5, 64, 256)],
)
def test_what_is_distilled_are_answers_of_the_base(share, noises, states, shown, remembered):
    """The base's own noise beside the codes of the targets, called for in an update or before."""
    # a bound that two of three of the prior's noises pass, so that some do whatever the seed
    algo = make(Base(spread=0.3), prior_share=share, distill_noises=noises, bound=0.5)
    algo.policy.form = lambda noise: noise + next_state[0]  # an action tells its state
    seen, calls, next_state = [], [], [torch.zeros(())]
    keep, act = algo.distill_loss, algo.policy.act

    def spy(obs, noise):
        assert not torch.is_grad_enabled()  # a frozen base is slower with
        calls.append(len(obs))
        next_state[0] = obs[:, :1, None]
        return act(obs, noise)

    algo.distill_loss = lambda *given: seen.append(given) or keep(*given)
    algo.policy.act = spy
    here, there = torch.randn(64, 2), torch.randn(64, 2)
    zeros = torch.zeros(64)
    batch = Batch(here, torch.zeros(64, 1, 1), zeros, zeros, there)
    if remembered:
        memo = algo.remember(batch)
        assert memo.shape == (64, algo.memo_rows, 1)
        batch = batch._replace(memo=memo)
        calls.clear()
    algo.update(batch)
    ((obs, code, action, _),) = seen
    assert calls == ([64] if remembered else [64, shown]) and torch.equal(obs, there)
    assert code.shape == action.shape == (states, noises, 1, 1)
    expected = (0.4 + 0.3 * (0.5 * code + there[:states, None, :1, None])).clamp(-1, 1)
    torch.testing.assert_close(action, expected)
    beyond = code.abs() > 1  # only the prior knows no bound
    own = beyond[16:] if noises == 1 else beyond[:, 0]
    assert beyond.any() and not own.any()


class Walking(nn.Module):
    """A base that hardly varies about a centre that the state moves through the whole box."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def act(self, obs, noise):
        self.calls.append(len(obs))
        return 0.9 * (4 * obs[:, :1, None]).sin() + 0.02 * noise


@pytest.mark.parametrize("remembered", [False, True])
def test_a_relative_critic_is_told_the_centres_of_both_states(remembered):
    algo = make(Walking(), relative=True, distill_noises=3)
    reward, discount = torch.rand(2, 16).unbind()
    batch = Batch(torch.randn(16, 2), torch.rand(16, 1, 1), reward, discount, torch.randn(16, 2))
    if remembered:
        memo = algo.remember(batch)
        assert memo.shape == (16, algo.memo_rows, 1)
        batch = batch._replace(memo=memo)
    algo.told(batch)  # measures the spread
    algo.policy.calls = []
    (here,), (ahead,) = algo.told(batch)
    assert algo.policy.calls == ([] if remembered else [32])
    for centre, obs in ((here, batch.obs), (ahead, batch.next_obs)):
        torch.testing.assert_close(centre, 0.9 * (4 * obs[:, :1, None]).sin())
    told = algo.critic_loss(batch, batch.action, torch.zeros(16), [here], [ahead])[0]
    torch.testing.assert_close(algo.critic_loss(batch, batch.action, torch.zeros(16))[0], told)
    code, answer = algo.recalled(batch)
    near = ahead[: len(code), None] + 0.02 * algo.noise_map(code)
    torch.testing.assert_close(answer, near)  # the kept answers are not shifted by the centres


def test_the_first_update_measures_how_far_the_base_strays_from_its_centre():
    algo = make(Walking(), relative=True)
    obs = torch.randn(4096, 2)
    zeros = torch.zeros(4096)
    batch = Batch(obs, zeros[:, None, None], zeros, zeros, obs)
    algo.update(batch)
    first = algo.critic.spread.clone()
    assert first.item() == pytest.approx(2 * 0.02, rel=0.05)
    assert torch.equal(algo.target.spread, first)
    algo.update(batch)
    assert torch.equal(algo.critic.spread, first)


@pytest.mark.learns
@pytest.mark.parametrize(("relative", "least", "most"), [(True, 0.9, 1.0), (False, -1.0, 0.5)])
def test_a_relative_critic_tells_noises_apart_where_a_plain_one_cannot(relative, least, most):
    """Worth tells the sign of the noise, in states whose centres lie far apart."""
    algo = make(Walking(), relative=relative, latent_gradient=False)
    for _ in range(120):
        obs = torch.randn((128, 2), generator=algo.generator)
        noise = torch.randn((128, 1, 1), generator=algo.generator)
        worth = noise[:, 0, 0].tanh()
        action = algo.policy.act(obs, noise)
        algo.update(Batch(obs, action, worth, torch.zeros(128), obs))
    obs, noise = torch.randn(512, 2), torch.randn(512, 1, 1)
    q = algo.critic(obs, algo.policy.act(obs, noise)).amin(0)
    found = torch.corrcoef(torch.stack([q.detach(), noise[:, 0, 0].tanh()]))[0, 1].item()
    assert least <= found <= most


def test_a_critic_of_codes_cannot_be_relative():
    with pytest.raises(ValueError, match=r"algo\.relative"):
        make(coded=True, relative=True)


@pytest.mark.learns
@pytest.mark.parametrize("noises", [1, 4])
def test_the_noise_critic_peaks_at_the_noise_of_the_best_action(noises):
    """4.T3: a = 0.4 + 0.3 w is 0.7 at w = 1."""
    algo = taught(Base(spread=0.3), 0.7, noises, steps=300)
    noise = torch.linspace(-1.5, 1.5, 301)
    value = algo.noise_critic(torch.zeros(301, 2), (noise / 1.5)[:, None, None]).mean(0)
    # of the 3 that noises span; over seeds off by up to .07
    assert noise[value.argmax()].item() == pytest.approx(1.0, abs=0.2)


@pytest.mark.learns
@pytest.mark.parametrize("noises", [1, 4])
def test_noises_of_one_action_have_one_value(noises):
    """4.T5: a = 0.4 + 0.3 |w| is the same at 1 and -1."""
    algo = taught(Base(spread=0.3, form=torch.abs), 0.7, noises)
    code = torch.tensor([1.0, -1.0])[:, None, None] / 1.5
    one, other = algo.noise_critic(torch.zeros(2, 2), code).mean(0)
    assert one.item() == pytest.approx(other.item(), abs=1e-2)


def test_differences_among_noises_do_not_see_the_level_of_a_state():
    """Nor any step of the noise critic: a value of the state alone may be anything."""
    grads = []
    for level in (0.0, 300.0):
        algo = make(distill_noises=4)
        algo.target = lambda obs, action, level=level: torch.stack(
            [(action - 0.2).sum((-1, -2)) + level * obs[..., 0]] * 2
        )
        obs = torch.randn((32, 2), generator=torch.Generator().manual_seed(3))
        code = algo.base.prior(128, torch.Generator().manual_seed(4)).unflatten(0, (32, 4))
        loss, _ = algo.distill_loss(obs, code, algo.base.act(obs, code))
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in algo.noise_critic.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
    assert grads[0].norm() > 1e-2


@pytest.mark.learns
def test_the_soft_optimum_is_the_tilted_normal():
    """4.T4: Q = -(0.5 (w - 1))^2 with alpha 0.1 is N(1, alpha / (2 s^2) = 0.2)."""
    wide = make(bound=4.0)  # P(|w| > 4) is nothing

    class Exact(nn.Module):
        def forward(self, obs, code):
            value = -(0.5 * (4.0 * code - 1)).square().sum((-1, -2))
            return torch.stack([value, value])

    wide.noise_critic = Exact()
    obs = torch.zeros(256, 2)
    for count in range(500):
        for group in wide.policy_opt.param_groups:
            group["lr"] = 1e-2 * (1 - count / 500)
        loss, _, _ = wide.policy_loss(obs, wide.actor.noise(256, wide.generator), torch.tensor(0.1))
        wide.policy_opt.zero_grad()
        loss.backward()
        wide.policy_opt.step()
    noise = wide.noise_map(wide.sampled(torch.zeros(20_000, 2), wide.generator)[0])
    assert noise.mean().item() == pytest.approx(1.0, abs=0.05)
    assert noise.var().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.learns
@pytest.mark.parametrize(
    "changes", [{}, {"coded": True}, {"spread": "prior", "target_per_dim": -1.0}]
)
def test_a_bandit_is_steered_to_its_goal(changes):
    """4.T7: from -(0.1 + 0.25) = -0.5 of the base to above -0.11."""
    algo = make(**changes)
    before = digest(algo.policy)
    buffer = bandit(algo, 2000)
    for count in range(200):
        if count % 20 == 19:
            fresh = bandit(algo, 200)
            pairs = zip(buffer.columns, fresh.columns, strict=True)
            buffer = Batch(*(torch.cat(pair)[-2000:] for pair in pairs))
        index = torch.randint(2000, (128,), generator=algo.generator)
        algo.update(Batch(*(column[index] for column in buffer.columns)))
    obs = torch.randn(500, 2)
    action = algo.deploy(obs, algo.generator)
    assert -(action - GOAL).square().mean().item() > -0.05
    assert digest(algo.policy) == before and algo.policy.mean.grad is None  # 4.T9


def test_the_critics_target_by_hand():
    """4.T8: 1 + 0.9 (min(2, 3) - 0.1 * (-1.5)) = 2.935."""
    algo = make()

    class Fixed(nn.Module):
        def forward(self, obs, action):
            return torch.tensor([[2.0], [3.0]])

    algo.target = Fixed()
    seen = []
    algo.critic = lambda obs, action: seen.append(1) or torch.zeros(2, 1, requires_grad=True)
    one = torch.ones(1)
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, 1, 1), one, 0.9 * one, torch.zeros(1, 2))
    bonus = 0.1 * algo.measure(torch.zeros(1, 1, 1), torch.tensor([-1.5]))
    loss, _ = algo.critic_loss(batch, torch.zeros(1, 1, 1), bonus)
    assert loss.item() == pytest.approx(0.5 * 2 * 2.935**2, rel=1e-6)


@pytest.mark.parametrize("coded", [False, True])
def test_what_targets_need_is_one_graph_where_the_base_is_known(flow, coded):
    """Compiled it says what it says; a base that is anything else is not traced."""
    base = flow(2, 1, 2)
    torch.nn.init.normal_(base.net.outlet.weight, std=0.3)
    algo = make(base, coded=coded, horizon=2)
    assert "next_step" in algo.pure and "next_step" in make(coded=True).pure
    assert "next_step" not in make().pure
    obs = torch.randn(5, 2)
    noise = algo.actor.noise(5, algo.generator)
    traced = torch.compile(algo.next_step, backend="eager", fullgraph=True)
    code, bonus, action = traced(obs, noise, torch.tensor(0.1))
    again, logp = algo.actor.sample(obs, noise)
    torch.testing.assert_close(code, again.detach())
    torch.testing.assert_close(bonus, 0.1 * algo.measure(code, logp.detach()))
    expected = code if coded else base.act(obs, algo.noise_map(code)).clamp(-1, 1).detach()
    torch.testing.assert_close(action, expected)


def test_the_prior_spread_is_minus_the_divergence_to_the_bases_noise():
    """A code of density N(0, 1 / bound^2) is the prior: no divergence, whatever the sample."""
    algo = make(spread="prior", bound=2.0, horizon=2)
    code = 0.3 * torch.randn(7, 2, 1)
    normal = torch.distributions.Normal(0.0, 0.5)
    torch.testing.assert_close(
        algo.measure(code, normal.log_prob(code).sum((1, 2))), torch.zeros(7), atol=1e-5, rtol=0
    )
    narrow = torch.distributions.Normal(0.1, 0.2)
    samples = narrow.sample((200_000, 2, 1))
    found = algo.measure(samples, narrow.log_prob(samples).sum((1, 2))).mean().item()
    exact = 2 * (math.log(0.5 / 0.2) + (0.2**2 + 0.1**2) / (2 * 0.25) - 0.5)
    assert found == pytest.approx(-exact, rel=0.02)


def test_the_gradient_through_a_base_is_that_of_its_map(flow):
    """latent_gradient: d Q(base(w)) / d actor by finite differences of the loss."""
    base = flow(2, 1, 1).double()
    torch.nn.init.normal_(base.net.outlet.weight, std=0.3)
    algo = make(base, latent_gradient=True)
    for part in (algo.actor, algo.critic, algo.noise_map):
        part.double()
    obs, noise = torch.randn(6, 2).double(), torch.randn(6, 1, 1).double()
    alpha = torch.tensor(0.1).double()
    weight = algo.actor.net.layers[-1].bias
    loss = algo.policy_loss(obs, noise, alpha)[0]
    gradient = torch.autograd.grad(loss, weight)[0]
    for place in range(2):
        with torch.no_grad():
            weight[place] += 1e-6
            up = algo.policy_loss(obs, noise, alpha)[0]
            weight[place] -= 2e-6
            down = algo.policy_loss(obs, noise, alpha)[0]
            weight[place] += 1e-6
        assert gradient[place].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda w: w + torch.randn_like(w), "two actions for one noise"),
        (torch.zeros_like, "ignores the noise"),
        (lambda w: w.sum(-1), r"returned \[4, 1\] for noise \[4, 1, 1\]"),
        (lambda w: w / 0, "not finite"),
    ],
)
def test_a_base_that_cannot_be_steered_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        make(Base(form=form)).base.probe(torch.zeros(4, 2))
    make().base.probe(torch.zeros(4, 2))


def test_gradients_through_a_black_box_are_refused():
    with pytest.raises(ValueError, match="latent_gradient=true: gradients go through the base"):
        make(latent_gradient=True)


def test_a_share_that_leaves_the_bases_own_noise_out_is_refused():
    with pytest.raises(ValueError, match="prior_share=0 leaves the base's own"):
        make(distill_noises=2, prior_share=0.0)
    for noises, most in ((1, 1), (5, 4)):
        with pytest.raises(ValueError, match=rf"prior_share=4.5: .* in \[0, {most}\]"):
            make(distill_noises=noises, prior_share=4.5)


def test_the_actor_does_not_see_levels_that_were_not_regressed():
    """Those of the members of a noise critic that learned differences."""
    algo, losses = make(distill_noises=4), []
    obs, alpha = torch.randn(16, 2), torch.tensor(0.1)
    noise = algo.actor.noise(16, algo.generator)
    for level in (0.0, 100.0):
        with torch.no_grad():
            algo.noise_critic.biases[-1][0] += level
        loss, _, _ = algo.policy_loss(obs, noise, alpha)
        grads = torch.autograd.grad(loss, list(algo.actor.parameters()))
        losses.append(torch.cat([g.flatten() for g in grads]))
    torch.testing.assert_close(losses[0], losses[1])


def test_a_batch_smaller_than_a_group_of_noises_still_teaches_one_state():
    algo = make(distill_noises=5)
    metrics = algo.update(bandit(algo, rows=4))
    assert math.isfinite(float(metrics["critic/distill_left"]))


class Clock(gymnasium.Env):
    """Eight steps; an action is worth minus its distance from the time, which is observed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observed(), {}

    def step(self, action):
        reward = -abs(self.time / 8 - float(action[0]))
        self.time += 1
        return self.observed(), reward, False, self.time == 8, {}

    def observed(self):
        return np.array([self.time / 8, 0], np.float32)


class Blind(nn.Module):
    """Plans the time it sees for all of a chunk.

    Less 0.1 for a first noise below zero, and less 0.5 for one that is repeated.
    """

    def act(self, obs, noise):
        unlucky = 0.1 * (noise[:, 0] < 0) + 0.5 * (noise[:, 0] == noise[:, 1])
        return (obs[:, :1] - unlucky)[:, None].expand_as(noise)


def test_the_gate_tells_what_a_base_is_worth_and_refuses_a_map_that_spoils_it(caplog, monkeypatch):
    """Closed forms: 1.5 lost by two blind chunks, 0.4 by each unlucky one, of which half are."""
    gymnasium.register("Clock-v0", lambda **_: Clock(), max_episode_steps=20)
    settings: dict[str, Any] = {
        "backend": "gymnasium", "threads": 1, "obs_steps": 1, "gamma": 1.0,
        "workers": 0, "step_timeout": 9.0, "restarts": 0, "randomise": {}, "cost": {},
    }  # fmt: skip
    env: Any = chunked(id="Clock-v0", num_envs=50, execute=4, options={}, **settings)
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    with caplog.at_level("INFO", "rheo"):
        told = make(Blind(), horizon=4, rows=1).before_training(Trial(env.reset(0), env, 400))
    said = f"{told['base/stepwise_worth']:.4g} with a new plan after every action (env.execute=1)"
    assert f"{said} (400 episodes each)" in caplog.text
    fewest = 0.75**4 + 0.25**4  # unlucky chunks of the best of four episodes
    expected = {"": -1.9, "mapped_": -5.9, "best_": -1.5 - 0.4 * fewest, "stepwise_": -0.4}
    for name, value in expected.items():
        assert told[f"base/{name}worth"] == pytest.approx(value, abs=0.05)
    with pytest.raises(ValueError, match=r"keeps -5\.\d+ of -1\.\d+ .* raise algo.noise_map.rows"):
        make(Blind(), horizon=4, rows=1, gate=0.5).before_training(Trial(env.reset(0), env, 400))
    env = chunked(id="Clock-v0", num_envs=50, execute=1, options={}, **settings)
    told = make(Blind(), horizon=4, gate=0.5).before_training(Trial(env.reset(0), env, 50))
    assert "base/mapped_worth" in told and "base/stepwise_worth" not in told
