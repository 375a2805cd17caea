"""Fitted Q evaluation of a policy that rests: what it is worth, told by recorded data alone."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.candidates import candidate_noise, sample
from ..policies.critics import QEnsemble
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, Positive, Rate, Share
from .contract import Algorithm
from .fitted import answers, fitted_loss, start_values
from .optim import adam, anneal, step


@dataclass(eq=False)
class FQE(Algorithm):
    """Fitted Q evaluation (arXiv:1903.08738): the value of the policy of init=RUN, which rests.

    Every critic learns r + discount mean_k Q'(s', a_k) towards its own copy, a_k what the policy
    does there when it is deployed. `val/value` is their mean at the first observations of held-out
    episodes: the discounted return that is to be expected, in the units of the rewards as they are
    read (`source.reward_norm`), of one sample of the policy per decision. B batch, K actions of a
    state, T chunk, Da action dimension.

    Args:
        critic_lr: Adam learning rate of the critics at the start of the run.
        lr_floor: Share of the critics' learning rate that is left at the end of the run, reached
            along a cosine; 1 keeps it constant.
        target_rate: Share by which the target critic moves towards the critic after each of its
            updates (Polyak averaging); 1 copies it.
        target_samples: Actions of the policy at every next state, whose mean value is backed up:
            more have less noise and cost as many more chains.
    """

    pure = ("loss",)
    needs_starts = True
    noisy_steps = True

    policy: FlowPolicy
    critic: QEnsemble
    generator: torch.Generator
    run_updates: int
    _: KW_ONLY
    critic_lr: Positive
    lr_floor: Share
    target_rate: Rate
    target_samples: Count

    def __post_init__(self) -> None:
        self.policy.requires_grad_(False)
        self.target = clone(self.critic)
        self.critic_opt = adam(self.critic.parameters(), self.critic_lr)
        self.updates = 0

    def act(self, obs: Tensor) -> Tensor:
        """What the policy does, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the policy, [N, T, Da]."""
        return sample(self.policy, self.critic, obs, generator, eta=self.policy.eta)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics; metrics are 0-d."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> None:
        """Counts an update and sets its rate."""
        self.updates += 1
        share = self.updates / max(self.run_updates, 1)
        anneal(self.critic_opt, self.critic_lr, share, self.lr_floor)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """The device's part of an update."""
        loss, metrics = self.loss(batch, self.answers(batch.next_obs, self.generator))
        step(self.critic_opt, loss)
        lerp_(self.target, self.critic, self.target_rate)
        return metrics

    def answers(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """What the policy does at obs [B, O], [B, K, T, Da]."""
        noise = candidate_noise(self.policy, len(obs), self.target_samples, generator)
        return answers(self.policy, obs, noise, generator, self.policy.eta)

    def loss(self, batch: Batch, ahead: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`fitted_loss` of this policy's critics, [], and metrics."""
        return fitted_loss(self.critic, self.target, batch, ahead)

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss on held-out data; what the policy is worth where their episodes begin."""
        loss, _ = self.loss(batch, self.answers(batch.next_obs, generator))
        told = {"val/critic_loss": loss}
        if self.starts is not None:
            obs = self.starts()
            value = start_values(self.critic, obs, self.answers(obs, generator))
            told |= {"val/value": value.mean(), "val/value_std": value.std(correction=0)}
        return told
