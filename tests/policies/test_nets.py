"""The three networks behind one protocol, the time embedding, averages of weights."""

import copy

import pytest
import torch
from torch import nn

from rheo.policies.gated import Gated
from rheo.policies.nets import MLP, TimeEmbedding, Transformer, UNet1d, activation_fn, lerp_

BUILDERS = {
    "mlp": lambda t: MLP(5, 2, t, width=32, depth=2, encoder_depth=2, activation="mish"),
    "gated": lambda t: Gated(5, 2, t, width=32, depth=2, encoder_depth=2, activation="mish"),
    "unet": lambda t: UNet1d(
        5, 2, t, width=16, widths=[16, 32, 32], kernel=3, groups=4, encoder_depth=1,
        activation="silu",
    ),
    "transformer": lambda t: Transformer(
        5, 2, t, width=16, depth=2, heads=2, encoder_depth=1, activation="gelu"
    ),
}  # fmt: skip
every_net = pytest.mark.parametrize("name", list(BUILDERS))


def lively(name, horizon):
    """A network with random weights in its outlet, which is zero at birth."""
    torch.manual_seed(0)
    net = BUILDERS[name](horizon)
    nn.init.normal_(net.outlet.weight, std=0.3)
    return net


def inputs(lead, horizon):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*lead, horizon, 2, generator=generator)
    return x, torch.rand(lead, generator=generator), torch.randn(*lead, 5, generator=generator)


@every_net
@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("lead", [(), (3,), (3, 2)])
def test_output_has_the_shape_of_the_chunk_for_any_horizon_and_batch(name, horizon, lead):
    net, (x, t, obs) = lively(name, horizon), inputs(lead, horizon)
    out = net(x, net.embed(t), net.encode(obs))
    assert out.shape == x.shape and out.isfinite().all() and out.abs().max() > 0


@every_net
def test_a_new_network_is_the_zero_field_and_a_gated_one_leads_to_zero(name):
    net, (x, t, obs) = BUILDERS[name](4), inputs((3,), 4)
    field = -torch.sigmoid(torch.tensor(5.0)) * x if name == "gated" else torch.zeros_like(x)
    torch.testing.assert_close(net(x, net.embed(t), net.encode(obs)), field)


def test_a_gated_step_stays_between_where_it_was_and_where_it_is_drawn():
    """And its slope along a long chain does not grow, which that of a plain network may."""
    net, (x, t, obs) = lively("gated", 4), inputs((3,), 4)
    nn.init.normal_(net.gate.weight, std=1.0)
    emb, feat = net.embed(t), net.encode(obs)
    centre = net.outlet(net.within(x, emb, feat)).unflatten(-1, (4, 2))
    share = net(x, emb, feat) / (centre - x)
    assert bool(((share > 0) & (share < 1)).all()) and float(share.detach().std()) > 0.05
    fixed = lively("gated", 1)  # a centre and a gate that do not look at x
    nn.init.zeros_(fixed.inlet.weight)
    start = torch.ones(1, 1, 2, requires_grad=True)
    end, emb, feat = start, fixed.embed(torch.tensor([0.5])), fixed.encode(torch.ones(1, 5))
    for _ in range(50):
        end = end + fixed(end, emb, feat) / 50
    (slope,) = torch.autograd.grad(end.sum(), start)
    gate = torch.sigmoid(torch.tensor(5.0))
    torch.testing.assert_close(slope, ((1 - gate / 50) ** 50).expand(1, 1, 2))


@every_net
def test_particles_and_shared_times_broadcast_like_repeated_rows(name):
    net, (x, _, _) = lively(name, 4), inputs((3, 6), 4)
    t, obs = torch.tensor(0.3), inputs((3,), 4)[2]
    together = net(x, net.embed(t), net.encode(obs)[:, None])
    rows = net(
        x.reshape(18, 4, 2),
        net.embed(t.expand(18)),
        net.encode(obs[:, None].expand(3, 6, 5).reshape(18, 5)),
    )
    torch.testing.assert_close(together.reshape(18, 4, 2), rows, rtol=0, atol=1e-5)


@every_net
def test_the_output_depends_on_observation_time_and_every_step_of_the_chunk(name):
    net, (x, t, obs) = lively(name, 4), inputs((3,), 4)
    base = net(x, net.embed(t), net.encode(obs))
    assert not torch.allclose(net(x, net.embed(t), net.encode(obs + 1)), base, atol=1e-3)
    assert not torch.allclose(net(x, net.embed(t / 2), net.encode(obs)), base, atol=1e-3)
    for step in range(4):
        moved = x.clone()
        moved[:, step] += torch.tensor([1.0, -1.0])
        change = (net(moved, net.embed(t), net.encode(obs)) - base).abs().amax((0, 2))
        assert (change > 1e-6).all(), f"step {step} does not reach every step"


@every_net
def test_every_parameter_receives_a_gradient(name):
    net, (x, t, obs) = lively(name, 4), inputs((3,), 4)
    net(x, net.embed(t), net.encode(obs)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


def test_the_mlp_gives_the_same_with_and_without_gradients():
    net, (x, t, obs) = lively("mlp", 4), inputs((3,), 4)
    kept = net(x, net.embed(t), net.encode(obs))
    feat, emb = net.encode(obs).detach(), net.embed(t).detach()
    before = feat.clone(), emb.clone(), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(net(x, emb, feat), kept, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip((feat, emb, x), before, strict=True))


def test_neighbouring_times_of_a_fine_grid_are_told_apart():
    waves = TimeEmbedding(8).waves(torch.linspace(0, 1, 101))
    gaps = (waves[1:] - waves[:-1]).norm(dim=-1)
    assert gaps.min() > 0.5  # against a norm of 4 for the whole vector
    apart = torch.cdist(waves, waves) + 9 * torch.eye(101)
    assert apart.min() > 0.5


def test_impossible_networks_say_what_to_change():
    with pytest.raises(ValueError, match="multiple of heads"):
        Transformer(5, 2, 4, width=16, depth=1, heads=3, encoder_depth=1, activation="relu")
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        UNet1d(5, 2, 4, width=8, widths=[8], kernel=4, groups=4, encoder_depth=1,
               activation="relu")  # fmt: skip
    with pytest.raises(ValueError, match="choose one of relu"):
        MLP(5, 2, 4, width=8, depth=1, encoder_depth=1, activation="swish")


def test_an_average_moves_parameters_by_the_rate_and_copies_buffers():
    source = nn.BatchNorm1d(2)
    target = copy.deepcopy(source)
    nn.init.constant_(target.weight, 0.0)
    nn.init.constant_(source.weight, 1.0)
    source.running_mean.fill_(3.0)  # type: ignore[union-attr]
    assert source.num_batches_tracked is not None
    source.num_batches_tracked.fill_(7)
    lerp_(target, source, 0.25)
    lerp_(target, source, 0.25)
    assert target.weight.tolist() == [0.4375, 0.4375]
    assert target.running_mean.tolist() == [3.0, 3.0]  # type: ignore[union-attr]
    assert target.num_batches_tracked is not None and target.num_batches_tracked.item() == 7
    assert source.weight.tolist() == [1.0, 1.0]


def test_tanh_is_torchs_within_rounding_and_so_is_its_slope():
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    mine, theirs = activation_fn("tanh")(x), torch.tanh(x)
    torch.testing.assert_close(mine, theirs, atol=3e-7, rtol=0)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (mine, theirs)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=0)
