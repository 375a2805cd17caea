"""FLAME: the jumps' one derivative, the exact entropy, and the soft target."""

import math

import pytest
import torch
from bandit import MODES, Bandit, batch_of, histogram, target_histogram
from torch import nn

from rheo.algos import jumping
from rheo.envs.batch import Batch
from rheo.policies import density

F64 = torch.float64
S = 0.25  # deviation of the target of `Bell`


class Bell(nn.Module):
    """Q = -a^2 / (2 S^2) of both members."""

    members = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, obs, action):
        value = -action.square().sum((-2, -1)) / (2 * S**2)
        return torch.stack([value, value]) + 0 * self.unused


def moved(policy):
    """The policy with output layers that are not zero, as they start."""
    torch.manual_seed(1)
    nn.init.normal_(policy.net.outlet.weight, std=0.2)
    nn.init.normal_(policy.jump.net.layers[-1].weight, std=0.5)
    return policy


def test_the_derivative_along_the_mean_is_the_mean_of_the_derivatives(few_step):
    """sum_i w_i [v_i + (s - t) (du/dt + v_i . grad_x u)] of 7 particles in one product."""
    policy = moved(few_step(2, 2, 3, width=16)).double()
    g = torch.Generator().manual_seed(1)
    x, each = (torch.randn((*n, 8, 3, 2), generator=g, dtype=F64) for n in ((), (7,)))
    weight = torch.rand((7, 8, 1, 1), generator=g, dtype=F64).softmax(0)
    t = torch.linspace(0.05, 0.9, 8, dtype=F64)
    s = t + (1 - t) * torch.rand(8, generator=g, dtype=F64)
    feat = policy.features(torch.randn((8, 2), generator=g, dtype=F64))
    one = jumping.derivative(policy, x, (weight * each).sum(0), t, s, feat)
    many = torch.stack([jumping.derivative(policy, x, v, t, s, feat) for v in each])
    torch.testing.assert_close(one, (weight * many).sum(0), rtol=0, atol=1e-13)


def test_average_velocities_of_a_gaussian_are_a_fixed_point_of_the_regression(exact_jumps, learner):
    """u = x (sqrt(V_s / V_t) - 1) / (s - t), V_t = t^2 S^2 + (1 - t)^2, of N(0, S^2)."""
    losses = []
    for slip in (0.0, 0.3):
        policy = exact_jumps(mu=0.0, spread=S, slip=slip)
        changes = {"particles": 4096, "proposal": "truncated", "alpha": 1.0, "jump_share": 0.75}
        algo = learner("flame", 1, 1, policy=policy, critic=Bell().double(), **changes)
        algo.spread = algo.spread.double()
        obs, action = torch.zeros(64, 1, dtype=F64), torch.zeros(64, 1, 1, dtype=F64)
        draws = algo.draw(64)
        high = torch.tensor(1.0, dtype=F64)
        aim = {key: value for key, value in draws.aim._asdict().items() if value is not None}
        exact = {key: value.double() for key, value in aim.items()}
        draws = draws._replace(aim=draws.aim._replace(**exact), end=draws.end.double())
        losses.append(algo.policy_loss(obs, action, draws, high)[0].item())
    assert losses[0] < 0.01 < 0.02 < losses[1]  # of a size that particles leave
    policy, t, s = exact_jumps(mu=0.0, spread=S), torch.tensor([0.2]), torch.tensor([0.7])
    x = torch.full((1, 1, 1), 0.8, dtype=F64)
    before, after = (u**2 * S**2 + (1 - u) ** 2 for u in (0.2, 0.7))
    found = policy.average_velocity(x, t.double(), s.double(), torch.zeros(1, 1, dtype=F64))
    assert found.item() == pytest.approx(0.8 * (math.sqrt(after / before) - 1) / 0.5, rel=1e-6)


@pytest.mark.parametrize("spread", [0.8, 0.5, 0.2, 0.1, 0.05])
def test_the_density_of_one_step_is_exact_where_a_trace_is_not(exact_jumps, spread):
    policy, obs = exact_jumps(mu=0.2, spread=spread), torch.zeros(4000, 1, dtype=F64)
    noise = torch.randn((4000, 1, 1), generator=torch.Generator().manual_seed(0), dtype=F64)
    action, logp = density.sampled(policy, obs, noise)
    raw = policy.act(obs, noise, clip=False)
    assert torch.equal(action, policy.act(obs, noise))
    centre, width = torch.tensor([0.2, spread], dtype=F64)
    known = torch.distributions.Normal(centre, width).log_prob(raw).flatten()
    torch.testing.assert_close(logp, known, rtol=0, atol=1e-9)
    entropy = 0.5 * math.log(2 * math.pi * math.e * spread**2)
    assert -logp.mean().item() == pytest.approx(entropy, abs=0.04)  # 3 deviations of the mean
    policy.steps = 3  # exact jumps: the same map in any number of steps
    torch.testing.assert_close(density.sampled(policy, obs, noise)[1], known, rtol=0, atol=1e-5)
    trace = spread - 1  # of du/dz: a first-order estimate of log s
    off = {0.8: 0.02, 0.5: 0.19, 0.2: 0.81, 0.1: 1.40, 0.05: 2.05}[spread]
    assert trace - math.log(spread) == pytest.approx(off, abs=0.005)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_a_density_is_the_change_of_variables_of_the_whole_map(few_step, squash):
    """Against autograd through the map to actions, row by row, units and tanh included."""
    policy = moved(few_step(2, 2, 3, width=16)).double()
    policy.squash = squash
    policy.action_norm.kind = "minmax"
    policy.action_norm.shift, policy.action_norm.scale = torch.tensor([[0.1, -0.2], [0.5, 0.3]])
    policy.action_norm.double()
    policy.action_norm.ready = True
    g = torch.Generator().manual_seed(1)
    obs = torch.randn((4, 2), generator=g, dtype=F64)
    noise = torch.randn((4, 3, 2), generator=g, dtype=F64)
    for executed in (None, 2):
        part = noise[:, :executed].flatten(1)
        _, logp = density.sampled(policy, obs, noise, executed)
        for row in range(4):

            def act(z, row=row, executed=executed):
                rest = noise[row, len(z) // 2 :]
                chunk = torch.cat([z.view(-1, 2), rest])[None]
                return policy.act(obs[row : row + 1], chunk, clip=False)[0, :executed].flatten()

            slope = torch.autograd.functional.jacobian(act, part[row])
            own = torch.distributions.Normal(0.0, 1.0).log_prob(part[row]).sum()
            expected = own - torch.linalg.slogdet(slope).logabsdet
            assert logp[row].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_target_is_soft_with_a_bonus_for_entropy(exact_jumps, learner):
    """y = r + gamma (min Q' - alpha log pi): a narrow policy, of positive log density, loses."""
    for spread, sign in ((1.0, 1), (0.05, -1)):
        algo = learner("flame", 1, 1, policy=exact_jumps(mu=0.0, spread=spread), critic=Bell())
        obs = torch.zeros(512, 1, dtype=F64)
        zero, nothing = torch.zeros(512, 1, 1, dtype=F64), torch.zeros(512, dtype=F64)
        batch = Batch(obs, zero, nothing + 1.5, nothing + 0.9, obs)
        noise = torch.randn((512, 1, 1), generator=torch.Generator().manual_seed(0), dtype=F64)
        loss, metrics = algo.critic_loss(batch, noise, torch.tensor(0.4, dtype=F64))
        raw = spread * noise.flatten()
        logp = torch.distributions.Normal(0.0, spread).log_prob(raw)
        goal = 1.5 + 0.9 * (-raw.clamp(-1, 1).square() / (2 * S**2) - 0.4 * logp)
        assert loss.item() == pytest.approx(goal.square().mean().item(), rel=1e-4)
        assert metrics["policy/entropy"].item() * sign > 0.5


@pytest.mark.learns
def test_a_higher_alpha_has_a_wider_policy(few_step, learner):
    found = []
    for alpha in (0.2, 5.0):
        torch.manual_seed(0)
        changes = {"alpha": alpha, "particles": 8, "policy_lr": 1e-2, "alpha_lr": 0.0}
        algo = learner("flame", 1, 1, policy=few_step(1, 1, width=32), critic=Bell(), **changes)
        for _ in range(60):
            algo.update_policy(batch_of(64, 1, 1, algo.generator))
        noise = torch.randn((2000, 1, 1), generator=torch.Generator().manual_seed(0))
        found.append(-density.sampled(algo.policy, torch.zeros(2000, 1), noise)[1].mean().item())
    assert found[1] > found[0] + 0.3


def test_alpha_moves_until_the_entropy_of_executed_steps_is_met(few_step, critic, learner):
    def after(**changes):
        parts = {"policy": few_step(1, 1, 2, width=8), "critic": critic(1, 1, 2)}
        algo = learner("flame", 1, 1, executed=1, policy_every=1, **parts, **changes)
        metrics = {}
        for _ in range(3):
            metrics = algo.update(batch_of(16, 1, 1, algo.generator, horizon=2))
        assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())
        return metrics["policy/temperature"].item(), algo

    up, algo = after(entropy_per_dim=5.0, alpha_lr=1e-2)
    assert algo.temperature.target == 5.0 and algo.learned["temperature"] == "alpha"
    down, _ = after(entropy_per_dim=-5.0, alpha_lr=1e-2)
    kept, algo = after(alpha_lr=0.0)
    assert down < kept - 1e-4 < kept + 1e-4 < up and "temperature" not in algo.learned
    assert kept == pytest.approx(0.05)


@pytest.mark.learns
def test_four_modes_of_a_box_bandit_are_found_in_one_step(few_step, learner):
    torch.manual_seed(0)
    generator, updates = torch.Generator().manual_seed(1), 650
    changes = {"alpha": 1.0, "particles": 16, "alpha_lr": 0.0}
    policy = few_step(1, 2, width=96)
    algo = learner("flame", 1, 2, policy=policy, critic=Bandit(), **changes)
    for k in range(updates):
        for group in algo.policy_opt.param_groups:
            group["lr"] = 2e-3 if k < 0.6 * updates else 4e-4
        algo.update_policy(batch_of(128, 1, 2, generator))
    with torch.no_grad():
        one = policy.act(torch.zeros(10_000, 1), policy.noise(10_000, generator))[:, 0]
    distance = 0.5 * (histogram(one) - target_histogram()).abs().sum()
    assert distance < 0.6  # .46; without rows of jumps .95
    for mode in MODES:
        assert ((one - mode).square().sum(-1) < 0.35**2).float().mean() > 0.05


@pytest.mark.parametrize(
    "changes", [{"jump_share": 1.0}, {"jump_share": 0.0}, {"choice_temperature": 0.5}], ids=str
)
def test_settings_that_leave_nothing_to_learn_or_choose_from_are_refused(learner, changes):
    ((key, value),) = changes.items()
    with pytest.raises(ValueError, match=f"algo.{key}={value}"):
        learner("flame", 1, 1, **changes)
