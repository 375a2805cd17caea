"""Jumps with fresh noise as decisions of their own: a few-step policy tuned by `algo=rlcm`."""

from typing import Any

import pytest
import torch

from rheo.envs.batch import Rollout

STEPS = 2


@pytest.fixture
def tuned(few_step: Any, learner: Any) -> Any:
    """A small few-step policy of its first weights, and what tunes it."""

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        policy = few_step(1, 1, width=32)
        policy.steps, policy.eta = STEPS, 1.0
        torch.nn.init.normal_(policy.net.outlet.weight, std=0.1)
        learn = {"epochs": 4, "minibatch": 64, "policy_lr": 3e-3, "value_lr": 3e-3, "clip": 0.1}
        words = {"tuned_steps": STEPS, "clip_first": 0.1, **changes}
        return learner("rlcm", 1, 1, policy=policy, learn=learn, **words)

    return make


def rollout(algo: Any, rows: int = 128) -> Rollout:
    """Decisions that end at once, best at a = 0.4."""
    obs = torch.zeros(1, rows, 1)
    choice = algo.act(obs[0])
    reward = -(choice.action.clamp(-1, 1) - 0.4).square().sum((1, 2))[None]
    ends, none = torch.ones(1, rows, dtype=torch.bool), torch.zeros(1, rows)
    one = torch.ones(1, rows, dtype=torch.int64)
    kept = {name: value[None] for name, value in choice.kept.items()}
    return Rollout(obs, choice.action[None], reward, none, obs, ends, ends, one, kept)


def test_each_jump_is_a_sample_whose_first_ratio_is_one(tuned):
    algo = tuned()
    told = algo.update(rollout(algo))
    assert algo.samples == STEPS and told["policy/first_ratio_error"].item() < 1e-4
    assert told["policy/minibatches"].item() == 4 * STEPS * 128 / 64


def test_exploring_keeps_a_floor_of_noise_at_the_end_and_deployment_none(tuned):
    """Of the last jump, back from whose end there is no way to go."""
    algo, obs = tuned(std_floor=0.3), torch.zeros(4000, 1)
    x = algo.act(obs).kept["x"]  # [N, K + 1, 1, 1]
    feat, times = algo.policy.features(obs), algo.policy.times()
    for k, width in enumerate((0.5, 0.3)):
        mean, _ = algo.policy.step(x[:, k], times[k], times[k + 1], feat, eta=1.0)
        assert (x[:, k + 1] - mean).std().item() == pytest.approx(width, rel=0.05)
    # of the chain alone, but for deploy_floor, which is far below what is left of the noise
    state = torch.Generator().manual_seed(3)
    found = algo.deploy(obs, state)
    state.manual_seed(3)
    start = algo.policy.noise(len(obs), state)
    torch.testing.assert_close(found, algo.policy.drawn(obs, start, state, 1.0))


@pytest.mark.learns
def test_a_few_step_policy_learns_from_rewards_alone(tuned):
    algo = tuned()
    obs, seed = torch.zeros(500, 1), torch.Generator()
    before = (algo.deploy(obs, seed.manual_seed(0)) - 0.4).square().mean().item()
    for _ in range(25):
        algo.update(rollout(algo))
    after = (algo.deploy(obs, seed.manual_seed(0)) - 0.4).square().mean().item()
    assert after < 0.3 * before, (before, after)
