"""Diffusion Q-learning: gradients of Q through the whole sampling chain, anchored by matching."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .climb import Climbing
from .losses import matching_draws


class Draws(NamedTuple):
    """The randomness of a policy step."""

    noise: Tensor  # [B, T, Da] of the matching loss
    t: Tensor  # [B]
    start: Tensor  # [B, T, Da] where the chain starts
    member: Tensor  # [1] the critic that is climbed


@dataclass(eq=False)
class DQL(Climbing):
    """Diffusion Q-learning (arXiv:2208.06193) with any flow or diffusion field.

    The policy minimises match(data) - eta mean Q_i(s, a) / mean|Q_j(s, a)|, with a the sample of
    the policy's K deterministic steps, differentiated through all of them. The published field is
    policy.path=cosine policy.prediction=eps policy.clip_a=true. B batch, T chunk, Da action
    dimension.
    """

    def draw(self, rows: int) -> Draws:
        """Randomness of a policy step."""
        return Draws(*matching_draws(self.policy, rows, self.generator), *self.start(rows))

    def cloning(self, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        """Matching loss, []."""
        policy = self.policy
        return policy.match(obs, action, draws.noise, draws.t, space=policy.prediction).mean()

    def own(self, obs: Tensor, start: Tensor) -> Tensor:
        """Samples of the K steps, which are clipped as deployed ones are."""
        return self.policy.act(obs, start)
