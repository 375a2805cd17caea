"""The actor alone: RFM's regression beside a Gaussian's pathwise gradient, on a bandit.

States s ~ N(0, I) of HalfCheetah's sizes, six actions, and a known Q(s, a) = -sum_i k_i (a_i -
c_i(s))^2 whose curvatures k range over a decade. The optimum c is a random smooth function of the
state; its `reach` says how many of its coordinates lie outside the box, where the best action is
at a wall (.83: two of five; .25: one of two hundred). Regret is the value lost against the best
action of the box, in units of Q's deviation over uniform actions of a state. Both actors take
`STEPS` policy steps of the rows that they ship with, at temperatures that are held.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rheo.envs.batch import Batch
from rheo.scripts.assemble import make_algo
from rheo.scripts.config.compose import compose
from rheo.scripts.limits import SIZES
from rheo.scripts.paired import Goal, Plan, Row, with_ratio

STEPS = 1000
ROWS = 2000  # states that a regret is the mean of
PLACES = {"at walls": 0.83, "inside": 0.25}  # reach of the optimum
HELD = ("algo.temperature=0.01", "algo.temperature_rule=fixed")  # in units of Q's deviation
ACTORS = {  # name -> words of a configuration
    "RFM": ("algo=rfm", *HELD),
    "RFM on the box": ("algo=rfm_box",),
}
GAUSSIAN = ("algo=sac", "algo.alpha=0.01", "algo.alpha_lr=1e-9")  # alpha in the same units
GOAL = (Goal("ratio", "<=", 1.1),)


class Known(nn.Module):
    """The bandit's Q as a critic of two equal members, scaled to a deviation of 1."""

    members = 2

    def __init__(self, reach: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(SIZES.obs_dim, 64, generator=generator) / SIZES.obs_dim**0.5
        out = torch.randn(64, SIZES.action_dim, generator=generator) / 64**0.5
        self.register_buffer("hidden", 1.5 * hidden)
        self.register_buffer("out", 2.0 * reach * out)
        self.register_buffer("curvature", torch.logspace(-0.5, 0.5, SIZES.action_dim))
        self.unused = nn.Parameter(torch.zeros(1))
        states = torch.randn(1000, SIZES.obs_dim, generator=generator)
        actions = 2 * torch.rand(1000, 64, SIZES.action_dim, generator=generator) - 1
        self.unit = self.value(states[:, None], actions).std(1).mean()

    hidden: Tensor
    out: Tensor
    curvature: Tensor

    def best(self, obs: Tensor) -> Tensor:
        """The unbounded optimum c(s), [..., Da]."""
        return (obs @ self.hidden).tanh() @ self.out

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q of actions [..., Da], not yet scaled."""
        return -(self.curvature * (action - self.best(obs)).square()).sum(-1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        value = self.value(obs, action.flatten(-2)) / self.unit + 0 * self.unused
        return torch.stack([value, value])

    @torch.no_grad()
    def regret(self, obs: Tensor, action: Tensor) -> float:
        """Mean loss against the best action of the box."""
        best = self.best(obs).clamp(-1, 1)
        return ((self.value(obs, best) - self.value(obs, action[:, 0])) / self.unit).mean().item()


class Regret(NamedTuple):
    """What an actor loses after its steps, and what a step took."""

    deployed: float
    sampled: float
    width: float  # standard deviation per dimension of the actions of a state
    seconds: float


def measure(plan: Plan) -> Iterator[Row]:
    """Regret of the deployed action of each actor over the Gaussian's, at either place."""
    steps = STEPS // 10 if plan.quick else STEPS
    for place, reach in PLACES.items():
        ours = {name: learned(words, reach, steps) for name, words in ACTORS.items()}
        theirs = learned(GAUSSIAN, reach, steps)
        for name, regret in ours.items():
            text = f"{name}, regret, optimum {place}"
            row = Row(text, "std of Q", regret.deployed, "Gaussian", theirs.deployed, goals=GOAL)
            yield with_ratio(row, np.array([regret.deployed / theirs.deployed]))
            row = Row(f"{name}, a policy step", "ms", 1e3 * regret.seconds, "Gaussian")
            row = Row(**{**vars(row), "other": 1e3 * theirs.seconds})
            yield with_ratio(row, np.array([regret.seconds / theirs.seconds]))


def learned(words: tuple[str, ...], reach: float, steps: int, seed: int = 0) -> Regret:
    """One actor trained on the bandit and judged on states it has not seen."""
    cfg = compose([*words, "env=halfcheetah", f"seed={seed}"])
    torch.manual_seed(seed)
    algo: Any = make_algo(cfg, SIZES, cfg["steps"])
    algo.critic = Known(reach)
    generator = torch.Generator().manual_seed(seed + 1)
    rows = cfg["source"]["batch_size"]
    start = time.process_time()
    for _ in range(steps):
        obs = torch.randn(rows, SIZES.obs_dim, generator=generator)
        action = 2 * torch.rand(rows, 1, SIZES.action_dim, generator=generator) - 1
        zero = torch.zeros(rows)
        batch = Batch(obs, action, zero, zero, obs)
        algo.update_policy(obs if "sac" in words[0] else batch)
    seconds = (time.process_time() - start) / steps
    obs = torch.randn(ROWS, SIZES.obs_dim, generator=generator)
    with torch.no_grad():
        deployed = algo.deploy(obs, torch.Generator().manual_seed(2))
        two = [algo.act(obs) for _ in range(2)]
        width = (0.5 * (two[0] - two[1]).square()).mean().sqrt().item()
    lost, sampled = (algo.critic.regret(obs, action) for action in (deployed, two[0]))
    return Regret(lost, sampled, width, seconds)
