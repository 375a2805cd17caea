"""Rheo: flow and diffusion action policies for robot control.

import rheo

run = rheo.train(algo="sac", env="inverted_pendulum", steps=5000)
policy = rheo.load(run)
env = rheo.make_env("inverted_pendulum")
action = policy.act(env.reset()[0])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .scripts.client import Chunks, Client
    from .scripts.library import load, make_env, train
    from .scripts.policy import Policy

__version__ = "0.1.0"
__all__ = ["Chunks", "Client", "Policy", "__version__", "load", "make_env", "train"]
HOMES = {"load": "library", "make_env": "library", "train": "library", "Policy": "policy"}
HOMES |= {"Chunks": "client", "Client": "client"}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line has to answer before torch is there."""
    if name not in HOMES:
        raise AttributeError(f"module 'rheo' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"rheo.scripts.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
