"""QSM and DAC against closed forms: what their fields are, and what is drawn from them."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.guided import Draws, Guided
from rheo.algos.optim import adam, step
from rheo.envs.batch import Batch
from rheo.policies import paths
from rheo.policies.flow import FlowPolicy
from rheo.policies.nets import clone
from rheo.policies.normalize import Normalizer

F64 = torch.float64
S = 0.3  # deviation of the data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def judge(critic: nn.Module) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return critic


class Slope(nn.Module):
    """Q_1 = level + (g + 1) . a, Q_2 = level + (g - 1) . a: a mean gradient of g everywhere."""

    members = 2

    def __init__(self, g=0.5, level=0.0):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level, dtype=F64))
        self.g = g

    def forward(self, obs, action):
        total = action.sum((-2, -1))
        return self.level + torch.stack([(self.g + 1) * total, (self.g - 1) * total])


class Bowl(nn.Module):
    """Q = -(a - 0.3)^2 of both members, over the first step of a plan."""

    members = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, obs, action):
        value = -(action[..., 0, :] - 0.3).square().sum(-1)
        return torch.stack([value, value]) + 0 * self.unused


class Field(nn.Module):
    """A noise prediction e(x, coefficients); an observation is its own code, a time too."""

    horizon = action_dim = 1

    def __init__(self, path, field):
        super().__init__()
        self.path, self.field = path, field
        self.theta = nn.Parameter(torch.zeros(2, dtype=F64))

    def encode(self, obs):
        return obs

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        c = self.path.coefficients(emb[..., 0]).over_chunk()
        return self.field(x, c) + self.theta[0] * x + self.theta[1]


def of_data(x, c):
    """E[eps | x] of actions N(0, S^2)."""
    return c.b * x / (c.a**2 * S**2 + c.b**2)


def policy_of(field, levels=5, betas: Any = "vp", **changes) -> Any:
    """A policy whose noise prediction is known."""
    settings: dict[str, Any] = {"eta": 1.0, "clip_a": True, "clip_x": False, "squash": "clip"}
    return FlowPolicy(
        Field(paths.make_path("betas", levels, betas), field), path="betas", levels=levels,
        betas=betas, prediction="eps", steps=levels, sampler="euler",
        obs_norm=Normalizer(1, kind="none"), action_norm=Normalizer(1, kind="none"),
        **(settings | changes),
    )  # fmt: skip


def drawn(policy, eta=1.0, rows=200_000):
    """Mean and variance of actions of the chain."""
    with torch.no_grad():
        noise, obs = policy.noise(rows, seeded()), torch.zeros(rows, 1, dtype=F64)
        action = policy.drawn(obs, noise, seeded(1), eta)
    return action.mean().item(), action.var().item()


def rows_of(policy, count=4096, seed=0):
    """Observations, actions of the data and draws, float64."""
    generator = seeded(seed)
    action = S * torch.randn((count, 1, 1), generator=generator, dtype=F64)
    level = torch.randint(policy.path.levels, (count,), generator=generator)
    draws = Draws(policy.noise(count, generator), level.double() / policy.path.levels)
    return torch.zeros(count, 1, dtype=F64), action, draws


# ---- what the rules learn ----------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_a_shifted_prediction_is_the_least_squares_one_of_the_shifted_noise(learner, eta):
    """The loss is least where e is nearest to eps - B dQ / (2 eta mean|Q|), for any model of e."""
    policy = policy_of(lambda x, c: 0.0 * x)
    algo = learner("dac", 1, 1, policy=policy, critic=judge(Slope(0.5, 2.0)), eta=eta)
    obs, action, draws = rows_of(policy)
    pull = algo.pull(obs, action, draws)
    x, B = algo.noised(action, draws)
    size = (algo.target(obs, action)).abs().mean()
    torch.testing.assert_close(pull, B * 0.5 / size, rtol=1e-5, atol=0)
    design = torch.cat([x, torch.ones_like(x)], -1)[:, 0]
    aim = (draws.noise - pull / (2 * eta)).flatten()
    policy.net.theta.data = torch.linalg.lstsq(design, aim[:, None]).solution[:, 0]
    loss, _ = algo.policy_loss(obs, action, draws, pull, torch.tensor(eta, dtype=F64))
    (gradient,) = torch.autograd.grad(loss, policy.net.theta)
    assert gradient.abs().max() < 1e-9
    policy.net.theta.data += 0.01
    more, _ = algo.policy_loss(obs, action, draws, pull, torch.tensor(eta, dtype=F64))
    assert more > loss


def test_a_scores_prediction_is_the_slope_in_units_of_its_mean_size(learner):
    """e = -B dQ / (T mean|dQ|), with dQ that of the mean member at the noisy action."""
    policy = policy_of(lambda x, c: 0.0 * x, levels=20)
    algo = learner("qsm", 1, 1, policy=policy, critic=judge(Bowl().double()), temperature=0.2)
    obs, action, draws = rows_of(policy)
    x, B = algo.noised(action, draws)
    slope = -2 * (x - 0.3)
    pull = algo.pull(obs, action, draws)
    torch.testing.assert_close(pull, B * slope / (0.2 * slope.abs().mean()), rtol=1e-4, atol=1e-6)
    loss, _ = algo.policy_loss(obs, action, draws, pull, algo.weight)
    assert loss.item() == pytest.approx(pull.square().mean().item())
    scaled = learner("qsm", 1, 1, policy=policy, critic=judge(Slope(3.0)), temperature=0.2)
    torch.testing.assert_close(
        scaled.pull(obs, action, draws), (B / 0.2).expand_as(x), rtol=1e-5, atol=0
    )  # whatever the size of the gradient


def test_a_critic_that_prefers_nothing_leaves_cloning_to_the_last_bit(learner, diffusion):
    """One update of DAC is one of matching the noise; eta 1 for equal gradients."""

    class Level(Slope):
        def forward(self, obs, action):
            return self.level.float() + 3 + 0 * torch.stack([action.sum((-2, -1))] * 2)

    policy = diffusion(3, 2)
    other = clone(policy, frozen=False)
    algo = learner("dac", 3, 2, policy=policy, critic=judge(Level()), eta=1.0, threshold=None)
    optimizer = adam(other.parameters(), algo.policy_lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        obs, action = torch.randn(32, 3), torch.rand(32, 1, 2)
        algo.generator.set_state(generator.get_state())
        draws = algo.draw(32)
        algo.generator.set_state(generator.get_state())
        algo.update_policy(obs, action)
        step(optimizer, other.match(obs, action, *draws, space="eps").mean(), algo.max_norm)
        generator.set_state(algo.generator.get_state())
    for mine, cloned in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, cloned)


def test_the_slope_at_the_predicted_mean_passes_through_the_prediction(learner):
    """Of Gaussian data dE[a|x]/dx = A s^2 / (A^2 s^2 + B^2), at every level."""
    policy = policy_of(of_data)
    algo = learner("dac", 1, 1, policy=policy, critic=judge(Slope(0.5)), gradient="mean")
    obs, action, draws = rows_of(policy)
    x, _ = algo.noised(action, draws)
    c = policy.path.coefficients(draws.t).over_chunk()
    expected = 0.5 * c.a * S**2 / (c.a**2 * S**2 + c.b**2)
    torch.testing.assert_close(algo.slope(obs, x, draws.t), expected, rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in policy.parameters())
    algo.gradient = "point"
    torch.testing.assert_close(algo.slope(obs, x, draws.t), torch.full_like(x, 0.5))


def test_the_slope_at_the_mean_asks_the_critic_inside_the_box_alone(learner):
    seen = []

    class Watch(Slope):
        def forward(self, obs, action):
            seen.append(action.detach().abs().max().item())
            return super().forward(obs, action)

    policy = policy_of(lambda x, c: 0.0 * x)  # predicts a = x / A, far out
    algo = learner("dac", 1, 1, policy=policy, critic=judge(Watch()), gradient="mean")
    obs, action, draws = rows_of(policy)
    slope = algo.slope(obs, algo.noised(action, draws)[0], draws.t)
    assert seen[-1] <= 1.0 and (slope > 0).all()
    algo.gradient = "point"
    algo.slope(obs, algo.noised(action, draws)[0], draws.t)
    assert seen[-1] > 2.0


@pytest.mark.parametrize(("threshold", "end"), [(0.0, 100.0), (2.0, 1e-3)])
def test_eta_grows_while_cloning_is_worse_than_the_threshold(learner, threshold, end):
    """Steps of eta_rate times the excess, at most 1; between .001 and 100."""
    algo = learner("dac", 1, 1, critic=judge(Slope().float()), eta=1.0, threshold=threshold,
                   eta_rate=0.25)  # fmt: skip
    algo.target.float()
    obs, action = torch.zeros(64, 1), torch.zeros(64, 1, 1)
    before = algo.weight.item()
    metrics = algo.update_policy(obs, action)
    excess = min(max(metrics["policy/bc"].item() - threshold, -1.0), 1.0)
    assert algo.weight.item() == pytest.approx(before + 0.25 * excess, rel=1e-5)
    assert metrics["policy/eta"].item() == before
    algo.eta_rate = 1000.0
    algo.update_policy(obs, action)
    assert algo.weight.item() == pytest.approx(end)


@pytest.mark.learns
def test_etas_fixed_point_is_where_cloning_meets_the_threshold(learner):
    """e = theta_2 alone, so |e - eps|^2 is 1 + theta_2^2 and theta_2 = -mean B g / (2 eta).

    With a threshold of 1.09 eta ends where theta_2 is .3 in size.
    """
    policy = policy_of(lambda x, c: 0.0 * x)
    policy.net.theta.register_hook(lambda g: g * torch.tensor([0.0, 1.0], dtype=F64))
    algo = learner("dac", 1, 1, policy=policy, critic=judge(Slope(2.0, 5.0)), eta=1.0,
                   threshold=1.09, eta_rate=0.2, policy_lr=6e-3, max_norm=100.0)  # fmt: skip
    tail = []
    obs, action, _ = rows_of(policy, 256)
    for _ in range(600):
        algo.update_policy(obs, action)
        tail.append((policy.net.theta[1].item(), algo.weight.item()))
    theta, eta = (sum(values) / 300 for values in zip(*tail[-300:], strict=True))
    B = policy.path.coefficients(torch.arange(5) / 5).b.mean().item()
    assert theta == pytest.approx(-0.3, abs=0.03)
    assert eta == pytest.approx(B * 2.0 / 5.0 / 0.6, rel=0.15)


# ---- what is drawn from their minima -----------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "betas", "eta", "shift"),
    [(5, "vp", 1.0, 0.143), (5, "vp", 0.0, 0.173), (20, "vp", 1.0, 0.095),
     (5, "cosine", 1.0, 0.129)],
)  # fmt: skip
def test_a_shifted_gaussian_moves_by_several_times_the_tilt_that_eta_names(
    levels, betas, eta, shift
):
    """g = .5, eta 1, mean|Q| 1: exp(Q / 2) would move the mean by g S^2 / 2 = .0225."""
    policy = policy_of(lambda x, c: of_data(x, c) - c.b * 0.5 / 2, levels, betas)
    assert drawn(policy, eta)[0] == pytest.approx(shift, abs=0.002)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("betas", ["vp", "cosine"])
@pytest.mark.parametrize("g", [0.5, 1.0, 2.0])
def test_the_gradient_at_the_mean_tilts_a_gaussian_exactly(g, betas, eta):
    def field(x, c):
        slope = g * c.a * S**2 / (c.a**2 * S**2 + c.b**2)
        return of_data(x, c) - c.b * slope / 2

    found = drawn(policy_of(field, 5, betas), eta)
    assert found[0] == pytest.approx(g * S**2 / 2, abs=0.002)


@pytest.mark.parametrize(
    ("variance", "eta", "found"), [(0.25, 1.0, 0.072), (0.25, 0.0, 0.010), (0.04, 1.0, 0.004)]
)
def test_a_matched_score_is_narrower_than_the_density_whose_score_it_is(variance, eta, found):
    policy = policy_of(lambda x, c: c.b * (x - 0.3) / variance, 20)
    mean, measured = drawn(policy, eta)
    assert measured == pytest.approx(found, abs=0.001)
    assert mean == pytest.approx(0.3, abs=0.05)


# ---- the algorithms ----------------------------------------------------------------------------


def test_times_are_the_levels_of_a_table_each_as_often(learner, flow):
    algo = learner("qsm", 1, 1)
    t = algo.draw(100).t
    counts = (t * 5).round().long().bincount(minlength=5)
    torch.testing.assert_close(t * 5, (t * 5).round(), rtol=0, atol=1e-6)
    assert counts.tolist() == [20] * 5
    free = learner("qsm", 1, 1, policy=flow(1, 1))
    assert free.draw(100).t.unique().numel() == 100


def test_the_target_is_the_mean_over_actions_of_every_member_then_joined(learner):
    algo = learner("dac", 1, 1, critic=judge(Slope(0.5).float()), join="lcb", rho=0.5)
    algo.target.float()
    obs, next_action = torch.zeros(3, 1), torch.rand(3, 4, 1, 1)
    batch = Batch(obs, torch.zeros(3, 1, 1), torch.ones(3), torch.full((3,), 0.9), obs)
    loss, _ = algo.critic_loss(batch, next_action)
    mean = next_action.mean(1).flatten()  # members are 1.5 a and -.5 a: mean .5 a, deviation a
    goal = 1 + 0.9 * (0.5 * mean - 0.5 * mean.abs())
    assert loss.item() == pytest.approx(goal.square().mean().item(), rel=1e-5)


def test_actions_are_drawn_by_the_noisy_chain(learner, generator):
    """The same start leads to other actions: noise of the steps, then that of exploring."""
    algo = learner("qsm", 1, 1, deploy_candidates=1, explore_noise=0.0)
    for p in algo.policy.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    obs, start = torch.zeros(64, 1), torch.zeros(64, 1, 1)
    action = algo.sampled(algo.policy, obs, start)
    assert action.std() > 0.05
    algo.policy.eta = 0.0
    assert algo.sampled(algo.policy, obs, start).std() < 1e-6
    first, second = (algo.deploy(obs, seeded(7)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (64, 1, 1)


@pytest.mark.learns
def test_the_score_of_a_quadratic_leads_to_its_top(learner, diffusion):
    """Actions are drawn around .3, whatever the replay holds; in the 20 levels that ship.

    In 5 the steps overshoot a score as steep as this one, and actions end on both walls.
    """
    torch.manual_seed(0)
    policy = diffusion(1, 1, levels=20, steps=20)
    changes = {"policy_lr": 3e-3, "temperature": 0.1, "explore_noise": 0.0}
    algo = learner("qsm", 1, 1, policy=policy, critic=judge(Bowl()), **changes)
    for _ in range(300):
        algo.update_policy(torch.zeros(128, 1), 2 * torch.rand(128, 1, 1) - 1)
    action = algo.act(torch.zeros(4000, 1))
    assert action.mean().item() == pytest.approx(0.3, abs=0.16)  # five seeds: .32 to .38
    assert action.std() < 0.25  # .10 to .11


def test_steps_that_are_not_executed_change_neither_units_nor_loss(diffusion, settings, generator):
    policy = diffusion(1, 1, 4)
    with torch.no_grad():
        policy.net.outlet.bias.copy_(torch.arange(4.0))
    algo = Guided(policy, judge(Bowl()), generator, 100, 1, **settings("qsm"))
    obs, action = torch.zeros(256, 1), 2 * torch.rand(256, 4, 1) - 1
    draws = algo.draw(256)
    pull = algo.pull(obs, action, draws)
    one = Guided(diffusion(1, 1), judge(Bowl()), generator, 100, **settings("qsm"))
    first = one.pull(obs, action[:, :1], Draws(draws.noise[:, :1], draws.t))
    torch.testing.assert_close(pull[:, :1], first)
    loss, _ = algo.policy_loss(obs, action, draws, pull, algo.weight)
    assert loss.item() == pytest.approx(pull[:, 0].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("qsm", {"rule": "tilt"}, "algo.rule='tilt'"),
        ("qsm", {"gradient": "mean"}, "algo.gradient=mean with algo.rule=score"),
        ("qsm", {"eta": 1.0}, "algo.eta=1: algo.rule=score has no use"),
        ("qsm", {"threshold": 0.5}, "algo.threshold=0.5: algo.rule=score has no use"),
        ("qsm", {"temperature": None}, "algo.temperature=null with algo.rule=score"),
        ("qsm", {"temperature": 0.0}, "algo.temperature=0 with algo.rule=score"),
        ("dac", {"temperature": 0.1}, "algo.temperature=0.1: algo.rule=shift has no use"),
        ("dac", {"eta": None}, "algo.eta=null with algo.rule=shift"),
        ("dac", {"gradient": "noise"}, "algo.gradient='noise'"),
    ],
)
def test_values_of_the_other_rule_are_refused(
    flow, critic, settings, generator, name, changes, told
):
    with pytest.raises(ValueError, match=told):
        Guided(flow(1, 1), critic(1, 1), generator, 100, **settings(name, **changes))
