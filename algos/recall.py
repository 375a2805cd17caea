"""What a frozen base said of a state, asked once and drawn from many times."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies.nets import clone
from ..policies.relative import Relative


def refuse_small(cache: int, shown: int, what: str) -> None:
    """Raises ValueError for a cache that holds fewer answers than `what` shows of a state."""
    if 0 < cache < shown or cache < 0:
        raise ValueError(
            f"algo.base_cache={cache}: {what} shows {shown} answers of the base for a state; keep "
            "at least as many, or 0 to ask the base in every update"
        )


def looking_from(base: Any, critic: Any, horizon: int, action_dim: int) -> Any:
    """A critic that sees actions from where a base would put them, where the critic is."""
    device = next(critic.parameters()).device
    return Relative(critic, base, horizon, action_dim).to(device)


def centres(critic: Any, batch: Batch, skip: int) -> list[Tensor]:
    """What a relative critic is told beside obs and beside next_obs, [B, T, Da] each.

    Kept behind the first `skip` rows of a memo, or fresh; nothing for any other critic.
    """
    if not isinstance(critic, Relative):
        return []
    if batch.memo is not None:
        return list(batch.memo[:, skip:].chunk(2, 1))
    return list(critic.centre(torch.cat([batch.obs, batch.next_obs])).chunk(2))


def told(
    critic: Any, target: Any, batch: Batch, skip: int, own: Callable[[], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """What critic and target are told beside obs and beside next_obs: centres [B, T, Da], or
    nothing. A relative pair measures the base's spread before it learns: from its `own` actions at
    next_obs, [B, M, T, Da].
    """
    if not isinstance(critic, Relative):
        return [], []
    here, ahead = centres(critic, batch, skip)
    if not critic.measured:
        distance = (own() - ahead[:, None]).flatten(0, 1)
        for each in (critic, target):
            each.measure(distance)
    return [here], [ahead]


class Looking:
    """An algorithm with a key `relative`: whether its critic looks from where its run began."""

    policy: Any
    critic: Any
    target: Any
    generator: torch.Generator
    relative: bool

    def look(self) -> None:
        """Lets the critic see actions from where the policy of now would put them, if asked to.

        `origin` is apart from what the policy is held to, which moves on where a run goes on from
        another: the critic was learned from here.
        """
        policy = self.policy
        self.origin = clone(policy) if self.relative else None
        if self.origin is not None:
            self.critic = looking_from(self.origin, self.critic, policy.horizon, policy.action_dim)

    @torch.no_grad()
    def told(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the critic is told beside obs and beside next_obs (`told`)."""

        def own() -> Tensor:
            assert self.origin is not None
            noise = self.origin.noise((len(batch.obs), 1), self.generator)
            return self.origin.act(batch.next_obs, noise)

        return told(self.critic, self.target, batch, 0, own)


def pick(kept: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the K answers kept for each state, without replacement: [B, K, ..] -> [B, C, ..].

    Fixed answers would hand their luck to every update: the best of a few is above its mean for
    ever. Drawn from more than are shown, they are nearly as good as fresh ones.
    """
    odds = torch.rand(kept.shape[:2], generator=generator, device=generator.device)
    index = odds.topk(count, 1).indices
    return kept[torch.arange(len(kept), device=kept.device)[:, None], index]
