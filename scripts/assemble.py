"""From a configuration to the objects of a run: environments, policy, critic, algorithm, source."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from rheo.algos.contract import Algorithm, completed
from rheo.envs.chunk import ChunkEnv
from rheo.envs.parts import displaced, listed_parts, names, read_parts
from rheo.envs.rollout import rows_of
from rheo.envs.suites import side_by_side
from rheo.errors import RheoError
from rheo.policies.numpy_mlp import quicken

from .config.build import build, target_of
from .config.compose import compose
from .config.top import STEPPING
from .fast import settle
from .store.run import Run
from .store.state import restore

# options that decide what a policy observes and what its actions do
OBSERVED = ("env_args", "obs_keys")


class Sizes(NamedTuple):
    """What a network must know of the world."""

    obs_dim: int  # flattened observation history, To * Do
    action_dim: int


class Experiment(NamedTuple):
    """Everything that a training loop drives."""

    algo: Any  # an `Algorithm`, with attributes of its own
    source: Any
    sizes: Sizes
    device: torch.device


def device_of(name: str) -> torch.device:
    """The device that the configuration names; "auto" takes a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RheoError(
            f"device={name}: torch sees {torch.cuda.device_count()} GPUs here; "
            "use device=cpu or device=auto"
        )
    return device


def prepare(cfg: Mapping[str, Any]) -> None:
    """Settings of the process that results depend on: the same for training and evaluation."""
    torch.set_num_threads(cfg["threads"] or os.cpu_count() or 1)
    settle(cfg["fast"])


def offer(node: Mapping[str, Any], key: str, **given: Any) -> Any:
    """`build`, with a constructor's ValueError as a message for the user."""
    try:
        return build(node, key=key, **given)
    except ValueError as error:
        raise RheoError(str(error)) from error


def make_env(cfg: Mapping[str, Any], num_envs: int | None = None) -> ChunkEnv | None:
    """The configured environment with `num_envs` copies; None when the run has none."""
    node: dict[str, Any] = dict(cfg["env"] or {})
    if node.get("id") is None:
        return None
    if num_envs is not None:
        node["num_envs"] = num_envs
    return offer(node, "env")


def make_eval_env(cfg: Mapping[str, Any], episodes: int) -> ChunkEnv | None:
    """Environments for an evaluation of so many episodes, no more than pay; None as above."""
    node = cfg["env"] or {}
    if node.get("id") is None:
        return None
    return make_env(cfg, side_by_side(node["id"], rows_of(episodes), node["workers"]))


def elsewhere(
    node: Mapping[str, Any], words: Sequence[str], flagged: Sequence[str]
) -> dict[str, Any]:
    """A run's environment with the one that env=NAME, env.id=ID, env.options.X=Y name in its place.

    How it is acted in (chunks, histories, discount) stays the run's, and what steps it (STEPPING),
    unless typed. Options are kept unless a file was named; of the same environment what decides its
    observations is kept then too. flagged: the --config-dir words. Raises RheoError.
    """
    keys = {word.partition("=")[0] for word in words}
    named, chosen = "env" in keys, bool({"env", "env.id"} & keys)
    start = [] if named else ["env=gym"] if chosen else ["env=hopper"]
    other = compose(["algo=sac", *start, *words, *flagged])["env"]
    kept = dict(node.get("options") or {})
    if named:
        same = other["id"] == node.get("id")
        kept = {key: kept[key] for key in OBSERVED if key in kept and same}
    moved = {"id": other["id"], "backend": other["backend"]} if chosen else {}
    moved |= {key: other[key] for key in STEPPING if f"env.{key}" in keys}
    return {**node, **moved, "options": {**kept, **other["options"]}}


def refuse_other_world(env: ChunkEnv, sizes: Sizes, run: Any) -> None:
    """Raises RheoError for an environment that a run's policy cannot act in."""
    refuse_other_order(env, run)
    if (env.obs_dim, env.action_dim) != tuple(sizes):
        raise RheoError(
            f"env.id={env.env.id} has {env.obs_dim} observations and {env.action_dim} actions, but "
            f"the policy of {run.path} takes {sizes.obs_dim} and gives {sizes.action_dim} (with "
            "its history); choose an environment of these sizes"
        )


def refuse_other_order(env: ChunkEnv, run: Any) -> None:
    """Raises RheoError where the data of a run had the environment's parts at other places."""
    clash = displaced(read_parts(run.meaning()), env.env.obs_parts or {})
    if clash:
        raise RheoError(
            f"env.id={env.env.id}: the policy of {run.path} was trained on {clash}; train it with "
            f"data.obs_keys={names(env.env.obs_parts or {})}, the environment's order"
        )


def make_algo(cfg: Mapping[str, Any], sizes: Sizes, run_updates: int) -> Any:
    """Policy, critic and algorithm, with weights and noise fixed by the seed."""
    device = device_of(cfg["device"])
    weights, noise = np.random.SeedSequence(cfg["seed"]).generate_state(2).tolist()
    torch.manual_seed(weights)
    shape = {**sizes._asdict(), "horizon": cfg["horizon"]}
    policy = make_part(cfg["policy"], "policy", shape).to(device)
    critic = None
    if cfg["critic"] and cfg["critic"]["_target_"] is not None:
        critic = make_part(cfg["critic"], "critic", shape).to(device)
    refuse_misfit(cfg["algo"], policy=policy, critic=critic)
    generator = torch.Generator(device).manual_seed(noise)
    given = {"generator": generator, "run_updates": run_updates, "executed": executed(cfg)}
    algo: Any = make_part(cfg["algo"], "algo", shape, policy=policy, critic=critic, **given)
    algo.__class__ = completed(type(algo))
    return algo


def revived(run: Run, lacking: str = "") -> tuple[Any, Sizes]:
    """The algorithm of a run's last checkpoint and its sizes. Raises RheoError without one.

    lacking: what is said then.
    """
    tree = run.load()
    if tree is None:
        raise RheoError(lacking or f"{run.path} has no checkpoint yet; train it first")
    sizes = Sizes(**tree["sizes"])
    algo = make_algo(run.config, sizes, run.config["steps"])
    restore(algo, tree["algo"], generators=False)
    return algo, sizes


def executed(cfg: Mapping[str, Any]) -> int:
    """How many steps of a plan are executed, here or in the recorded data: the first ones."""
    asked = (cfg.get("source") or {}).get("execute") or (cfg.get("env") or {}).get("execute")
    return min(asked or cfg["horizon"], cfg["horizon"])


def refuse_misfit(node: Mapping[str, Any], **parts: Any) -> None:
    """Raises RheoError for a part that is not of the class the algorithm's constructor names."""
    wanted = inspect.signature(target_of(node, "algo")).parameters
    for name, part in parts.items():
        kind: Any = wanted[name].annotation if name in wanted else Any
        named = inspect.isclass(kind) and issubclass(kind, torch.nn.Module)
        if named and not isinstance(part, kind):
            is_ = "none" if part is None else f"a {type(part).__name__}"
            raise RheoError(
                f"{name}: {node['_target_'].rpartition('.')[2]} needs a {kind.__name__} and this "
                f"is {is_}; choose another {name}=, or leave the algorithm's own"
            )


def make_part(
    node: Mapping[str, Any], key: str, shape: Mapping[str, int], **given: Any
) -> torch.nn.Module:
    """A node's object; its nested nodes (network, normalisers, state value) are built first.

    Its copies take the quick way for one state too, wherever the algorithm keeps them.
    """
    node = dict(node)
    dims = {"obs_norm": shape["obs_dim"], "action_norm": shape["action_dim"]}
    for name in [name for name, value in node.items() if isinstance(value, Mapping)]:
        more = {"dim": dims[name], "feature": name.removesuffix("_norm")} if name in dims else {}
        given[name] = make_part(node.pop(name), f"{key}.{name}", shape, **more)
    part = offer(node, key, **shape, **given)
    if isinstance(part, torch.nn.Module):
        quicken(part)
    return part


def assemble(cfg: Mapping[str, Any]) -> Experiment:
    """Everything for training. Fits the policy's statistics when the source has data."""
    device = device_of(cfg["device"])
    prepare(cfg)
    env = make_env(cfg)
    _, _, sampling, episodes = np.random.SeedSequence(cfg["seed"]).generate_state(4).tolist()
    if env is not None:
        env.reset(episodes)
    generator = torch.Generator(device).manual_seed(sampling)
    source = offer(cfg["source"], "source", env=env, generator=generator, horizon=cfg["horizon"])
    sizes = agree(cfg, env, source)
    algo = make_algo(cfg, sizes, run_updates(source, cfg["steps"]))
    if hasattr(source, "statistics"):
        fit_statistics(algo, *source.statistics())
    if algo.memo_rows > 0 and hasattr(source, "memorise"):
        try:
            source.memorise(algo.memo_rows, algo.remember)
        except ValueError as error:
            raise RheoError(f"{error}, or keep fewer answers: algo.base_cache") from error
    if env is not None and hasattr(source, "env"):
        source.env = algo.wrap(env, episodes)
    return Experiment(algo, source, sizes, device)


def run_updates(source: Any, steps: int) -> int:
    """What an algorithm's schedules count to in a run of `steps`: the updates that it makes.

    `steps` itself for a data set, whose batches it counts, and for rollouts, whose algorithms count
    the frames of each.
    """
    return source.updates_in(steps) if hasattr(source, "updates_in") else steps


def fit_statistics(algo: Algorithm, obs: torch.Tensor, action: torch.Tensor) -> None:
    """Fits the normalisers of all networks of an algorithm; equal kinds share their numbers."""
    data = {"obs_norm": obs, "action_norm": action}
    fitted: dict[tuple[str, str], Any] = {}
    networks = [part for part in vars(algo).values() if isinstance(part, torch.nn.Module)]
    for name, norm in ((n, getattr(net, n)) for net in networks for n in data if hasattr(net, n)):
        first = fitted.setdefault((name, norm.kind), norm)
        if first is norm:
            norm.fit(data[name])
        else:
            norm.load_state_dict(first.state_dict())


def twins(algo: Algorithm) -> list[Any]:
    """The algorithm's copies of its policy: averages, targets, anchors."""
    parts = vars(algo).values()
    return [part for part in parts if type(part) is type(algo.policy) and part is not algo.policy]


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
        text = "; ".join(
            f"{name} has {sizes.obs_dim} and {sizes.action_dim}" for name, sizes in found.items()
        )
        parts = read_parts(getattr(source, "about", {}))
        keys = f"; the data are read as {listed_parts(parts)}, data.obs_keys=[...] chooses"
        raise RheoError(
            f"observation and action sizes differ: {text} (with their histories); "
            f"choose a matching pair{keys if parts else ''}"
        )
    return next(iter(found.values()))
