"""Policy-agnostic RL: what climbs, what is chosen and what is cloned, against closed forms."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rheo.algos.losses import matching_draws
from rheo.algos.optim import adam, step
from rheo.algos.parl import PARL
from rheo.envs.batch import Batch
from rheo.policies.critics import QEnsemble
from rheo.policies.nets import clone, lerp_
from rheo.policies.steer import kept, value_guided
from rheo.scripts.config.compose import compose
from rheo.scripts.config.intent import remarks

QUIET = {"consider_data": False, "q_unit": "q", "choice_temperature": 0.0, "join": "min"}


class Known(QEnsemble):
    """Members that are worth `value` - 1 and + 1 of an action."""

    def __init__(self, value):
        nn.Module.__init__(self)
        self.members, self.value = 2, value
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, obs, action):
        worth = self.value(action) + 0 * obs[..., 0] + 0 * self.unused
        return torch.stack([worth - 1, worth + 1])


def sums(action):
    return action.sum((-2, -1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def improved(algo, obs, actions, temperature=0.0, recorded=None, seed=1):
    """What becomes of given samples [N, M, T, Da]."""
    policy: Any = type("Given", (), {"act": staticmethod(lambda obs, noise: noise)})()
    return algo.optimised(policy, obs, actions, seeded(seed), temperature, recorded).action


def small(learner, critic, dim=1, **changes) -> Any:
    """A small algorithm in units of Q that takes the best."""
    return learner("parl", 1, dim, critic=critic, **(QUIET | changes))


def test_without_samples_to_choose_from_and_rounds_it_clones_its_own_actions(learner, flow):
    """Bit for bit, with the same draws."""
    policy = flow(3, 2)
    with torch.no_grad():
        policy.net.outlet.weight.normal_(std=0.2)
    twin = clone(policy, frozen=False)
    algo = learner("parl", 3, 2, policy=policy, samples=1, keep=1, rounds=0, **QUIET)
    average, optimizer = clone(algo.average), adam(twin.parameters(), algo.policy_lr)
    for _ in range(3):
        obs, action = torch.randn(32, 3), torch.rand(32, 1, 2)
        state = algo.generator.get_state()
        algo.update_policy(obs, action)
        end = algo.generator.get_state()
        algo.generator.set_state(state)
        with torch.no_grad():
            own = twin.act(obs, twin.noise(32, algo.generator))
        draws = matching_draws(twin, 32, algo.generator)
        assert torch.equal(algo.generator.get_state(), end)
        step(optimizer, twin.match(obs, own, *draws).mean(), algo.max_norm)
        lerp_(average, twin, algo.ema_rate)
    for one, other in ((policy, twin), (algo.average, average)):
        for mine, cloned in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, cloned)


def test_actions_near_a_quadratic_top_by_the_power_of_its_steps(learner):
    """a_T - a* = (I - eta H)^T (a_0 - a*)."""
    top, H = torch.tensor([0.1, 0.2]), torch.tensor([2.0, 0.5])
    hill = Known(lambda a: -0.5 * (H * (a[..., 0, :] - top).square()).sum(-1))
    algo = small(learner, hill, dim=2, samples=1, keep=1, rounds=10, rate=0.1)
    start = (top + torch.tensor([0.8, -1.0])).view(1, 1, 1, 2)
    end = improved(algo, torch.zeros(1, 1), start).flatten() - top
    assert end.tolist() == pytest.approx([0.085899, -0.598737], abs=1e-6)


@pytest.mark.parametrize("rounds", range(1, 6))
def test_on_a_line_every_round_moves_by_the_slope_until_the_wall(learner, rounds):
    algo = small(learner, Known(lambda a: 2.0 * sums(a)), samples=1, keep=1, rounds=rounds,
                 rate=0.05)  # fmt: skip
    start = torch.tensor([0.0, 0.3, 0.65]).view(3, 1, 1, 1)  # a state each
    end = improved(algo, torch.zeros(3, 1), start).flatten()
    wanted = (start.flatten() + 0.1 * rounds).clamp(max=1.0)
    torch.testing.assert_close(end, wanted)


def test_a_step_is_per_deviation_of_the_values_where_that_is_the_unit(learner, flow):
    """Ten times the values move actions as far; in units of Q ten times as far."""
    moved = {}
    for unit in ("spread", "q"):
        for size in (1.0, 10.0):
            policy = flow(1, 1)
            algo = small(learner, Known(lambda a, size=size: size * sums(a)), policy=policy,
                         q_unit=unit, samples=64, keep=2, rounds=1, rate=0.01)  # fmt: skip
            metrics = algo.update_policy(torch.zeros(200, 1), torch.zeros(200, 1, 1))
            start = torch.tensor([-0.5, 0.2]).view(1, 2, 1, 1)
            end = improved(algo, torch.zeros(1, 1), start)
            moved[unit, size] = (end - 0.2).item()
            # an untrained flow's actions are its noise, cut to the box: a deviation of .72
            assert metrics["critic/q_std"].item() == pytest.approx(0.72 * size, rel=0.05)
    assert moved["q", 1.0] == pytest.approx(0.01, rel=1e-4)
    assert moved["q", 10.0] == pytest.approx(0.1, rel=1e-4)
    assert moved["spread", 1.0] == pytest.approx(0.01 / 0.72, rel=0.05)
    assert moved["spread", 10.0] == pytest.approx(moved["spread", 1.0], rel=1e-4)


def test_the_most_valued_samples_are_kept_in_the_order_of_their_values():
    action = torch.arange(24.0).view(2, 4, 1, 3)
    value = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, -1.0, 4.0, 0.0]])
    found = kept(value, action, 2)
    assert torch.equal(found, torch.stack([action[0, [1, 3]], action[1, [0, 2]]]))


def test_the_best_of_the_kept_is_taken_where_nothing_climbs(learner):
    algo = small(learner, Known(lambda a: -sums(a.square())), samples=5, keep=2, rounds=0)
    actions = torch.rand((40, 5, 1, 1), generator=seeded()) * 2 - 1
    found = improved(algo, torch.zeros(40, 1), actions)
    best = actions.abs().flatten(1).argmin(1)
    assert torch.equal(found.flatten(), actions[torch.arange(40), best].flatten())


def test_one_of_the_kept_is_drawn_by_the_softmax_of_their_values(learner):
    """Values of .0 and .5 at a temperature of .5: shares e and 1, and never the third."""
    algo = small(learner, Known(sums), samples=3, keep=2, rounds=0)
    actions = torch.tensor([0.0, 0.5, -0.9]).view(1, 3, 1, 1).expand(20_000, 3, 1, 1)
    found = improved(algo, torch.zeros(20_000, 1), actions, temperature=0.5).flatten()
    assert found.unique().tolist() == [0.0, 0.5]
    assert (found == 0.5).float().mean().item() == pytest.approx(2.71828 / 3.71828, abs=0.015)


def test_a_recorded_action_that_is_worth_more_than_all_samples_is_cloned(learner):
    algo = small(learner, Known(sums), samples=4, keep=2, rounds=0)
    actions = torch.tensor([0.1, 0.4, -0.2, 0.3]).view(1, 4, 1, 1)
    obs, recorded = torch.zeros(1, 1), torch.full((1, 1, 1), 0.9)
    assert improved(algo, obs, actions, recorded=recorded).item() == pytest.approx(0.9)
    assert improved(algo, obs, actions, recorded=-recorded).item() == pytest.approx(0.4)
    found = {improved(algo, obs, actions, 9.0, -recorded, seed).item() for seed in range(30)}
    assert sorted(found) == pytest.approx([-0.9, 0.4])  # in the place of the worst kept


def test_only_what_the_policy_clones_considers_recorded_actions(learner):
    """Q falls with the distance to the recorded .9, which no sample reaches."""
    peak = Known(lambda a: -sums((a - 0.9).abs()) * 5.0)
    seen = []
    for consider in (True, False):
        algo = small(learner, peak, samples=3, keep=2, rounds=0, consider_data=consider)
        for policy in (algo.policy, algo.average):
            policy.noise = lambda lead, generator: torch.full((lead, 1, 1), 0.1)
        obs, action = torch.zeros(8, 1), torch.full((8, 1, 1), 0.9)
        seen.append(algo.update_policy(obs, action)["policy/gain"].item())
        assert (algo.ahead(obs) < 0.2).all() and (algo.act(obs) < 0.2).all()
    assert seen == pytest.approx([4.0, 0.0], abs=0.01)


@pytest.mark.parametrize(("join", "bonus"), [("min", -1.0), ("mean", 0.0), ("subset", -1.0)])
def test_the_target_is_that_of_the_best_improved_action(learner, join, bonus):
    """r + .9 (2 a' + bonus), a' the best of three, moved by .02; two members are all members."""
    algo = small(learner, Known(lambda a: 2.0 * sums(a)), join=join, samples=3, keep=2,
                 rounds=1, rate=0.01)  # fmt: skip
    obs = torch.zeros(2, 1)
    samples = torch.tensor([[0.0, 0.2, -0.3], [0.5, -0.1, 0.1]]).view(6, 1, 1)
    algo.average.noise = lambda lead, generator: samples
    with torch.no_grad():
        algo.average.net.outlet.weight.zero_()
    ahead = algo.ahead(obs)
    assert ahead.flatten().tolist() == pytest.approx([0.22, 0.52])
    batch = Batch(obs, torch.zeros(2, 1, 1), torch.ones(2), torch.tensor([0.9, 0.0]), obs)
    loss, _ = algo.critic_loss(batch, ahead, algo.drawn())
    goal = torch.tensor([1 + 0.9 * (0.44 + bonus), 1.0])
    wanted = 0.5 * ((goal + 1).square() + (goal - 1).square()).mean()  # members are -1 and 1 at 0
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_subset_is_two_different_critics_each_pair_as_often(learner, critic):
    judge = critic(1, 1)
    judge.members = 4
    algo = small(learner, judge, join="subset")
    pairs = [tuple(sorted(algo.drawn().tolist())) for _ in range(3000)]
    assert {pair: pairs.count(pair) for pair in set(pairs)} == {
        (i, j): pytest.approx(500, abs=100) for i in range(4) for j in range(i + 1, 4)
    }
    obs, (reward, discount) = torch.zeros(5, 1), torch.rand(2, 5)
    batch = Batch(obs, torch.zeros(5, 1, 1), reward, discount, obs)
    algo.target.forward = lambda obs, action: torch.arange(4.0)[:, None].expand(4, 5)
    algo.critic.forward = lambda obs, action: torch.zeros(4, 5)
    loss, _ = algo.critic_loss(batch, batch.action, torch.tensor([3, 2]))
    goal = batch.reward + 2 * batch.discount
    assert loss.item() == pytest.approx(2 * goal.square().mean().item(), rel=1e-5)


def test_of_a_plan_the_executed_steps_alone_climb(learner, flow):
    hill = Known(lambda a: sums(a) if a.shape[-2] == 3 else 1 / 0)
    algo = learner("parl", 1, 1, policy=flow(1, 1, 3), critic=hill, executed=2, rounds=4,
                   rate=0.1, samples=2, keep=2, **QUIET)  # fmt: skip
    start = torch.zeros(1, 2, 3, 1)
    assert improved(algo, torch.zeros(1, 1), start).flatten().tolist() == pytest.approx(
        [0.4, 0.4, 0.0]
    )


def test_guided_proposals_are_those_of_the_guided_sampler(learner, flow):
    """Bit for bit, and worth more than the best of as many samples."""
    algo = small(learner, Known(sums), policy=flow(1, 2), dim=2, samples=8, keep=3, rounds=0)
    obs, noise = torch.zeros(200, 1), torch.randn((200, 8, 1, 2), generator=seeded())
    best = algo.optimised(algo.policy, obs, noise, seeded(1), 0.0).action
    algo.proposals = "svdd"
    found = algo.optimised(algo.policy, obs, noise, seeded(1), 0.0).action
    by_hand = value_guided(algo.policy, algo.judge, obs, noise[:, :3], seeded(1), 8, 0.0)
    assert torch.equal(found, kept(sums(by_hand), by_hand, 1)[:, 0])
    assert sums(found).mean() > sums(best).mean()
    assert algo.deploy_one() == 8 and abs(algo.deploy(obs, seeded(2)).mean()) < 0.2


def test_a_gain_weighs_what_was_found_in_deviations(learner, flow):
    """Matching weighed by max(Q - mean Q of the samples, 0) / deviation, by hand."""
    hill = Known(lambda a: 5.0 * sums(a))
    algo = small(learner, hill, policy=flow(1, 1), samples=6, keep=1, rounds=0, weight="gain",
                 q_unit="spread", scale_rate=1.0)  # fmt: skip
    obs, action = torch.zeros(64, 1), torch.zeros(64, 1, 1)
    deviation = algo.update_policy(obs, action)["critic/q_std"]
    state, before = algo.generator.get_state(), clone(algo.policy)
    told = algo.update_policy(obs, action)
    algo.generator.set_state(state)
    own = before.act(obs, torch.randn((64, 6, 1, 1), generator=algo.generator))
    found = own.amax(1)
    draws = matching_draws(before, 64, algo.generator)
    weight = (5.0 * (found - own.mean(1)) / deviation).flatten()
    wanted = (weight * before.match(obs, found, *draws, space=before.prediction)).mean()
    assert weight.min() > 0 and torch.allclose(told["policy/loss"], wanted, rtol=1e-4)


def test_what_gains_nothing_teaches_nothing(learner, flow):
    algo = small(learner, Known(lambda a: 0 * sums(a)), policy=flow(1, 1), samples=4, keep=1,
                 weight="gain")  # fmt: skip
    before = clone(algo.policy)
    algo.update_policy(torch.zeros(8, 1), torch.ones(8, 1, 1))
    for one, other in zip(before.parameters(), algo.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.learns
def test_the_policy_comes_to_where_q_is_highest_and_data_hold_it(learner, flow, clone_normal):
    """Q = a: alone it goes to the wall; cloning the data beside it stops on the way."""
    ends = {}
    for coef in (0.0, 3.0):
        torch.manual_seed(0)
        policy = flow(2, 1)
        clone_normal(policy, 0.2)
        algo = learner("parl", 2, 1, policy=policy, critic=Known(sums), rate=0.05, rounds=5,
                       samples=8, keep=2, bc_coef=coef, policy_lr=6e-3,
                       **(QUIET | {"choice_temperature": 0.2}))  # fmt: skip
        for _ in range(80):
            action = 0.2 * torch.randn(32, 1, 1)
            assert algo.update_policy(torch.randn(32, 2), action)["policy/gain"] > 0
        ends[coef] = algo.policy.act(torch.randn(500, 2), algo.policy.noise(500, seeded())).mean()
    assert ends[0.0] > 0.75 and -0.1 < ends[3.0] < 0.5


def test_what_is_deployed_can_be_looked_at_without_its_improvement(learner):
    algo = small(learner, Known(sums), samples=16, keep=4, rounds=5, rate=0.05)
    obs = torch.zeros(400, 1)
    best = algo.deploy(obs, seeded(3)).mean()
    assert algo.deploy_one() == 16
    assert best > 0.9 and abs(algo.deploy(obs, seeded(3)).mean()) < 0.15


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["source=replay"], True),
        (["source=replay", "algo.bc_coef=0.5"], False),
        (["source=mixed", "data=d.npz"], False),
    ],
    ids=str,
)
def test_that_nothing_holds_it_without_recorded_actions_is_said(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    rows = np.zeros((4, 4))
    np.savez("d.npz", observations=rows, actions=rows[:, :1], rewards=rows[:, 0], episode_ends=[4])
    kinds = ["policy.obs_norm.kind=none", "critic.obs_norm.kind=none"]
    given = ["algo=parl", "env=inverted_pendulum", *words, *kinds]
    found = [line for line in remarks(compose(given), given) if "algo.bc_coef=0" in line]
    assert bool(found) == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"proposals": "svdd", "policy": "heun"}, "algo.proposals=svdd with policy.sampler=heun"),
        ({"keep": 9, "samples": 8}, "algo.keep=9: of algo.samples=8"),
        ({"samples": 1, "keep": 1, "consider_data": False}, "algo.samples=1 with algo.q_unit"),
        ({"keep": 1}, "algo.keep=1 with algo.consider_data=true"),
    ],
)
def test_values_that_do_not_go_together_are_refused(learner, flow, changes, told):
    if changes.get("policy") == "heun":
        changes = changes | {"policy": flow(1, 1, sampler="heun")}
    with pytest.raises(ValueError, match=told):
        learner("parl", 1, 1, **changes)


def test_a_subset_of_one_critic_is_refused(flow, critic, settings, generator):
    judge = critic(1, 1)
    judge.members = 1
    with pytest.raises(ValueError, match="critic.members=1 with algo.join=subset"):
        PARL(flow(1, 1), judge, generator, **settings("parl"))
