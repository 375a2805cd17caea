"""From a configuration to the objects of a run: environments, policy, critic, algorithm, source."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from rheo.envs.chunk import ChunkEnv

from .build import build
from .errors import RheoError

EVAL_SEED = 100_000  # environment i of an evaluation starts from seed EVAL_SEED + i


class Sizes(NamedTuple):
    """What a network must know of the world."""

    obs_dim: int  # flattened observation history, To * Do
    action_dim: int


class Experiment(NamedTuple):
    """Everything that a training loop drives."""

    algo: Any
    source: Any
    sizes: Sizes
    device: torch.device


def device_of(name: str) -> torch.device:
    """The device that the configuration names; "auto" takes a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RheoError(f"device={name}: torch sees no GPU here; use device=cpu or device=auto")
    return torch.device(name)


def offer(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """`build`, with a constructor's ValueError as a message for the user."""
    try:
        return build(node, key=key, **given)
    except ValueError as error:
        raise RheoError(str(error)) from error


def make_env(cfg: Mapping[str, Any], num_envs: int | None = None) -> ChunkEnv | None:
    """The configured environment with `num_envs` copies; None when the run has none."""
    node = dict(cfg["env"])
    if node["id"] is None:
        return None
    if num_envs is not None:
        node["num_envs"] = num_envs
    return offer(node, "env")


def make_algo(cfg: Mapping[str, Any], sizes: Sizes, run_updates: int) -> Any:
    """Policy, critic and algorithm, with weights and noise fixed by the seed."""
    device = device_of(cfg["device"])
    weights, noise = np.random.SeedSequence(cfg["seed"]).generate_state(2).tolist()
    torch.manual_seed(weights)
    shape = {**sizes._asdict(), "horizon": cfg["horizon"]}
    policy = make_policy(cfg["policy"], shape).to(device)
    critic = None
    if cfg["critic"]["_target_"] is not None:
        critic = offer(cfg["critic"], "critic", **shape).to(device)
    generator = torch.Generator(device).manual_seed(noise)
    return offer(
        cfg["algo"],
        "algo",
        policy=policy,
        critic=critic,
        generator=generator,
        run_updates=run_updates,
    )


def make_policy(node: Mapping[str, Any], shape: Mapping[str, int]) -> torch.nn.Module:
    """A policy whose nested nodes (network, normalisers) are built first."""
    node = dict(node)
    parts = {}
    dims = {"obs_norm": shape["obs_dim"], "action_norm": shape["action_dim"]}
    for name in [name for name, value in node.items() if isinstance(value, Mapping)]:
        feature = name.removesuffix("_norm")
        given = {**shape, "dim": dims.get(name), "feature": feature}
        parts[name] = offer(node.pop(name), f"policy.{name}", **given)
    return offer(node, "policy", **parts, **shape)


def assemble(cfg: Mapping[str, Any]) -> Experiment:
    """Everything for training. Fits the policy's statistics when the source has data."""
    device = device_of(cfg["device"])
    torch.set_num_threads(cfg["threads"])
    env = make_env(cfg)
    _, _, sampling, episodes = np.random.SeedSequence(cfg["seed"]).generate_state(4).tolist()
    if env is not None:
        env.reset(episodes)
    generator = torch.Generator(device).manual_seed(sampling)
    source = offer(cfg["source"], "source", env=env, generator=generator, horizon=cfg["horizon"])
    sizes = agree(cfg, env, source)
    algo = make_algo(cfg, sizes, cfg["steps"])
    if hasattr(source, "statistics"):
        obs, action = source.statistics()
        for policy in (part for part in vars(algo).values() if hasattr(part, "obs_norm")):
            policy.obs_norm.fit(obs)
            policy.action_norm.fit(action)
    return Experiment(algo, source, sizes, device)


def agree(cfg: Mapping[str, Any], env: ChunkEnv | None, source: Any) -> Sizes:
    """The sizes that environment and data share. Raises RheoError when they differ."""
    found = {}
    if env is not None:
        found[f"env.id={cfg['env']['id']}"] = Sizes(env.obs_dim, env.action_dim)
    if hasattr(source, "obs_size"):
        found[f"data={cfg['data']}"] = Sizes(source.obs_size, source.action_dim)
    if not found:
        raise RheoError("nothing to learn from: set env=NAME, or data=FILE with algo=bc")
    if len(set(found.values())) > 1:
        text = "; ".join(f"{name} has {tuple(sizes)}" for name, sizes in found.items())
        raise RheoError(f"observation and action sizes differ: {text}; choose a matching pair")
    return next(iter(found.values()))


def capture(algo: Any) -> dict[str, Any]:
    """The state of every part of an algorithm: modules, optimisers, generators, counters."""
    state = {}
    for name, part in vars(algo).items():
        if isinstance(part, torch.Generator):
            state[name] = part.get_state()
        elif isinstance(part, torch.Tensor | int | float) and not isinstance(part, bool):
            state[name] = part
        elif hasattr(part, "state_dict"):
            state[name] = part.state_dict()
    return state


def restore(algo: Any, state: Mapping[str, Any]) -> None:
    """Puts back what `capture` took. Raises RheoError naming the first part that does not fit."""
    for name, part in vars(algo).items():
        if name not in state:
            continue
        value = state[name]
        try:
            if isinstance(part, torch.Generator):
                part.set_state(value.cpu())
            elif isinstance(part, torch.Tensor):
                with torch.no_grad():
                    part.copy_(value)
            elif isinstance(part, int | float) and not isinstance(part, bool):
                setattr(algo, name, value)
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(value)
        except (RuntimeError, ValueError) as error:
            raise RheoError(f"checkpoint part algo.{name} does not fit: {error}") from error
