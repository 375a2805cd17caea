"""Diffusion steering: reinforcement learning of the noise that a frozen policy starts from."""

from dataclasses import dataclass

from .steered import Steered


@dataclass(eq=False)
class DSRL(Steered):
    """Soft actor-critic over the noise of a frozen policy (arXiv:2506.15799), both forms.

    See `Steered`, which is all of it.
    """
