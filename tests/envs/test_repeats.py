"""Episodes that repeat from where they began are saved as what happened in them."""

import copy
import logging
from typing import Any

import pytest
import torch

from rheo.envs.suites import make

NAME, LIMIT = "RheoWandering-v0", 9


def walks(**options: Any) -> Any:
    return make(NAME, 2, max_episode_steps=LIMIT, **options)


def told(steps: int) -> torch.Tensor:
    """Actions [steps, N, Da]."""
    return 2 * torch.rand((steps, 2, 1), generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("seeded", [4, LIMIT + 4])  # an episode from a seed, one from a generator
def test_a_walk_that_is_saved_twice_goes_on_as_if_it_was_never_saved(seeded):
    first, actions = walks(), told(40)
    first.reset(5)
    for action in actions[:seeded]:
        first.step(action)
    second = walks()
    assert second.load_state_dict(copy.deepcopy(first.state_dict())) is None
    for action in actions[seeded : seeded + 2]:
        for env in (first, second):
            env.step(action)
    third = walks()
    state = copy.deepcopy(second.state_dict())
    assert third.load_state_dict(state) is None
    assert third.state_dict()["acted"][0].shape == first.state_dict()["acted"][0].shape
    assert list(third.state_dict()["elapsed"]) == list(first.state_dict()["elapsed"])
    for action in actions[seeded + 2 :]:
        one, other = first.step(action), third.step(action)
        assert torch.equal(one.obs, other.obs) and torch.equal(one.reward, other.reward)
        assert torch.equal(one.truncated, other.truncated)


def test_a_walk_that_does_not_repeat_here_is_replaced_and_told(caplog):
    first = walks()
    first.reset(5)
    for action in told(4):
        first.step(action)
    state = copy.deepcopy(first.state_dict())
    second = walks(shift=1.0)
    with caplog.at_level(logging.WARNING, "rheo"):
        obs = second.load_state_dict(state)
    assert obs is not None and torch.equal(obs, torch.zeros(2, 1))
    assert f"{NAME}: 2 of 2 running episodes did not repeat here" in caplog.text
    assert second.state_dict()["acted"][0].shape[0] == 0
