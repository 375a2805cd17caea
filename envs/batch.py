"""The records that travel between environments, sources and algorithms: tensors with named axes.

B batch, N environments, O flattened observation history, T steps of a chunk, Da action dimension.
"""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Transitions between decisions, as an algorithm's `update` receives them.

    `reward` is the discounted sum inside the chunk and `discount` is gamma^n (1 - terminated) for
    its n executed steps, so a TD target is `reward + discount * value(next_obs)` whatever the
    chunk length; a truncated episode keeps its bootstrap. `cost` is the largest one of these steps
    (of h, arXiv:2401.10700), None where nothing says what a step costs.
    """

    obs: Tensor  # [B, O]
    action: Tensor  # [B, T, Da] in [-1, 1]
    reward: Tensor  # [B]
    discount: Tensor  # [B]
    next_obs: Tensor  # [B, O]
    cost: Tensor | None = None  # [B]
    memo: Tensor | None = None  # [B, M, Da] what an algorithm had a replay keep beside it
    recorded: Tensor | None = None  # [B] bool, where a batch holds recorded rows and others

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """What every source gives: costs where there are any, and neither memo nor origin."""
        return self[:5] if self.cost is None else (*self[:5], self.cost)

    def take(self, rows: Tensor) -> "Batch":
        """The rows of an index [M], the memo's too."""
        picked = (None if column is None else column.index_select(0, rows) for column in self)
        return Batch(*picked)  # type: ignore[arg-type]


class Windows(NamedTuple):
    """Observation histories and the action chunks that followed them; of plans (`envs.plans`) the
    states too, what is told of each window, and which of two has more of it.
    """

    obs: Tensor  # [B, To * Do]
    action: Tensor  # [B, Tp, Da], the last action repeated past an episode's end
    inside: Tensor  # [B, Tp] bool: False past the end, where the action is such a repeat
    state: Tensor | None = None  # [B, Tp, Do], likewise; the first is the latest observation
    strength: Tensor | None = None  # [B, C] of labels, shares of the recorded windows with less
    more: Tensor | None = None  # [B, C] 1, 0 or -1: has more, as much or less than its partner

    def take(self, rows: Tensor) -> "Windows":
        """The rows of an index [M]."""
        picked = (None if column is None else column.index_select(0, rows) for column in self)
        return Windows(*picked)  # type: ignore[arg-type]


class Aimed(NamedTuple):
    """Transitions under a goal, and what was achieved on the way there, where that is known.

    Columns as in `Batch`; rewards and discounts are those of reaching the goal.
    """

    obs: Tensor  # [B, O]
    action: Tensor  # [B, T, Da] in [-1, 1]
    reward: Tensor  # [B]
    discount: Tensor  # [B]
    next_obs: Tensor  # [B, O]
    way: Tensor  # [B, Dg]
    leads: Tensor  # [B] bool: whether the recording went to the goal, and `way` lies on its way

    def take(self, rows: Tensor) -> "Aimed":
        """The rows of an index [M]."""
        return Aimed(*(column.index_select(0, rows) for column in self))


class Labelled(NamedTuple):
    """Observation histories, the action chunks that followed, and a label of what came of them."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, T, Da] in [-1, 1]
    label: Tensor  # [B] int64, from 0

    def take(self, rows: Tensor) -> "Labelled":
        """The rows of an index [M]."""
        return Labelled(*(column.index_select(0, rows) for column in self))


class Compared(NamedTuple):
    """Chunks that were tried at one observation each, and what each of them came to."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, K, T, Da] in [-1, 1]
    score: Tensor | None  # [B, K]; None: all that is known is that the first beats the second

    def take(self, rows: Tensor) -> "Compared":
        """The rows of an index [M]."""
        picked = (None if column is None else column.index_select(0, rows) for column in self)
        return Compared(*picked)  # type: ignore[arg-type]


class Choice(NamedTuple):
    """What a behaviour chose for N observations, and what its later update needs of the choice."""

    action: Tensor  # [N, T, Da], clipped to [-1, 1] by whoever executes it
    kept: dict[str, Tensor]  # [N, ...] each: densities, noises, times


class Coded(NamedTuple):
    """An action for N observations, and what a replay keeps in its place."""

    action: Tensor  # [N, T, Da]
    kept: Tensor  # [N, R, Da]: the action itself, or a code that it was decoded from


class Rollout(NamedTuple):
    """On-policy experience: S decisions in each of N environments, in time order.

    `discount` is gamma^n (1 - terminated); `next_obs` is the true successor, so a value there
    bootstraps a truncated episode; `boundary` marks the rows after which the episode does not
    go on, where an advantage recursion must stop.
    """

    obs: Tensor  # [S, N, O]
    action: Tensor  # [S, N, T, Da]
    reward: Tensor  # [S, N]
    discount: Tensor  # [S, N]
    next_obs: Tensor  # [S, N, O]
    boundary: Tensor  # [S, N] bool
    valid: Tensor  # [S, N] bool
    frames: Tensor  # [S, N] int64: environment steps executed
    kept: dict[str, Tensor]  # [S, N, ...] each


class Step(NamedTuple):
    """One step of a vector environment with same-step reset."""

    obs: Tensor  # [N, Do] where to act next: after the reset for rows that ended
    reward: Tensor  # [N]
    terminated: Tensor  # [N] bool: the task ended, no bootstrap
    truncated: Tensor  # [N] bool: cut by a time limit or a guard, keeps its bootstrap
    final_obs: Tensor  # [N, Do] the true successor of every row, never the reset's
    valid: Tensor  # [N] bool: False rows were not stepped or broke, and must not be stored
    success: Tensor | None = None  # [N] bool: solved by this step; None: no notion of success
    cost: Tensor | None = None  # [N] what the step cost beside its reward; None: nothing costs
