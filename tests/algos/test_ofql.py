"""One-step flow Q-learning: what it shares with mean flow and shortcuts, and its gradient."""

import pytest
import torch
from torch import nn

from rheo.algos import jumping
from rheo.algos.meanflow import MeanFlow
from rheo.algos.onestep import FINEST
from rheo.algos.shortcut import Shortcut
from rheo.envs.batch import Windows
from rheo.policies.nets import clone

F64 = torch.float64


class Bowl(nn.Module):
    """Two critics with different optima, times `scale`."""

    members = 2

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, obs, action):
        near = [-(action - best).square().sum((-2, -1)) for best in (0.3, -0.2)]
        return self.scale * torch.stack(near)


def moved(policy, std=0.3):
    """The policy with output layers that are not zero, as they start."""
    torch.manual_seed(1)
    nn.init.normal_(policy.net.outlet.weight, std=std)
    nn.init.normal_(policy.jump.net.layers[-1].weight, std=0.5)
    return policy


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_without_the_q_term_it_is_mean_flow_bit_for_bit(few_step, learner, settings, power):
    torch.manual_seed(0)
    policy, data = few_step(2, 1), torch.Generator().manual_seed(3)
    twin = clone(policy, frozen=False)
    algo = learner("ofql", 2, 1, policy=policy, eta=0.0, policy_lr=1e-3, weight_power=power)
    values = {"lr": 1e-3, "weight_decay": 0.0, "lr_warmup": 0.0, "lr_floor": 1.0}
    values |= {"ema_rate": algo.ema_rate, "max_norm": algo.max_norm, "weight_power": power}
    other = MeanFlow(twin, torch.Generator(), 100, **settings("meanflow", **values))
    for _ in range(5):
        obs = torch.randn((32, 2), generator=data)
        action = torch.rand((32, 1, 1), generator=data)
        other.generator.set_state(algo.generator.get_state())
        loss, _ = algo.policy_loss(obs, action, algo.draw(32))
        algo.learn_policy(loss)
        other.update(Windows(obs, action, torch.ones((32, 1), dtype=torch.bool)))
    for mine, theirs in ((policy, twin), (algo.average, other.average)):
        pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert not torch.equal(policy.net.outlet.weight, algo.average.net.outlet.weight)


def test_a_bootstrapped_jump_is_two_half_jumps_of_the_averaged_policy(few_step, learner, settings):
    algo = learner("ofql", 2, 1, policy=moved(few_step(2, 1)), jump="bootstrap")
    for p in algo.policy.parameters():  # from here on the two differ
        p.data.add_(0.1)
    obs, action = torch.randn(16, 2), 2 * torch.rand(16, 1, 1) - 1
    noise, t, s = drawn = algo.jump_draws(16, algo.generator)
    error = algo.errors(algo.policy, obs, action, drawn)
    assert {float(length) for length in (s - t)[:8]} <= {2.0**-j for j in range(5)}
    shortcut = Shortcut(few_step(2, 1), algo.generator, 1, **settings("shortcut"))
    x = t[:, None, None] * action + (1 - t)[:, None, None] * noise
    slow, feat = algo.average, algo.policy.features(obs)
    goal = action - noise
    halved = shortcut.target(slow, x[:8], goal[:8], t[:8], s[:8], slow.features(obs[:8]))
    goal = torch.cat([halved, goal[8:]])
    expected = (algo.policy.average_velocity(x, t, s, feat) - goal).square().mean((1, 2))
    torch.testing.assert_close(error, expected)
    assert shortcut.levels == FINEST == jumping.levels(16)


@pytest.mark.learns
@pytest.mark.parametrize("jump", ["derivative", "bootstrap"])
def test_one_step_clones_two_modes_and_the_flows_own_single_step_does_not(few_step, learner, jump):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    changes = {"policy_lr": 5e-3, "ema_rate": 0.1, "lr_floor": 0.05, "eta": 0.0, "jump": jump}
    algo = learner("ofql", 1, 1, policy=few_step(1, 1, width=32), run_updates=400, **changes)
    obs = torch.zeros(256, 1)
    for _ in range(400):
        algo.begin()
        side = (torch.rand((256, 1, 1), generator=generator) < 0.5).float()
        algo.learn_policy(algo.policy_loss(obs, 0.6 - 1.2 * side, algo.draw(256))[0])
    policy, obs = algo.average, torch.zeros(4000, 1)
    noise = policy.noise(4000, generator)
    with torch.no_grad():
        one = policy.act(obs, noise, clip=False).flatten()
        flow = (noise + policy.velocity(noise, torch.zeros(4000), policy.features(obs))).flatten()
    near, single = (((x.abs() - 0.6).abs() < 0.3).float().mean().item() for x in (one, flow))
    # after 600 updates three seeds have .78 to .86 near a mode, and .00
    assert near > 0.6 and single < 0.1
    assert (one < 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_the_one_steps_gradient_equals_finite_differences(few_step, learner):
    policy = moved(few_step(1, 2, width=8), std=0.02).double()
    algo = learner("ofql", 1, 2, policy=policy, critic=Bowl().double())
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((16, 1), generator=generator, dtype=F64)
    start = 0.2 * torch.randn((16, 1, 2), generator=generator, dtype=F64)
    draws = algo.draw(16)._replace(start=start, member=torch.tensor([0]))
    parameters = list(policy.parameters())
    assert policy.act(obs, start, clip=False).abs().max() < 1
    divisor = algo.critic(obs, policy.act(obs, start))[1].abs().mean().detach()
    grads = torch.autograd.grad(algo.q_loss(obs, draws), parameters, allow_unused=True)

    def climbed():
        with torch.no_grad():
            t, s = torch.zeros(16, dtype=F64), torch.ones(16, dtype=F64)
            action = start + policy.average_velocity(start, t, s, policy.features(obs))
            return -algo.critic(obs, action)[0].mean() / divisor

    checked = 0
    for parameter, grad in zip(parameters, grads, strict=True):
        flat = parameter.data.view(-1)
        if grad is None:
            continue
        for index in range(0, len(flat), max(1, len(flat) // 3)):
            kept = flat[index].clone()
            flat[index] = kept + 1e-5
            up = climbed()
            flat[index] = kept - 1e-5
            slope = (up - climbed()) / 2e-5
            flat[index] = kept
            assert grad.view(-1)[index].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-8)
            checked += 1
    assert checked > 20


def test_an_action_beyond_the_box_is_judged_at_the_wall_and_still_moves(few_step, learner):
    algo = learner("ofql", 1, 1, policy=few_step(1, 1), critic=Bowl())
    start = torch.full((4, 1, 1), 2.5)  # an output layer of zero: the action is the noise
    own = algo.own(torch.zeros(4, 1), start)
    torch.testing.assert_close(own, torch.ones(4, 1, 1))
    draws = algo.draw(4)._replace(start=start, member=torch.tensor([0]))
    bias = algo.policy.net.outlet.bias
    (slope,) = torch.autograd.grad(algo.q_loss(torch.zeros(4, 1), draws), bias)
    # -d/da of -(a - .3)^2 at the wall, by the other's |Q|, 1.2^2: down the gradient is inwards
    assert slope.item() == pytest.approx(2 * 0.7 / 1.44, rel=1e-5)


def test_scaling_rewards_by_ten_leaves_the_actors_gradient_unchanged(few_step, learner):
    grads, draws = [], None
    for scale in (1.0, 10.0):
        torch.manual_seed(0)
        algo = learner("ofql", 1, 1, policy=moved(few_step(1, 1)), critic=Bowl(scale))
        draws = algo.draw(64) if draws is None else draws
        loss, _ = algo.policy_loss(torch.zeros(64, 1), torch.zeros(64, 1, 1), draws)
        grads.append(torch.autograd.grad(loss, list(algo.policy.parameters())))
    for first, second in zip(*grads, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def test_more_steps_than_one_are_refused_in_training_unless_asked_for(few_step, learner):
    policy = few_step(1, 1)
    policy.steps = 4
    algo = learner("ofql", 1, 1, policy=policy)
    with pytest.raises(ValueError, match="policy.steps=4: .*algo.one_step=false"):
        algo.before_training(None)
    assert algo.deploy(torch.zeros(3, 1), algo.generator).shape == (3, 1, 1)  # evaluations may
    assert learner("ofql", 1, 1, policy=policy, one_step=False).before_training(None) == {}


def test_settings_that_do_not_fit_are_refused_by_their_key(few_step, learner):
    with pytest.raises(ValueError, match="flow_share"):
        learner("ofql", 1, 1, flow_share=0.0)
    late = few_step(1, 1)
    late.grid = "late"
    with pytest.raises(ValueError, match="policy.grid=late"):
        learner("ofql", 1, 1, policy=late, jump="bootstrap")
