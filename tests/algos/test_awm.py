"""Advantage weighted matching: its guards, its signed part, its fixed point."""

import pytest
import torch
from torch import nn

from rheo.algos.losses import exp_weight
from rheo.algos.optim import step
from rheo.envs.batch import Batch
from rheo.errors import RheoError

SIGNED = {"signed_coef": 1.0, "bc_coef": 1.0, "anchor_coef": 1.0}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({**SIGNED, "anchor_coef": 0.9}, "anchor_coef"),
        ({**SIGNED, "advantage_max": 1.1}, "anchor_coef"),
        ({**SIGNED, "bc_coef": 0.5}, "bc_coef"),
        ({"signed_coef": -0.1}, "signed_coef"),
    ],
)
def test_settings_without_a_minimum_are_refused(learner, changes, key):
    learner("awm", 1, 1, **SIGNED)
    with pytest.raises(RheoError, match=key):
        learner("awm", 1, 1, **changes)


def test_without_signed_weights_there_is_no_second_policy_to_train(learner):
    algo = learner("awm", 1, 1, anchor_coef=0.0)
    assert algo.behaviour is None and not hasattr(algo, "behaviour_opt")
    assert algo.draw(8, algo.generator).start.numel() == 0


def test_with_positive_weights_alone_it_is_implicit_q_learning_with_a_flow(learner):
    """To the last bit: what the two papers call by different names is one update."""
    torch.manual_seed(0)
    rows = 32
    batch = Batch(
        torch.randn(rows, 2), torch.rand(rows, 1, 1), torch.randn(rows),
        torch.full((rows,), 0.9), torch.randn(rows, 2),
    )  # fmt: skip
    sides = []
    for name in ("awm", "iql"):
        torch.manual_seed(1)
        algo = learner(name, 2, 1)
        for _ in range(4):
            algo.update(batch)
        sides.append([*algo.policy.parameters(), *algo.critic.parameters()])
    assert all(map(torch.equal, *sides))


class Slope(nn.Module):
    """Q is the action."""

    members = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, obs, action):
        value = action.sum((-2, -1)) + 0 * self.unused
        return torch.stack([value, value])


@pytest.mark.learns
def test_signed_weights_move_the_policy_uphill_and_the_anchor_holds_it(learner):
    """From a behaviour of N(0, 1), signed and anchored alone: up, by less with a stronger one."""
    means = []
    for anchor in (1.0, 8.0):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        values = {**SIGNED, "anchor_coef": anchor, "signed_batch": 32, "pairs": 4, "particles": 8}
        algo = learner("awm", 1, 1, critic=Slope(), **values, policy_lr=6e-3)
        obs = torch.zeros(32, 1)
        for _ in range(80):
            loss, _ = algo.signed_loss(obs, algo.draw(32, generator))
            step(algo.policy_opt, loss)
        noise = algo.policy.noise(4000, generator)
        with torch.no_grad():
            obs = torch.zeros(4000, 1)
            pair = [p.act(obs, noise, clip=False) for p in (algo.policy, algo.behaviour)]
            means.append((pair[0] - pair[1]).mean().item())
    # first order: E[A a] / anchor, A a fifth of the standardised action of spread 0.7: 0.14
    assert 0.04 < means[0] < 0.2 and 0.005 < means[1] < 0.5 * means[0]


def test_the_same_pairs_serve_every_sample_of_a_state(learner):
    """With equal samples the signed weights cancel exactly, whatever the pairs."""
    algo = learner("awm", 1, 1, critic=Slope(), **SIGNED, psi="square", particles=4)
    draws = algo.draw(16, algo.generator)
    assert draws.pair_noise.shape[1] == draws.pair_t.shape[1] == 1
    same = draws._replace(start=draws.start[:, :1].expand(-1, 4, -1, -1))
    _, metrics = algo.signed_loss(torch.zeros(16, 1), same)
    assert metrics["policy/signed"] == 0


def test_signed_weights_never_fall_on_recorded_actions(learner):
    """The gradient of the signed part does not know the recorded actions; theirs are positive."""
    algo = learner("awm", 1, 1, critic=Slope(), **SIGNED)
    draws = algo.draw(16, algo.generator)
    obs, action = torch.zeros(16, 1), torch.full((16, 1, 1), 0.5)
    worst = torch.full((16,), -1e3)
    weight = exp_weight(worst, algo.beta, algo.weight_max) + algo.bc_coef
    assert weight.min() >= algo.bc_coef
    loss = algo.data_loss(algo.policy, obs, action, weight, draws)
    assert loss >= 0
