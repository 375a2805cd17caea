"""Behaviour cloning recovers the demonstrations' distribution."""

from typing import Any

import pytest
import torch

from rheo.algos.bc import BC, BCGaussian
from rheo.algos.optim import cosine
from rheo.envs.batch import Windows
from rheo.policies.heads import Gaussian


def windows(obs, action):
    """Windows that lie inside their episodes."""
    return Windows(obs, action, torch.ones(action.shape[:2], dtype=torch.bool))


@pytest.mark.learns
@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_two_modes_are_cloned_with_their_shares(flow, settings, path):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy = flow(1, 1, path=path, steps=20)
    updates = 400
    algo = BC(policy, generator, updates, **settings("bc", lr=5e-3, ema_rate=0.02))
    for _ in range(updates):
        side = (torch.rand((256, 1, 1), generator=generator) < 0.25).float()
        action = 0.6 - 1.2 * side + 0.05 * torch.randn((256, 1, 1), generator=generator)
        algo.update(windows(torch.zeros(256, 1), action))
    sample = algo.deploy(torch.zeros(5000, 1), generator).flatten()
    assert (sample < 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert sample[sample > 0].mean().item() == pytest.approx(0.6, abs=0.03)
    assert sample[sample > 0.3].std().item() < 0.12


def test_the_schedule_warms_up_and_falls_to_its_floor():
    assert cosine(0.01, 0.02, 0.1) == pytest.approx(0.5)
    assert cosine(0.02, 0.02, 0.1) == pytest.approx(1.0)
    assert cosine(1.0, 0.02, 0.1) == pytest.approx(0.1)
    assert cosine(0.51, 0.02, 0.1) == pytest.approx(0.55)


def test_validation_uses_the_averaged_policy_and_no_global_randomness(flow, settings, generator):
    algo = BC(flow(2, 1), generator, 10, **settings("bc"))
    data = windows(torch.zeros(16, 2), torch.zeros(16, 1, 1))
    seeded = [algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] for _ in range(2)]
    assert seeded[0] == seeded[1]
    for parameter in algo.policy.parameters():
        torch.nn.init.ones_(parameter)
    assert algo.validate(data, torch.Generator().manual_seed(3))["val/loss"] == seeded[0]


@pytest.mark.parametrize("learn", [True, False])
def test_actions_past_an_episodes_end_count_only_when_asked(flow, settings, generator, learn):
    algo = BC(flow(2, 1, 4), generator, 10, **settings("bc", learn_padding=learn))
    obs, action = torch.randn(8, 2), torch.rand(8, 4, 1)
    inside = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 1, 2, 3])[:, None]
    changed = torch.where(inside[..., None], action, -action)
    losses = [
        algo.validate(Windows(obs, a, inside), torch.Generator().manual_seed(3))["val/loss"]
        for a in (action, changed)
    ]
    noise, t = algo.draw(Windows(obs, action, inside), torch.Generator().manual_seed(3))
    t = t[:, None, None]
    x = t * action + (1 - t) * noise
    velocity = algo.average.velocity(x, t[:, 0, 0], algo.average.features(obs))
    error = (velocity - (action - noise)).square().mean(-1)
    rows = [error[i].mean() if learn else error[i][inside[i]].mean() for i in range(8)]
    assert losses[0].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)
    assert (losses[0] == losses[1]) == (not learn)


@pytest.mark.parametrize("learn", [True, False])
def test_several_draws_of_a_row_are_a_batch_in_which_it_stands_as_often(
    flow, settings, generator, learn
):
    """The same loss and gradient, with every observation encoded once."""
    algo = BC(flow(2, 1, 4), generator, 10, **settings("bc", draws=3, learn_padding=learn))
    seen = []
    net: Any = algo.policy.net
    net.register_forward_pre_hook(lambda net, args: seen.append(args[2].shape))
    inside = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 1, 2, 3])[:, None]
    batch = Windows(torch.randn(8, 2), torch.rand(8, 4, 1), inside)
    noise, t = algo.draw(batch, generator)
    assert noise.shape == (8, 3, 4, 1) and t.shape == (8, 3)
    assert torch.equal((t * 24).floor().flatten().sort().values, torch.arange(24.0))  # one in each
    gradients = []
    rows: Any
    for rows, drawn in (
        (algo.example(batch), (noise, t)),
        ([None if x is None else x.repeat_interleave(3, 0) for x in algo.example(batch)],
         (noise.flatten(0, 1), t.flatten())),
    ):  # fmt: skip
        loss = algo.loss(algo.policy, *rows, *drawn)
        parts = torch.autograd.grad(loss, list(algo.policy.parameters()), allow_unused=True)
        gradients.append(torch.cat([loss[None], *[g.flatten() for g in parts if g is not None]]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert seen == [(8, 1, seen[0][-1]), (24, seen[0][-1])]  # features of 8 rows, then of 24


@pytest.mark.learns
def test_a_gaussian_clones_the_least_squares_line_and_its_spread(settings):
    """Maximum likelihood in closed form: the regression line and the residuals' deviation."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy = Gaussian(1, 2, 1, width=1, depth=0, activation="relu", std=0.5)
    obs = torch.randn((400, 1), generator=generator)
    spread = torch.tensor([0.05, 0.2])
    noise = spread * torch.randn((400, 1, 2), generator=generator)
    action = 0.3 * obs[:, None] * torch.tensor([1.0, -0.5]) + 0.1 + noise
    algo = BCGaussian(policy, generator, 500, **settings("bc_gaussian", lr=3e-2))
    for _ in range(500):
        algo.update(windows(obs, action))
    design = torch.cat([obs, torch.ones_like(obs)], 1)
    line = torch.linalg.lstsq(design, action[:, 0]).solution
    torch.testing.assert_close(policy(obs)[0][:, 0], design @ line, atol=5e-3, rtol=0)
    residual = (action[:, 0] - design @ line).std(0, correction=0)
    torch.testing.assert_close(policy.log_std.exp()[0].detach(), residual, rtol=0.02, atol=0)
    deployed = algo.deploy(obs, generator)
    torch.testing.assert_close(deployed, algo.average(obs)[0].clamp(-1, 1))


def test_the_gaussian_leaves_out_what_lies_past_an_episodes_end(settings, generator):
    policy = Gaussian(2, 1, 4, width=8, depth=1, activation="relu", std=0.5)
    obs, action = torch.randn(8, 2), torch.rand(8, 4, 1)
    inside = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 1, 2, 3])[:, None]
    changed = torch.where(inside[..., None], action, -action)
    for learn in (True, False):
        algo = BCGaussian(policy, generator, 10, **settings("bc_gaussian", learn_padding=learn))
        losses = [
            algo.validate(Windows(obs, a, inside), generator)["val/loss"] for a in (action, changed)
        ]
        assert (losses[0] == losses[1]) == (not learn)
        normal = torch.distributions.Normal(policy(obs)[0], policy.log_std.exp())
        each = -normal.log_prob(action)[..., 0]
        rows = [each[i].mean() if learn else each[i][inside[i]].mean() for i in range(8)]
        assert losses[0].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


# ---- a condition that has to be listened to ------------------------------------------------------

ASKED = {"condition": [1], "contrast_coef": 0.5, "contrast_beta": 3.0}


def test_a_contrast_is_of_errors_under_anothers_condition(flow, settings):
    """-log sigmoid(beta (e' - e)) by hand; rows that are asked for the same do not count."""
    policy = flow(2, 1)
    with torch.no_grad():
        policy.net.outlet.weight.normal_(std=0.2)
    algo = BC(policy, torch.Generator().manual_seed(0), 10, **settings("bc", **ASKED))
    obs = torch.tensor([[0.1, 1.0], [0.2, 1.0], [0.3, -1.0]])
    action, noise, t = torch.rand(3, 1, 1), torch.randn(3, 1, 1), torch.rand(3)
    other = torch.tensor([[0.1, -1.0], [0.2, 1.0], [0.3, 1.0]])  # each asked for what the last was
    gap = policy.match(other, action, noise, t) - policy.match(obs, action, noise, t)
    loss, heard = algo.contrast(obs, action, None, noise, t)
    kept = gap[[0, 2]]
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(3.0 * kept).mean())
    assert heard == (kept > 0).float().mean()
    gaussian = Gaussian(2, 1, 1, width=8, depth=1, activation="relu", std=0.5)
    words = settings("bc_gaussian", **ASKED)
    _, heard = BCGaussian(gaussian, torch.Generator(), 10, **words).contrast(obs, action, None)
    density = [-gaussian.log_prob(seen, action) for seen in (obs, other)]
    assert heard == (density[1] > density[0])[[0, 2]].float().mean()
    many = noise[:, None].expand(3, 4, 1, 1)
    again, _ = algo.contrast(obs, action, None, many, t[:, None].expand(3, 4))
    torch.testing.assert_close(again, loss)


@pytest.mark.learns
def test_with_a_contrast_a_policy_listens_to_its_condition(flow, settings):
    """Actions follow a goal a little; a condition that is preferred is followed further."""
    apart = {}
    for coef in (0.0, 4.0):
        torch.manual_seed(0)
        words = {**ASKED, "contrast_coef": coef, "contrast_beta": 0.5} if coef else {}
        generator = torch.Generator().manual_seed(0)
        algo = BC(flow(2, 1), generator, 150, **settings("bc", lr=5e-3, ema_rate=0.05, **words))
        told = {}
        for _ in range(150):
            goal = torch.randint(2, (128, 1), generator=generator) * 2.0 - 1.0
            action = (0.1 * goal + 0.3 * torch.randn((128, 1), generator=generator))[:, None]
            obs = torch.cat([torch.randn((128, 1), generator=generator), goal], 1)
            told = algo.update(windows(obs, action))
        assert ("policy/heard" in told) == bool(coef)
        obs = torch.tensor([[0.0, -1.0], [0.0, 1.0]]).repeat_interleave(500, 0)
        ends = algo.deploy(obs, generator).view(2, 500).mean(1)
        apart[coef] = (ends[1] - ends[0]).item()
    assert apart[0.0] == pytest.approx(0.2, abs=0.1)
    assert apart[4.0] > apart[0.0] + 0.1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"contrast_coef": 0.5}, "algo.condition=\\[\\] with algo.contrast_coef=0.5"),
        ({"condition": [1]}, "with algo.contrast_coef=0"),
        ({"condition": [2], "contrast_coef": 0.5}, "has columns 0 to 1"),
    ],
)
def test_a_condition_that_is_not_there_or_not_used_is_refused(flow, settings, words, told):
    with pytest.raises(ValueError, match=told):
        BC(flow(2, 1), torch.Generator(), 10, **settings("bc", **words))
