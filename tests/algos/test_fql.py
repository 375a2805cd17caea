"""Flow Q-learning: the head is the flow's map, moved uphill."""

import pytest
import torch
from torch import nn

from rheo.algos.optim import step
from rheo.envs.batch import Batch
from rheo.errors import RheoError


class Level(nn.Module):
    """Two critics of constant values."""

    members = 2

    def __init__(self, first=1.0, second=3.0, slope=0.0):
        super().__init__()
        self.level, self.slope = nn.Parameter(torch.tensor([first, second])), slope

    def forward(self, obs, action):
        total = action.sum((-2, -1))
        shape = (2, *[1] * total.ndim)
        return self.level.view(shape) * (1 + self.slope * total)


@pytest.mark.learns
def test_the_head_becomes_the_flows_map_of_the_same_noise(learner):
    """With a critic without slope; data of two modes, so the map is far from linear."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    algo = learner("fql", 1, 1, critic=Level(), alpha=10.0, policy_lr=3e-3)
    obs = torch.zeros(256, 1)
    for k in range(300):
        for group in algo.policy_opt.param_groups:
            group["lr"] = 3e-3 if k < 200 else 5e-4
        side = torch.where(torch.rand((256, 1, 1), generator=generator) < 0.5, 0.5, -0.5)
        action = side + 0.05 * torch.randn((256, 1, 1), generator=generator)
        step(algo.policy_opt, algo.policy_loss(obs, action, algo.draw(256, generator))[0])
    obs, noise = torch.zeros(2000, 1), algo.policy.noise(2000, generator)
    with torch.no_grad():
        flow, head = algo.policy.act(obs, noise), algo.head.act(obs, noise)
    assert (head - flow).square().mean().sqrt() < 0.1  # of a spread of 0.5
    assert flow.std() > 0.4 and (head - noise).square().mean() > 0.1
    assert algo.head.steps == 1 and algo.policy.steps > 1


def test_distillation_gives_the_flow_no_gradient_and_cloning_the_head_none(learner, generator):
    algo = learner("fql", 1, 1, critic=Level(slope=0.5))
    obs, action = torch.zeros(16, 1), torch.zeros(16, 1, 1)
    draws = algo.draw(16, generator)
    distance, _ = algo.distance(obs, draws)
    distance.backward()
    assert all(p.grad is None for p in algo.policy.parameters())
    algo.head.zero_grad(set_to_none=True)
    algo.cloning(obs, action, draws).backward()
    assert all(p.grad is None for p in algo.head.parameters())


def test_scaling_q_leaves_the_heads_gradient_unchanged(learner):
    grads, draws = [], None
    for scale in (1.0, 10.0):
        torch.manual_seed(0)
        algo = learner("fql", 1, 1, critic=Level(scale, 3 * scale, slope=0.5))
        draws = algo.draw(64, algo.generator) if draws is None else draws
        loss, _ = algo.policy_loss(torch.zeros(64, 1), torch.zeros(64, 1, 1), draws)
        grads.append(torch.autograd.grad(loss, list(algo.head.parameters()), allow_unused=True))
    for first, second in zip(*grads, strict=True):
        if first is not None and second is not None:
            assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("join", "value"), [("mean", 2.0), ("min", 1.0)])
def test_the_target_joins_the_critics_as_asked(learner, join, value):
    algo = learner("fql", 1, 1, critic=Level(), target_join=join)
    obs = torch.zeros(8, 1)
    batch = Batch(obs, torch.zeros(8, 1, 1), torch.ones(8), torch.full((8,), 0.9), obs)
    loss, _ = algo.critic_loss(batch, algo.head.noise(8, algo.generator))
    goal = 1 + 0.9 * value
    assert loss.item() == pytest.approx(0.5 * ((1 - goal) ** 2 + (3 - goal) ** 2), rel=1e-5)


def test_a_noise_prediction_is_refused(flow, learner):
    policy = flow(1, 1)
    policy.prediction = "eps"
    with pytest.raises(RheoError, match="one-step head"):
        learner("fql", 1, 1, policy=policy)
