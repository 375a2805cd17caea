"""From a configuration to the objects of a run: environments, policy, critic, algorithm, source."""

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rheo import ranks
from rheo.algos.contract import Algorithm, completed, give_starts, refuse_costless
from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.demos import FLAT
from rheo.envs.encoded import Encoded
from rheo.envs.imagined import IMAGINED, World
from rheo.envs.parts import listed_parts, read_parts
from rheo.envs.pixels import alike, listed_images
from rheo.envs.rollout import rows_of
from rheo.envs.suites import side_by_side
from rheo.errors import RheoError
from rheo.policies.normalize import REACH, affine
from rheo.policies.numpy_mlp import quicken

from . import budget
from .config.build import offer, target_of
from .config.schema import from_source
from .config.sizes import PER_CPU
from .fast import settle
from .sight import features_of, frozen, give_shift, make_eye, say_images, seeing
from .store.fields import fitting, refuse_partial
from .store.run import Run
from .store.state import restore
from .store.where import digest, named

log = logging.getLogger("rheo")


class Sizes(NamedTuple):
    """What a network must know of the world."""

    obs_dim: int  # flattened observation history, To * Do
    action_dim: int
    images: Mapping[str, Sequence[int]] = {}  # heights and widths of those at a step's end
    obs_steps: int = 1  # To

    def fits(self, other: "Sizes") -> bool:
        """Whether what learned from one can act in the other, whatever its images are called."""
        same = (self.obs_dim, self.action_dim) == (other.obs_dim, other.action_dim)
        return same and alike(self.images, other.images)

    @property
    def images_text(self) -> str:
        """' with front_image (84 x 84)', nothing without images."""
        return f" with {listed_images(self.images)}" if self.images else ""


class Experiment(NamedTuple):
    """Everything that a training loop drives."""

    algo: Any  # an `Algorithm`, with attributes of its own
    source: Any
    sizes: Sizes
    device: torch.device


def device_of(name: str) -> torch.device:
    """The device that the configuration names; "auto" takes a GPU when there is one.

    Of several ranks each takes a GPU of its own. Raises RheoError where there are fewer.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise RheoError(
            f"device={name}: torch sees {count} GPUs here; use device=cpu or device=auto"
        )
    if device.type == "cpu" or ranks.size() == 1:
        return device
    if device.index is not None:
        raise RheoError(f"device={name}: each of several ranks takes its own; set device=cuda")
    if ranks.beside() > count:
        raise RheoError(
            f"device={name}: {ranks.beside()} ranks on this machine, and torch sees {count} GPUs; "
            f"start as many ranks as there are GPUs (--nproc_per_node={count}), or use device=cpu"
        )
    return torch.device("cuda", ranks.local())


def streams(cfg: Mapping[str, Any]) -> Any:
    """Seeds of all that is drawn, other ones on every rank; the first one's are those of `seed`."""
    return np.random.SeedSequence([cfg["seed"], ranks.rank()])


def prepare(cfg: Mapping[str, Any]) -> None:
    """Settings of the process that results depend on: the same for training and evaluation."""
    cpus = os.cpu_count() or 1  # a run made elsewhere may have had more
    torch.set_num_threads(min(cfg["threads"] or max(cpus // ranks.beside(), 1), PER_CPU * cpus))
    settle(cfg["fast"])


def make_env(cfg: Mapping[str, Any], num_envs: int | None = None) -> ChunkEnv | None:
    """The configured environment with `num_envs` copies; None when the run has none."""
    node: dict[str, Any] = dict(cfg["env"] or {})
    if node.get("id") is None:
        return None
    if num_envs is not None:  # something is measured or recorded
        node["num_envs"] = num_envs
        if node.get("backend") == "warp":
            # by MuJoCo itself in float64: a policy that exploits another physics is not paid for it
            node |= {"backend": "auto", "randomise": {}}
    given: dict[str, Any] = {}
    if node["id"] == IMAGINED:
        given["world"] = world_of(node["model"])
    elif node.get("backend") == "warp":
        given["device"] = str(device_of(cfg["device"]))
    env: ChunkEnv = offer(node, "env", **given)
    if frozen(cfg) and env.env.obs_images:
        features = features_of(cfg, env.env.obs_images)
        inner, kind = Encoded(env.env, features), {"obs_steps": env.obs_steps, "gamma": env.gamma}
        return ChunkEnv(inner, execute=env.execute, **kind)
    return env


def entered(algo: Any, env: ChunkEnv, seed: int) -> Any:
    """The environment as an algorithm meets it, with its policy's encoder where that is frozen."""
    if isinstance(env.env, Encoded):
        env.env.see = seeing(algo)
    return algo.wrap(env, seed)


def make_eval_env(cfg: Mapping[str, Any], episodes: int) -> ChunkEnv | None:
    """Environments for an evaluation of so many episodes, no more than pay; None as above."""
    node = cfg["env"] or {}
    if node.get("id") is None:
        return None
    return make_env(cfg, side_by_side(node["id"], rows_of(episodes), node.get("workers", 0)))


def world_of(name: str) -> World:
    """What a run of algo=world has learned, on the host. Raises RheoError for another run."""
    run = Run.open(name, ["device=cpu"])
    if acts(run.config) or not hasattr(target_of(run.config["algo"], "algo"), "predict"):
        raise RheoError(
            f"env.model={named(name)}: that run has learned no model of an environment; name one "
            "of `rheo train algo=world data=FILE`"
        )
    model, sizes = loaded(run, f"env.model={named(name)}: that run has no checkpoint yet")
    model.model.eval().requires_grad_(False)
    told = meaning(run, sizes.obs_dim, sizes.action_dim)
    return World(model, named(name), digest(run.path, run.step), *told)


def sizes_of(env: ChunkEnv) -> Sizes:
    """The sizes of an environment."""
    images = {name: [*size] for name, size in env.env.obs_images.items()}
    return Sizes(env.obs_dim, env.action_dim, images, env.obs_steps)


def make_algo(cfg: Mapping[str, Any], sizes: Sizes, run_updates: int) -> Any:
    """Policy, critic and algorithm, with weights and noise fixed by the seed.

    Weights are the same on all ranks, their noise is not.
    """
    device = device_of(cfg["device"])
    budget.refuse(cfg, sizes, device, networks=True)
    torch.manual_seed(int(np.random.SeedSequence(cfg["seed"]).generate_state(1)[0]))
    _, noise = streams(cfg).generate_state(2).tolist()
    shape = {**sizes._asdict(), "horizon": cfg["horizon"], "eye": cfg.get("eye")}
    policy = critic = None
    if acts(cfg):
        policy = make_part(cfg["policy"], "policy", shape).to(device)
    if cfg["critic"] and cfg["critic"]["_target_"] is not None:
        critic = make_part(cfg["critic"], "critic", shape).to(device)
    refuse_misfit(cfg["algo"], policy=policy, critic=critic)
    generator = torch.Generator(device).manual_seed(noise)
    given = {"generator": generator, "run_updates": run_updates, "executed": executed(cfg)}
    algo: Any = make_part(cfg["algo"], "algo", shape, policy=policy, critic=critic, **given)
    algo.__class__ = completed(type(algo))
    return algo


def acts(cfg: Mapping[str, Any]) -> bool:
    """Whether there is a policy."""
    return cfg["policy"]["_target_"] is not None


def refuse_mute(run: Run) -> None:
    """Raises RheoError for a run without a policy."""
    if not acts(run.config):
        raise RheoError(
            f"{run.path}: is a model of an environment, and has no policy; tune one in it by `rheo "
            f"train algo=dppo init=RUN env={IMAGINED} env.model={named(run.path)}`"
        )


def revived(run: Run, lacking: str = "") -> tuple[Any, Sizes]:
    """The algorithm of a run's last checkpoint, which acts, and its sizes.

    Raises RheoError without one. lacking: what is said then.
    """
    refuse_mute(run)
    return loaded(run, lacking)


def loaded(run: Run, lacking: str = "") -> tuple[Any, Sizes]:
    """`revived`, whether it acts or not."""
    tree = run.load()
    if tree is None:
        raise RheoError(lacking or f"{run.path} has no checkpoint yet; train it first")
    refuse_partial(tree, run.loaded, "algo", "sizes")
    sizes = Sizes(**tree["sizes"])
    algo = make_algo(run.config, sizes, run.config["steps"])
    with fitting(run.loaded):
        restore(algo, tree["algo"], generators=False)
    return algo, sizes


def executed(cfg: Mapping[str, Any]) -> int:
    """How many steps of a plan are executed, here or in the recorded data: the first ones."""
    asked = (cfg.get("source") or {}).get("execute") or (cfg.get("env") or {}).get("execute")
    return min(asked or cfg["horizon"], cfg["horizon"])


def refuse_misfit(node: Mapping[str, Any], **parts: Any) -> None:
    """Raises RheoError for a part that is not of the class the algorithm's constructor names."""
    wanted = inspect.signature(target_of(node, "algo")).parameters
    if parts["policy"] is None and "policy" in wanted:
        what = node["_target_"].rpartition(".")[2]
        raise RheoError(f"policy=none: {what} trains a policy; leave the algorithm's own")
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
    node: Mapping[str, Any], key: str, shape: Mapping[str, Any], **given: Any
) -> torch.nn.Module:
    """A node's object; its nested nodes (normalisers, network, state value) are built first.

    The network `net` of a policy that has `inner_sizes` is of those.
    Where observations hold images an eye stands in place of `obs_norm`, and what is behind it sees
    its features. Its copies take the quick way for one state too, wherever the algorithm keeps
    them. Raises RheoError for a network that would take packed pixels for numbers.
    """
    node = dict(node)
    nested = [name for name, value in node.items() if isinstance(value, Mapping)]
    inner = getattr(target_of(node, key), "inner_sizes", None)
    for name in sorted(nested, key=lambda name: name != "obs_norm"):
        child, place, more = node.pop(name), f"{key}.{name}", {}
        if name == "obs_norm" and shape["images"]:
            given[name] = eye = make_eye(child["kind"], place, shape)
            shape = {**shape, "obs_dim": eye.out_dim, "images": {}}
            continue
        if name in ("obs_norm", "action_norm"):
            feature = name.removesuffix("_norm")
            more = {"dim": shape[f"{feature}_dim"], "feature": feature}
            more |= {"reach": REACH} if name == "obs_norm" else {}
        sizes = inner(node, shape) if inner is not None and name == "net" else shape
        given[name] = make_part(child, place, sizes, **more)
    if shape["images"] and "obs_dim" in from_source(node["_target_"]).slots:
        raise RheoError(
            f"{key}: {node['_target_'].rpartition('.')[2]} has no obs_norm, so it would take the "
            f"pixels of {', '.join(shape['images'])} for numbers; leave these out (data.obs_keys)"
        )
    part = offer(node, key, **shape, **given)
    if isinstance(part, torch.nn.Module):
        quicken(part)
    return part


def assemble(cfg: Mapping[str, Any]) -> Experiment:
    """Everything for training. Fits the policy's statistics when the source has data."""
    device = device_of(cfg["device"])
    prepare(cfg)
    env = make_env(cfg)
    if env is not None:
        budget.refuse(cfg, sizes_of(env), device, networks=False)
    _, _, sampling, episodes = streams(cfg).generate_state(4).tolist()
    generator = torch.Generator(device).manual_seed(sampling)
    given = {"env": env, "generator": generator, "horizon": cfg["horizon"]}
    given["features"] = partial(features_of, cfg) if frozen(cfg) else None
    source = offer(cfg["source"], "source", **given)
    sizes = agree(cfg, env, source)
    algo = make_algo(cfg, sizes, run_updates(source, cfg["steps"]))
    refuse_costless(algo, source)
    give_starts(algo, source)
    algo.read(source)
    acted = None if env is None else entered(algo, env, episodes)
    if env is not None:
        env.reset(episodes)
    give_shift(cfg, source, sizes)
    if hasattr(source, "statistics"):
        fit_statistics(algo, *source.statistics())
    if algo.memo_rows > 0 and hasattr(source, "memorise"):
        try:
            source.memorise(algo.memo_rows, algo.remember)
        except ValueError as error:
            raise RheoError(f"{error}, or keep fewer answers: algo.base_cache") from error
    if env is not None and hasattr(source, "env"):
        source.env = acted
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
    norms = ((n, affine(getattr(net, n))) for net in networks for n in data if hasattr(net, n))
    for name, norm in norms:
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
        found[f"env.id={cfg['env']['id']}"] = sizes_of(env)
    if hasattr(source, "obs_size"):
        found[f"data={cfg['data']}"] = Sizes(
            source.obs_size, source.action_dim, source.obs_images, source.obs_steps
        )
    if not found:
        raise RheoError("nothing to learn from: set env=NAME, or data=FILE with algo=bc")
    sizes = next(iter(found.values()))
    if not all(sizes.fits(other) for other in found.values()):
        text = "; ".join(
            f"{name} has {each.obs_dim} and {each.action_dim}{each.images_text}"
            for name, each in found.items()
        )
        parts = read_parts(getattr(source, "about", {}))
        keys = f"; the data are read as {listed_parts(parts)}, data.obs_keys=[...] chooses"
        raise RheoError(
            f"observation and action sizes differ: {text} (with their histories); "
            f"choose a matching pair{keys if parts else ''}"
        )
    say_images(cfg, sizes)
    return sizes


def meaning(run: Run, width: int, actions: int) -> tuple[dict[str, int], NDArray, NDArray]:
    """The parts of an observation [width], and the bounds of actions [Da] in their units.

    As the run's data tell them; what they do not tell is asked of its environment. Without either
    an observation is `flat`, and actions are in [-1, 1].
    """
    told = run.meaning()
    parts, low, high = read_parts(told), told.get("action_low"), told.get("action_high")
    if not parts or low is None or high is None:
        env = make_env(run.config, 1)
        if env is not None:
            parts = parts or env.env.obs_parts or {}
            low, high = env.env.action_low, env.env.action_high
            env.close()
    bounds = [
        np.broadcast_to(np.asarray(value, np.float64), actions)
        for value in (-1 if low is None else low, 1 if high is None else high)
    ]
    parts = parts or {FLAT: width}
    if sum(parts.values()) != width:
        raise RheoError(
            f"{run.path}: its policy reads {width} numbers a step, which are not "
            f"{listed_parts(parts)}, as its data are described"
        )
    return parts, bounds[0], bounds[1]
