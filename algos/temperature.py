"""The weight of an entropy term, learned so that the entropy stays at a target."""

from typing import Any

import torch
from torch import Tensor

from .optim import adam, step


class Temperature:
    """alpha > 0 with the loss log(alpha) (entropy - target) (arXiv:1812.05905, section 6).

    start: its first value. target: of the entropy, or of any measure of spread that the policy's
    loss weighs with alpha. lr: Adam.
    """

    def __init__(self, start: float, target: float, lr: float, device: torch.device) -> None:
        self.log = torch.tensor(start, device=device).log().requires_grad_()
        self.target, self.optimizer = target, adam([self.log], lr)

    @property
    def value(self) -> Tensor:
        """alpha [], without gradient."""
        return self.log.detach().exp()

    def update(self, entropy: Tensor) -> None:
        """One step: up where the entropy [] is below its target."""
        step(self.optimizer, self.log * (entropy - self.target))

    @torch.no_grad()
    def carry(self, state: dict[str, Any]) -> None:
        """Takes over the multiplier that another run has come to; the optimiser starts anew."""
        self.log.copy_(state["log"])

    def state_dict(self) -> dict[str, Any]:
        """The multiplier and its optimiser."""
        return {"log": self.log.detach().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        with torch.no_grad():
            self.log.copy_(state["log"])
        self.optimizer.load_state_dict(state["optimizer"])
