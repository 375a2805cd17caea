"""Weighted matching against a Q-critic: its gradient, its guards, its backups, a bandit."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos import losses
from rheo.algos.awm_q import AWMQ
from rheo.envs.batch import Batch
from rheo.policies.critics import QEnsemble
from rheo.policies.steer import Settings

FEW: dict[str, Any] = {"particles": 8, "pairs": 2}  # of what an update costs, where it learns


class Known(nn.Module):
    """Q(s, a) = -(a - best)^2, two members of which the second is worth `less`."""

    def __init__(self, best=0.7, less=0.0):
        super().__init__()
        self.best, self.less = best, less

    def forward(self, obs, action):
        value = -(action - self.best).square().sum((-1, -2))
        return torch.stack([value, value - self.less])


def make(
    flow, critic, settings, chain: Mapping[str, Any] | None = None, action_dim=1, **changes
) -> Any:
    torch.manual_seed(0)
    policy = flow(2, action_dim, 1)
    generator = torch.Generator().manual_seed(0)
    values = settings("awm_q", **changes)
    words = {**values.pop("steer"), **(chain or {})}
    del words["_target_"]
    return AWMQ(policy, critic(2, action_dim), generator, Settings(**words), **values)


def test_the_gradient_is_that_of_signed_matching(flow, critic, settings):
    """1.T1: mean A w(t) psi'(l) grad l, by autograd of the matching loss itself."""
    algo = make(flow, critic, settings, psi="square", weighting="noise", trust_coef=1.0)
    algo.target = Known()
    nn.init.normal_(algo.policy.net.outlet.weight, std=0.1)
    algo.fast.load_state_dict(algo.policy.state_dict())  # the trust term is at its minimum
    obs = torch.randn(20, 2)
    met, _ = algo.meet(obs)
    loss, _ = algo.policy_loss(obs, met)
    found = torch.autograd.grad(loss, algo.policy.parameters(), allow_unused=True)
    noise = met.noise.expand(20, 16, 4, 1, 1).flatten(1, 2)
    t = met.t.expand(20, 16, 4).flatten(1, 2)
    action = met.action[:, :, None].expand(20, 16, 4, 1, 1).flatten(1, 2)
    parts = [
        algo.policy.match(obs[i : i + 1].expand(64, 2), action[i], noise[i], t[i])
        for i in range(20)
    ]
    weight = met.advantage.expand(20, 16, 4).flatten(1, 2) * (1 - t)
    plain = (weight * torch.stack(parts)).mean()
    expected = torch.autograd.grad(plain, algo.policy.parameters(), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("deviation", ["batch", "state"])
def test_advantages_are_of_the_smallest_member_among_a_states_actions(
    flow, critic, settings, deviation
):
    algo = make(flow, critic, settings, deviation=deviation)
    algo.target = Known(less=5.0)
    met, metrics = algo.meet(torch.randn(30, 2))
    q = -(met.action - 0.7).square().sum((-1, -2)) - 5.0
    expected = losses.group_advantage(q, 5.0, 1.0, deviation)
    torch.testing.assert_close(met.advantage[..., 0], expected)
    assert met.advantage.mean(1).abs().max() < 0.1
    assert metrics["critic/q_std"].item() == pytest.approx(q.std(1, correction=0).mean().item())


@pytest.mark.learns
@pytest.mark.parametrize(
    "changes", [{}, {"ratio": "pair", "trust_coef": 0.0, "inner_steps": 2, "clip": 0.1}]
)
def test_a_bandit_with_a_known_critic_is_learned(flow, critic, settings, clone_normal, changes):
    """1.T8: the mean of a flow N(0, 0.3^2) passes 0.55 on its way to 0.7, losses finite."""
    algo = make(flow, critic, settings, policy_lr=2e-3, **FEW, **changes)
    clone_normal(algo.policy, 0.3)
    for copy in (algo.average, algo.fast):
        if copy is not None:
            copy.load_state_dict(algo.policy.state_dict())
    algo.target = Known()
    for _ in range(100):
        obs = torch.randn((32, 2), generator=algo.generator)
        metrics = algo.update_policy(obs)
        assert all(bool(value.isfinite()) for value in metrics.values())
    mean = algo.deploy(torch.zeros(2000, 2), algo.generator).mean().item()
    assert 0.55 < mean < 0.85


@pytest.mark.learns
def test_without_guards_the_policy_diverges(flow, critic, settings):
    """1.T8, the other half: a rate so large that only the trust term holds the policy."""
    found = {}
    for trust in (1.0, 0.0):
        algo = make(flow, critic, settings, action_dim=3, psi="square", policy_lr=1e-2, **FEW)
        algo.target, algo.trust_coef = Known(), trust
        for _ in range(60):
            algo.update_policy(torch.randn((32, 2), generator=algo.generator))
        noise = algo.policy.noise(2000, algo.generator)
        raw = algo.policy.act(torch.zeros(2000, 2), noise, clip=False)
        found[trust] = abs(raw.mean().item())
    assert found[1.0] < 2 and not found[0.0] < 10, found


class Slope(nn.Module):
    """Q(s, a) = a: the best action lies on the edge of the box, where all samples end up."""

    def forward(self, obs, action):
        return action.sum((-1, -2))[None].repeat(2, *[1] * (action.ndim - 2))


@pytest.mark.learns
@pytest.mark.parametrize(("psi", "bounded"), [("ghuber", True), ("square", False)])
def test_repulsion_at_the_edge_of_the_box(flow, critic, settings, psi, bounded):
    """A squared error pushes the harder the farther: past the edge the trust term loses."""
    algo = make(flow, critic, settings, action_dim=6, psi=psi, policy_lr=3e-3, **FEW)
    algo.target = Slope()
    for _ in range(200):
        algo.update_policy(torch.randn((32, 2), generator=algo.generator))
    raw = algo.policy.act(torch.zeros(200, 2), algo.policy.noise(200, algo.generator), clip=False)
    far = raw.abs().max().item()
    assert far < 3 if bounded else not far < 5  # noise alone goes to 3.2
    if bounded:
        assert raw.clamp(-1, 1).mean() > 0.9


def test_a_chain_that_cannot_be_walked_is_refused_before_any_work(flow, critic, settings):
    with pytest.raises(ValueError, match="steer=bst: choose from best"):
        make(flow, critic, settings, chain={"words": ["bst"]})
    with pytest.raises(ValueError, match="steer=rlg: needs another policy"):
        make(flow, critic, settings, chain={"words": ["rlg"]})
    algo = make(flow, critic, settings, chain={"words": ["rlg"]}, anchor_coef=1.0)
    assert algo.deploy(torch.zeros(3, 2), algo.generator).shape == (3, 1, 1)


def test_the_first_ratio_is_one_and_later_ones_are_clipped(flow, critic, settings):
    algo = make(flow, critic, settings, ratio="pair", trust_coef=0.0, clip=0.05)
    algo.target = Known()
    obs = torch.randn(20, 2)
    met, _ = algo.meet(obs)
    loss, _ = algo.policy_loss(obs, met)
    torch.testing.assert_close(loss, -met.advantage.mean(), atol=1e-6, rtol=0)
    nn.init.constant_(algo.policy.net.outlet.bias, 3.0)  # every pair is now far worse
    loss, _ = algo.policy_loss(obs, met)
    assert loss.item() <= 1.0  # A (1 - clip) at most where A < 0, A r ~ 0 where A > 0


def test_targets_use_the_actions_that_are_deployed(flow, critic, settings, clone_normal):
    """The best of several samples of the averaged policy, about 1.77 deviations above it."""
    algo = make(flow, critic, settings, chain={"n": 16}, ema_rate=0.0)

    class Sum(QEnsemble):
        def forward(self, obs, action):
            return action.sum((-1, -2))[None].repeat(2, *[1] * (action.ndim - 2))

    clone_normal(algo.policy, 0.1)
    algo.average.load_state_dict(algo.policy.state_dict())
    algo.target.__class__, algo.policy_every, rows = Sum, 10**9, 4000
    with torch.no_grad():  # a critic that says 0: its loss is the mean squared target
        for parameter in algo.critic.parameters():
            parameter.zero_()
    obs, zeros = torch.zeros(rows, 2), torch.zeros(rows)
    metrics = algo.update(Batch(obs, torch.zeros(rows, 1, 1), zeros, zeros + 1, obs))
    own = algo.average.act(obs, algo.average.noise((rows, 16), algo.generator))
    best = own.amax((1, 2, 3))
    assert metrics["critic/loss"].item() == pytest.approx(best.square().mean().item(), rel=0.05)
    assert best.mean() > own.mean() + 1.5 * own.std()


def test_a_relative_critic_looks_from_its_origin_not_from_policy_or_anchor(flow, critic, settings):
    algo = make(flow, critic, settings, anchor_coef=1.0, relative=True)
    nn.init.normal_(algo.origin.net.outlet.weight, std=0.1)  # where the critic began
    nn.init.normal_(algo.base.net.outlet.weight, std=0.3)  # the start of a run that goes on
    nn.init.normal_(algo.policy.net.outlet.weight, std=0.5)  # and what has become of it
    obs = torch.randn(64, 2)
    batch = Batch(obs, torch.rand(64, 1, 1), torch.zeros(64), torch.zeros(64), -obs)
    (here,), (ahead,) = algo.told(batch)
    for centre, seen in ((here, obs), (ahead, -obs)):
        torch.testing.assert_close(centre, algo.origin.act(seen, torch.zeros(64, 1, 1)))
    inner = algo.critic.critic(obs, (batch.action - here) / algo.critic.spread)
    torch.testing.assert_close(algo.critic(obs, batch.action), inner)
    assert algo.critic.measured and algo.target.measured
    algo.update(batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trust_coef": 0.5}, "algo.trust_coef=0.5"),
        ({"particles": 1}, "particles=1: an advantage needs at least 2"),
        ({"ratio": "mean"}, "choose none or pair"),
        ({"relative": True}, "algo.relative=true: .* algo.anchor_coef above 0"),
        ({"deviation": "group"}, "algo.deviation='group': choose batch or state"),
    ],
)
def test_what_cannot_work_is_refused(flow, critic, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        make(flow, critic, settings, **changes)
