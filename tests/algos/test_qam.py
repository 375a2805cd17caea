"""Adjoint matching against closed forms: Gaussian clones, linear values, and autograd."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos import adjoint
from rheo.algos.losses import matching_draws
from rheo.algos.optim import adam, step
from rheo.envs.batch import Batch
from rheo.policies.flow import FlowPolicy
from rheo.policies.nets import clone
from rheo.policies.normalize import Normalizer

F64 = torch.float64
M, S, G = 0.3, 0.5, 0.8  # mean and deviation of the clone's density, gradient of Q


def judge(critic: nn.Module) -> Any:
    """A critic of another class than the shipped one, for the type checker."""
    return critic


class Slope(nn.Module):
    """Q_1 = (g + 1) . a + level, Q_2 = (g - 1) . a + level: a mean gradient of g everywhere."""

    members = 2

    def __init__(self, g=G, level=0.0):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level, dtype=F64))
        self.g = g

    def forward(self, obs, action):
        total = action.sum((-2, -1))
        return self.level + torch.stack([(self.g + 1) * total, (self.g - 1) * total])


def gaussian(x, t):
    """The velocity whose flow takes normal noise to N(M, S^2)."""
    variance = (t * S) ** 2 + (1 - t) ** 2
    slope = (t * S**2 - (1 - t)) / variance
    return slope * x + M - slope * t * M


def bent(x, t):
    """A velocity that is not linear in x."""
    return (1.5 * x + t).sin() - 0.4 * x * t + 0.3 * x.flip(-1).tanh()


class Field(nn.Module):
    """A velocity v(x, t); an observation is its own code, a time too."""

    horizon = action_dim = 1

    def __init__(self, field):
        super().__init__()
        self.field = field
        self.theta = nn.Parameter(torch.zeros(1, dtype=F64))

    def encode(self, obs):
        return obs

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        return self.field(x, emb[..., None]) + self.theta


def policy_of(field, steps=10, **changes) -> Any:
    """A flow whose velocity is known."""
    settings: dict[str, Any] = {"eta": 0.0, "clip_a": False, "clip_x": False, "squash": "clip"}
    return FlowPolicy(
        Field(field), path="linear", levels=None, prediction="v", steps=steps, sampler="euler",
        obs_norm=Normalizer(1, kind="none"), action_norm=Normalizer(1, kind="none"),
        **(settings | changes),
    )  # fmt: skip


def tilted(kernel, steps, kappa=1.0):
    """Per step (slope, offset) of v* for the Gaussian base and Q = G a, by `adjoint`."""
    made = adjoint.KERNELS[kernel](torch.linspace(0, 1, steps + 1, dtype=F64))
    noise = torch.tensor([0.0, 1.0], dtype=F64)[:, None, None]
    kicks = torch.zeros(steps - 1, 2, 1, 1, dtype=F64)
    points = adjoint.walk(made, gaussian, gaussian, noise, kicks)
    moved = -made.shift * adjoint.back(
        made, gaussian, points, torch.full((2, 1, 1), -kappa * G, dtype=F64)
    )
    torch.testing.assert_close(moved[:, 0], moved[:, 1], rtol=1e-12, atol=1e-12)
    low = gaussian(torch.zeros(steps, 1, dtype=F64), made.t[:, 0, 0]) + moved[:, 0, 0]
    slope = gaussian(torch.ones(steps, 1, dtype=F64), made.t[:, 0, 0]) + moved[:, 0, 0] - low
    return made, slope.flatten().tolist(), low.flatten().tolist()


def by_map(slopes, lows):
    """Mean and variance where Euler's steps take normal noise."""
    mean, variance, h = 0.0, 1.0, 1 / len(slopes)
    for slope, low in zip(slopes, lows, strict=True):
        mean, variance = mean + h * (slope * mean + low), variance * (1 + h * slope) ** 2
    return mean, variance


def by_walk(kernel, slopes, lows):
    """Mean and variance at the end of a walk whose last step is the base's."""
    mean, variance = 0.0, 1.0
    for k in range(len(slopes) - 1):
        keep, gain, std = (float(c[k]) for c in (kernel.keep, kernel.gain, kernel.std))
        mean = keep * mean + gain * (slopes[k] * mean + lows[k])
        variance = variance * (keep + gain * slopes[k]) ** 2 + std**2
    t, x = kernel.t[-1, 0, 0, 0], torch.tensor([0.0, 1.0], dtype=F64)
    low, high = (x + (1 - t) * gaussian(x, t)).tolist()
    return low + (high - low) * mean, variance * (high - low) ** 2


# ---- what is learned, in closed form -----------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "steps", "mapped", "walked"),
    [
        ("memoryless", 10, (0.5094, 0.1856), (0.5690, 0.3157)),
        ("posterior", 10, (0.4377, 0.1856), (0.4195, 0.1494)),
        ("memoryless", 50, (0.4992, 0.2356), (0.5197, 0.2679)),
        ("posterior", 50, (0.4842, 0.2356), (0.4762, 0.2202)),
    ],
)
def test_a_gaussian_tilted_by_a_linear_value_is_where_the_recursions_put_it(
    kernel, steps, mapped, walked
):
    """N(.3, .25) tilted by exp(.8 a) is N(.5, .25), which both near as K grows."""
    made, slopes, lows = tilted(kernel, steps)
    assert by_map(slopes, lows) == pytest.approx(mapped, abs=1e-4)
    assert by_walk(made, slopes, lows) == pytest.approx(walked, abs=1e-4)


@pytest.mark.parametrize(("steps", "mean"), [(2, 0.3320), (5, 0.3830), (10, 0.4195), (20, 0.4500)])
def test_the_posteriors_walk_is_tilted_exactly_in_any_number_of_steps(steps, mean):
    """The tilt of the law that the base's own walk of K steps has, whatever that is."""
    made, slopes, lows = tilted("posterior", steps)
    own, variance = by_walk(*tilted("posterior", steps, kappa=0.0))
    found = by_walk(made, slopes, lows)
    assert found == pytest.approx((own + G * variance, variance), abs=1e-6)
    assert found[0] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("grid", ["uniform", "late"])
def test_the_posteriors_steps_are_those_of_ddpm(flow, grid):
    policy = flow(1, 2, steps=5, grid=grid)
    with torch.no_grad():
        policy.net.outlet.weight.normal_(std=0.3)
    kernel, times = adjoint.posterior(policy.times()), policy.times()
    obs, x = torch.randn(7, 1), torch.randn(7, 1, 2)
    feat = policy.features(obs)
    for k in range(5):
        mean, std = policy.step(x, times[k], times[k + 1], feat, eta=1.0)
        own = kernel.keep[k] * x + kernel.gain[k] * policy.velocity(x, times[k : k + 1], feat)
        torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kernel.std[k].flatten(), std.flatten(), rtol=1e-4, atol=1e-5)
        if k < 4:  # twice the divergence of two normals of these means per squared error
            weight = (kernel.gain[k] / kernel.std[k]) ** 2
            torch.testing.assert_close(kernel.weight[k], weight, rtol=1e-4, atol=1e-5)
    assert kernel.weight[-1] == kernel.weight[-2] and kernel.shift[-1] == 0.0


@pytest.mark.parametrize("kernel", adjoint.KERNELS)
def test_what_goes_back_is_the_gradient_through_a_whole_walk_of_the_base(kernel, generator):
    """Of a bent field, with the kicks of the walk and the times at which the base is asked."""
    made = adjoint.KERNELS[kernel](torch.linspace(0, 1, 7, dtype=F64))
    noise = torch.randn((5, 1, 3), generator=generator, dtype=F64)
    kicks = torch.randn((5, 5, 1, 3), generator=generator, dtype=F64)
    points = adjoint.walk(made, gaussian, bent, noise, kicks)
    gradient = torch.randn((5, 1, 3), generator=generator, dtype=F64)
    found = adjoint.back(made, bent, points, gradient)

    def steps(x, k):
        return made.keep[k] * x + made.gain[k] * bent(x, made.seen[k])

    for start in range(6):
        first = start if made.behind else start + 1
        x = points[first].clone().requires_grad_()
        end = x
        for k in range(first, 6):
            end = steps(end, k) + (points[k + 1] - steps(points[k], k))  # what else is in the walk
        torch.testing.assert_close(end, points[-1])
        (wanted,) = torch.autograd.grad(end, x, gradient)
        torch.testing.assert_close(found[start], wanted)


def published(steps):
    """v* of the published walk by its own recursion, as a field on the grid."""
    h, g, lows = 1 / steps, -G, {}
    for i in reversed(range(steps)):
        t, u = i * h, (i + 1) * h
        slope = (u * S**2 - (1 - u)) / ((u * S) ** 2 + (1 - u) ** 2)
        g = g + h * (2 * slope - 1 / u) * g
        lows[i] = -(2 * (1 - t + h) / u) * g / 2
    table = torch.tensor([lows[i] for i in range(steps)], dtype=F64)
    return lambda x, t: gaussian(x, t) + table[(t * steps).round().long()]


def exact(learner, **changes):
    """The algorithm on the exact Gaussian clone and Q = G a, in units of Q, nothing clipped."""
    values = {"kappa_unit": "q", "clip_gradient": False, "kappa": 1.0, **changes}
    algo = learner("qam", 1, 1, policy=policy_of(gaussian), critic=judge(Slope()), **values)
    algo.q_scale = algo.q_scale.double()
    return algo


def test_the_loss_is_nothing_where_the_field_is_the_one_of_the_tilt(learner):
    """Whatever the kicks: with a linear Q what comes back is the same on every walk."""
    algo, obs = exact(learner), torch.zeros(64, 1, dtype=F64)
    apart, drift = algo.tuned_loss(obs, algo.meet(obs)[0])
    algo.policy.net.field = published(10)
    loss, _ = algo.tuned_loss(obs, algo.meet(obs)[0])
    assert apart > 0.1 and drift == 0 and loss.item() < 1e-10  # times are float32
    lows = tilted("memoryless", 10)[2]
    own = published(10)(torch.zeros(10, dtype=F64), torch.arange(10) / 10)
    torch.testing.assert_close(own, torch.tensor(lows, dtype=F64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", adjoint.KERNELS)
def test_without_a_tilt_the_clone_stays_to_the_last_bit(learner, flow, kernel):
    algo = learner("qam", 3, 2, policy=flow(3, 2), kappa=0.0, kernel=kernel)
    before = [p.clone() for p in algo.policy.parameters()]
    obs = torch.randn(32, 3)
    for _ in range(2):
        loss, _ = algo.tuned_loss(obs, algo.meet(obs)[0])
        step(algo.policy_opt, loss, algo.max_norm)
        assert loss == 0
    assert all(torch.equal(a, b) for a, b in zip(before, algo.policy.parameters(), strict=True))


@pytest.mark.parametrize("kernel", adjoint.KERNELS)
def test_the_tuned_loss_moves_the_policy_alone(learner, kernel):
    algo = learner("qam", 3, 2, kernel=kernel)
    obs = torch.randn(32, 3)
    others = [algo.behaviour, algo.slow, algo.critic, algo.target]
    loss, _ = algo.tuned_loss(obs, algo.meet(obs)[0])
    loss.backward()
    assert all(p.grad is None for part in others for p in part.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in algo.policy.parameters())


@pytest.mark.learns
@pytest.mark.parametrize("kernel", adjoint.KERNELS)
def test_a_cloned_gaussian_is_tilted_by_what_kappa_says(learner, flow, clone_normal, kernel):
    """exp(kappa g a) moves N(0, .4^2) by kappa g .16 = .24; few steps narrow what is drawn."""
    torch.manual_seed(0)
    policy = flow(2, 1, steps=10)
    clone_normal(policy, 0.4)
    critic = Slope(1.0).float()
    algo = learner("qam", 2, 1, policy=policy, critic=judge(critic), kappa=1.5, kappa_unit="q",
                   kernel=kernel, policy_lr=5e-3)  # fmt: skip
    start = algo.act(torch.randn(4000, 2)).mean()
    for _ in range(100):
        obs = torch.randn(96, 2)
        loss, _ = algo.tuned_loss(obs, algo.meet(obs)[0])
        step(algo.policy_opt, loss, algo.max_norm)
    action = algo.act(torch.randn(4000, 2))
    moved = {"memoryless": 0.22, "posterior": 0.17}[kernel]  # of the exact field: .235 and .168
    assert (action.mean() - start).item() == pytest.approx(moved, abs=0.05)
    assert 0.2 < action.std() < 0.45


# ---- the algorithm -----------------------------------------------------------------------------


def test_the_target_lies_rho_deviations_below_the_mean_of_the_critics(learner):
    algo = learner("qam", 1, 1, critic=judge(Slope(0.5).float()), rho=0.7)
    obs, next_action = torch.zeros(3, 1), 2 * torch.rand(3, 1, 1) - 1
    batch = Batch(obs, torch.zeros(3, 1, 1), torch.ones(3), torch.full((3,), 0.9), obs)
    loss, _ = algo.critic_loss(batch, next_action)
    a = next_action.flatten()  # members are 1.5 a and -.5 a: mean .5 a, deviation |a|
    goal = 1 + 0.9 * (0.5 * a - 0.7 * a.abs())
    assert loss.item() == pytest.approx(goal.square().mean().item(), rel=1e-5)


def test_the_clone_learns_the_actions_and_its_average_follows_by_its_rate(learner, flow):
    algo = learner("qam", 3, 2, policy=flow(3, 2), behaviour_rate=0.3, max_norm=0.5)
    twin = clone(algo.behaviour, frozen=False)
    optimizer = adam(twin.parameters(), algo.behaviour_lr)
    g = torch.Generator().manual_seed(3)
    obs, action = torch.randn((16, 3), generator=g), torch.rand((16, 1, 2), generator=g)
    old = [p.clone() for p in algo.slow.parameters()]
    state = algo.generator.get_state()
    algo.act(obs)
    draws = matching_draws(twin, 16, algo.generator)
    algo.generator.set_state(state)
    algo.update(Batch(obs, action, torch.zeros(16), torch.zeros(16), obs))
    step(optimizer, twin.match(obs, action, *draws).mean(), 0.5)
    for mine, wanted, slow, first in zip(
        algo.behaviour.parameters(), twin.parameters(), algo.slow.parameters(), old, strict=True
    ):
        assert torch.equal(mine, wanted)
        torch.testing.assert_close(slow, first + 0.3 * (mine - first), rtol=1e-5, atol=1e-7)


def test_a_value_has_no_gradient_outside_the_box_or_that_of_its_edge(learner):
    algo = exact(learner, clip_gradient=True)
    obs, x = torch.zeros(3, 1, dtype=F64), torch.tensor([-1.5, 0.5, 1.2], dtype=F64)[:, None, None]
    assert algo.slope(obs, x).flatten().tolist() == [0.0, G, 0.0]
    algo.clip_gradient = False
    assert algo.slope(obs, x).flatten().tolist() == pytest.approx([G, G, G])


def test_a_gradient_in_normalised_units_is_that_of_the_action(learner):
    """Actions 2 x + .5 and tanh x: dQ/dx = 2 G, and G (1 - tanh^2 x)."""
    algo = exact(learner)
    obs, x = torch.zeros(1, 1, dtype=F64), torch.full((1, 1, 1), 0.2, dtype=F64)
    norm = algo.policy.action_norm
    algo.policy.action_norm = Normalizer(1, kind="minmax")
    algo.policy.action_norm.fit(torch.tensor([[-1.5], [2.5]]))
    assert algo.slope(obs, x).item() == pytest.approx(2 * G)
    algo.policy.action_norm, algo.policy.squash = norm, "tanh"
    assert algo.slope(obs, x).item() == pytest.approx(G * (1 - x.tanh().square().item()))


def test_steps_that_are_not_executed_have_no_gradient_of_their_own(learner, flow, critic):
    policy = flow(2, 1, 4)
    algo = learner("qam", 2, 1, policy=policy, critic=critic(2, 1, 4), executed=2)
    obs, x = torch.randn(8, 2), 0.5 * torch.randn(8, 4, 1)
    found = algo.slope(obs, x)
    algo.executed = None
    whole = algo.slope(obs, x)
    assert torch.equal(found[:, :2], whole[:, :2]) and (found[:, 2:] == 0).all()
    assert (whole[:, 2:] != 0).all()


@pytest.mark.learns
def test_kappa_is_per_deviation_of_the_values_of_the_clones_actions(learner):
    """Q = 3 a: a deviation of 3 sd; ten times the values leave the tilt, in units of Q they do not.

    The map of ten steps has the variance .1856 of the table.
    """
    moved = {}
    for unit in ("spread", "q"):
        for size in (1.0, 10.0):
            algo = exact(learner, kappa_unit=unit, kappa=0.5, scale_rate=0.05)
            algo.target.g = 3.0 * size
            obs = torch.zeros(64, 1, dtype=F64)
            for _ in range(60):
                algo.meet(obs)
            met, metrics = algo.meet(obs)
            moved[unit, size] = met.moved.mean().item()
            if unit == "spread":
                spread = 3.0 * size * 0.1856**0.5
                assert metrics["critic/q_std"].item() == pytest.approx(spread, rel=0.1)
    assert moved["spread", 10.0] == pytest.approx(moved["spread", 1.0], rel=1e-6)
    assert moved["q", 10.0] == pytest.approx(10 * moved["q", 1.0], rel=1e-6)
    assert moved["spread", 1.0] == pytest.approx(moved["q", 1.0] / (3 * 0.1856**0.5), rel=0.1)


def test_the_first_measured_spread_is_the_unit_at_once(learner):
    algo = exact(learner, kappa_unit="spread", scale_rate=1e-6)
    _, metrics = algo.meet(torch.zeros(64, 1, dtype=F64))
    assert metrics["critic/q_std"].item() == pytest.approx(G * 0.1856**0.5, rel=0.25)
    assert algo.learned == {"q_scale": None} and exact(learner).learned == {}


def test_what_is_deployed_is_the_map_or_the_chain_with_the_share_of_noise_that_is_set(learner):
    algo, obs = exact(learner), torch.zeros(64, 1, dtype=F64)
    algo.policy.noise = lambda lead, generator: torch.zeros(lead, 1, 1, dtype=F64)
    assert algo.act(obs).std() == 0 and algo.deploy(obs, algo.generator).std() == 0
    algo.policy.eta = 1.0
    assert algo.act(obs).std() > 0.1 and algo.deploy(obs, algo.generator).std() > 0.1


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({}, {"path": "cosine"}, "policy.path=linear"),
        ({}, {"prediction": "eps"}, "policy.prediction=v"),
        ({}, {"clip_x": True}, "policy.clip_x=true"),
        ({}, {"clip_a": True}, "policy.clip_a=true"),
        ({}, {"eta": 0.5, "sampler": "heun"}, "policy.sampler=heun"),
        ({"kernel": "posterior"}, {"steps": 1}, "policy.steps=1 with algo.kernel=posterior"),
    ],
)
def test_what_has_no_such_walks_is_refused(learner, flow, changes, settings, told):
    with pytest.raises(ValueError, match=told):
        learner("qam", 1, 1, policy=flow(1, 1, **settings), **changes)
