"""What tests ask of vector environments' steps, whichever package's they are."""

from typing import Any

import torch
from torch import Tensor

from rheo.envs.vector import VectorEnv


def same(one: Any, two: Any) -> bool:
    """Whether two records of tensors are equal to the last bit; None is only equal to None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def assert_goes_on(
    ours: VectorEnv, other: VectorEnv, actions: Tensor | list[Tensor], cut: int = 11
) -> None:
    """From what is saved before action number `cut`, both go on as the one that never stopped."""
    for action in actions[:cut]:
        ours.step(action)
    saved = ours.state_dict()
    straight = [ours.step(action) for action in actions[cut:]]
    other.reset()
    for env in (other, ours):
        env.load_state_dict(saved)
        for action, step in zip(actions[cut:], straight, strict=True):
            assert same(env.step(action), step)
