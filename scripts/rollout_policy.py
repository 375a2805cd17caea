"""A run's policy for other programs' rollouts: robomimic's protocol, `start_episode` and a call.

policy = RolloutPolicy("runs/lift")
policy.start_episode()
action = policy(observation)        # {"robot0_eef_pos": [3], ..., "object": [10]} -> [7]
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .policy import Policy


class RolloutPolicy(Policy):
    """`Policy` as robomimic's RolloutPolicy is called (arXiv:2108.03298)."""

    def start_episode(self) -> None:
        """Forgets the episode before."""
        self.reset()

    def __call__(self, ob: Mapping[str, Any], goal: None = None) -> NDArray:
        """`act`. Raises ValueError for a goal."""
        if goal is not None:
            raise ValueError("this policy takes no goal: put it among the observations it reads")
        return self.act(ob)
