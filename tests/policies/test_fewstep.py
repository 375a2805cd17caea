"""FewStepPolicy against the exact average velocity of Gaussian data and hand-written loops."""

import math
from typing import Any

import pytest
import torch

from rheo.policies.fewstep import FewStepPolicy
from rheo.policies.flow import FlowPolicy
from rheo.policies.nets import MLP, Transformer, UNet1d, clone
from rheo.policies.normalize import Normalizer

F64 = torch.float64
SETTINGS: dict[str, Any] = {
    "path": "linear",
    "levels": None,
    "prediction": "v",
    "steps": 1,
    "sampler": "euler",
    "eta": 0.0,
    "clip_x": False,
    "clip_a": False,
    "squash": "clip",
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_net(kind="mlp"):
    shared: dict[str, Any] = {"width": 32, "encoder_depth": 1, "activation": "silu"}
    if kind == "mlp":
        return MLP(5, 2, 3, depth=2, **shared)
    if kind == "unet":
        return UNet1d(5, 2, 3, widths=[8, 16], kernel=3, groups=4, **shared)
    return Transformer(5, 2, 3, depth=1, heads=2, **shared)


def random_policy(
    kind="mlp", told=True, obs_norm: Any = "none", action_norm: Any = "none", **changes
):
    """A policy whose output depends on all of its inputs; `told`: on the length of a step too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = random_net(kind)
        torch.nn.init.normal_(next(net.outlet.parameters()), std=0.2)
        norms: dict[str, Any] = {
            "obs_norm": Normalizer(5, kind=obs_norm),
            "action_norm": Normalizer(2, kind=action_norm),
        }
        policy = FewStepPolicy(net, **(SETTINGS | norms | changes))
        if told:
            torch.nn.init.normal_(list(policy.jump.parameters())[-2], std=0.5)
    return policy


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_average_velocities_reach_the_gaussian_in_any_number_of_steps(exact_jumps, steps):
    noise = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)[:, None, None]
    obs = torch.zeros(3, 1, dtype=F64)
    action = exact_jumps(mu=0.3, spread=0.2).act(obs, noise, steps)
    torch.testing.assert_close(action, 0.3 + 0.2 * noise, rtol=0, atol=1e-7)  # the grid is f32


def test_the_exact_field_at_length_zero_is_the_velocity_of_the_gaussian(exact_jumps):
    """Methods' closed form: v = mu + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t mu)."""
    policy = exact_jumps(mu=0.3, spread=0.2)
    x, feat = torch.randn(6, 1, 1, dtype=F64, generator=seeded()), torch.zeros(6, 1, dtype=F64)
    t = torch.linspace(0, 0.95, 6, dtype=F64)
    slope = (t * 0.04 - (1 - t)) / (t**2 * 0.04 + (1 - t) ** 2)
    expected = 0.3 + slope[:, None, None] * (x - 0.3 * t[:, None, None])
    torch.testing.assert_close(policy.velocity(x, t, feat), expected)
    torch.testing.assert_close(policy.average_velocity(x, t, t, feat), expected)
    near = policy.average_velocity(x, t, t + 1e-6, feat)
    torch.testing.assert_close(near, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "unet", "transformer"])
@pytest.mark.parametrize("steps", [1, 3])
def test_acting_is_the_hand_written_loop_over_jumps(kind, steps):
    policy = random_policy(kind)
    obs, x = torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
    expected, net = x, policy.net
    for k in range(steps):
        t, d = torch.full((4,), k / steps), torch.full((4,), 1 / steps)
        expected = expected + net(expected, net.embed(t) + policy.jump(d), net.encode(obs)) / steps
    action = policy.act(obs, x, steps, clip=False)
    torch.testing.assert_close(action, expected, rtol=0, atol=2e-6)
    one_row = policy.act(obs[:1], x[:1], steps, clip=False)
    with torch.no_grad():
        light = policy.act(obs[:1], x[:1], steps, clip=False)
    torch.testing.assert_close(one_row, expected[:1], rtol=0, atol=2e-6)
    torch.testing.assert_close(light, one_row, rtol=0, atol=2e-6)
    if steps > 1:  # the length counts: steps of another length are other steps
        halves = policy.integrate(policy.features(obs), x, 2 * steps)
        assert not torch.allclose(halves, expected, atol=1e-3)


def test_a_fresh_policy_is_the_plain_flow_of_its_network():
    policy = random_policy(told=False)
    plain = FlowPolicy(policy.net, **SETTINGS, obs_norm=policy.obs_norm,
                       action_norm=policy.action_norm)  # fmt: skip
    obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
    torch.testing.assert_close(policy.act(obs, noise, 4), plain.act(obs, noise, 4))
    t, action = torch.rand(4, generator=seeded(2)), torch.rand(4, 3, 2, generator=seeded(3))
    torch.testing.assert_close(
        policy.match(obs, action, noise, t), plain.match(obs, action, noise, t)
    )


def test_matching_and_all_forms_of_the_field_ask_for_length_zero():
    policy = random_policy()
    obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
    t, action = torch.rand(4, generator=seeded(2)), torch.rand(4, 3, 2, generator=seeded(3))
    x = t[:, None, None] * action + (1 - t)[:, None, None] * noise
    feat = policy.features(obs)
    velocity = policy.average_velocity(x, t, t, feat)
    torch.testing.assert_close(policy.velocity(x, t, feat), velocity)
    torch.testing.assert_close(policy.pred(x, t, feat).v, velocity)
    error = (velocity - (action - noise)).square().mean((-1, -2))
    torch.testing.assert_close(policy.match(obs, action, noise, t), error)


@pytest.mark.parametrize("std", [0.1, lambda obs, t: (0.05 + 0.1 * t)[:, None, None]])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_chain_has_the_same_likelihood_when_it_is_judged_again(steps, std):
    policy = random_policy(clip_x=True)
    obs, noise = torch.randn(8, 5, generator=seeded()), policy.noise(8, seeded(1))
    chain = policy.rollout(obs, noise, std, seeded(2), steps)
    logp, _ = policy.chain_logp(chain.x, obs, std)
    assert logp.shape == (8, steps, 3, 2)
    torch.testing.assert_close(logp.sum((-1, -2)), chain.logp, rtol=0, atol=1e-5)


def test_a_chains_transitions_are_jumps_and_without_noise_they_act():
    policy, steps = random_policy(), 4
    obs, noise = torch.randn(8, 5, generator=seeded()), policy.noise(8, seeded(1))
    chain = policy.rollout(obs, noise, 1e-8, seeded(2), steps)
    acted = policy.act(obs, noise, steps)
    torch.testing.assert_close(chain.action, acted, rtol=0, atol=1e-6)
    feat = policy.features(obs)
    for k in range(steps):
        t, s = torch.full((8,), k / steps), torch.full((8,), (k + 1) / steps)
        x = chain.x[:, k]
        expected = x + policy.average_velocity(x, t, s, feat) / steps
        torch.testing.assert_close(chain.x[:, k + 1], expected, rtol=0, atol=1e-6)
        mean, std = policy.step(x, t, s, feat)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-6)
        assert (std == 0).all()


def test_particles_share_the_encoding_of_their_own_state():
    policy = random_policy()
    obs, noise = torch.randn(4, 5, generator=seeded()), policy.noise((4, 6), seeded(1))
    together = policy.act(obs, noise, 2)
    apart = policy.act(obs[:, None].expand(4, 6, 5).reshape(24, 5), noise.reshape(24, 3, 2), 2)
    torch.testing.assert_close(together, apart.view(4, 6, 3, 2), rtol=0, atol=1e-6)


def test_copies_hold_the_embedding_of_lengths_and_the_statistics():
    policy = random_policy(obs_norm="gaussian", action_norm="minmax")
    policy.obs_norm.fit(3 + 2 * torch.randn(50, 5, generator=seeded()))
    policy.action_norm.fit(torch.tensor([[-2.0, -0.5], [2.0, 0.5]]))
    obs, noise = 3 + torch.randn(4, 5, generator=seeded()), policy.noise(4, seeded(1))
    twin, loaded = clone(policy), random_policy(obs_norm="gaussian", action_norm="minmax")
    loaded.load_state_dict(policy.state_dict())
    before = policy.act(obs, noise)
    assert isinstance(twin, FewStepPolicy)
    for other in (twin, loaded):
        torch.testing.assert_close(other.act(obs, noise), before)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    with torch.no_grad():
        for parameter in policy.jump.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(twin.act(obs, noise), before)
    assert not torch.allclose(policy.act(obs, noise), before, atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [{"path": "cosine"}, {"path": "betas"}, {"levels": 10}, {"prediction": "eps"}, {"betas": "vp"},
     {"prediction": "a"}, {"sampler": "heun"}, {"eta": 0.5}, {"clip_a": True}],
    ids=str,
)  # fmt: skip
def test_what_needs_the_velocity_along_a_step_is_refused_by_its_key(change):
    with pytest.raises(ValueError, match=f"^policy.{next(iter(change))}="):
        random_policy(**change)


def test_all_that_it_needs_is_named_at_once_as_it_is_typed():
    with pytest.raises(ValueError) as refused:
        random_policy(eta=0.5, clip_a=True, levels=10)
    found, needed = str(refused.value).split(": average velocities need ")
    assert found == "policy.levels=10 policy.eta=0.5 policy.clip_a=true"
    assert needed.startswith("policy.levels=null policy.eta=0.0 policy.clip_a=false; ")


def test_a_part_of_the_noise_of_ddim_is_refused():
    policy, zero = random_policy(), torch.zeros(1)
    with pytest.raises(ValueError, match="eta"):
        policy.step(torch.zeros(1, 3, 2), zero, zero + 0.5, torch.zeros(1, 32), eta=0.5)
    noise = torch.ones(1, 3, 2)
    with pytest.raises(ValueError, match="eta"):
        policy.drawn(torch.zeros(1, 5), noise, None, 0.5)
    torch.testing.assert_close(
        policy.drawn(torch.zeros(1, 5), noise, None, 0.0), policy.act(torch.zeros(1, 5), noise)
    )


# ---- jumps with fresh noise ---------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_jumps_with_fresh_noise_keep_the_law_of_an_exact_map_whatever_their_number(
    exact_jumps, steps
):
    """N(.4, .1^2), of which a jump to s leaves s .1 over the deviation there of what was before."""
    spread, rows = 0.1, 40_000
    policy = exact_jumps(mu=0.4, spread=spread)
    obs, noise = torch.zeros(rows, 1), policy.noise(rows, seeded())
    action = policy.drawn(obs, noise, seeded(1), 1.0, steps=steps).flatten().double()
    assert action.mean().item() == pytest.approx(0.4, abs=4 * spread / rows**0.5)
    assert action.std().item() == pytest.approx(spread, abs=4 * spread / (2 * rows) ** 0.5)
    along = torch.corrcoef(torch.stack([action, noise.flatten().double()]))[0, 1].item()
    inner = [k / steps for k in range(1, steps)]
    kept = math.prod(s * spread / math.hypot(s * spread, 1 - s) for s in inner)
    assert along == pytest.approx(kept, abs=4 / rows**0.5)


def test_a_jump_with_fresh_noise_is_the_end_scaled_and_what_is_left_of_the_noise():
    """From any point, of rows at different times; at the end of the path it stays where it is."""
    policy = random_policy()
    x, obs = torch.randn(3, 3, 2, generator=seeded()), torch.randn(3, 5, generator=seeded(1))
    t, s, feat = torch.tensor([0.0, 0.3, 0.9]), torch.tensor([0.5, 0.6, 1.0]), policy.features(obs)
    mean, std = policy.step(x, t, s, feat, eta=1.0)
    end = x + (1 - t)[:, None, None] * policy.average_velocity(x, t, torch.ones(3), feat)
    torch.testing.assert_close(mean, s[:, None, None] * end)
    torch.testing.assert_close(std.flatten(), 1 - s)
    one = torch.ones(3)
    assert torch.equal(policy.step(x, one, one, feat, eta=1.0)[0], x)
    given, width = policy.step(x, t, s, feat, std=torch.full((3, 1, 1), 0.2), eta=1.0)
    torch.testing.assert_close(given, policy.step(x, t, s, feat)[0])  # a learned noise is its own
    assert width.unique().item() == pytest.approx(0.2)


def test_the_density_of_a_chain_of_such_jumps_is_that_of_its_transitions():
    policy, obs = random_policy(), torch.randn(6, 5, generator=seeded())
    policy.eta = 1.0
    chain = policy.rollout(obs, policy.noise(6, seeded(1)), 0.05, seeded(2), steps=3)
    feat, times, logp = policy.features(obs), policy.times(3), []
    for k, width in enumerate([2 / 3, 1 / 3, 0.05]):  # 1 - s, and the floor where nothing is left
        mean, _ = policy.step(chain.x[:, k], times[k], times[k + 1], feat, eta=1.0)
        law = torch.distributions.Normal(mean, width)
        logp.append(law.log_prob(chain.x[:, k + 1]).sum((1, 2)))
    torch.testing.assert_close(chain.logp, torch.stack(logp, 1), rtol=1e-4, atol=1e-3)
    again, _ = policy.chain_logp(chain.x, obs, 0.05)
    torch.testing.assert_close(again.sum((-1, -2)), chain.logp, rtol=1e-4, atol=1e-3)
    policy.clip_x = True
    mean, _ = policy.step(10 * chain.x[:, 0], times[0], times[1], feat, eta=1.0)
    assert mean.abs().max().item() == pytest.approx(1 / 3)  # of an end that is on its bound
