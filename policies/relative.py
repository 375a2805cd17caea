"""A critic of actions that knows where a frozen base would act."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks

FLOOR = 0.01  # of the spread, in action units: what moves an action by less is not told apart


class Relative(nn.Module):
    """Q(s, (a - c(s)) / spread), c(s) being the base's action from the centre of its noise.

    A base that was cloned from a steady actor moves its actions by hundredths around c(s), while
    c(s) itself runs through the whole box. A critic of plain actions would have to learn c(s) to a
    fraction of that before it can tell two noises of a state apart; here it starts from there.
    spread [T, Da]: twice the standard deviation of the base's actions about c(s), -1 until it is
    measured; a critic that was loaded keeps the one that its weights were learned with.

    forward(obs [..., O], action [..., T, Da], centre=None) -> [E, ...]: as the critic within, with
    c(obs) [..., T, Da] from a caller who has it; else the base is asked. The base belongs to the
    algorithm: it is neither a parameter of this module nor copied with it.
    """

    spread: Tensor

    def __init__(self, critic: nn.Module, base: Any, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.critic = critic
        self._base = (base,)  # in a tuple, so that it does not become a part
        self.register_buffer("spread", -torch.ones(horizon, action_dim))
        self.measured = False
        self.register_load_state_dict_post_hook(lambda loaded, _: loaded.look())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Relative":
        twin = Relative(copy.deepcopy(self.critic, memo), self._base[0], *self.spread.shape)
        twin.load_state_dict(self.state_dict())
        return twin.to(self.spread.device).train(self.training)

    @property
    def obs_norm(self) -> Any:
        """Statistics of the observations, where the critic within has some."""
        return getattr(self.critic, "obs_norm", None)

    @torch.no_grad()
    def centre(self, obs: Tensor) -> Tensor:
        """c(obs): [..., O] -> [..., T, Da]."""
        rows = obs.flatten(0, -2)
        noise = torch.zeros((len(rows), *self.spread.shape), dtype=obs.dtype, device=obs.device)
        action = self._base[0].act(rows, noise).clamp(-1, 1)
        return action.unflatten(0, obs.shape[:-1])

    @torch.no_grad()
    def measure(self, distance: Tensor) -> None:
        """Takes the spread from distances a - c(s) [N, T, Da] of the base's own actions.

        Of several ranks from the distances of all.
        """
        square = ranks.mean(distance.square().mean(0))[0]
        self.spread.copy_(2 * square.sqrt()).clamp_(min=FLOOR)
        self.measured = True

    def look(self) -> None:
        """Finds out whether a spread that was loaded is a measured one."""
        self.measured = bool((self.spread > 0).all())

    def forward(self, obs: Tensor, action: Tensor, centre: Tensor | None = None) -> Tensor:
        centre = self.centre(obs) if centre is None else centre
        return self.critic(obs, (action - centre) / self.spread)
