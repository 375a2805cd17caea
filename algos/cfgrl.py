"""Advantage-conditioned cloning: good actions get a flag, and deployment goes further that way."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.guidance import BAD, GOOD, UNTOLD, GuidedPolicy
from ..ranges import Share
from .expectile import Implicit
from .losses import matching_draws
from .matching import Matching


@dataclass(eq=False)
class CFGRL(Implicit, Matching):
    """Cloning under the flag "its advantage is positive", guided where it acts (CFGRL,
    arXiv:2505.23458; RECAP, arXiv:2511.14759).

    The policy (`GuidedPolicy`) matches every recorded action under the flag that its advantage
    earns, good or bad, and a share of them under none; no weight and no gradient of Q meets it. It
    acts by u + guidance (u(good) - u), about the density mu(a|s) p(good | s, a)^guidance, whose
    advantage grows with guidance (CFGRL, theorem 2); how far it goes is chosen after training too
    (policy.guidance). Advantages are those of `Implicit`, with expectile 0.5 of the recorded
    policy. B batch.

    Raises ValueError for a drop of 0 or 1, which would leave one side of guidance untrained.

    Args:
        advantage: What is judged: q, the smallest Q less the state's value, or td, reward and value
            of what follows (over source.n_step decisions) less the state's value.
        good_share: Share of each batch's actions that are called good, those of the largest
            advantages; null: those of advantages of at least 0, however many.
        drop: Share of actions that are cloned without a flag, for the plain side of guidance.
    """

    pure = ("critic_loss", "policy_loss")

    policy: GuidedPolicy  # pyright: ignore[reportIncompatibleVariableOverride]
    _: KW_ONLY
    advantage: Literal["q", "td"]
    good_share: Share | None
    drop: Share

    def __post_init__(self) -> None:
        if not 0 < self.drop < 1:
            raise ValueError(
                f"algo.drop={self.drop}: guidance goes from what is cloned without a flag to what "
                "is cloned with one; a share between 0 and 1, 0.1 for example"
            )
        super().__post_init__()

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of V and Q and one of the policy; metrics are 0-d."""
        loss, gap, metrics = self.critic_loss(batch)
        flag = self.flags(batch, gap)
        self.learn_critic(loss)
        good = (flag == GOOD).to(gap.dtype).mean()
        dropped = torch.rand(flag.shape, generator=self.generator, device=flag.device) < self.drop
        flag = flag.masked_fill(dropped, UNTOLD)
        draws = matching_draws(self.policy, len(flag), self.generator)
        loss = self.policy_loss(self.policy, batch, flag, *draws)
        self.learn_policy(loss)
        return metrics | {"policy/loss": loss.detach(), "policy/good": good}

    @torch.no_grad()
    def flags(self, batch: Batch, gap: Tensor) -> Tensor:
        """GOOD or BAD for every action [B]; gap [B] is min Q' - V."""
        if self.advantage == "td":
            ahead = self.value(batch.next_obs)
            gap = batch.reward + batch.discount * ahead - self.value(batch.obs)
        least = torch.zeros_like(gap[:1])
        if self.good_share is not None:
            least = gap.topk(max(1, round(self.good_share * len(gap)))).values[-1]
        return torch.where(gap >= least, GOOD, BAD)

    @staticmethod
    def policy_loss(
        policy: GuidedPolicy, batch: Batch, flag: Tensor, noise: Tensor, t: Tensor
    ) -> Tensor:
        """Matching under flags [B], []."""
        return policy.match_told(batch.obs, batch.action, noise, t, flag).mean()

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy under all flags, and the critics', held out."""
        loss, gap, _ = self.critic_loss(batch)
        assert isinstance(self.average, GuidedPolicy)
        draws = matching_draws(self.average, len(gap), generator)
        error = self.policy_loss(self.average, batch, self.flags(batch, gap), *draws)
        return {"val/loss": error, "val/critic_loss": loss}
