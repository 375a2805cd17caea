"""`rheo train ... dry=true`: everything is made and tried as for a run, told, and left."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from rheo.envs.memory import size_text
from rheo.envs.sources import Replay, Rollouts
from rheo.envs.vector import VectorEnv

from .assemble import Experiment, assemble, run_updates
from .fast import fast
from .sight import encode_data
from .start import start_from
from .store.where import locate, shown
from .trial import refuse_unfitted, rehearse


def show(config: dict[str, Any], name: str) -> int:
    """Prints the composed configuration, sizes, memory and what would run. Raises RheoError.

    No folder is made. name: of the run.
    """
    made = assemble(config)
    if config["init"] is not None:
        start_from(made.algo, config)
    encode_data(made.algo, made.source)
    refuse_unfitted(made.algo)
    rehearse(made.algo, made.source, made.sizes)
    fast(made.algo, config["fast"], config["precision"])  # refuses what a run would
    path = locate(name)
    there = " (there is one: choose another name=)" if (path / "config.yaml").exists() else ""
    print(OmegaConf.to_yaml(OmegaConf.create(config)))
    print("\n".join([f"run          {shown(path)}{there}", *facts(config, made)]))
    return 0


def facts(config: Mapping[str, Any], made: Experiment) -> Iterator[str]:
    """What was made, a line each."""
    algo, source, sizes, device = made
    acting = getattr(source, "replay", source)
    env = getattr(acting, "env", None)
    if env is not None:
        inner: VectorEnv = env.env
        limit = "no time limit" if inner.max_steps is None else f"{inner.max_steps} steps"
        yield (
            f"environment  {inner.id}, {env.num_envs} x {inner.backend}, episodes of {limit}; "
            f"executes {env.execute} of {config['horizon']} planned"
        )
    yield f"sizes        observation {sizes.obs_dim}{sizes.images_text}, action {sizes.action_dim}"
    parts = {k: v for k, v in vars(algo).items() if isinstance(v, torch.nn.Module)}
    counts = {k: sum(p.numel() for p in part.parameters()) for k, part in parts.items()}
    yield "networks     " + ", ".join(f"{k} {count:,}" for k, count in counts.items() if count)
    taken = size_text(held_bytes(source, set()))
    kept = "once it is full" if isinstance(acting, Replay) else "at once"
    yield f"memory       {taken} of experience {kept}; device {device}"
    yield f"work         {work(config, source)}"
    yield (
        f"between      logs every {config['log_every']:,}, checkpoints every "
        f"{config['save_every']:,}, {config['episodes']} episodes every {config['eval_every']:,}"
    )


def work(config: Mapping[str, Any], source: Any) -> str:
    """Frames and updates of the whole run."""
    steps = config["steps"]
    if isinstance(source, Rollouts):
        frames = source.env.num_envs * source.env.execute * source.decisions
        return f"{steps:,} frames, in rollouts of {frames:,}"
    updates = run_updates(source, steps)
    frames = f"{steps:,} frames, " if hasattr(source, "updates_in") else ""
    return f"{frames}{updates:,} updates"


def held_bytes(part: Any, met: set[int]) -> int:
    """Bytes of the arrays that an object of ours holds, environments and networks left out."""
    if id(part) in met:
        return 0
    met.add(id(part))
    if isinstance(part, torch.Tensor):
        return part.numel() * part.element_size()
    if isinstance(part, np.ndarray):
        return part.nbytes
    if isinstance(part, Mapping):
        inner = list(part.values())
    elif isinstance(part, list | tuple):
        inner = list(part)
    elif type(part).__module__.startswith("rheo.envs") and not hasattr(part, "num_envs"):
        inner = list(vars(part).values()) if hasattr(part, "__dict__") else []
    else:
        return 0
    return sum(held_bytes(each, met) for each in inner)
