"""What algorithms on policy share whose policy `algo.pulls` may hold (`anchors`)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..envs.batch import Rollout
from .anchors import Shown
from .losses import matching_draws
from .onpolicy import OnPolicy, Rows
from .pulled import Pulled


@dataclass(eq=False)
class PulledOnPolicy(Pulled, OnPolicy):
    """On policy; recorded actions come beside the decisions of a rollout (`envs.sources`)."""

    def __post_init__(self) -> None:
        self.hold(self.generator.device)
        super().__post_init__()

    @property
    def reference(self) -> Any:
        """The policy that is held to."""
        return vars(self).get("base")

    @property
    def learned(self) -> dict[str, Any]:
        """What belongs to the networks."""
        return {**OnPolicy.learned, **super().learned}

    def draw(self, rows: Rows) -> tuple[Tensor, ...]:
        """Noises and times of matching recorded actions, where an entry asks for them."""
        if self.anchor("data") is None:
            return ()
        return tuple(matching_draws(self.policy, len(rows.obs), self.generator))

    def beside(
        self, rows: Rows, draws: tuple[Tensor, ...]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The pull of the recorded actions beside decisions, [], and its metric.

        draws: their noises and times.
        """
        if self.anchor("data") is None:
            return 0.0, {}
        return self.to_data(
            Shown(rows.kept["data_obs"], rows.kept["data_action"], *draws), self.policy
        )

    def policy_step(self, rows: Rows, which: Tensor) -> dict[str, Tensor]:
        """One step of the policy, then of the coefficients."""
        metrics = super().policy_step(rows, which)
        return metrics if self.anchoring is None else metrics | self.anchoring.learn(metrics)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """As `OnPolicy.update`; the policy that is held to may be renewed after it."""
        metrics = super().update(rollout)
        if self.anchoring is not None:
            metrics |= self.anchoring.renew(metrics, self.reference, self.policy)
        return metrics
