"""Residual flow steering: the noise of a frozen policy, and corrections of what it answers."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Coded
from ..policies.editor import Editor
from ..policies.nets import clone, lerp_
from ..ranges import Positive
from .editing import edit_loss
from .optim import adam, frozen, step
from .steered import Steered
from .temperature import Temperature


@dataclass(eq=False)
class RFS(Steered):
    """Residual flow steering (arXiv:2602.01789), off policy.

        a = clip(a_base(s, w) + c delta),   w ~ actor(s),   delta ~ editor(s, a_base)

    The noise chooses among what the base can do, the correction adds what it cannot. Both are soft
    actor-critics of one critic of executed actions, whose target has the bonus of either: the actor
    is that of `Steered`, whose noise critic is regressed on Q of corrected answers; the editor
    climbs Q at the base's answers in next_obs, which the target has asked for, so that an update
    asks the base no more than without it. The mean correction is deployed, by an averaged editor
    where the actor is averaged. Until the first update nothing is corrected. B batch, T chunk.

    Raises ValueError for a critic of codes and a gradient through the base, which know of no
    corrections.

    Args:
        edit_lr: Adam learning rate of the editor.
        edit_alpha: First value of the temperature that weighs the entropy of corrections against Q.
        entropy_per_dim: Entropy of corrections that their temperature holds, in nats per executed
            action element: higher explores more.
    """

    learned = {"temperature": "alpha", "edit_temperature": "edit_alpha"}
    beyond = "its base from the noise that its actor chooses, with the corrections of its editor"

    _: KW_ONLY
    editor: Editor
    edit_lr: Positive
    edit_alpha: Positive
    entropy_per_dim: float

    def __post_init__(self) -> None:
        editor, device = self.editor.to(self.generator.device), self.generator.device
        super().__post_init__()
        self.edit_opt = adam(editor.parameters(), self.edit_lr)
        self.slow_editor = clone(editor) if self.ema_rate < 1 else None
        size = (self.executed or editor.horizon) * editor.action_dim
        parts = self.edit_alpha, self.entropy_per_dim * size, self.alpha_lr
        self.edit_temperature = Temperature(*parts, device)
        self.pure += ("edit_loss",)

    def refuse(self) -> None:
        """Raises ValueError for values that do not go together."""
        if self.noise_critic is None or self.latent_gradient:
            raise ValueError(
                "algo.latent_gradient=true or no algo.noise_critic: corrections come behind the "
                "base, and a noise critic alone values noise together with them; leave these as "
                "they are"
            )
        super().refuse()

    @torch.no_grad()
    def act(self, obs: Tensor) -> Coded:
        """An exploring action, corrected since the first update, and itself to keep."""
        coded = super().act(obs)
        if self.updates == 0:
            return coded
        action = self.executes(obs, coded.action)[0]
        return Coded(action, action)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The answer to the actor's noise with its mean correction, [N, T, Da]."""
        editor = self.editor if self.slow_editor is None else self.slow_editor
        return editor.mean(obs, super().deploy(obs, generator))

    @torch.no_grad()
    def executes(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Corrected answers, and the bonus of their corrections' entropy, one sample's estimate."""
        noise = self.editor.noise(tuple(action.shape[:-2]), self.generator)
        edited, logp = self.editor.edit(obs, action, noise, self.executed)
        return edited, -self.edit_temperature.value * logp

    def update_beside(
        self, obs: Tensor, action: Tensor, told: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """One step of the editor and one of its temperature."""
        noise = self.editor.noise(len(obs), self.generator)
        with frozen(self.critic):
            alpha = self.edit_temperature.value
            loss, entropy, gain = self.edit_loss(obs, action, noise, alpha, told)
            step(self.edit_opt, loss)
        self.edit_temperature.update(entropy)
        if self.slow_editor is not None:
            lerp_(self.slow_editor, self.editor, self.ema_rate)
        return {
            "policy/edit_loss": loss.detach(),
            "policy/edit_entropy": entropy,
            "policy/edit_gain": gain,
            "policy/edit_temperature": self.edit_temperature.value,
        }

    def edit_loss(self, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`editing.edit_loss` of obs, base, noise, alpha and what the critic is told."""
        return edit_loss(self.critic, self.editor, *given, executed=self.executed)
