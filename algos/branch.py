"""Branches inside the sampler: one noisy step of a chain, whose branches the critics compare."""

from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose
from ..policies.critics import StepValue
from ..ranges import Count, NonNegative
from .branched import Branched, Met
from .matching import BestOf
from .optim import adam, step
from .recall import Looking


@dataclass(eq=False)
class Branch(Branched, BestOf, Looking):
    """Branches of one noisy denoising step (`Branched`), compared by critics that learn off policy.

    So G2RPO (arXiv:2510.01982; completions, whose advantages add up), B2-DiffuRL (arXiv:2503.11240;
    kicked=window), Talk2Move (kicked=active), Sol-RL (pool), HiCoGen (std_power) and coupled GRPO
    (arXiv:2506.20639; antithetic) place their noise. With a `value`, V(s, x_k, t_k) learns the mean
    Q of a point's branches and stands for it in advantages (TraceRL, arXiv:2509.06949). The TD
    target is the smaller of the target critics at an action of the averaged policy.

    Args:
        relative: Whether the critic sees actions as offsets from what the policy at the start of
            the run would do; needs an entry of kind path in pulls.
        target_candidates: Samples of the averaged policy in the TD target, of which the one with
            the highest Q counts; 1: no choice.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("backup", "policy_loss", "value_loss")

    value: StepValue | None = None
    executed: int | None = None
    _: KW_ONLY
    relative: bool
    target_candidates: Count
    deploy_temperature: float = field(default=0.0, init=False)
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        self.look()
        super().__post_init__()
        self.value_opt = None
        if self.value is not None:
            self.value.to(self.generator.device)
            self.value_opt = adam(self.value.parameters(), self.critic_lr)

    def refuse(self) -> None:
        """As `Branched.refuse`; for a critic or a value that the rest does not go with too."""
        super().refuse()
        if self.value is not None and self.completions:
            raise ValueError(
                f"algo.completions={self.completions} with algo.value: it is the value of what the "
                "policy's own steps lead to; set algo.completions=[]"
            )
        if self.relative and (self.anchor("path") is None or self.renewing):
            raise ValueError(
                "algo.relative=true: the critic looks from where the policy of the run's start "
                "stood, near which algo.pulls has to keep it by an entry of kind path without "
                "limit and every; or leave it false"
            )

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy with exploration noise, [N, T, Da]."""
        return draw.jittered(super().act(obs), self.explore_noise, self.generator)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        told = self.told(batch)
        loss, metrics = self.backup(batch, self.next_action(batch.next_obs), *told)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            shown = self.shown(self.policy, batch, self.policy_batch, self.generator)
            metrics |= self.update_policy(batch.obs[: self.policy_batch], shown)
        return metrics

    @torch.no_grad()
    def next_action(self, obs: Tensor) -> Tensor:
        """The action that a TD target asks about, [B, T, Da]."""
        count = self.target_candidates
        noise = candidate_noise(self.average, len(obs), count, self.generator)
        return choose(self.critic, obs, self.average.act(obs, noise))

    def step_value(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor | None:
        """The learned value of the points, [R], where there is one."""
        return None if self.value is None else self.value(obs, x, t)

    def learn_value(self, obs: Tensor, met: Met) -> dict[str, Tensor]:
        """A step of the value of points."""
        if self.value_opt is None:
            return {}
        loss = self.value_loss(obs, met)
        step(self.value_opt, loss)
        return {"critic/step_value_loss": loss.detach()}

    def value_loss(self, obs: Tensor, met: Met) -> Tensor:
        """Squared error of the values of points against the mean Q of their branches, []."""
        assert self.value is not None
        value = self.value(obs, met.x, self.policy.times()[met.which])
        return 0.5 * (value - met.worth).square().mean()
