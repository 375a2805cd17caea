"""SAC Flow: soft actor-critic of a flow with noise in its steps, by the density of its chain."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from ..policies.density import log_slope
from ..policies.flow import FlowPolicy, log_normal
from ..policies.noise import NoiseNet
from ..ranges import Positive
from .optim import step
from .soft import Soft


@dataclass(eq=False)
class SACFlow(Soft):
    """Soft actor-critic through a flow's noisy chain (arXiv:2509.25756).

    A sample is x_0 ~ N(0, I), x_{k+1} ~ N(x_k + v dt, std(obs, t_k)^2) (`FlowPolicy.rollout`, the
    noise of arXiv:2505.22094) and a = tanh(x_K), or what policy.squash makes of it. What stands for
    log pi(a|s) in `Soft` is the density of the whole chain,

        log N(x_0; 0, I) + sum_k log N(x_{k+1}; x_k + v dt, std^2) - log |da / dx_K|,

    which needs no marginal. Its entropy is that of a and of how a came about, so it is no bound of
    a's own; entropy_per_dim is of all K + 1 draws, and K more or less of them want another target.
    The gradient of Q runs back through all steps, limited by max_norm. Deployed is the flow without
    noise on its way, from noise times policy.deploy_scale.

    Raises ValueError for noise on a schedule, against which the temperature would work.

    Args:
        entropy_per_dim: Entropy of the noisy chain that the temperature holds, in nats per executed
            action element, over the start and all denoising steps together: higher explores more.
        max_norm: Largest gradient norm of a policy step; a longer gradient is scaled down to it.
    """

    policy: FlowPolicy
    _: KW_ONLY
    noise: NoiseNet
    max_norm: Positive

    def __post_init__(self) -> None:
        self.noise.refuse(self.policy.steps)
        if self.noise.schedule == "learn_decay":
            raise ValueError(
                "algo.noise.schedule=learn_decay: the temperature holds the chain's entropy, and "
                "would work against noise that falls; choose learn or const"
            )
        self.noise.to(self.generator.device)
        super().__post_init__()

    def tuned(self) -> list[nn.Parameter]:
        """The policy and its noise."""
        return [*self.policy.parameters(), *self.noise.parameters()]

    def kicks(self, rows: int) -> Tensor:
        """The start and the noise of every transition, [rows, K + 1, T, Da]."""
        return self.policy.noise((rows, self.policy.steps + 1), self.generator)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The action [B, T, Da] of that noise and the log density [B] of its chain."""
        policy, start, kicks = self.policy, noise[:, 0], noise[:, 1:]
        kept = {"executed": self.executed, "kicks": kicks}
        chain = policy.rollout(obs, start, self.noise, None, **kept)
        first, last = (chain.x[:, k, : self.executed] for k in (0, -1))
        begin = log_normal(first, torch.zeros_like(first), torch.ones_like(first)).sum((-1, -2))
        return chain.action, begin + chain.logp.sum(-1) - log_slope(policy, last)

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The flow's action without noise on its way, [N, T, Da]."""
        return self.policy.act(obs, self.policy.start(len(obs), generator))

    def step_policy(self, loss: Tensor) -> None:
        """One step on the actor's loss [], with a limited gradient."""
        step(self.policy_opt, loss, self.max_norm)
