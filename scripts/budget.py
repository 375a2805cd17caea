"""Memory for what a configuration asks of a world whose sizes are known, and where it ran out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rheo.envs.memory import available, size_text
from rheo.errors import MACHINE, RheoError

from .config import sizes as config_sizes


def refuse(cfg: Mapping[str, Any], sizes: Any, device: torch.device, networks: bool) -> None:
    """Raises RheoError for networks, or all that a run holds, that this machine has no memory for.

    sizes: of the world (`assemble.Sizes`).
    """
    free = free_memory(device)
    if free is None:
        return
    obs = 1 if sizes.images else sizes.obs_dim  # of images a network sees the features
    found = config_sizes.networks(cfg, obs, sizes.action_dim)
    if not networks:
        found = [*found, *config_sizes.experience(cfg, sizes.obs_dim, sizes.action_dim)]
    errors = config_sizes.too_much(cfg, list(found), free)
    if errors:
        told = f"observations of {sizes.obs_dim} and actions of {sizes.action_dim} numbers"
        raise RheoError(f"{errors[0]} ({told})", MACHINE)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where networks and experience lie."""
    return available() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


@contextmanager
def told(cfg: Mapping[str, Any], sizes: Any, kept: str) -> Iterator[None]:
    """Inside, memory that runs out becomes a message with its largest users.

    kept: what is left of the run.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        found = [
            *config_sizes.networks(cfg, 1 if sizes.images else sizes.obs_dim, sizes.action_dim),
            *config_sizes.experience(cfg, sizes.obs_dim, sizes.action_dim),
        ]
        largest = sorted(found, key=lambda share: -share.size)[:3]
        users = ", ".join(f"{share.what} at least {size_text(share.size)}" for share in largest)
        keys = " or ".join(dict.fromkeys(share.keys[0] for share in largest))
        line = " ".join(str(error).split())[:200]
        raise RheoError(
            f"out of memory ({line}); the largest users: {users}; lower {keys}; {kept}", MACHINE
        ) from error


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or here."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "not enough memory" in str(error) or "can't allocate memory" in str(error)
