"""ResiP: a head that starts as nothing, moves alone, and finds a constant error of its base."""

import pytest
import torch

from rheo.envs.batch import Rollout
from rheo.errors import RheoError

LEARN = {"epochs": 4, "minibatch": 64, "policy_lr": 3e-3, "value_lr": 3e-3, "lr_floor": 1.0}


def make(flow, learner, **changes):
    torch.manual_seed(0)
    small = {"width": 32, "depth": 1, "obs_norm": {"_target_": NORM, "kind": "none"}}
    return learner(
        "resip", 2, 2, policy=flow(2, 2, 4), learn=LEARN,
        head={**small, "std": 0.4}, value=small, **changes,
    )  # fmt: skip


NORM = "rheo.policies.normalize.Normalizer"


def worlds(algo, rows=512, wrong=0.06):
    """One step each: the planned action is off by `wrong`, reward -|a_b + scale delta - goal|^2."""
    seen = torch.rand((rows, 5), generator=algo.generator) - 0.5
    choice = algo.act(seen)
    executed = algo.residual_scale * choice.action[:, 0].clamp(-1, 1)
    reward = -100 * (executed + wrong).square().sum(1)
    ends, none = torch.ones(1, rows, dtype=torch.bool), torch.zeros(1, rows)
    kept = {name: value[None] for name, value in choice.kept.items()}
    return Rollout(
        seen[None], choice.action[None], reward[None], none, seen[None], ends, ends,
        torch.ones(1, rows, dtype=torch.int64), kept,
    )  # fmt: skip


def test_the_head_starts_as_no_correction_and_the_base_never_moves(flow, learner):
    algo = make(flow, learner)
    seen = torch.randn(7, 5)
    assert (algo.deploy(seen, algo.generator) == 0).all()
    before = [p.clone() for p in algo.policy.parameters()]
    metrics = algo.update(worlds(algo))
    assert metrics["policy/first_ratio_error"] < 1e-5
    assert all(map(torch.equal, before, algo.policy.parameters()))
    assert not any(p.requires_grad for p in algo.policy.parameters())
    assert (algo.deploy(seen, algo.generator) != 0).any()


@pytest.mark.learns
def test_a_constant_error_of_the_base_is_corrected(flow, learner):
    """The optimum is delta = -wrong / scale."""
    algo = make(flow, learner)
    for _ in range(25):
        algo.update(worlds(algo))
    delta = algo.deploy(torch.rand(200, 5) - 0.5, algo.generator)
    assert delta.mean().item() == pytest.approx(-0.6, abs=0.08)


def test_statistics_act_on_the_observation_alone(flow, learner):
    algo = make(flow, learner)
    norm = algo.head.obs_norm
    norm.shift.copy_(torch.tensor([1.0, 2.0]))
    norm.scale.copy_(torch.tensor([2.0, 4.0]))
    seen = torch.tensor([[3.0, 6.0, 0.5, -0.5, 0.25]])
    plain = torch.tensor([[1.0, 1.0, 0.5, -0.5, 0.25]])
    delta = torch.zeros(1, 1, 2)
    torch.testing.assert_close(
        algo.head.log_prob(seen, delta), algo.head.gaussian.log_prob(plain, delta)
    )


def test_a_scale_of_nothing_is_refused(flow, learner):
    with pytest.raises(RheoError, match="residual_scale=0: must be above 0"):
        make(flow, learner, residual_scale=0.0)
