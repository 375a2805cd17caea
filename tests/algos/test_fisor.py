"""Feasibility-guided safe learning: the operator on chains, weights by hand, and `iql`'s twin."""

import math
from types import SimpleNamespace

import pytest
import torch

from rheo.algos.contract import refuse_costless
from rheo.algos.fisor import FISOR
from rheo.algos.reach import feasible_weight, reach_target, violation
from rheo.envs.batch import Batch
from rheo.errors import RheoError

GAMMA = 0.9


def settled(after, h, gamma=GAMMA, sweeps=3000):
    """Values [S] of a chain whose state s has actions to the states after[s]: the best of them."""
    h, gamma = torch.tensor(h, dtype=torch.float64), torch.tensor(gamma, dtype=torch.float64)
    value = h
    for _ in range(sweeps):
        options = [
            [reach_target(h[s], gamma, value[ahead]) for ahead in following]
            for s, following in enumerate(after)
        ]
        value = torch.stack([torch.stack(each).min() for each in options])
    return value.tolist()


def test_a_state_that_leads_to_danger_is_infeasible_and_a_way_out_makes_it_feasible():
    h = [-1.0, -1.0, 1.0]
    assert settled([[1], [2], [2]], h) == pytest.approx([0.62, 0.80, 1.0])
    out = settled([[1, 3], [2], [2], [3]], [*h, -1.0])
    assert out == pytest.approx([-1.0, 0.80, 1.0, -1.0]) and out[0] <= 0


def test_without_discount_a_value_is_the_largest_violation_on_the_way():
    h = [-1.0, 0.5, -0.2, 3.0, -1.0]
    chain = settled([[1], [2], [3], [4], [4]], h, gamma=1 - 1e-7, sweeps=50)
    assert chain == pytest.approx([3.0, 3.0, 3.0, 3.0, -1.0], abs=1e-4)


def test_an_end_by_the_task_is_its_own_violation_and_a_cut_goes_on():
    h, value = torch.tensor([-1.0, 25.0, -1.0]), torch.tensor([9.0, 9.0, 9.0])
    target = reach_target(h, torch.tensor([0.0, 0.0, GAMMA]), value)
    assert target.tolist() == pytest.approx([-1.0, 25.0, -0.1 + 0.9 * 9.0])


@pytest.mark.parametrize("ahead", [-3.0, 0.4, 7.0])
def test_a_chunk_of_equal_violations_is_as_many_single_steps(ahead):
    h = torch.tensor(-1.0, dtype=torch.float64)
    single, gamma = torch.tensor(ahead, dtype=torch.float64), torch.tensor(GAMMA)
    whole = reach_target(h, gamma.double() ** 4, single)
    for _ in range(4):
        single = reach_target(h, gamma.double(), single)
    assert whole.item() == pytest.approx(single.item(), abs=1e-12)


def test_the_weights_of_the_four_cases_are_those_by_hand():
    """Feasible and safe, feasible and unsafe, infeasible; and both limits."""
    advantage = torch.tensor([0.5, 0.5, 0.5, 9.0, 0.5])
    risk = torch.tensor([-0.5, 0.2, 0.7, 0.0, -3.0])
    value = torch.tensor([-0.8, -0.8, 0.9, 0.0, 0.1])
    weight = feasible_weight(advantage, risk, value, (3.0, 100.0), (5.0, 150.0))
    assert weight.tolist() == pytest.approx([math.exp(1.5), 0.0, math.e, 100.0, 150.0], rel=1e-5)
    h = violation(torch.tensor([0.0, 0.1, 2.0]), 0.1, 25.0)
    assert h.tolist() == [-1.0, -1.0, 25.0]


def random_batch(rows, seed, cost=0.0):
    g = torch.Generator().manual_seed(seed)
    obs, ahead = torch.randn((2, rows, 3), generator=g)
    action = 2 * torch.rand((rows, 1, 2), generator=g) - 1
    reward = torch.randn(rows, generator=g)
    return Batch(obs, action, reward, torch.full((rows,), GAMMA), ahead, torch.full((rows,), cost))


def safe_(network):
    """Makes a critic or value answer -1 everywhere."""
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    last = network.biases[-1] if hasattr(network, "biases") else network.net.layers[-1].bias
    torch.nn.init.constant_(last, -1.0)


def test_where_nothing_costs_it_clones_as_implicit_q_learning_does_bit_for_bit(learner, flow):
    both = []
    for name in ("fisor", "iql"):
        metrics = {}
        torch.manual_seed(0)
        algo = learner(
            name, 3, 2, policy=flow(3, 2), expectile=0.9, ema_rate=0.005, deploy_candidates=1,
            lr_floor=0.0,
        )  # fmt: skip
        if isinstance(algo, FISOR):
            for network in (algo.cost_critic, algo.cost_target, algo.cost_value):
                safe_(network)
        for seed in range(8):
            metrics = algo.update(random_batch(32, seed))
        both.append((algo, metrics))
    (safe, told), (iql, expected) = both
    for part in ("policy", "average", "critic", "target", "value"):
        pairs = zip(getattr(safe, part).parameters(), getattr(iql, part).parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs), part
    assert all(torch.equal(told[name], expected[name]) for name in expected)
    assert told["critic/infeasible"] == 0 and told["policy/matched"] == 1


@pytest.mark.learns
def test_unsafe_actions_are_not_cloned_and_danger_is_left_by_the_least_bad(learner, generator):
    """One step: at 0 the action 1 pays and costs, -1 does neither; at 1 all costs, 1 less often."""
    torch.manual_seed(0)
    algo = learner(
        "fisor", 1, 1, critic_lr=3e-3, policy_lr=3e-3, ema_rate=0.05, target_rate=0.1, unsafe=3.0,
        cost_expectile=0.95, deploy_candidates=1,
    )  # fmt: skip
    for _ in range(400):
        state = (torch.rand(128, generator=generator) < 0.5).float()
        side = (torch.rand(128, generator=generator) < 0.5).float() * 2 - 1
        often = torch.where(side > 0, 0.5, 1.0)
        cost = torch.where(
            state > 0, (torch.rand(128, generator=generator) < often).float(), (side > 0).float()
        )
        obs, action = state[:, None], (0.7 * side)[:, None, None]
        algo.update(Batch(obs, action, (side > 0).float(), torch.zeros(128), obs, cost))
    there = torch.tensor([[0.0], [1.0]])
    value = algo.cost_value(there)
    assert value[0] < -0.8 and value[1] > 0.5
    act = algo.deploy(there.repeat_interleave(200, 0), generator).view(2, 200)
    assert (act[0] < 0).float().mean() > 0.95 and (act[1] > 0).float().mean() > 0.9


class Slope(torch.nn.Module):
    """Two critics of one action: `factors` times the action."""

    def __init__(self, *factors):
        super().__init__()
        self.factors = torch.nn.Parameter(torch.tensor(factors))

    def forward(self, obs, action):
        return self.factors.view(-1, *[1] * (action.ndim - 2)) * action.mean((-2, -1))


@pytest.mark.parametrize(("by", "sign"), [("cost", -1.0), ("reward", 1.0)])
def test_of_several_samples_the_safest_or_the_best_is_deployed(learner, generator, by, sign):
    critic = Slope(0.5, 2.0)
    algo = learner("fisor", 1, 1, critic=critic, deploy_by=by, deploy_candidates=16)
    obs = torch.zeros(400, 1)
    several = algo.deploy(obs, generator).mean()
    assert algo.deploy_one() == 16
    one = algo.deploy(obs, generator).mean()
    assert sign * (several - one) > 0.2
    action = torch.tensor([[[1.0]], [[-1.0]]])
    assert algo.safety(obs[:2], action).amin(0).tolist() == [-2.0, 0.5]


def test_words_and_batches_that_do_not_fit_are_refused(learner):
    with pytest.raises(ValueError, match="algo.deploy_by: must be .*cost.*reward.*'speed'"):
        learner("fisor", 3, 2, deploy_by="speed")
    algo = learner("fisor", 3, 2)
    free, paid = SimpleNamespace(costs=False, path="a.npz"), SimpleNamespace(costs=True)
    refuse_costless(algo, paid)
    with pytest.raises(RheoError, match="data=a.npz: it holds no costs, which FISOR learns from"):
        refuse_costless(algo, free)
    mixed = SimpleNamespace(costs=False, dataset=paid, replay=SimpleNamespace(costs=False))
    with pytest.raises(RheoError, match="env.cost: nothing costs in the environment, and FISOR"):
        refuse_costless(algo, mixed)
