"""`rheo collect branches RUN`: what several chunks of actions come to from one state.

States are met by the run's policy; from each the simulator is set back as often as chunks are
tried. The file is read by `envs.data.pairs`, and by what learns from preferences.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheo.envs.branches import Behaviour, Branches, Met, branch, meet
from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.pairs import Pairs, pairs_of, write_pairs
from rheo.envs.manipulation.registry import told_of
from rheo.envs.memory import available, size_text
from rheo.envs.paths import expanded
from rheo.envs.recorder import shown
from rheo.envs.rollout import Deploy, heeding
from rheo.envs.suites import side_by_side
from rheo.envs.views import seconds_of
from rheo.errors import MACHINE, NUMERICS, REQUEUE, EnvError, EnvFault, Halted, RheoError
from rheo.files import put_text, sha256

from .actor import Actor, acting
from .assemble import entered, make_env
from .config.branching import EXPLORED, Branching
from .config.compose import allow_typed
from .config.top import AT_WILL, inside
from .rescue import ask_room, kept
from .stopping import Stop
from .store.provenance import versions
from .store.where import digest
from .worlds import refuse_other_world

ROWS = 256  # branches that are executed side by side, at most: more are not quicker
POSSIBLE = (
    "branches need a task that is stepped in a batch (env.backend=auto), or one of gymnasium's, "
    "Adroit, the mazes or DeepMind Control"
)


class Tried(NamedTuple):
    """What came of all branches."""

    met: list[Met]  # the states whose branches are there, in order
    found: Branches
    decisions: int  # out of how many the states were drawn
    stopped: str | None  # why there are not more


def main(asked: Branching, stop: Stop) -> int:
    """Tries chunks and writes their returns with a card; a signal to stop keeps what there is."""
    allow_typed(asked.world)
    actor = acting(asked.name, asked.world, asked.flagged, asked.changed)
    deploy = heeding(behaviour_of(actor.algo, asked.act), lambda: bool(stop))
    behaviour = Behaviour(deploy, asked.seed, str(actor.algo.generator.device))
    env = make(actor, min(asked.num_envs, asked.states), {})
    try:
        refuse(env, actor, asked)
        tried = attempts(env, actor, behaviour, asked)
    except Halted:
        raise RheoError(f"{stop.why()}: no branch was tried; nothing is written", REQUEUE) from None
    except FloatingPointError as error:  # the guard before the physics
        raise RheoError(f"{actor.run.path}, step {actor.run.step}: {error}", NUMERICS) from error
    except EnvFault as error:
        raise RheoError(str(error), MACHINE) from error
    finally:
        env.close()
    finish(tried, env, actor, asked)
    if tried.stopped is not None:
        why, code = (stop.why(), REQUEUE) if stop else (tried.stopped, MACHINE)
        raise RheoError(f"{why}\nWhat was tried until then is in {asked.out}", code)
    return 0


def behaviour_of(algo: Any, act: str) -> Deploy:
    """How an algorithm acts when it is deployed, or as it explores, with the noise that it gets."""
    if act != EXPLORED:
        return algo.deploy

    def explore(obs: Tensor, generator: torch.Generator) -> Tensor:
        algo.generator = generator
        chosen = algo.act(obs)
        return getattr(chosen, "action", chosen)

    return explore


def make(actor: Actor, count: int, changed: dict[str, Any]) -> ChunkEnv:
    """`count` environments for a policy, in this process."""
    node = {**actor.node, "workers": 0, **changed}
    env = make_env({**actor.run.config, "env": node}, count)
    assert env is not None
    return env


def refuse(env: ChunkEnv, actor: Actor, asked: Branching) -> None:
    """Raises RheoError for a policy or an environment without branches, and where room lacks."""
    run, horizon = actor.run, actor.run.config["horizon"]
    refuse_other_world(env, actor.sizes, run)
    if entered(actor.algo, env, asked.seed) is not env:
        kind = type(actor.algo).__name__
        raise RheoError(
            f"{run.path}: a {kind} corrects the plans of a base, which go on beside the simulator "
            f"and are no part of its state; name the base, {run.config['init']}"
        )
    why = env.env.unbranched()
    if why is not None:
        raise RheoError(f"{env.env.id} cannot go on from a saved state: {why}; {POSSIBLE}")
    numbers = env.obs_dim + (asked.width + 2) * horizon * env.action_dim + asked.width
    size, what = 4 * asked.states * numbers, f"{asked.states} states of {asked.width} branches"
    free = available()
    if free is not None and size > free:
        text = f"{what} take {size_text(size)} of memory, and {size_text(free)} are free"
        raise RheoError(f"{text}; lower states= or width=", MACHINE)
    ask_room(size, what, expanded(asked.out))


def attempts(env: ChunkEnv, actor: Actor, behaviour: Behaviour, asked: Branching) -> Tried:
    """Meets the states and tries their branches.

    What was tried before the environment failed or a signal asked to stop is kept; what it raised
    is raised where that is nothing.
    """
    met, decisions = meet(env, behaviour, asked.states)
    print(f"{asked.states} states drawn from {decisions} decisions, {asked.act} policy", flush=True)
    found, stopped = [], None
    try:
        for some in tries(met, env, actor, behaviour, asked):
            if not found:
                refuse_same(some.chunk, actor, asked)
            found.append(some)
    except (EnvError, FloatingPointError, Halted) as error:
        if not found:
            raise
        stopped = str(error) or "stopped by a signal"
    whole = Branches(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    return Tried(met[: len(whole.ret)], whole, decisions, stopped)


def tries(
    met: list[Met], env: ChunkEnv, actor: Actor, behaviour: Behaviour, asked: Branching
) -> Iterator[Branches]:
    """The branches of as many states at a time as is quick."""
    rows = side_by_side(env.env.id, min(ROWS, len(met) * asked.width), 0)
    size = max(rows // asked.width, 1)
    rest = len(met) % size
    for begin, end, count in ((0, len(met) - rest, size), (len(met) - rest, len(met), rest)):
        if not count:
            continue
        with closing(make(actor, count * asked.width, {"execute": 1})) as world:
            for first in range(begin, end, count):
                part, how = met[first : first + count], (asked.width, env.execute, asked.steps)
                yield branch(world, behaviour, part, *how, first)


def refuse_same(chunk: NDArray, actor: Actor, asked: Branching) -> None:
    """Raises RheoError for a policy without noise: the chunks [S, K, T, Da] of a state are one."""
    if not (chunk == chunk[:, :1]).all():
        return
    scale = inside(actor.run.config, "policy.deploy_scale")
    if asked.act == EXPLORED:
        remedy = "nothing is left to compare"
    else:
        remedy = "add act=explored" + (" or policy.deploy_scale=1" if scale == 0 else "")
    text = f"the {asked.act} policy has no noise, so that all chunks of a state are one"
    raise RheoError(f"{actor.run.path}: {text}; {remedy}")


# ---- the file ------------------------------------------------------------------------------------


def finish(tried: Tried, env: ChunkEnv, actor: Actor, asked: Branching) -> None:
    """Writes the file and its card, and says so. Raises RheoError where no pair can be made."""
    found, out = tried.found, expanded(asked.out)
    sound = ~found.broken.any(1)
    obs = torch.stack([each.obs for each in tried.met]).numpy().astype(np.float32)
    about = describe(env, actor, asked) | {"broken": int((~sound).sum())}
    pairs = pairs_of(obs[sound], found.chunk[sound], found.ret[sound], about)
    if not len(pairs.obs):
        ties, broken = pairs.about["ties"], pairs.about["broken"]
        text = f"{asked.name}: at none of {len(obs)} states one chunk came to more than another"
        text += f" ({ties} ties, {broken} broken); nothing is written; raise steps= or width="
        raise RheoError(text)
    rows = np.flatnonzero(sound)[found.ret[sound].max(1) > found.ret[sound].min(1)]
    places = {
        key: np.array([getattr(tried.met[i], key) for i in rows]) for key in ("episode", "step")
    }
    out, refused = kept(lambda path: write_pairs(pairs, path, **places), out)
    card = {
        **{"file": out.name, "sha256": sha256(out)},
        **pairs.about,
        **figures(pairs, tried),
        **{"stopped": tried.stopped, "versions": versions()},
    }
    put_text(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1) + "\n")
    print(f"{out}: {env.env.id}, {line(card)}; card {out.name}.card.json")
    if refused is not None:
        raise refused


def describe(env: ChunkEnv, actor: Actor, asked: Branching) -> dict[str, Any]:
    """What the file says of where its numbers come from."""
    run, options = actor.run, dict(actor.node.get("options") or {})
    tree = {**run.config, "env": actor.node}
    deployment = {key: value for key in AT_WILL if (value := inside(tree, key)) is not None}
    chosen = {k: v for k, v in run.config["algo"].items() if k.startswith("deploy_")}
    deployment |= {f"algo.{key}": value for key, value in chosen.items()}
    sizes = {"horizon": run.config["horizon"], "execute": env.execute, "steps": asked.steps}
    parts = env.env.obs_parts or {}
    return {
        **({"obs_keys": list(parts), "obs_widths": list(parts.values())} if parts else {}),
        **shown(env.env),
        **told_of(env.env.id, options),
        **{"env_id": env.env.id, "dt": seconds_of(env.env.id, options)},
        **{"run": str(run.path), "checkpoint_step": run.step},
        "checkpoint_sha256": digest(run.path, run.step),
        **{"act": asked.act, "deployment": deployment, "seed": asked.seed},
        **{"discount": env.gamma, "states": asked.states, "width": asked.width, **sizes},
    }


def figures(pairs: Pairs, tried: Tried) -> dict[str, Any]:
    """How far the returns of a state's branches lie apart, and how branches ended."""
    scores, found = pairs.scores, tried.found
    assert scores is not None
    return {
        **{"pairs": len(scores), "decisions": tried.decisions},
        "return_mean": float(scores.mean()),
        "return_std_within": float(scores.std(1).mean()),
        "gap_mean": float((scores.max(1) - scores.min(1)).mean()),
        "ended": float(found.terminated.mean()),  # shares of all branches
        "out_of_time": float((found.cut & ~found.terminated).mean()),
    }


def line(card: dict[str, Any]) -> str:
    """A card in a line."""
    after = card["execute"] + card["steps"]
    text = f"{card['pairs']} states of {card['width']} branches of {after} steps, the best return "
    text += f"{card['gap_mean']:.3g} above the worst (mean), no value added behind them"
    if card["ties"]:
        text += f"; {card['ties']} states left out whose branches have one return"
    return text + (f"; {card['broken']} that broke" if card["broken"] else "")
