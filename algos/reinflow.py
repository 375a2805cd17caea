"""ReinFlow: policy gradients through a flow made noisy, with the exact likelihood of its chain."""

import logging
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from ..envs.batch import Choice
from ..policies.flow import FlowPolicy
from ..policies.nets import clone
from ..policies.noise import NoiseNet
from ..ranges import NonNegative
from .anchors import path_kl, strayed
from .onpolicy import Rows
from .tuning import PulledOnPolicy

log = logging.getLogger("rheo")


@dataclass(eq=False)
class ReinFlow(PulledOnPolicy):
    """PPO on the chain x_{k+1} ~ N(x_k + v dt, std(obs, t_k)^2) (arXiv:2505.22094).

    One grid gives the times of sampling and of the likelihood (`FlowPolicy.times`). The log ratio
    of a decision is that of its whole chain, divided by (K + 1) T Da where `normalise` is set: a
    clip c then allows a true density ratio of (1 + c)^((K + 1) T Da). T counts the executed steps
    here, in the entropy and in the anchor; that the noise of the others moves these in later
    transitions is taken as given, as if it came from outside. Deployed is the deterministic flow
    without the noise.

    Args:
        entropy_coef: Weight of the entropy bonus of the noisy chain, in nats per element; 0: none.
        anchor_coef: Weight of the squared distance between the policy's and the base's actions from
            the same noise; 0: no anchor.
        normalise: Whether the log ratio of a chain is divided by its number of elements, so that
            learn.clip is a limit per element.
        censored: Whether a final action beyond the box counts with the probability of all that lies
            beyond, instead of the density where it fell.
    """

    anchors = ("base",)
    holds = {"path": ("const", "dual"), "data": ("const", "dual")}
    policy: FlowPolicy
    noise: NoiseNet
    executed: int | None = None
    _: KW_ONLY
    entropy_coef: NonNegative
    anchor_coef: NonNegative
    normalise: bool
    censored: bool

    def __post_init__(self) -> None:
        policy = self.policy
        self.noise.refuse(policy.steps)
        if not policy.is_flow:
            log.info(
                "a diffusion policy (it predicts %s) is driven as a flow: every step goes to "
                "A(s) a + B(s) eps of its prediction, with the learned noise on top",
                policy.prediction,
            )
        self.noise.to(self.generator.device)
        self.base = clone(policy) if self.anchor_coef > 0 or self.to_start else None
        super().__post_init__()

    def tuned(self) -> list[nn.Parameter]:
        """The policy and its noise."""
        return [*self.policy.parameters(), *self.noise.parameters()]

    @torch.no_grad()
    def act(self, obs: Tensor) -> Choice:
        """The end of a noisy chain, with the chain [K + 1, T, Da] and its log density."""
        self.noise.settle(self.share)
        start = self.policy.noise(len(obs), self.generator)
        kind = {"censored": self.censored, "executed": self.executed}
        chain = self.policy.rollout(obs, start, self.noise, self.generator, **kind)
        return Choice(chain.action, {"x": chain.x, "logp": chain.logp.sum(-1)})

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The flow's action without noise on its way, [N, T, Da]."""
        return self.policy.act(obs, self.policy.start(len(obs), generator))

    def draw(self, rows: Rows) -> tuple[Tensor, ...]:
        """Noise of the anchor of actions, and what `PulledOnPolicy` draws."""
        noise = self.policy.noise(len(rows.obs), self.generator) if self.anchor_coef > 0 else None
        return (*(() if noise is None else (noise,)), *super().draw(rows))

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped objective, entropy bonus and anchor, []."""
        x = rows.kept["x"]
        kind = {"censored": self.censored, "executed": self.executed}
        logp, entropy = self.policy.chain_logp(x, rows.obs, self.noise, **kind)
        elements = x[0, :, : self.executed].numel()
        size = elements if self.normalise else 1.0
        log_ratio = (logp.sum((-1, -2, -3)) - rows.kept["logp"]) / size
        loss, metrics = self.surrogate(log_ratio, rows.advantage, self.learn.clip)
        entropy = entropy.sum(-1).mean() / elements
        metrics["policy/entropy"] = entropy.detach()
        loss = loss - self.entropy_coef * entropy
        if self.base is not None and self.anchor_coef > 0:
            noise, draws = draws[0], draws[1:]
            drift = strayed(self.policy, self.base, rows.obs, noise, self.executed)
            metrics["policy/drift"] = drift.detach()
            loss = loss + self.anchor_coef * drift
        part = self.anchor("path")
        if part is not None:
            along = self.path(x, rows.obs)
            metrics["policy/path_kl"] = along.detach()
            loss = loss + part.coef * along
        cloning, more = self.beside(rows, draws)
        return loss + cloning, metrics | more

    def path(self, x: Tensor, obs: Tensor) -> Tensor:
        """Divergence [] of chains x [B, K + 1, T, Da] from the base's with the same noise, in nats.

        Summed over transitions and the executed steps' elements.
        """
        assert self.base is not None
        mean, std = self.policy.transitions(x, obs, self.noise)
        with torch.no_grad():
            base, _ = self.base.transitions(x, obs, self.noise)
        return path_kl(mean, base, std)[..., : self.executed, :].sum((-1, -2, -3)).mean()
