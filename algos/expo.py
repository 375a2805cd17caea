"""EXPO: an expressive policy that only clones, and a small Gaussian that edits its actions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.batch import Batch
from ..policies.candidates import choose
from ..policies.editor import Editor
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..policies.relative import Relative
from ..ranges import Count, Natural, NonNegative, Positive, Rate
from .editing import edit_loss
from .losses import matching_draws, refuse_jumps
from .offpolicy import OffPolicy
from .optim import adam, frozen, step
from .recall import centres, looking_from, pick, refuse_small, told
from .temperature import Temperature


@dataclass(eq=False)
class EXPO(OffPolicy):
    """Expressive policy optimisation (arXiv:2507.07986).

    The base matches the actions of every batch (replay, or replay and demonstrations with
    source=mixed) and never sees a gradient of Q. The editor ascends Q at edited base actions with
    an entropy bonus. The policy on the fly is the argmax of min Q over `candidates` base samples
    AND their edits: it acts, it is deployed, and it backs up (with the target ensemble), so its
    value is never below the base's best-of-N under the same Q.

    Where a batch comes without samples of the base that a replay keeps (recorded data) they are
    fresh. Entropies count the executed steps alone, as in `SAC`; the base clones whole plans, whose
    ends recorded data know. B batch, N environments, M candidates, T chunk.

    Args:
        policy_lr: Adam learning rate of the editor.
        candidates: Base samples per state: the action with the highest Q among them and their edits
            acts, is deployed and backs up.
        base_lr: Adam learning rate at which the base goes on cloning the actions of batches; 0
            leaves the base as it is.
        base_cache: Samples of the base that the replay keeps for each state, to draw from in
            updates; 0 asks the base every time. Needs base_lr 0.
        relative: Whether the critic sees actions as offsets from what the base would do, in units
            of the base's spread; needs base_lr 0.
        alpha_lr: Adam learning rate of the temperature.
        alpha: First value of the temperature, which weighs the entropy of edits against Q.
        entropy_per_dim: Entropy of edits that the temperature holds, in nats per executed action
            element: higher explores more.
        ema_rate: Share by which the averaged base, which acts, moves towards the base per update; 1
            acts by the latest one.
        max_norm: Largest gradient norm of the base's cloning; a longer gradient is scaled down to
            it.
    """

    pure = ("critic_loss", "edit_loss", "base_loss")
    learned = {"temperature": "alpha"}
    beyond = "edits of its base's actions, the best of all by its critic"

    policy: FlowPolicy
    editor: Editor
    executed: int | None = None
    _: KW_ONLY
    candidates: Count
    base_lr: NonNegative
    base_cache: Natural
    relative: bool
    alpha_lr: Positive
    alpha: Positive
    entropy_per_dim: float
    ema_rate: Rate
    max_norm: Positive

    def __post_init__(self) -> None:
        self.refuse()
        policy, device = self.policy, self.generator.device
        self.editor.to(device)
        if self.relative:
            self.critic = looking_from(policy, self.critic, policy.horizon, policy.action_dim)
        super().__post_init__()
        self.average, self.base_opt = clone(policy), adam(policy.parameters(), self.base_lr)
        entropy = self.entropy_per_dim * (self.executed or policy.horizon) * policy.action_dim
        self.temperature = Temperature(self.alpha, entropy, self.alpha_lr, device)

    def refuse(self) -> None:
        """Raises ValueError for values that do not go together."""
        if self.base_lr > 0:
            refuse_jumps(self.policy)
        if self.candidates < 1:
            raise ValueError(f"algo.candidates={self.candidates}: at least 1 sample of the base")
        refuse_small(self.base_cache, self.candidates, f"algo.candidates={self.candidates}")
        if self.base_cache > 0 and self.base_lr > 0:
            raise ValueError(
                f"algo.base_cache={self.base_cache} keeps what a base of "
                f"algo.base_lr={self.base_lr} would say otherwise later; set "
                "algo.base_lr=0 with it, or leave it 0"
            )
        if self.relative and self.base_lr > 0:
            raise ValueError(
                f"algo.relative=true: the critic looks from where the base stands, which moves "
                f"with algo.base_lr={self.base_lr}; set algo.base_lr=0 with it, or leave it false"
            )

    @staticmethod
    def upgrade(state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state with today's name of the editor's optimiser."""
        names = {"editor_opt": "policy_opt"}
        return {"updates": 0} | {names.get(name, name): part for name, part in state.items()}

    def tuned(self) -> Iterable[nn.Parameter]:
        """The editor's parameters; the base has an optimiser of its own."""
        return self.editor.parameters()

    @torch.no_grad()
    def sampled(self, obs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` base samples, [N, count, T, Da]."""
        start = self.average.start(len(obs) * count, generator)
        return self.average.act(obs, start.unflatten(0, (len(obs), count)))

    @torch.no_grad()
    def union(self, obs: Tensor, base: Tensor, generator: torch.Generator) -> Tensor:
        """M base samples [N, M, T, Da] and their edits, [N, 2 M, T, Da]."""
        noise = self.editor.noise((len(obs), self.candidates), generator)
        return torch.cat([base, self.editor.edit(obs, base, noise)[0]], 1)

    @property
    def memo_rows(self) -> int:
        """Rows of actions that the replay keeps for `remember`."""
        kept = self.base_cache > 0 and isinstance(self.critic, Relative)
        return self.sample_rows + (2 * self.policy.horizon if kept else 0)

    @property
    def sample_rows(self) -> int:
        """Rows of samples among them."""
        return 2 * self.base_cache * self.policy.horizon

    @torch.no_grad()
    def remember(self, batch: Batch) -> Tensor:
        """base_cache samples at next_obs and as many at obs, [N, memo_rows, Da].

        Behind them the centres of a relative critic at obs and next_obs.
        """
        both = torch.stack([batch.next_obs, batch.obs], 1).flatten(0, 1)
        samples = self.sampled(both, self.base_cache, self.generator)
        samples = samples.unflatten(0, (-1, 2)).flatten(1, 3)
        return torch.cat([samples, *centres(self.critic, batch, 0)], 1)

    def recalled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """M base samples at next_obs [B, M, T, Da] and one at obs [B, T, Da], kept or fresh."""
        generator = self.generator
        if batch.memo is None:
            ahead = self.sampled(batch.next_obs, self.candidates, generator)
            return ahead, self.sampled(batch.obs, 1, generator)[:, 0]
        kept = batch.memo[:, : self.sample_rows]
        ahead, here = kept.unflatten(1, (2, self.base_cache, -1)).unbind(1)
        return pick(ahead, self.candidates, generator), pick(here, 1, generator)[:, 0]

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The best of the union, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The best of the union, [N, T, Da]."""
        many = self.union(obs, self.sampled(obs, self.candidates, generator), generator)
        return choose(self.critic, obs, many)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critic, of the editor with its temperature, and of the base."""
        rows, generator = len(batch.obs), self.generator
        with torch.no_grad():
            samples, base = self.recalled(batch)
            many = self.union(batch.next_obs, samples, generator)
            known = self.critic, self.target, batch, self.sample_rows
            here, ahead = told(*known, lambda: samples)
        loss, metrics = self.critic_loss(batch, many, here, ahead)
        self.learn_critic(loss)
        noise = self.editor.noise(rows, generator)
        with frozen(self.critic):
            alpha = self.temperature.value
            loss, entropy, gain = self.edit_loss(batch.obs, base, noise, alpha, here)
            step(self.policy_opt, loss)
        self.temperature.update(entropy)
        metrics |= {
            "policy/loss": loss.detach(),
            "policy/entropy": entropy,
            "policy/edit_gain": gain,
            "policy/temperature": self.temperature.value,
        }
        if self.base_lr > 0:
            noise, t = matching_draws(self.policy, rows, generator)
            loss = self.base_loss(batch.obs, batch.action, noise, t)
            step(self.base_opt, loss, self.max_norm)
            lerp_(self.average, self.policy, self.ema_rate)
            metrics["policy/base_loss"] = loss.detach()
        return metrics

    def critic_loss(
        self,
        batch: Batch,
        many: Tensor,
        here: Sequence[Tensor] = (),
        ahead: Sequence[Tensor] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss [] towards r + discount max over `many` [B, 2 M, T, Da] of min Q'(s', a').

        here, ahead: what `recall.told` gives.
        """
        with torch.no_grad():
            beside = [centre[:, None] for centre in ahead]
            value = self.target(batch.next_obs[:, None], many, *beside).amin(0).amax(1)
        return self.td(batch, value, here)

    def edit_loss(
        self,
        obs: Tensor,
        base: Tensor,
        noise: Tensor,
        alpha: Tensor,
        here: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [], and without gradient the entropy [] and what edits gain in Q []."""
        given = obs, base, noise, alpha, here
        return edit_loss(self.critic, self.editor, *given, executed=self.executed)

    def base_loss(self, obs: Tensor, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Matching of the batch's actions, []."""
        return self.policy.match(obs, action, noise, t, space=self.policy.prediction).mean()
