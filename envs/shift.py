"""Random shifts of the images in observations, before anything is learned from them."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .batch import Batch, Windows
from .pixels import Images

AnyBatch = TypeVar("AnyBatch", Batch, Windows)


class Shift:
    """Moves each image by up to `pad` pixels in every direction (DrQ-v2, arXiv:2107.09645).

    What comes in from beyond the border repeats it. The images of one camera in a history move
    together. obs [B, To (Ds + pixels)], with anything behind it, which stays; the pixels stay
    packed, so that whoever stores what was shifted stores what was seen.
    """

    def __init__(self, images: Images, steps: int, dim: int, pad: int) -> None:
        self.sizes: list[Sequence[int]] = list(images.values())
        self.steps, self.dim, self.pad = steps, dim, pad

    def __call__(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        rows = obs[:, : self.dim].unflatten(-1, (self.steps, -1))
        widths = [height * width for height, width in self.sizes]
        state, *images = rows.split([rows.shape[-1] - sum(widths), *widths], -1)
        moved = [
            image.gather(-1, self.places(len(obs), size, generator)[:, None].expand_as(image))
            for image, size in zip(images, self.sizes, strict=True)
        ]
        return torch.cat([torch.cat([state, *moved], -1).flatten(1), obs[:, self.dim :]], 1)

    def places(self, rows: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
        """Which pixel comes to each place of a shifted image, [B, H W]."""
        device, pad = generator.device, self.pad
        by = torch.randint(-pad, pad + 1, (2, rows, 1), generator=generator, device=device)
        down, across = (
            (torch.arange(side, device=device) + by[axis]).clamp(0, side - 1)
            for axis, side in enumerate(size)
        )
        return (down[:, :, None] * size[1] + across[:, None, :]).flatten(1)


def shifted(batch: AnyBatch, shift: Shift | None, generator: torch.Generator) -> AnyBatch:
    """The batch with the images of its observations shifted, each anew."""
    if shift is not None:
        for name in [name for name in batch._fields if name in ("obs", "next_obs")]:
            batch = batch._replace(**{name: shift(getattr(batch, name), generator)})
    return batch
