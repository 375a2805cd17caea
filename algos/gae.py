"""Advantages of rollouts, and the running scale of their rewards."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import ranks

FLAT_REWARD = 1e-4  # rewards per step that differ by less, relatively, are one and the same


def gae(
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    next_value: Tensor,
    boundary: Tensor,
    valid: Tensor,
    lam: float,
) -> Tensor:
    """Generalised advantages [S, N] in time order (arXiv:1506.02438, eq. 16).

    A_s = delta_s + lam discount_s A_{s+1}, delta_s = reward + discount next_value - value. A
    termination has discount 0; a truncated episode keeps its bootstrap, and at any `boundary` the
    recursion stops, so nothing leaks from one episode into another. Rows that are not `valid` get
    0 and pass nothing on.
    """
    delta = (reward + discount * next_value - value) * valid
    carry = lam * discount * ~(boundary | ~valid)
    advantage = torch.empty_like(delta)
    ahead = torch.zeros_like(delta[0])
    for s in range(len(delta) - 1, -1, -1):
        ahead = delta[s] + carry[s] * ahead
        advantage[s] = ahead
    return advantage


def tells(reward: Tensor, discount: Tensor, frames: Tensor, valid: Tensor) -> bool:
    """Whether the rewards of a rollout tell any of its decisions from another.

    They do not where all are 0, and where every environment step was worth the same and none ended
    its task: then all there is to an advantage is what the value happens to say. One reward more,
    or one termination where steps are worth something (a fall, a goal reached at a cost per step),
    tells. Of several ranks all rollouts are one. reward [S, N] is the discounted sum over `frames`
    steps, discount gamma^frames or 0. Asks the device once.
    """
    discount, frames = discount.double(), frames.clamp_min(1).double()
    gamma = discount.pow(1 / frames)
    series = (1 - discount) / (1 - gamma)  # of gamma^k, k < frames
    rate = reward.double() / torch.where(gamma == 1, frames, series)
    ended = ((discount == 0) & valid).any().double()
    high, low = (each.where(valid, -math.inf).amax() for each in (rate, -rate))
    size = rate.abs().where(valid, 0.0).amax()
    ended, high, low, size = ranks.most(torch.stack([ended, high, low, size])).tolist()
    return size > 0 and (ended > 0 or high + low > FLAT_REWARD * size)


class RewardScale:
    """Rewards over the running standard deviation of the discounted return, clipped.

    The return so far of each environment, G <- reward + gamma^n G with the n steps of the decision
    before, starts anew at boundaries; its variance is pooled over all rollouts (Chan et al.'s
    parallel update) and all ranks. A decision's own discount is 0 at a termination, where the
    return of the whole episode has still to be counted. Rewards are not centred, which would change
    the task.
    """

    apart = ("running",)  # of a rank's own environments

    def __init__(self, clip: float, device: torch.device) -> None:
        self.clip = clip
        self.running = torch.zeros(0, dtype=torch.float64, device=device)  # [N], from the first on
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.square = self.count.clone(), self.count.clone()  # square: sum of deviations

    def __call__(self, reward: Tensor, discount: Tensor, boundary: Tensor) -> Tensor:
        """Takes in a rollout's rewards [S, N] and returns them scaled."""
        if len(self.running) != reward.shape[1]:
            self.running = torch.zeros_like(reward[0], dtype=torch.float64)
        returns = torch.empty_like(reward, dtype=torch.float64)
        for s in range(len(reward)):
            returns[s] = reward[s] + self.running
            self.running = returns[s] * discount[s] * ~boundary[s]  # what the next one adds to
        self.pool(returns.flatten())
        return (reward / self.std).clamp(-self.clip, self.clip).to(reward.dtype)

    def pool(self, values: Tensor) -> None:
        """Adds values to the pooled count, mean and sum of squared deviations."""
        count, mean, square = ranks.moments(values)
        total = self.count + count
        gap = mean - self.mean
        self.square += square + gap.square() * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def std(self) -> Tensor:
        """Standard deviation of the discounted return, []."""
        return (self.square / self.count.clamp_min(1)).sqrt().clamp_min(1e-4)

    def carry(self, state: dict[str, Any]) -> None:
        """Takes over another run's pooled numbers; the returns so far are of its own episodes."""
        self.load_state_dict({k: v.clone() for k, v in state.items() if k != "running"})

    def state_dict(self) -> dict[str, Any]:
        """The pooled numbers and the running returns."""
        names = ("running", "count", "mean", "square")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value.to(self.count.device))
