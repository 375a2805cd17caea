"""EXPO: the union of base and edited actions, and who learns from what."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.expo import EXPO
from rheo.algos.recall import pick, told
from rheo.envs.batch import Batch
from rheo.policies.candidates import sample
from rheo.policies.editor import Editor
from rheo.policies.nets import lerp_


class Plane(nn.Module):
    """Q = g . a, the same for both members."""

    def __init__(self, slope):
        super().__init__()
        self.slope = torch.tensor(slope)

    def forward(self, obs, action):
        value = (action * self.slope).sum((-1, -2))
        return torch.stack([value, value])


def make(flow, critic, settings, scale=0.2, **changes) -> Any:
    torch.manual_seed(0)
    policy = flow(2, 2, 1)
    nn.init.normal_(policy.net.outlet.weight, std=0.1)
    editor = Editor(
        2, 2, 1, scale=scale, width=32, depth=1, activation="relu", log_std_min=-5.0,
        log_std_max=2.0,
    )  # fmt: skip
    given = settings("expo", **changes) | {"editor": editor}
    return EXPO(policy, critic(2, 2), torch.Generator().manual_seed(0), **given)


def batch_of(rows=32):
    zeros = torch.zeros(rows)
    return Batch(
        torch.randn(rows, 2), torch.rand(rows, 1, 2) - 0.5, zeros, zeros + 1, torch.randn(rows, 2)
    )


def test_without_room_to_edit_it_is_the_best_of_n_of_the_base(flow, critic, settings):
    algo = make(flow, critic, settings, scale=0.0)
    obs = torch.randn(50, 2)
    action = algo.deploy(obs, torch.Generator().manual_seed(3))
    best = sample(algo.average, algo.critic, obs, torch.Generator().manual_seed(3), algo.candidates)
    torch.testing.assert_close(action, best)


def test_the_union_is_worth_at_least_its_parts(flow, critic, settings):
    algo = make(flow, critic, settings, scale=0.5)
    obs = torch.randn(200, 2)
    generator = torch.Generator().manual_seed(3)
    many = algo.union(obs, algo.sampled(obs, 4, generator), generator)
    base, edited = many.chunk(2, 1)
    assert many.shape == (200, 8, 1, 2) and (edited - base).abs().max() <= 0.5
    chosen = algo.deploy(obs, torch.Generator().manual_seed(3))
    value = algo.critic(obs, chosen).amin(0)
    for part in (base, edited):
        best = algo.critic(obs[:, None], part).amin(0).amax(1)
        assert (value >= best - 1e-6).all()


@pytest.mark.learns
def test_the_editor_goes_to_the_corner_that_q_points_to(flow, critic, settings):
    """Linear Q: delta = sign(g), and the gain is scale * |g|_1."""
    algo = make(flow, critic, settings, policy_lr=1e-2)
    with torch.no_grad():  # inside the box, where no edit is clipped
        for parameter in algo.average.net.outlet.parameters():
            parameter.zero_()
    algo.critic = Plane([2.0, -1.0])
    gain = torch.zeros(())
    for _ in range(150):
        obs = torch.randn((128, 2), generator=algo.generator)
        base = 0.5 * torch.rand((128, 1, 2), generator=algo.generator) - 0.25
        noise = algo.editor.noise(128, algo.generator)
        loss, _, gain = algo.edit_loss(obs, base, noise, torch.tensor(1e-3))
        algo.policy_opt.zero_grad()
        loss.backward()
        algo.policy_opt.step()
    assert gain.item() == pytest.approx(0.2 * 3.0, rel=0.05)


def test_the_base_sees_no_gradient_of_q(flow, critic, settings):
    algo = make(flow, critic, settings, base_lr=0.0)
    before = [p.clone() for p in algo.policy.parameters()]
    editors = [p.clone() for p in algo.editor.parameters()]
    for _ in range(3):
        algo.update(batch_of())
    assert all(p.grad is None for p in algo.policy.parameters())
    assert all(map(torch.equal, before, algo.policy.parameters()))
    assert not all(map(torch.equal, editors, algo.editor.parameters()))


@pytest.mark.learns
def test_the_base_clones_the_batch(flow, critic, settings):
    algo = make(flow, critic, settings, base_lr=1e-2, ema_rate=1.0)
    losses = []
    for _ in range(60):
        batch = batch_of(128)
        batch = batch._replace(action=torch.full_like(batch.action, 0.3))
        losses.append(algo.update(batch)["policy/base_loss"])
    assert losses[-1] < 0.2 * losses[0]


def test_the_backup_is_the_best_of_the_union_by_the_target(flow, critic, settings):
    algo = make(flow, critic, settings)
    lerp_(algo.target, critic(2, 2), 1.0)  # another judge than the critic
    batch, many = batch_of(), torch.rand(32, 6, 1, 2)
    loss, _ = algo.critic_loss(batch, many)
    value = torch.stack([algo.target(batch.next_obs, many[:, i]).amin(0) for i in range(6)]).amax(0)
    goal = batch.reward + batch.discount * value
    expected = 0.5 * (algo.critic(batch.obs, batch.action) - goal).square().mean(-1).sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda f, c, s: make(f, c, s, candidates=0), "candidates=0: at least 1"),
        (lambda f, c, s: make(f, c, s, scale=-0.1), "scale=-0.1: the largest edit"),
    ],
)
def test_what_cannot_edit_is_refused(flow, critic, settings, make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it(flow, critic, settings)


def test_a_kept_base_is_drawn_from_and_not_asked(flow, critic, settings):
    """Of each state its own samples, all distinct, and over many draws each as often."""
    algo = make(flow, critic, settings, base_lr=0.0, base_cache=6)
    batch = batch_of()
    ahead, here = algo.recalled(batch)
    assert ahead.shape == (32, 4, 1, 2) and here.shape == (32, 1, 2)  # fresh

    known = lambda obs, start: obs.flatten(1)[:, :1, None, None] + 0 * start  # noqa: E731
    algo.average.act = known
    memo = algo.remember(batch)
    assert memo.shape == (32, algo.memo_rows, 2)
    batch = batch._replace(memo=memo)
    algo.average.act = None  # no update calls the base any more
    ahead, here = algo.recalled(batch)
    assert torch.equal(ahead, batch.next_obs[:, :1, None, None].expand(32, 4, 1, 2))
    assert torch.equal(here, batch.obs[:, :1, None].expand(32, 1, 2))
    algo.update(batch)

    kept = torch.arange(6.0)[None, :, None].expand(2000, 6, 1)
    drawn = pick(kept, 4, algo.generator)[..., 0].sort(1).values
    assert (drawn.diff(dim=1) > 0).all()
    counts = torch.bincount(drawn.long().flatten(), minlength=6)
    assert ((counts - 8000 / 6).abs() < 5 * (8000 / 6) ** 0.5).all()


@pytest.mark.parametrize("cache", [0, 6])
def test_a_relative_critic_is_told_the_centres_of_both_states(flow, critic, settings, cache):
    algo = make(flow, critic, settings, base_lr=0.0, base_cache=cache, relative=True)
    batch = batch_of()
    if cache:
        memo = algo.remember(batch)
        assert memo.shape == (32, algo.memo_rows, 2)
        batch = batch._replace(memo=memo)
    samples, _ = algo.recalled(batch)
    still = torch.zeros(32, 1, 2)
    centres = [algo.policy.act(obs, still) for obs in (batch.obs, batch.next_obs)]
    known = algo.critic, algo.target, batch, algo.sample_rows
    (here,), (ahead,) = told(*known, lambda: samples)
    torch.testing.assert_close([here, ahead], centres)
    about = (samples - ahead[:, None]).square().mean((0, 1)).sqrt()
    for each in (algo.critic, algo.target):
        torch.testing.assert_close(each.spread, (2 * about).clamp_min(0.01))
    many = algo.union(batch.next_obs, samples, torch.Generator().manual_seed(1))
    loss = algo.critic_loss(batch, many, [here], [ahead])[0]
    torch.testing.assert_close(algo.critic_loss(batch, many)[0], loss)  # it asks by itself
    again = told(*known, lambda: 5 * samples)
    assert torch.equal(again[0][0], here) and torch.equal(algo.critic.spread, algo.target.spread)
    torch.testing.assert_close(algo.critic.spread, (2 * about).clamp_min(0.01))  # measured once


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lr": 1e-3, "base_cache": 16}, r"base_cache=16 keeps .* algo.base_lr=0.001"),
        ({"base_lr": 1e-3, "relative": True}, r"relative=true: .* algo.base_lr=0.001"),
        ({"base_lr": 0.0, "base_cache": 3}, r"base_cache=3: algo.candidates=4 shows 4 answers"),
        ({"base_lr": 0.0, "base_cache": -1}, r"base_cache=-1: "),
    ],
)
def test_what_cannot_be_kept_is_refused(flow, critic, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        make(flow, critic, settings, **changes)
