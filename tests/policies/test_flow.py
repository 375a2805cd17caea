"""FlowPolicy against closed forms: the Gaussian policy, DDIM and DDPM, Gaussian chains."""

import math
from typing import Any

import pytest
import torch

from rheo.policies import paths
from rheo.policies.nets import MLP, clone
from rheo.policies.normalize import Normalizer
from rheo.policies.numpy_mlp import FEW, quicken

F64 = torch.float64
FORMS = [
    (path, prediction) for path in ("linear", "cosine", "betas") for prediction in ("v", "eps", "a")
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one(value):
    return torch.full((1, 1, 1), value, dtype=F64)


def random_mlp(horizon=3, **changes):
    """An MLP whose outlet is not zero, so that a wrong input shows in its output."""
    settings: dict[str, Any] = {"width": 32, "depth": 2, "encoder_depth": 2, "activation": "mish"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(5, 2, horizon, **(settings | changes))
        torch.nn.init.normal_(net.outlet.weight, std=0.2)
    return net


@pytest.mark.parametrize(
    "steps,expected", [(1, 0.4), (2, 0.6), (4, 0.740541), (10, 0.830783), (100, 0.892645)]
)
def test_euler_steps_of_the_gaussian_policy_have_the_known_values(gaussian_policy, steps, expected):
    """0.T1: mu = .4, s = .5, z = 1; the exact map gives .9."""
    action = gaussian_policy().act(torch.zeros(1, 1, dtype=F64), one(1.0), steps)
    assert abs(action.item() - expected) < 1e-6


def euler_width(times, width):
    """Deviation that Euler's steps over `times` give N(0, width^2), by their product."""
    scale = 1.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        variance = t**2 * width**2 + (1 - t) ** 2
        scale *= 1 + (s - t) * (t * width**2 - (1 - t)) / variance
    return scale


@pytest.mark.parametrize(
    "grid,steps,shares",
    [
        ("uniform", 5, (0.77, 0.74, 0.67, 0.57, 0.36, 0.19)),
        ("late", 5, (0.72, 0.74, 0.73, 0.72, 0.67, 0.62)),
        ("uniform", 10, (0.88, 0.86, 0.82, 0.77, 0.62, 0.40)),
        ("late", 10, (0.85, 0.86, 0.86, 0.85, 0.82, 0.77)),
    ],
)
def test_a_late_grid_keeps_the_width_of_a_sharp_policy(gaussian_policy, grid, steps, shares):
    """Sampled over true deviation: of the code, of the product of Euler's factors, and a table."""
    share = [k / steps for k in range(steps + 1)]
    times = share if grid == "uniform" else [1 - (1 - t) ** 2 for t in share]
    for width, expected in zip((0.8, 0.5, 0.3, 0.2, 0.1, 0.05), shares, strict=True):
        policy = gaussian_policy(mu=0.0, spread=width, grid=grid, steps=steps)
        action = policy.act(torch.zeros(1, 1, dtype=F64), one(1.0), clip=False).item()
        assert action == pytest.approx(euler_width(times, width), abs=1e-6)
        assert action / width == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("path,prediction", FORMS)
def test_a_late_grid_ends_at_the_same_place(gaussian_policy, path, prediction):
    """Every sampler, and a chain with the likelihood of its own grid."""
    levels = 40_000 if path == "betas" else None
    policy = gaussian_policy(path, prediction, levels=levels, grid="late")
    times = policy.times(100)
    assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()
    action = policy.act(torch.zeros(1, 1, dtype=F64), one(1.0), 100)
    assert action.item() == pytest.approx(0.9, abs=1.5e-2)
    if path != "betas":
        obs = torch.zeros(1, 1, dtype=F64)
        chain = policy.rollout(obs, one(1.0), lambda o, t: torch.full((1, 1, 1), 0.1), seeded())
        logp, _ = policy.chain_logp(chain.x, obs, lambda o, t: torch.full((1, 1, 1), 0.1))
        torch.testing.assert_close(logp.sum((-1, -2)), chain.logp)


def test_a_grid_is_one_of_two_and_needs_room_between_levels(policy_of):
    with pytest.raises(ValueError, match="uniform or late"):
        policy_of(random_mlp(), grid="early")
    with pytest.raises(ValueError, match=r"1 / 5\^2"):
        policy_of(random_mlp(), grid="late", path="betas", levels=20).times(5)


@pytest.mark.parametrize("path,prediction", FORMS)
def test_every_path_and_prediction_transports_noise_to_the_gaussian(
    gaussian_policy, path, prediction
):
    """The flow of a Gaussian is a = mu + s z on every path; a time-direction slip breaks it."""
    noise = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)[:, None, None]
    policy = gaussian_policy(path, prediction, levels=500 if path == "betas" else None)
    action = policy.act(torch.zeros(3, 1, dtype=F64), noise, 500)
    torch.testing.assert_close(action, 0.4 + 0.5 * noise, rtol=0, atol=1.2e-2)


@pytest.mark.parametrize("prediction", ["v", "a"])
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_heun_converges_with_second_order_and_euler_with_first(gaussian_policy, path, prediction):
    def error(sampler, steps):
        policy = gaussian_policy(path, prediction, sampler=sampler)
        return abs(policy.act(torch.zeros(1, 1, dtype=F64), one(1.0), steps).item() - 0.9)

    assert 1.7 < math.log2(error("heun", 80) / error("heun", 160)) < 2.4
    if path == "linear":
        assert 0.8 < math.log2(error("euler", 80) / error("euler", 160)) < 1.2
        assert error("heun", 20) < 0.2 * error("euler", 40)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_noise_prediction_starts_within_the_error_of_its_edge(gaussian_policy, path):
    """At t = 0 noise says nothing about the action: it is asked at the edge .01, not at 0."""
    obs, noise = torch.zeros(1, 1, dtype=F64), one(1.0)
    exact = gaussian_policy(path, "v", sampler="heun").act(obs, noise, 50)
    at_edge = gaussian_policy(path, "eps", sampler="heun").act(obs, noise, 50)
    assert abs(at_edge - exact).item() < 3e-4
    first, _ = gaussian_policy(path, "eps").step(noise, obs[0], obs[0] + 0.1, obs)
    true, _ = gaussian_policy(path, "v").step(noise, obs[0], obs[0] + 0.1, obs)
    assert abs(first - true).item() < 1e-2  # .04 if the network were asked at 0


def test_ddim_without_noise_on_the_linear_path_is_euler(gaussian_policy):
    """0.T4, through the data and noise forms, from a point in the middle."""
    x, feat = torch.randn(6, 1, 1, dtype=F64, generator=seeded()), torch.zeros(6, 1, dtype=F64)
    t, s = torch.full((6,), 0.3, dtype=F64), torch.full((6,), 0.55, dtype=F64)
    for prediction in ("v", "eps", "a"):
        policy = gaussian_policy("linear", prediction)
        mean, std = policy.step(x, t, s, feat)
        euler = x + (s - t)[:, None, None] * policy.velocity(x, t, feat)
        torch.testing.assert_close(mean, euler, rtol=0, atol=1e-12)
        assert (std == 0).all()
    pred = gaussian_policy().pred(x, t, feat)
    torch.testing.assert_close(0.55 * pred.a + 0.45 * pred.eps, euler, rtol=0, atol=1e-12)


def test_ddim_with_eta_one_is_the_ddpm_posterior(gaussian_policy):
    """0.T5: std sqrt(beta_k (1 - abar_{k-1}) / (1 - abar_k)), and its mean from x and a_hat."""
    levels, betas = 20, paths.cosine_betas(20)
    abar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - betas, 0)])
    policy = gaussian_policy("betas", "eps", levels=levels)
    x, feat = one(0.7), torch.zeros(1, 1, dtype=F64)
    for k in (2, 9, 15):
        t, s = (torch.tensor([1 - j / levels], dtype=F64) for j in (k, k - 1))
        mean, std = policy.step(x, t, s, feat, eta=1.0)
        beta, now, after = betas[k - 1], abar[k], abar[k - 1]
        expected = (beta * (1 - after) / (1 - now)).sqrt()
        assert abs(std.item() - expected) < 1e-10
        data = policy.pred(x, t, feat).a
        posterior = after.sqrt() * beta / (1 - now) * data
        posterior += (1 - beta).sqrt() * (1 - after) / (1 - now) * x
        assert abs(mean.item() - posterior.item()) < 1e-10


def test_a_ddpm_chain_of_many_levels_reproduces_the_gaussian(gaussian_policy):
    policy = gaussian_policy("betas", "eps", levels=100, eta=1.0)
    noise = policy.noise(20_000, seeded(1))
    chain = policy.rollout(torch.zeros(20_000, 1, dtype=F64), noise, 1e-6, seeded(2), 100)
    raw = chain.x[:, -1]
    assert abs(raw.mean().item() - 0.4) < 0.02 and abs(raw.std().item() - 0.5) < 0.02


def test_the_matching_loss_is_minimised_by_the_gaussian_velocity(policy_of):
    """0.T6: least squares of `match` over v = w x + b at one time gives the closed form."""

    class Affine(torch.nn.Module):
        horizon = action_dim = 1

        def __init__(self):
            super().__init__()
            self.theta = torch.nn.Parameter(torch.zeros(2, dtype=F64))

        def encode(self, obs):
            return obs

        def embed(self, t):
            return t[..., None]

        def forward(self, x, emb, feat):
            return self.theta[0] * x + self.theta[1]

    count, t, mu, spread = 100_000, 0.3, 0.4, 0.5
    net = Affine()
    policy = policy_of(net)
    action = mu + spread * torch.randn(count, 1, 1, dtype=F64, generator=seeded(1))
    noise, obs = policy.noise(count, seeded(2)), torch.zeros(count, 1, dtype=F64)
    loss = policy.match(obs, action, noise, torch.full((count,), t, dtype=F64)).mean()
    slope = torch.autograd.grad(loss, net.theta, create_graph=True)[0]
    bend = torch.stack([torch.autograd.grad(s, net.theta, retain_graph=True)[0] for s in slope])
    best = -torch.linalg.solve(bend, slope.detach())  # exact: the loss is quadratic
    w = (t * spread**2 - (1 - t)) / (t**2 * spread**2 + (1 - t) ** 2)
    assert abs(best[0].item() - w) < 2e-2 and abs(best[1].item() - mu * (1 - w * t)) < 2e-2


@pytest.mark.parametrize("space", ["v", "eps", "a"])
def test_match_is_zero_for_a_certain_policy_in_every_form(gaussian_policy, space):
    """With one possible action the exact field knows action and noise, in each form."""
    noise = torch.randn(8, 1, 1, dtype=F64, generator=seeded())
    action, obs = torch.full((8, 1, 1), 0.4, dtype=F64), torch.zeros(8, 1, dtype=F64)
    t = torch.linspace(0.1, 0.9, 8, dtype=F64)
    for path, prediction in FORMS:
        policy = gaussian_policy(path, prediction, spread=0.0)
        assert policy.match(obs, action, noise, t, space).max() < 1e-15
        assert policy.match(obs, action + 0.1, noise, t, space).min() > 1e-6


def test_match_reduces_over_the_chunk_only(policy_of):
    policy = policy_of(random_mlp())
    obs, action = torch.randn(4, 5, generator=seeded()), torch.rand(4, 3, 2, generator=seeded(1))
    noise, t = policy.noise((4, 6), seeded(2)), torch.rand(4, 6, generator=seeded(3))
    loss = policy.match(obs, action, noise, t)
    x = t[..., None, None] * action[:, None] + (1 - t)[..., None, None] * noise
    assert loss.shape == (4, 6)
    alone = policy.match(obs[2:3], action[2:3], noise[2:3, 4], t[2:3, 4])
    torch.testing.assert_close(alone[0], loss[2, 4])
    velocity = policy.velocity(x[2, 4][None], t[2:3, 4], policy.features(obs[2:3]))
    by_hand = ((velocity - (action[2] - noise[2, 4])) ** 2).sum() / 6
    torch.testing.assert_close(loss[2, 4], by_hand)


def test_particles_share_the_encoding_of_their_own_state(policy_of):
    policy = policy_of(random_mlp())
    obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise((4, 6), seeded(1))
    together = policy.act(obs, noise)
    repeated = obs[:, None].expand(4, 6, 5).reshape(24, 5)
    apart = policy.act(repeated, noise.reshape(24, 3, 2)).view(4, 6, 3, 2)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_hoisted_encodings_equal_a_loop_that_recomputes_them(policy_of):
    policy = policy_of(random_mlp())
    obs, x = torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
    expected = x
    for k in range(4):
        t = torch.full((4,), k / 4)
        expected = expected + policy.net(expected, policy.net.embed(t), policy.net.encode(obs)) / 4
    torch.testing.assert_close(policy.act(obs, x, clip=False), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize(
    ("activation", "grid"),
    [("relu", "uniform"), ("silu", "late"), ("mish", "uniform"), ("tanh", "uniform")],
)
def test_the_light_loop_for_one_state_equals_the_plain_one_and_follows_updates(
    policy_of, activation, count, grid
):
    norm = Normalizer(5, kind="gaussian")
    policy = policy_of(random_mlp(activation=activation), obs_norm=norm, grid=grid)
    quicken(policy)
    policy.obs_norm.fit(3 + 2 * torch.randn(50, 5, generator=seeded()))

    def gap(steps):
        obs, noise = 9 * torch.randn(1, 5), policy.noise((1, count), None)
        plain = policy.act(obs, noise, steps, clip=False)  # with gradients: the torch way
        with torch.no_grad():
            assert policy.act.loop(obs, noise) is not None
            light = policy.act(obs, noise, steps, clip=False)
        return (plain - light).abs().max().item()

    assert max(gap(steps) for steps in (1, 4, 7)) < 1e-5
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert gap(4) < 1e-5
    policy.load_state_dict(policy_of(random_mlp()).state_dict(), assign=True, strict=False)
    assert gap(4) < 1e-5
    policy.net.layers[0] = torch.nn.Linear(32, 32)
    assert gap(4) < 1e-5


def test_a_copy_of_a_quick_policy_is_quick_with_its_own_numbers(policy_of):
    policy, obs = policy_of(random_mlp()), torch.randn(1, 5)
    quicken(policy)
    noise = policy.noise(1, seeded())
    with torch.no_grad():
        before = policy.act(obs, noise)
        twin = clone(policy)
        twin.net.outlet.bias.add_(0.3)
        assert twin.act.loop(obs, noise) is not None
        assert torch.equal(policy.act(obs, noise), before)
        plain = twin.act(obs.expand(2, 5), noise.expand(2, 3, 2))  # two rows: the torch way
        torch.testing.assert_close(twin.act(obs, noise), plain[:1])
        assert (twin.act(obs, noise) - before).abs().max() > 0.01


def test_the_light_loop_leaves_what_it_cannot_do_to_torch(policy_of):
    policy, obs = policy_of(random_mlp()), torch.zeros(1, 5)
    quicken(policy)
    noise = policy.noise(1, seeded())
    assert policy.act.loop(obs, noise) is None  # gradients wanted
    with torch.no_grad():
        assert policy.act.loop(obs.expand(2, 5), noise.expand(2, 3, 2)) is None
        assert policy.act.loop(obs, noise.expand(FEW, 3, 2)) is not None
        assert policy.act.loop(obs, noise.expand(FEW + 1, 3, 2)) is None
        assert policy.act.loop(obs, noise[0]) is None  # the result has the state's shape too
        assert policy.double().act.loop(obs.double(), noise.double()) is None
        policy.float().net.layers[0] = torch.nn.Sequential(torch.nn.Linear(32, 32))
        assert policy.act.loop(obs, noise) is None
        assert policy.act(obs, noise).isfinite().all()


@pytest.mark.parametrize("path,prediction", FORMS)
def test_chain_logp_of_a_rollout_with_the_same_weights_is_its_own(policy_of, path, prediction):
    """0.T7."""
    levels = 20 if path == "betas" else None
    policy = policy_of(random_mlp(), path=path, levels=levels, prediction=prediction, eta=0.7)
    obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise((4, 2), seeded(1))

    def std(obs, t):
        return 0.1 + 0.05 * (obs[..., :1, None, None].abs() + t[:, None, None])

    for std_fn in (std, 0.1):
        chain = policy.rollout(obs, noise, std_fn, seeded(2))
        logp, entropy = policy.chain_logp(chain.x, obs, std_fn)
        assert chain.x.shape == (4, 2, 5, 3, 2) and logp.shape == (4, 2, 4, 3, 2)
        assert chain.logp.shape == entropy.shape == (4, 2, 4)
        scale = chain.logp.abs().clamp(min=1)
        assert ((logp.sum((-1, -2)) - chain.logp) / scale).abs().max() < 1e-5
        logp.sum().backward()


def test_a_rollout_without_noise_is_act(policy_of):
    """0.T8."""
    for settings in ({}, {"clip_x": True}, {"clip_a": True}, {"path": "cosine"}):
        policy = policy_of(random_mlp(), **settings)
        obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
        chain = policy.rollout(obs, noise, lambda _, t: torch.full((1, 1), 1e-8), seeded(2))
        torch.testing.assert_close(chain.action, policy.act(obs, noise), rtol=0, atol=1e-6)


def test_a_drawn_action_is_the_end_of_the_chain_that_a_rollout_keeps(policy_of):
    for settings in ({}, {"clip_a": True, "path": "cosine"}, {"path": "betas", "levels": 20}):
        policy = policy_of(random_mlp(), eta=0.7, prediction="eps", **settings)
        obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise((4, 2), seeded(1))
        chain = policy.rollout(obs, noise, 0.05, seeded(2))
        assert torch.equal(policy.drawn(obs, noise, seeded(2), 0.7, 0.05), chain.action)
        assert torch.equal(policy.drawn(obs, noise, None, 0.0), policy.act(obs, noise))


def test_drawn_actions_have_the_deviation_of_the_ddpm_chain_and_a_floor_widens_it(gaussian_policy):
    """Of a Gaussian every transition is affine: V <- slope^2 V + variance of its noise."""
    policy = gaussian_policy("betas", "eps", mu=0.1, spread=0.2, levels=20, betas="vp")
    obs, noise = torch.zeros(100_000, 1, dtype=F64), policy.noise(100_000, seeded(1))
    beta = paths.vp_betas(20)
    abar = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(1 - beta, 0)])
    for floor in (0.0, 0.1):
        variance = 1.0
        for k in range(20, 0, -1):
            now, after, b = float(abar[k]), float(abar[k - 1]), float(beta[k - 1])
            data = now**0.5 * 0.04 / (now * 0.04 + 1 - now)
            slope = (after**0.5 * b * data + (1 - b) ** 0.5 * (1 - after)) / (1 - now)
            own = max((b * (1 - after) / (1 - now)) ** 0.5, floor)
            variance = slope**2 * variance + own**2
        action = policy.drawn(obs, noise, seeded(2), 1.0, floor, steps=20)
        assert abs(action.mean().item() - 0.1) < 2e-3
        assert abs(action.std().item() - variance**0.5) < 2e-3, floor


def test_drawn_actions_need_eulers_steps(gaussian_policy):
    policy = gaussian_policy(sampler="heun")
    with pytest.raises(ValueError, match="policy.sampler=heun"):
        policy.drawn(torch.zeros(1, 1, dtype=F64), one(0.3), seeded(), 1.0)


def test_a_chain_has_the_density_and_entropy_of_its_normal_transitions(gaussian_policy):
    policy, sigma = gaussian_policy(horizon=2), 0.15
    x = torch.randn(3, 5, 2, 1, dtype=F64, generator=seeded())
    obs = torch.zeros(3, 1, dtype=F64)
    logp, entropy = policy.chain_logp(x, obs, lambda _, t: torch.tensor(sigma, dtype=F64))
    for k in range(4):
        t = torch.full((3,), k / 4, dtype=F64)
        mean = x[:, k] + policy.velocity(x[:, k], t, obs) / 4
        expected = torch.distributions.Normal(mean, sigma)
        torch.testing.assert_close(logp[:, k], expected.log_prob(x[:, k + 1]))
        torch.testing.assert_close(entropy[:, k], expected.entropy().sum((-1, -2)))


def test_the_noisy_chain_has_the_known_marginal(gaussian_policy):
    """K = 4 transitions of std .15 on the Gaussian field: mean .4, variance .17167."""
    policy = gaussian_policy()
    noise = policy.noise(200_000, seeded(1))
    std = torch.tensor(0.15, dtype=F64)
    obs = torch.zeros(200_000, 1, dtype=F64)
    last = policy.rollout(obs, noise, lambda _, t: std, seeded(2), 4).x[:, -1]
    assert abs(last.mean().item() - 0.4) < 3e-3 and abs(last.var().item() - 0.17167) < 3e-3


def test_the_final_clip_is_reported_and_clips_in_environment_units(gaussian_policy):
    norm = Normalizer(1, kind="minmax").double()
    norm.fit(torch.tensor([[-2.0], [2.0]], dtype=F64))
    policy = gaussian_policy(action_norm=norm, steps=100)
    noise = torch.tensor([-4.0, -0.5, 4.0], dtype=F64)[:, None, None]
    obs = torch.zeros(3, 1, dtype=F64)
    chain = policy.rollout(obs, noise, lambda _, t: torch.tensor(1e-9, dtype=F64), seeded())
    assert chain.clipped.flatten().tolist() == [True, False, True]
    assert chain.action.flatten()[[0, 2]].tolist() == [-1, 1]
    torch.testing.assert_close(chain.action[1], chain.x[1, -1] * 2)
    assert policy.act(obs, noise, clip=False).abs().max() > 1


def test_clipping_the_data_prediction_keeps_the_action_in_the_box(policy_of):
    for prediction in ("v", "eps", "a"):
        policy = policy_of(random_mlp(), path="betas", levels=20, prediction=prediction,
                           clip_a=True)  # fmt: skip
        obs, noise = torch.randn(64, 5, generator=seeded()), 3 * policy.noise(64, seeded(1))
        assert policy.act(obs, noise, clip=False).abs().max() <= 1 + 1e-6


def test_clipping_points_holds_every_mean_in_the_box(policy_of):
    policy = policy_of(random_mlp(), clip_x=True)
    obs, noise = torch.randn(64, 5, generator=seeded()), 3 * policy.noise(64, seeded(1))
    chain = policy.rollout(obs, noise, lambda _, t: torch.tensor([[1e-9]]), seeded())
    assert chain.x[:, 1:].abs().max() <= 1 + 1e-6 < chain.x[:, 0].abs().max()


def fitted(kind, dim=1):
    """Statistics of actions with mean 0 and deviation 0.3, or of the range -0.3 to 0.3."""
    norm = Normalizer(dim, kind=kind).to(F64)
    norm.fit(torch.tensor([[-0.3], [0.3]], dtype=F64).expand(2, dim))
    return norm


@pytest.mark.parametrize(("kind", "limit"), [("none", 1.0), ("minmax", 0.3), ("gaussian", 1.0)])
@pytest.mark.parametrize(
    "settings",
    [{"clip_a": True, "path": "cosine", "prediction": "eps"}, {"clip_x": True}],
    ids=["clip_a", "clip_x"],
)
def test_clips_end_where_actions_lie_in_any_units(gaussian_policy, settings, kind, limit):
    """Of 0.9 and of 1.2 in environment units; a gaussian's +- 1 is one deviation, no end."""
    for wanted in (0.9, 1.2):
        point = wanted if kind == "none" else wanted / 0.3
        policy = gaussian_policy(mu=point, spread=1e-3, action_norm=fitted(kind), **settings)
        action = policy.act(torch.zeros(1, 1, dtype=F64), one(0.0), steps=20, clip=False)
        assert action.item() == pytest.approx(min(wanted, limit), abs=0.02)


@pytest.mark.parametrize("change", [{"clip_x": True}, {"clip_a": True}, "gaussian"], ids=str)
def test_a_tanh_that_would_cap_actions_inside_their_box_is_refused(policy_of, change):
    if change == "gaussian":
        change = {"action_norm": fitted("gaussian", 2)}
    with pytest.raises(ValueError, match="policy.squash=tanh with .*set policy"):
        policy_of(random_mlp(), squash="tanh", **change)
    kept = policy_of(random_mlp(), squash="tanh", action_norm=fitted("minmax", 2))
    action = torch.full((1, 3, 2), 0.25, dtype=F64)
    torch.testing.assert_close(kept.to_action(kept.to_latent(action)), action)


def test_tanh_squashing_round_trips_and_keeps_actions_inside(policy_of):
    policy = policy_of(random_mlp(), squash="tanh")
    action = torch.tensor([[[-1.0, -0.5], [0.0, 0.7], [0.99, 1.0]]])
    latent = policy.to_latent(action)
    assert latent.isfinite().all()
    torch.testing.assert_close(policy.to_action(latent), action.clamp(-0.999, 0.999))
    assert policy.act(torch.zeros(1, 5), 3 * policy.noise(1, seeded()), clip=False).abs().max() < 1


def test_a_clone_is_independent_and_frozen(policy_of):
    policy = policy_of(random_mlp())
    twin, obs, noise = clone(policy), torch.zeros(1, 5), policy.noise(1, seeded())
    with torch.no_grad():
        before = twin.act(obs, noise)
        for parameter in policy.parameters():
            parameter.mul_(1.5)
        assert torch.equal(twin.act(obs, noise), before)
        assert not torch.allclose(policy.act(obs, noise), before)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in clone(policy, frozen=False).parameters())


def test_deployed_actions_start_from_scaled_noise(policy_of):
    policy = policy_of(random_mlp())
    assert torch.equal(policy.start(4, seeded()), policy.noise(4, seeded()))
    policy.deploy_scale = 0.5
    torch.testing.assert_close(policy.start((2, 3), seeded()), 0.5 * policy.noise((2, 3), seeded()))
    policy.deploy_scale = 0.0
    obs = torch.randn(4, 5)
    centre = policy.act(obs, policy.start(4, seeded()))
    assert torch.equal(centre, policy.act(obs, policy.start(4, seeded(1))))  # one action a state


def test_act_is_differentiable_in_noise_and_weights(gaussian_policy):
    policy, noise = gaussian_policy(), one(1.0).requires_grad_()
    policy.act(torch.zeros(1, 1, dtype=F64), noise, 4).sum().backward()
    # the Euler map of a Gaussian is affine: its slope is a(z = 1) - a(z = 0)
    assert noise.grad is not None
    assert abs(noise.grad.item() - (0.740541 - 0.4)) < 1e-6
    assert abs(policy.net.mu.grad.item() - 1) < 1e-9


def test_impossible_settings_say_what_to_change(policy_of, gaussian_policy):
    with pytest.raises(ValueError, match="choose v, eps or a"):
        policy_of(random_mlp(), prediction="x")
    with pytest.raises(ValueError, match="choose euler or heun"):
        policy_of(random_mlp(), sampler="rk4")
    with pytest.raises(ValueError, match="sampler=euler"):
        policy_of(random_mlp(), sampler="heun", clip_a=True)
    obs, noise = torch.zeros(1, 1, dtype=F64), one(0.0)
    with pytest.raises(ValueError, match="use euler"):
        gaussian_policy(sampler="heun").rollout(obs, noise, 0.1, None)
    with pytest.raises(ValueError, match="no density"):
        gaussian_policy().rollout(obs, noise, 0.0, None)
    with pytest.raises(ValueError, match="choose v, eps or a"):
        gaussian_policy().match(obs, noise, noise, torch.zeros(1, dtype=F64), "score")


# ---- backwards --------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "prediction"), FORMS)
def test_backwards_an_affine_flow_finds_the_noise_of_every_action(
    gaussian_policy, path, prediction
):
    """Every step of a normal's flow is affine, so its inverse is one division, here by secant."""
    policy = gaussian_policy(path, prediction, mu=0.1, spread=0.15, steps=6)
    obs, noise = torch.zeros(20, 1, dtype=F64), torch.randn(20, 1, 1, generator=seeded()).double()
    action = policy.act(obs, noise, clip=False)
    scale = policy.act(obs[:1], one(1.0), clip=False) - policy.act(obs[:1], one(0.0), clip=False)
    known = (action - policy.act(obs[:1], one(0.0), clip=False)) / scale
    found = policy.invert(obs, action, rounds=6)
    torch.testing.assert_close(known, noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_backwards_a_network_finds_noise_that_leads_to_the_action(policy_of, squash):
    policy = policy_of(random_mlp(), steps=5, squash=squash)
    obs, noise = torch.randn(50, 5, generator=seeded(1)), torch.randn(50, 3, 2, generator=seeded(2))
    action = policy.act(obs, noise, clip=False).clamp(-0.95, 0.95)
    found = policy.invert(obs, action, rounds=12)
    torch.testing.assert_close(policy.act(obs, found), action, rtol=1e-3, atol=1e-3)
    coarse = policy.act(obs, policy.invert(obs, action, rounds=1))
    assert (coarse - action).abs().max() > 1e-2  # the start alone is not the answer


def test_backwards_needs_steps_that_can_be_undone(gaussian_policy):
    policy = gaussian_policy(sampler="heun")
    with pytest.raises(ValueError, match="Euler transitions"):
        policy.invert(torch.zeros(1, 1, dtype=F64), one(0.1), 3)
