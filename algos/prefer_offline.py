"""Preferences and regression of log ratios on recorded chunks that were compared."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Compared
from ..policies.candidates import sample
from ..policies.nets import clone, lerp_
from ..ranges import Positive, Rate
from .comparing import Comparing, Group
from .losses import refuse_jumps
from .optim import adam, step
from .preferences import agreement, preferred


@dataclass(eq=False)
class PreferOffline(Comparing):
    """Losses over recorded chunks at the same state, scored by what each came to (`Comparing`).

    No critic judges and nothing is acted: scores are the file's returns. Of labels alone the
    preferred chunk has the score 1 and the other one -1, whatever `labels` says: whoever made them
    drew them; loss `centred` is then IPO's (arXiv:2310.12036, eq. 17) with beta / 4 for its tau.
    Log ratios refer to the policy of the run's start. With ratio chain the chain of a recorded
    chunk is made by noising it (`FlowPolicy.noised`), all chunks of an observation by the same
    noise, as Diffusion-DPO's code does. B batch, K chunks of an observation, T
    chunk, Da action dimension.

    Args:
        policy_lr: Adam learning rate of the policy.
        ema_rate: Share by which the averaged copy that is deployed moves towards the policy per
            update; 1 deploys the policy itself.
        max_norm: Largest gradient norm of an update; a longer gradient is scaled down to it.
    """

    _: KW_ONLY
    policy_lr: Positive
    ema_rate: Rate
    max_norm: Positive

    def __post_init__(self) -> None:
        refuse_jumps(self.policy)
        self.refuse()
        self.base, self.average = clone(self.policy), clone(self.policy)
        self.policy_opt = adam(self.policy.parameters(), self.policy_lr)
        self.updates = 0

    def act(self, obs: Tensor) -> Tensor:
        """A sample of the averaged policy, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the averaged policy, [N, T, Da]."""
        return sample(self.average, None, obs, generator, eta=self.policy.eta)

    def update(self, batch: Compared) -> dict[str, Tensor]:
        """Counts an update, and learns; metrics are 0-d tensors."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> None:
        """The host's part of an update."""
        self.updates += 1

    def learn_from(self, batch: Compared) -> dict[str, Tensor]:
        """The device's part: a step of the policy."""
        return self.learn_policy(batch.obs, self.meet(batch, self.generator))

    def learn_policy(self, obs: Tensor, group: Group) -> dict[str, Tensor]:
        """A step on the loss of groups at states [B, O]; the average follows."""
        loss, metrics = self.policy_loss(obs, group)
        norm = step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        assert norm is not None
        return metrics | {"policy/loss": loss.detach(), "policy/gradient_norm": norm}

    @torch.no_grad()
    def meet(self, batch: Compared, generator: torch.Generator) -> Group:
        """The groups of a batch."""
        chain = None
        if self.ratio == "chain":
            noise = self.policy.noise((len(batch.obs), 1, self.policy.steps), generator)
            chain = self.policy.noised(batch.action, noise)
        score = scores(batch)
        group = self.grouped(batch.action, score, chain, generator)
        if batch.score is not None:
            return group
        return group._replace(sign=preferred(score, "hard", generator))

    @torch.no_grad()
    def validate(self, batch: Compared, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of the averaged policy on held-out chunks, and how often it is right.

        Accuracy: of all pairs with a better one, the share in which that one's log ratio is the
        larger; equal ones, as at the start, are half right.
        """
        group = self.meet(batch, generator)
        loss, ratio, _ = self.compare(self.average, batch.obs, group)
        better = preferred(group.score, "hard", generator)
        return {"val/loss": loss, "val/accuracy": agreement(ratio, better)}


def scores(batch: Compared) -> Tensor:
    """What chunks came to, [B, K]; where labels alone are known, falling numbers."""
    if batch.score is not None:
        return batch.score
    return torch.ones_like(batch.action[:, :, 0, 0]).cumsum(1).neg()
