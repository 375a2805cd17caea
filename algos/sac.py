"""Soft actor-critic: the Gaussian baseline."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..policies.heads import TanhGaussian
from .soft import Soft


@dataclass(eq=False)
class SAC(Soft):
    """Soft actor-critic with a learned temperature (arXiv:1812.05905).

    Of a Gaussian behind a tanh, as `Soft` has it.

    Args:
        deploy_mean: Whether the mode (tanh of the mean) is deployed instead of a sample.
    """

    policy: TanhGaussian
    _: KW_ONLY
    deploy_mean: bool

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The mode of the policy, or a sample, [N, T, Da]."""
        if self.deploy_mean:
            return self.policy.mean(obs)
        return self.policy.sample(obs, self.policy.noise(len(obs), generator))[0]
