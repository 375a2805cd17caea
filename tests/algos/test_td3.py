"""TD3 against its equations, and on a task whose answer is known."""

import pytest
import torch
from hills import Hill
from torch import nn

from rheo.algos.returns import pessimistic, smoothed
from rheo.envs.batch import Batch


class Fixed(nn.Module):
    """Q_1 = 1 + a, Q_2 = 2 a."""

    members = 2

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, obs, action):
        total = action.sum((-2, -1))
        return self.scale * torch.stack([1 + total, 2 * total])


def batch_of(rows, discount=0.9):
    obs = torch.randn(rows, 1)
    return Batch(obs, torch.zeros(rows, 1, 1), torch.ones(rows), torch.full((rows,), discount), obs)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_smoothing_is_clipped_twice():
    action, noise = torch.tensor([0.0, 0.9, -0.9, 0.2]), torch.tensor([1.0, 1.0, -9.0, 9.0])
    found = smoothed(action, noise, 0.2, 0.5)
    torch.testing.assert_close(found, torch.tensor([0.2, 1.0, -1.0, 0.7]))


def test_members_are_joined_by_the_smallest_the_mean_or_a_lower_bound():
    q = torch.tensor([[1.0, 4.0], [3.0, -2.0]])
    assert pessimistic(q, "min").tolist() == [1.0, -2.0]
    assert pessimistic(q, "mean").tolist() == [2.0, 1.0]
    assert pessimistic(q, "lcb", 0.5).tolist() == [1.5, -0.5]  # deviations of 1 and 3
    with pytest.raises(ValueError, match="algo.join='least'"):
        pessimistic(q, "least")  # pyright: ignore[reportArgumentType]


def test_the_target_smooths_the_slow_actors_action_and_takes_the_smaller_value(learner):
    algo = learner("td3", 1, 1, critic=Fixed(), target_noise=0.2, noise_clip=0.5)
    for p in algo.slow.parameters():
        p.data += 0.3
    batch = batch_of(64)
    noise = torch.randn(64, 1, 1)
    loss, _ = algo.critic_loss(batch, noise)
    a = (algo.slow(batch.obs) + (0.2 * noise).clamp(-0.5, 0.5)).clamp(-1, 1).flatten().detach()
    goal = 1 + 0.9 * torch.minimum(1 + a, 2 * a)
    expected = 0.5 * ((1 - goal).square().mean() + goal.square().mean())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_actor_climbs_the_first_critic_only(learner):
    algo = learner("td3", 1, 1, critic=Fixed())
    obs = torch.randn(16, 1)
    own = algo.policy(obs)
    loss, _ = algo.policy_loss(obs, torch.zeros(16, 1, 1))
    assert loss.item() == pytest.approx(-(1 + own.mean()).item(), rel=1e-5)


def test_actor_and_targets_move_once_every_second_update(learner):
    algo, batch = learner("td3", 1, 1), batch_of(16)
    before = [flat(algo.slow), flat(algo.target)]
    assert "policy/loss" not in algo.update(batch)
    assert torch.equal(flat(algo.slow), before[0]) and torch.equal(flat(algo.target), before[1])
    assert "policy/loss" in algo.update(batch)
    assert not torch.equal(flat(algo.slow), before[0])
    assert not torch.equal(flat(algo.target), before[1])
    assert {int(state["step"]) for state in algo.policy_opt.state.values()} == {1}
    assert {int(state["step"]) for state in algo.critic_opt.state.values()} == {2}


def test_it_explores_around_the_action_that_it_deploys(learner, generator):
    algo, obs = learner("td3", 1, 1, explore_noise=0.1), torch.zeros(4000, 1)
    action = algo.deploy(obs, generator)
    assert torch.equal(action, algo.policy(obs)) and action.unique().numel() == 1
    gap = algo.act(obs) - action
    assert gap.std().item() == pytest.approx(0.1, rel=0.05)
    assert gap.mean().item() == pytest.approx(0.0, abs=0.01)
    with torch.no_grad():
        algo.policy.net.layers[-1].bias.fill_(9.0)
    assert algo.act(obs).max() == 1.0  # inside the box


@pytest.mark.learns
def test_the_actor_finds_the_best_action_of_every_state(learner):
    algo = learner(
        "td3", 1, 1, critic=Hill(lambda obs: obs[..., None] / 2), policy_lr=3e-3, critic_lr=1e-9
    )
    for _ in range(400):
        algo.update(batch_of(128))
    obs = torch.linspace(-1.5, 1.5, 7)[:, None]
    gap = algo.deploy(obs, torch.Generator()).flatten() - obs.flatten() / 2
    assert gap.abs().max() < 0.1  # five seeds: 0.004 to 0.037
