"""RFM end to end on problems whose answer is known."""

from typing import Any

import pytest
import torch
from bandit import MODES, Bandit, batch_of, histogram, target_histogram
from torch import nn

from rheo.algos import estimators
from rheo.algos.rfm import RFM
from rheo.envs.batch import Batch


def judge(critic: nn.Module) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return critic


@pytest.mark.learns
@pytest.mark.parametrize(
    ("estimator", "proposal"),
    [("noise", "truncated"), ("noise", "self"), ("combined", "truncated")],
)
def test_all_four_modes_of_a_box_bandit_are_found_from_a_cold_start(
    flow, settings, estimator, proposal
):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    policy = flow(1, 2, width=64, depth=2, steps=3)
    values = settings(
        "rfm_box",
        estimator=estimator,
        proposal=proposal,
        support="box",
        walls=1.0,
        temperature=1.0,
        temperature_rule="fixed",
        policy_batch=256,
        scale_rate=0.0,
        policy_lr=5e-3,
        replay_share=0.0,
    )
    algo = RFM(policy, judge(Bandit()), generator, **values)
    steps = 400
    for k in range(steps):
        for group in algo.policy_opt.param_groups:
            group["lr"] = 5e-3 if k < 0.6 * steps else 1e-3
        algo.updates = 0  # T stays 1: the first-step scale estimate never applies
        algo.q_scale.fill_(1.0)
        algo.update_policy(batch_of(256, 1, 2, generator))
    with torch.no_grad():
        samples = policy.act(torch.zeros(20_000, 1), policy.noise(20_000, generator), steps=25)
        samples = samples[:, 0]
    distance = 0.5 * (histogram(samples) - target_histogram()).abs().sum()
    assert distance < 0.33
    for mode in MODES:
        assert ((samples - mode).square().sum(-1) < 0.35**2).float().mean() > 0.1


def test_the_gradient_estimator_refuses_a_box(flow, critic, settings, generator):
    values = settings("rfm_box", estimator="gradient", support="box")
    with pytest.raises(ValueError, match="biased on a box"):
        RFM(flow(1, 2), critic(1, 2), generator, **values)


def test_support_and_squash_must_agree(flow, critic, settings, generator):
    with pytest.raises(ValueError, match="squash"):
        RFM(flow(1, 2), critic(1, 2), generator, **settings("rfm_box", support="tanh"))


class Quadratic(nn.Module):
    """Q = -(a - 0.3)^2 / (2 0.3^2) summed over dimensions."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        value = -(action - 0.3).square().sum((-2, -1)) / (2 * 0.3**2)
        return value[None] + 0 * self.unused


# The gradient form needs proposals near its target: its error grows with B / A times their misfit.
@pytest.mark.learns
@pytest.mark.parametrize(
    ("estimator", "proposal"),
    [("noise", "truncated"), ("noise", "self"), ("combined", "self"), ("gradient", "self")],
)
def test_every_estimator_learns_a_tilted_density_through_a_tanh(
    flow, settings, estimator, proposal
):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    policy = flow(1, 1, steps=5, squash="tanh")
    values = settings(
        "rfm_box",
        estimator=estimator,
        proposal=proposal,
        support="tanh",
        replay_share=0.5,  # the gradient form errs most where an unlearned policy starts from
        temperature=1.0,
        particles=32 if proposal == "self" else 256,  # the prior alone rarely meets the target
        policy_batch=128,
        scale_rate=0.0,
        policy_lr=3e-3,
        ema_rate=0.02,  # what is deployed: the last iterate strays by its gradients' noise
    )
    algo = RFM(policy, judge(Quadratic()), generator, **values)
    for _ in range(250):
        algo.updates = 0
        algo.q_scale.fill_(1.0)
        algo.update_policy(batch_of(128, 1, 1, generator))
    with torch.no_grad():
        noise = policy.noise(8000, generator)
        a = algo.average.act(torch.zeros(8000, 1), noise, steps=25).flatten()
    grid = torch.linspace(-1, 1, 4001)[1:-1]
    mass = torch.softmax(-(grid - 0.3).square() / (2 * 0.3**2), 0)
    mean = (mass * grid).sum()
    std = (mass * (grid - mean).square()).sum().sqrt()
    # the gradient form's variance grows with (B / A)^2 towards the noise end: of five seeds the
    # worst was off by 0.08, and by 0.01 with the others
    tolerance = 0.2 if estimator == "gradient" else 0.05
    assert a.mean().item() == pytest.approx(mean.item(), abs=tolerance)
    assert a.std().item() == pytest.approx(std.item(), abs=tolerance)


def test_the_target_velocity_meets_the_closed_form_of_a_gaussian(flow, settings):
    """With exact proposals and many particles, v = A' E[a|x] + B' E[eps|x] of N(0.3, 0.3^2)."""
    generator = torch.Generator().manual_seed(0)
    values = settings(
        "rfm_box", particles=4096, estimator="noise", proposal="truncated", temperature=1.0
    )
    policy = flow(1, 1)
    algo = RFM(policy, judge(Quadratic()), generator, **values)
    rows = 64
    t = torch.linspace(0.3, 0.95, rows)
    x = (0.3 * t)[:, None, None] + 0.1
    uniform = torch.rand((4096, rows, 1), generator=generator)
    parts = torch.zeros(rows, 1), x, t, torch.zeros_like(x), uniform, torch.tensor(1.0)
    got, _, _ = algo.reverse.target(policy, algo.critic, *parts, algo.spread)
    spread = t**2 * 0.09 + (1 - t) ** 2
    exact = 0.3 + (t * 0.09 - (1 - t)) / spread * (x[:, 0, 0] - 0.3 * t)
    error = (got[:, 0, 0] - exact).abs()
    assert error.mean() < 0.03


def test_particles_broadcast_over_chunks_and_metrics_are_scalars(flow, critic, settings, generator):
    policy = flow(3, 2, horizon=4)
    algo = RFM(policy, critic(3, 2, horizon=4), generator, **settings("rfm_box", policy_every=1))
    metrics = algo.update(batch_of(32, 3, 2, generator, horizon=4))
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
    assert algo.act(torch.zeros(5, 3)).shape == (5, 4, 2)
    assert algo.deploy(torch.zeros(5, 3), generator).shape == (5, 4, 2)


def test_best_of_m_takes_the_candidate_with_the_largest_pessimistic_value(
    flow, settings, generator
):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, obs, action):
            total = action.sum((-2, -1))
            return torch.stack([total, -2 * total])

    policy = flow(1, 1)
    noise = torch.randn((6, 5, 1, 1), generator=generator)
    candidates = policy.act(torch.zeros(6, 1), noise)
    value = torch.minimum(candidates.sum((-2, -1)), -2 * candidates.sum((-2, -1)))
    expected = candidates[torch.arange(6), value.argmax(1)]
    algo = RFM(policy, judge(Two()), generator, **settings("rfm_box"))
    assert torch.equal(algo.choose(torch.zeros(6, 1), candidates, None), expected)


def test_the_td_target_uses_discount_and_the_pessimistic_target_critic(flow, settings, generator):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.tensor([2.0, 3.0]))

        def forward(self, obs, action):
            return self.level[:, None].expand(2, len(obs))

    algo = RFM(flow(1, 1), judge(Fixed()), generator, **settings("rfm_box", target_candidates=1))
    batch = Batch(
        torch.zeros(2, 1),
        torch.zeros(2, 1, 1),
        torch.tensor([1.0, 1.0]),
        torch.tensor([0.9, 0.0]),
        torch.zeros(2, 1),
    )
    loss, _ = algo.critic_loss(batch, *algo.options(2, 1))
    # targets 1 + 0.9 * 2 = 2.8 and 1; errors of members 2 and 3
    expected = 0.5 * ((0.8**2 + 1) / 2 + (0.2**2 + 4) / 2)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_self_proposal_counts_its_prior_draws(flow, critic, settings, generator):
    values = settings("rfm_box", particles=16, self_share=0.7)
    algo = RFM(flow(1, 2), critic(1, 2), generator, **values)
    assert algo.reverse.own_draws() == 11
    low, high = torch.full((1, 2), -1.0), torch.full((1, 2), 1.0)
    uniform = torch.full((16, 1, 2), 0.5)
    draw = estimators.propose_self(
        uniform, low, high, torch.full((1, 2), 0.9), torch.full((1, 2), 1e-3), 0.7
    )
    assert ((draw.eps - 0.9).abs() < 1e-2).all(-1).sum() == 11
