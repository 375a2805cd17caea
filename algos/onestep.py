"""One step that climbs Q: average velocities, and gradients of Q through one jump."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.fewstep import FewStepPolicy
from . import jumping
from .climb import Climbing
from .jumping import JumpRows

FINEST = jumping.levels(16)  # of bootstrapped jumps: as algo=shortcut ships


class Draws(NamedTuple):
    """The randomness of a policy step."""

    jumps: jumping.Draws
    start: Tensor  # [B, T, Da] where the one step starts
    member: Tensor  # [1] the critic that is climbed


@dataclass(eq=False)
class OneStep(JumpRows, Climbing):
    """Q's gradient goes through one network call, and average velocities clone.

    a = z + u(z, 0, 1), clipped straight through, so that an action beyond the box comes back where
    Q falls outwards. Critics learn r + discount min Q'(s', a'), a' one step of the averaged policy.
    B batch, J rows of jumps, T chunk, Da action dimension.

    Raises ValueError for shares, powers and floors that `JumpRows` refuses, for bootstrapped jumps
    on a late grid, and before training for policy.steps above 1 unless one_step is false.

    Args:
        jump: What a jump is regressed on: derivative, the mean-flow identity, or bootstrap, two
            half jumps of the averaged policy, without a derivative of the network.
        one_step: Whether training is refused with policy.steps above 1; false lets it take several,
            through all of which the gradient of Q goes.
    """

    trains_jumps = True

    policy: FewStepPolicy  # pyright: ignore[reportIncompatibleVariableOverride]
    _: KW_ONLY
    jump: Literal["derivative", "bootstrap"]
    one_step: bool

    def __post_init__(self) -> None:
        self.refuse_shares()
        super().__post_init__()
        if self.jump == "bootstrap":
            jumping.refuse_late(self.policy)

    def before_training(self, world: Any) -> dict[str, float]:
        """Raises ValueError for steps of which only one was meant to be trained."""
        if self.one_step and self.policy.steps > 1:
            raise ValueError(
                f"policy.steps={self.policy.steps}: the gradient of Q goes through one step; set "
                "policy.steps=1 (evaluations may take more), or algo.one_step=false to train "
                "through all of them"
            )
        return {}

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step."""
        return Draws(self.jump_draws(rows, self.generator), *self.start(rows))

    def jump_draws(self, rows: int, generator: torch.Generator) -> jumping.Draws:
        """Noise and times of the cloning, jumps first."""
        return jumping.draws(self.policy, rows, self.jumps(rows), self.spans, generator)

    def spans(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts and ends of jumps, [rows] each."""
        if self.jump == "bootstrap":
            return jumping.halving_times(rows, generator, FINEST)
        return jumping.sorted_times(rows, generator)

    def cloning(self, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        """The weighted regression of average velocities, []."""
        return self.weighted(self.errors(self.policy, obs, action, draws.jumps)).mean()

    def errors(self, policy: Any, obs: Tensor, action: Tensor, draws: jumping.Draws) -> Tensor:
        """Squared errors of a policy's average velocities, [B]."""
        count = self.jumps(len(obs))

        def target(x: Tensor, v: Tensor, t: Tensor, s: Tensor, feat: Tensor) -> Tensor:
            if self.jump == "derivative":
                return jumping.derivative(policy, x, v, t, s, feat)
            feat = self.average.features(obs[:count])
            return jumping.halves(self.average, x, t, s, feat, FINEST)

        return jumping.errors(policy, obs, action, None, draws, count, target)

    def own(self, obs: Tensor, start: Tensor) -> Tensor:
        """Samples of the one step, clipped with the gradient of what was clipped."""
        return boxed(self.policy.act(obs, start, clip=False))

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted regression of the averaged policy on held-out data."""
        rows = torch.randperm(len(batch.obs), generator=generator, device=generator.device)
        batch, draws = batch.take(rows), self.jump_draws(len(rows), generator)
        return {"val/loss": self.errors(self.average, batch.obs, batch.action, draws).mean()}


def boxed(raw: Tensor) -> Tensor:
    """Actions [..., T, Da] clipped to the box, with the gradient of what was clipped."""
    return raw + (raw.clamp(-1.0, 1.0) - raw).detach()
