"""Advantage-conditioned cloning: which actions are good, which are told so, and what acts."""

import pytest
import torch

from rheo.envs.batch import Batch
from rheo.policies.guidance import BAD, GOOD, UNTOLD


def random_batch(rows):
    generator = torch.Generator().manual_seed(0)
    obs, ahead = torch.randn((2, rows, 3), generator=generator)
    action = 2 * torch.rand((rows, 1, 2), generator=generator) - 1
    reward, discount = torch.randn(rows, generator=generator), torch.full((rows,), 0.9)
    return Batch(obs, action, reward, discount, ahead, torch.zeros(rows))


def test_good_is_what_is_worth_no_less_than_the_state_or_the_best_share_of_a_batch(learner):
    batch = random_batch(8)
    gap = torch.tensor([0.5, -0.1, 0.0, 2.0, -3.0, 0.1, -0.2, 0.3])
    found = learner("cfgrl", 3, 2).flags(batch, gap)
    assert found.tolist() == [GOOD, BAD, GOOD, GOOD, BAD, GOOD, BAD, GOOD]
    found = learner("cfgrl", 3, 2, good_share=0.25).flags(batch, gap)
    assert found.tolist() == [GOOD, BAD, BAD, GOOD, BAD, BAD, BAD, BAD]


def test_an_advantage_of_what_follows_asks_the_value_alone(learner):
    algo, batch = learner("cfgrl", 3, 2, advantage="td"), random_batch(64)
    torch.nn.init.normal_(algo.value.net.layers[-1].bias, mean=1.0)
    with torch.no_grad():
        gain = batch.reward + 0.9 * algo.value(batch.next_obs) - algo.value(batch.obs)
    found = algo.flags(batch, torch.full((64,), torch.nan))
    assert torch.equal(found == GOOD, gain >= 0) and 0 < (gain >= 0).sum() < 64


def test_a_share_of_the_actions_is_told_nothing_whatever_they_are_worth(learner, monkeypatch):
    algo, seen = learner("cfgrl", 3, 2, drop=0.25), []
    told = algo.policy.net.told

    def watch(obs, flag):
        seen.append(flag)
        return told(obs, flag)

    monkeypatch.setattr(algo.policy.net, "told", watch)
    metrics = algo.update(random_batch(4000))
    (flag,) = seen
    assert (flag == UNTOLD).float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4 deviations
    good = (flag == GOOD).sum() / (flag != UNTOLD).sum()
    assert good.item() == pytest.approx(metrics["policy/good"].item(), abs=0.03)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_guidance_with_one_side_is_refused(learner, drop):
    with pytest.raises(ValueError, match=r"algo\.drop=.*0\.1 for example"):
        learner("cfgrl", 3, 2, drop=drop)


def bandit(rows, generator):
    """Actions about 0.5, which are worth 1, and three times as many about -0.5, worth nothing."""
    good = (torch.rand(rows, generator=generator) < 0.25).float()
    action = good - 0.5 + 0.1 * torch.randn(rows, generator=generator)
    obs = torch.zeros(rows, 1)
    return Batch(obs, action[:, None, None], good, torch.zeros(rows), obs)


@pytest.mark.learns
def test_unguided_it_clones_everything_and_guided_the_good_alone(learner, generator):
    torch.manual_seed(0)
    rates = {"policy_lr": 5e-3, "critic_lr": 5e-3, "target_rate": 0.2, "ema_rate": 0.05}
    algo = learner("cfgrl", 1, 1, run_updates=200, drop=0.5, **rates)
    for _ in range(200):
        algo.update(bandit(192, generator))
    share = {}
    for guidance in (0.0, 1.0, 1.5):
        algo.average.net.weight = guidance
        share[guidance] = (algo.deploy(torch.zeros(1000, 1), generator) > 0).float().mean().item()
    assert 0.05 < share[0.0] < 0.45  # of the data: 0.25
    assert share[1.0] > 0.8 and share[1.5] > 0.8
