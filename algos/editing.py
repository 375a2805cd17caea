"""Soft ascent of edits of another policy's actions, as EXPO and RFS have it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..policies.editor import Editor


def edit_loss(
    critic: Any,
    editor: Editor,
    obs: Tensor,
    base: Tensor,
    noise: Tensor,
    alpha: Tensor,
    here: Sequence[Tensor] = (),
    executed: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """alpha log p(delta) - min Q at edited actions, [], and without gradient entropy and gain, [].

    base, noise [B, T, Da]; gain: what edits add to min Q; here: what the critic is told beside obs;
    executed: of how many steps densities are (`Editor.edit`).
    """
    action, logp = editor.edit(obs, base, noise, executed)
    q = critic(obs, action, *here).amin(0)
    with torch.no_grad():
        gain = (q - critic(obs, base, *here).amin(0)).mean()
    return (alpha * logp - q).mean(), -logp.detach().mean(), gain
