"""What a frozen base said of a state, asked once and drawn from many times."""

import torch
from torch import Tensor


def refuse_small(cache: int, shown: int, what: str) -> None:
    """Raises ValueError for a cache that holds fewer answers than `what` shows of a state."""
    if 0 < cache < shown or cache < 0:
        raise ValueError(
            f"algo.base_cache={cache}: {what} shows {shown} answers of the base for a state; keep "
            "at least as many, or 0 to ask the base in every update"
        )


def pick(kept: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the K answers kept for each state, without replacement: [B, K, ..] -> [B, C, ..].

    Fixed answers would hand their luck to every update: the best of a few is above its mean for
    ever. Drawn from more than are shown, they are nearly as good as fresh ones.
    """
    odds = torch.rand(kept.shape[:2], generator=generator, device=generator.device)
    index = odds.topk(count, 1).indices
    return kept[torch.arange(len(kept), device=kept.device)[:, None], index]
