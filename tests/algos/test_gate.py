"""The gate of RL-100's offline stage: verdicts against the known values of linear policies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from linear import Linear, Quadratic, form, recorded, worth

from rheo.algos.rl100 import RL100
from rheo.policies.critics import Value
from rheo.scripts.store.state import capture, restore

STARTS = torch.linspace(-0.9, 0.9, 7)[:, None]
KNOWN = {"critic_lr": 0.05, "target_rate": 0.2, "judge_samples": 2}


@pytest.fixture
def gated(flow: Any, settings: Any) -> Callable[..., RL100]:
    """An offline stage of a linear policy, judged by critics that hold its value."""

    def make(gain: float, std: float = 0.1, **changes: Any) -> RL100:
        torch.manual_seed(0)
        policy = flow(1, 1, steps=1)
        policy.net = Linear(gain, std)
        critic: Any = Quadratic()
        values = settings("rl100", **{**KNOWN, "first_updates": 0, "pulls": [], **changes})
        size = {"width": 16, "depth": 1, "layer_norm": False, "activation": "tanh"}
        values["value"], generator = Value(1, **size), torch.Generator().manual_seed(0)
        made = RL100(policy, critic, generator, 1000, **values)
        made.starts = lambda: STARTS
        return made

    return make


def gains(algo: Any) -> list[float]:
    """Of what learns, what is on trial and what is deployed."""
    return [part.net.gain.item() for part in (algo.policy, algo.average, algo.accepted)]


def put(algo: Any, gain: float) -> None:
    """Makes the policy and its average others, as if they had been tuned."""
    for part in (algo.policy, algo.average):
        part.net.gain.data.fill_(gain)


@pytest.mark.learns
@pytest.mark.parametrize(
    ("trial", "margin", "passes"), [(0.6, 0.0, True), (0.6, 0.3, False), (-0.3, 0.0, False)]
)
def test_a_policy_passes_that_is_worth_more_by_the_margin(gated, trial, margin, passes):
    """From .2, whose Q is known: to .6 the value rises by a seventh of itself, to -.3 it falls."""
    algo = gated(0.2, tune_updates=1, judge_updates=150, margin=margin, policy_every=1000)
    for part in (algo.judge, algo.judge_target):
        part.weight.data[:] = form(0.2, 0.1)
    generator = torch.Generator().manual_seed(1)
    algo.update(recorded(64, generator))
    put(algo, trial)
    for _ in range(149):
        assert "gate/passed" not in algo.update(recorded(64, generator))
    told = algo.update(recorded(64, generator))
    now, then = (worth(gain, 0.1, STARTS).mean().item() for gain in (0.2, trial))
    assert told["gate/value"].item() == pytest.approx(now, rel=0.03)
    assert told["gate/trial_value"].item() == pytest.approx(then, rel=0.03)
    difference = told["gate/trial_value"] - told["gate/value"]
    assert difference.item() == pytest.approx(then - now, rel=0.1)
    assert (then - now > margin * abs(now)) == passes == bool(told["gate/passed"])
    assert (algo.iterations, algo.passed) == (1, passes)
    assert gains(algo)[2] == pytest.approx(trial if passes else 0.2)
    obs = torch.ones(4000, 1)
    action = algo.deploy(obs, torch.Generator().manual_seed(0))
    assert action.mean().item() == pytest.approx(-gains(algo)[2], abs=0.01)
    algo.update(recorded(64, generator))  # the next iteration begins at what was accepted
    assert gains(algo) == [gains(algo)[2]] * 3


def test_every_iteration_begins_at_the_accepted_policy_with_a_fresh_optimiser(gated):
    """So does what the policy is held to."""
    pulls = [{"kind": "path", "coef": 1.0}]
    algo = gated(0.2, tune_updates=2, judge_updates=1, pulls=pulls, policy_every=1, policy_lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        algo.update(recorded(16, generator))
    moments = list(algo.policy_opt.state.values())[0]
    assert moments["step"].item() == 4  # of two updates with two inner steps each
    algo.accepted.net.gain.data.fill_(0.7)
    algo.policy_every = 1000
    algo.update(recorded(16, generator))
    assert gains(algo) == pytest.approx([0.7] * 3) and algo.base.net.gain.item() == gains(algo)[2]
    assert all(not value.any() for value in moments.values())


@pytest.mark.learns
def test_what_learns_from_recorded_actions_passes_and_what_a_wrong_critic_teaches_does_not(gated):
    found = {}
    for wrong in (False, True):
        algo = gated(0.0, tune_updates=30, judge_updates=30, policy_every=1, policy_lr=0.01)
        for part in (algo.critic, algo.target, algo.judge, algo.judge_target):
            part.weight.data[:] = form(0.0, 0.1)
        generator = torch.Generator().manual_seed(1)
        for _ in range(2 * 60):
            if wrong:  # what the policy climbs, not what judges it: actions of the sign of s
                algo.target.weight.data[:] = torch.tensor([0.0, 0.0, 1.0, 0.0])
            algo.update(recorded(64, generator))
        found[wrong] = gains(algo)[2], algo.passed, algo.iterations
    assert found[True] == (0.0, 0, 2)
    assert found[False][0] > 0.2 and found[False][1] >= 1
    value = [worth(gain, 0.1, STARTS).mean() for gain in (0.0, found[False][0])]
    assert value[1] > value[0]


def test_a_restored_one_goes_on_alike_from_any_turn(gated):
    """Through the first updates, a tuning, a judging and verdicts."""
    words = {"first_updates": 2, "tune_updates": 2, "judge_updates": 2, "policy_every": 1}
    for at in range(1, 8):
        algo, twin = (gated(0.2, **words) for _ in range(2))
        batches = [recorded(8, torch.Generator().manual_seed(k)) for k in range(12)]
        for batch in batches[:at]:
            algo.update(batch)
        restore(twin, capture(algo))
        for batch in batches[at:]:
            told, other = algo.update(batch), twin.update(batch)
            assert all(torch.equal(value, other[name]) for name, value in told.items()), at
        assert gains(algo) == gains(twin) and algo.iterations == twin.iterations == 2


def test_the_first_ratio_is_one_and_turns_teach_what_is_theirs(gated):
    algo = gated(0.2, first_updates=1, tune_updates=1, judge_updates=1, inner_steps=1)
    algo.policy_every, generator = 1, torch.Generator().manual_seed(1)
    first, tuned, judged = (algo.update(recorded(16, generator)) for _ in range(3))
    assert "policy/loss" not in first and "gate/trial_loss" not in first and "gate/loss" in first
    assert tuned["policy/ratio_error"].item() < 1e-5 and "gate/loss" not in tuned
    assert "policy/loss" not in judged and "gate/trial_loss" in judged
    assert all("critic/value_loss" in told for told in (first, tuned, judged))


def test_a_base_that_would_be_replaced_otherwise_is_refused(gated):
    with pytest.raises(ValueError, match="algo.pulls: limit and every .* the accepted one"):
        gated(0.2, pulls=[{"kind": "path", "coef": 1.0, "every": 10}])
