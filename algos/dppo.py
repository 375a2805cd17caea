"""DPPO: policy gradients where every denoising step is a decision of its own."""

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Choice
from ..policies.flow import Chain, FlowPolicy, log_normal
from ..policies.nets import clone
from ..ranges import Count, NonNegative, Positive, Share
from .anchors import path_kl
from .onpolicy import Rows
from .tuning import PulledOnPolicy


@dataclass(eq=False)
class DPPO(PulledOnPolicy):
    """Diffusion policy policy optimisation (arXiv:2409.00588).

    The first K - tuned_steps denoising steps are the frozen base's, the last ones learn. Each is a
    sample of PPO with the DDIM noise of `policy.eta` (1: DDPM), at least std_floor; its log density
    is the mean over the executed steps of T and over Da. A step's advantage is its decision's times
    denoising_discount^(steps to come), and the clip grows along the tuned steps.

    The public code clamps log densities to [-5, 2]; here log ratios are bounded instead
    (`losses.clipped`), since a clamped density has no gradient, and those of small noise lie above.
    It normalises advantages in each minibatch, here they are over the rollout, as for all on
    policy: a minibatch of equally good steps stays one. Its table of betas is `policy.path=betas`;
    shipped is the path that needs no table.

    Args:
        tuned_steps: Denoising steps that learn, the last ones of policy.steps; those before are the
            frozen base's.
        std_floor: Least standard deviation of a denoising step's noise while training, in
            normalised action units.
        denoising_discount: Factor on a denoising step's advantage for each step that follows it; 1
            weighs all steps alike.
        clip_first: Clip of the ratio at the first tuned denoising step; from there it changes to
            learn.clip at the last.
        clip_rate: Rate of the exponential along which the clip goes from clip_first to learn.clip;
            0 is a straight line, larger changes it later.
        deploy_floor: Least standard deviation of a denoising step's noise when deployed, above 0,
            in normalised action units; the last step has no noise.
    """

    anchors = ("origin",)
    holds = {"path": ("const", "dual"), "data": ("const", "dual")}
    policy: FlowPolicy
    executed: int | None = None
    _: KW_ONLY
    tuned_steps: Count
    std_floor: Positive
    denoising_discount: Share
    clip_first: NonNegative
    clip_rate: NonNegative
    deploy_floor: Positive

    def __post_init__(self) -> None:
        if not 1 <= self.tuned_steps <= self.policy.steps:
            raise ValueError(
                f"algo.tuned_steps={self.tuned_steps}: the policy has policy.steps="
                f"{self.policy.steps} denoising steps; choose 1 to {self.policy.steps}"
            )
        self.base = clone(self.policy)  # begins every chain
        self.origin = clone(self.policy) if self.to_start else None  # what `pulls` hold to
        self.samples = self.tuned_steps
        super().__post_init__()

    def chain(self, obs: Tensor, generator: torch.Generator, floor: float) -> Chain:
        """The tuned part of chains that the base began."""
        policy = self.policy
        first = policy.steps - self.tuned_steps
        x = policy.noise(len(obs), generator)
        if first:
            x = self.base.rollout(obs, x, floor, generator, span=(0, first)).x[:, -1]
        kind = {"span": (first, policy.steps), "executed": self.executed}
        return policy.rollout(obs, x, floor, generator, **kind)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Choice:
        """The end of a chain, with its tuned part and the log density of each step."""
        chain = self.chain(obs, self.generator, self.std_floor)
        elements = chain.action[0, : self.executed].numel()
        return Choice(chain.action, {"x": chain.x, "logp": chain.logp / elements})

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The end of a chain with little noise, the mean of the last step, [N, T, Da]."""
        x = self.chain(obs, generator, self.deploy_floor).x
        policy, last = self.policy, torch.full((len(obs),), self.tuned_steps - 1)
        return policy.to_action(self.mean(x, obs, last.to(x.device))[0])

    @property
    def reference(self) -> FlowPolicy | None:
        """The policy that is held to."""
        return self.origin

    def mean(
        self, x: Tensor, obs: Tensor, which: Tensor, policy: FlowPolicy | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean [B, T, Da] and std of the tuned transitions `which` [B] of chains."""
        policy = self.policy if policy is None else policy
        times = policy.times()[policy.steps - self.tuned_steps :]
        now = x[torch.arange(len(x), device=x.device), which]
        feat = policy.features(obs)
        return policy.step(now, times[which], times[which + 1], feat, eta=policy.eta)

    def path(self, x: Tensor, obs: Tensor, which: Tensor) -> Tensor:
        """Divergence [] of the tuned part of chains from that of the start, in nats.

        Summed over its transitions and the executed steps' elements, of which every sample is one.
        """
        mean, std = self.mean(x, obs, which)
        with torch.no_grad():
            there, _ = self.mean(x, obs, which, self.origin)
        gap = path_kl(mean, there, std.clamp(min=self.std_floor))[:, : self.executed]
        return self.tuned_steps * gap.sum((-1, -2)).mean()

    def log_prob(self, x: Tensor, obs: Tensor, which: Tensor) -> Tensor:
        """Mean log density per element [B] of the tuned transitions `which` of chains."""
        mean, std = self.mean(x, obs, which)
        after = x[torch.arange(len(x), device=x.device), which + 1]
        logp = log_normal(after, mean, std.clamp(min=self.std_floor))
        return logp[:, : self.executed].mean((-1, -2))

    def clip(self, which: Tensor) -> Tensor:
        """Clip of the ratio at tuned steps [B]."""
        part = which / max(self.tuned_steps - 1, 1)
        if self.clip_rate > 0:
            part = torch.expm1(self.clip_rate * part) / math.expm1(self.clip_rate)
        return self.clip_first + (self.learn.clip - self.clip_first) * part

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Clipped objective of single denoising steps, []."""
        chosen = torch.arange(len(which), device=which.device), which
        log_ratio = self.log_prob(rows.kept["x"], rows.obs, which) - rows.kept["logp"][chosen]
        ahead = self.tuned_steps - 1 - which
        advantage = rows.advantage * self.denoising_discount**ahead
        loss, metrics = self.surrogate(log_ratio, advantage, self.clip(which))
        part = self.anchor("path")
        if part is not None:
            along = self.path(rows.kept["x"], rows.obs, which)
            metrics["policy/path_kl"] = along.detach()
            loss = loss + part.coef * along
        cloning, more = self.beside(rows, draws)
        return loss + cloning, metrics | more
