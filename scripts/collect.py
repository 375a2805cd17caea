"""`rheo collect`: a policy's experience as a data set, and data sets of graded quality.

Behaviours are runs, plain actor files and random actions, with noise or without.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rheo.envs.chunk import ChunkEnv
from rheo.envs.costs import speed_limit
from rheo.envs.data.containers import ZIP_ERRORS
from rheo.envs.data.recording import Recording
from rheo.envs.manipulation.registry import told_of
from rheo.envs.paths import expanded
from rheo.envs.recorder import SoFar, collect
from rheo.envs.rollout import evaluate
from rheo.envs.scores import normalized_score
from rheo.errors import MACHINE, REQUEUE, RheoError
from rheo.policies.plain import PlainActor

from . import branches, scripted
from .actor import acting
from .assemble import make_env
from .collected import Kept, Source
from .config.branching import Branching
from .config.compose import allow_typed, compose
from .config.top import EVAL_SEED
from .config.verbs import SCRIPTED, Collecting
from .config.words import is_there
from .rescue import ask_room
from .stopping import Stop, stop_signals
from .worlds import refuse_other_world

MEDIUM, MEDIUM_RANGE = 50.0, (25.0, 75.0)  # D4RL score that "medium" looks for, and what will do
NOISES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  # tried in turn when every actor is too good
SCORED = 20  # episodes that grade an actor
Act = Callable[[Tensor], Tensor]


class Maker:
    """Behaviours in one environment, whose id and time limit are known once one was made."""

    def __init__(self, options: Collecting, stop: Stop) -> None:
        self.options, self.flagged, self.stop = options, options.flagged, stop
        self.env_id, self.max_steps = "", None
        self.node: dict[str, Any] | None = None
        self.so_far: SoFar = lambda _: None
        self.words = options.words
        allow_typed(self.words)
        if options.env is not None:
            self.words = [f"env={options.env}", *options.words]
            self.node = dict(compose(["algo=sac", *self.words, *self.flagged])["env"])

    def record(self, source: Source, steps: int | None, seed: int) -> Recording:
        """Steps or episodes of a behaviour."""
        episodes = self.options.episodes
        count = min(self.options.num_envs, steps or self.options.num_envs)
        env, act = self.stage(source, count if episodes is None else min(count, episodes), seed)
        whole = self.options.steps  # of all parts
        if whole is not None:
            size = 4 * whole * (env.env.obs_dim + env.action_dim + 1)
            ask_room(size, f"{whole} steps", expanded(self.options.out))
        try:
            amount = {"steps": steps, "episodes": episodes}
            return collect(env, act, **amount, seed=seed, halt=self.stop.why, begun=self.begun)
        finally:
            env.close()

    def begun(self, so_far: SoFar) -> None:
        """Notes how what is being recorded is got while nothing answers."""
        self.so_far = so_far

    def stage(self, source: Source, count: int, seed: int) -> tuple[ChunkEnv, Act]:
        """Environments and the behaviour in them."""
        generator = torch.Generator().manual_seed(seed)
        path = expanded(source.name)
        if source.name != "random" and path.suffix != ".npz":
            env, act = self.of_run(source.name, count, generator)
        else:
            if self.node is None:
                raise RheoError(f"{source.name}: give the environment to act in (env=NAME)")
            env = self.make({**self.node, "execute": 1, "obs_steps": 1}, count)
            if source.name == "random":
                return env, lambda obs: uniform(env, len(obs), generator)
            act = of_actor(path, env, source.sample, generator)
        if not source.noise:
            return env, act

        def noisy(obs: Tensor) -> Tensor:
            action = act(obs)
            return action + source.noise * torch.randn(action.shape, generator=generator)

        return env, noisy

    def make(self, node: dict[str, Any], count: int) -> ChunkEnv:
        """`count` environments."""
        env = make_env({"env": node}, count)
        assert env is not None
        self.env_id, self.max_steps = env.env.id, env.env.max_steps
        self.parts, self.env_options = env.env.obs_parts or {}, dict(node.get("options") or {})
        limit = speed_limit(env.env.id, env.env.backend, node.get("cost") or {})
        self.cost = {} if limit is None else {"kind": "speed", "limit": limit}
        return env

    def told(self) -> dict[str, Any]:
        """What the file says of the environment and of its observations."""
        keys = {"obs_keys": list(self.parts), "obs_widths": list(self.parts.values())}
        known = {"env_id": self.env_id} | (keys if self.parts else {})
        known |= {"env_cost": self.cost} if self.cost else {}
        return known | told_of(self.env_id, self.env_options)

    def of_run(self, name: str, count: int, generator: torch.Generator) -> tuple[ChunkEnv, Act]:
        """A run folder's deployed policy, in its own environment unless another is named."""
        run, algo, sizes, node = acting(name, self.words, self.flagged)
        env = self.make(node, count)
        refuse_other_world(env, sizes, run)
        env = algo.wrap(env, self.options.seed)
        return env, lambda obs: algo.deploy(obs, generator)

    def plan(self, name: str) -> list[tuple[Source, int]]:
        """The behaviours of a set and their numbers of steps."""
        total = self.options.steps
        assert total is not None
        if name == "random":
            return [(Source("random", 0.0, False), total)]
        ranked = self.ranked()
        expert = Source(ranked[-1][1], 0.0, True)
        if name == "expert":
            return [(expert, total)]
        medium = self.medium(ranked)
        if name == "medium":
            return [(medium, total)]
        if name == "medium_expert":
            return [(medium, total - total // 2), (expert, total // 2)]
        below = [Source(path, 0.1, True) for _, path in ranked if path != medium.name]
        below = below[: [path for _, path in ranked].index(medium.name)]
        parts = [Source("random", 0.0, False), *below, medium]
        return [
            (source, total // len(parts) + (i < total % len(parts)))
            for i, source in enumerate(parts)
        ]

    def ranked(self) -> list[tuple[float, str]]:
        """Actors and runs with their scores, the worst first."""
        assert self.options.actors is not None
        whole = self.options.actors
        names = [whole] if is_there(whole) else whole.split(",")
        if len(names) == 1 and expanded(names[0]).is_dir():
            folder = expanded(names[0])
            if not (folder / "config.yaml").exists():
                names = [str(path) for path in sorted(folder.glob("*.npz")) if self.fits(path)]
        if not names:
            raise RheoError(f"actors={self.options.actors}: no actor that fits the environment")
        found = []
        for name in names:
            score = self.score(Source(name, 0.0, True))
            print(f"{Path(name).name}: score {score:.1f} over {SCORED} episodes", flush=True)
            found.append((score, name))
        return sorted(found)

    def fits(self, path: Path) -> bool:
        """Whether an actor's file is named after the environment: hopper_sac.npz for Hopper-v4."""
        assert self.node is not None
        return path.stem.lower().startswith(self.node["id"].partition("-")[0].lower())

    def score(self, source: Source) -> float:
        """Mean D4RL score of a behaviour. Raises RheoError where there is no score."""
        env, act = self.stage(source, SCORED, EVAL_SEED)
        try:
            rows = evaluate(env, lambda obs, _: act(obs).clamp(-1, 1), SCORED, EVAL_SEED)
        finally:
            env.close()
        score = normalized_score(self.env_id, float(np.mean([row.ret for row in rows])))
        if score is None:
            raise RheoError(
                f"env.id={self.env_id}: no reference returns, so actors cannot be graded; use the "
                "-v4 environments, or collect from the actors one by one"
            )
        return score

    def medium(self, ranked: list[tuple[float, str]]) -> Source:
        """The actor nearest to MEDIUM, or the worst of those above with noise enough."""
        low, high = MEDIUM_RANGE
        inside = [(abs(score - MEDIUM), name) for score, name in ranked if low <= score <= high]
        if inside:
            return Source(min(inside)[1], 0.0, True)
        above = [name for score, name in ranked if score > high]
        for noise in NOISES if above else ():
            source = Source(above[0], noise, True)
            score = self.score(source)
            print(f"{Path(above[0]).name} with noise {noise:g}: score {score:.1f}", flush=True)
            if low <= score <= high:
                return source
        raise RheoError(
            f"actors={self.options.actors}: none scores between {low:g} and {high:g}, with or "
            "without noise; add one that does"
        )


def uniform(env: ChunkEnv, rows: int, generator: torch.Generator) -> Tensor:
    """Uniform actions in the box, [N, 1, Da]."""
    return 2 * torch.rand((rows, 1, env.action_dim), generator=generator) - 1


def of_actor(path: Path, env: ChunkEnv, sample: bool, generator: torch.Generator) -> Act:
    """A plain actor file as behaviour. Raises RheoError when it does not fit the environment."""
    if not path.is_file():
        raise RheoError(f"{path}: no such actor file")
    try:
        with np.load(path, allow_pickle=False) as file:
            actor = PlainActor(dict(file), str(path))
    except (*ZIP_ERRORS, KeyError, TypeError) as error:
        raise RheoError(f"{path}: not an actor file: {error}") from error
    if actor.obs_dim < env.obs_dim or actor.action_dim != env.action_dim:
        raise RheoError(
            f"{path}: reads {actor.obs_dim} numbers and gives {actor.action_dim}, but "
            f"{env.env.id} has {env.obs_dim} observations and {env.action_dim} actions"
        )

    def act(obs: Tensor) -> Tensor:
        drawn = sample and actor.stochastic
        shape = (len(obs), env.action_dim)
        noise = torch.randn(shape, generator=generator) if drawn else None
        return actor(obs, noise)[:, None]

    return act


# ---- the verb ------------------------------------------------------------------------------------


def main(asked: Collecting | Branching) -> int:
    """Collects and writes a data set with its card; a signal to stop keeps what there is."""
    with stop_signals() as stop:
        if isinstance(asked, Branching):
            return branches.main(asked, stop)
        return scripted.main(asked, stop) if asked.set == SCRIPTED else recorded(asked, stop)


def recorded(asked: Collecting, stop: Stop) -> int:
    """Collects from policies."""
    maker = Maker(asked, stop)
    if asked.set is None:
        parts = [(Source(asked.names[0], asked.noise, asked.sample), asked.steps)]
    else:
        parts = maker.plan(asked.set)
    kept = Kept(maker, asked)
    stop.last_word = lambda: kept.rescued(str(stop.why()))
    stopped = None
    for index, (source, steps) in enumerate(parts):
        kept.source = source
        try:
            recording = maker.record(source, steps, asked.seed + 1000 * index)
        except (RheoError, FloatingPointError) as error:
            if not kept.recordings:
                raise
            stopped = f"{source.name}: {error}"
            break
        kept.add(recording)
        stopped = recording.about.get("stopped")
        if stopped is not None:
            break
    kept.write(stopped)
    if stopped is not None:
        code = REQUEUE if stop else MACHINE
        raise RheoError(f"{stopped}\nWhat was collected until then is in {asked.out}", code)
    return 0
