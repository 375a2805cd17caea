"""ResiP: PPO on corrections of a frozen, chunked base."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.batch import Choice
from ..envs.residual_env import Residual
from ..policies.flow import FlowPolicy
from ..policies.residual import Head, HeadValue
from ..ranges import NonNegative, Positive
from .onpolicy import OnPolicy, Rows


@dataclass(eq=False)
class ResiP(OnPolicy):
    """Residual policy on a behaviour-cloned base (arXiv:2407.16677).

    The base is part of the world (`envs.residual_env.Residual`): it plans a chunk every env.execute
    steps, and the head corrects each action by residual_scale times a Gaussian, seeing the planned
    one. PPO moves the head alone; its log density is of the correction, so the scale cancels in the
    ratio. The mean correction is deployed.

    Raises ValueError for a scale that is not positive.

    Args:
        residual_scale: Largest change that a correction makes to an action element, in action units
            (the box is -1 to 1).
        entropy_coef: Weight of the entropy bonus, in nats per action element; 0: none.
    """

    beyond = "its base with the corrections of its head"
    policy: FlowPolicy
    value: HeadValue
    head: Head
    _: KW_ONLY
    residual_scale: Positive
    entropy_coef: NonNegative

    def __post_init__(self) -> None:
        if self.residual_scale <= 0:
            raise ValueError(f"algo.residual_scale={self.residual_scale}: must be positive")
        self.head.to(self.generator.device)
        self.policy.requires_grad_(False)
        super().__post_init__()

    def tuned(self) -> Iterable[nn.Parameter]:
        """The head's parameters; the base is frozen."""
        return self.head.parameters()

    def wrap(self, env: Any, seed: int) -> Residual:
        """The environment with the base inside; `seed` is of its noise."""
        generator = torch.Generator(self.generator.device).manual_seed(seed)
        return Residual(env, self.plan, self.residual_scale, generator)

    @torch.no_grad()
    def plan(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The base's chunks [N, T, Da] for observations [N, O]."""
        start = self.policy.start(len(obs), generator)
        return self.policy.act(obs.to(start.device), start)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Choice:
        """Corrections [N, 1, Da] for [obs, a_b, phase], and their log density."""
        delta, logp = self.head.sample(obs, self.generator)
        return Choice(delta, {"logp": logp})

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mean correction, [N, 1, Da]."""
        return self.head.mean(obs)

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The clipped objective less the entropy bonus, []."""
        log_ratio = self.head.log_prob(rows.obs, rows.action) - rows.kept["logp"]
        loss, metrics = self.surrogate(log_ratio, rows.advantage, self.learn.clip)
        log_std = self.head.gaussian.log_std
        metrics["policy/std"] = log_std.detach().exp().mean()
        return loss - self.entropy_coef * log_std.mean(), metrics
