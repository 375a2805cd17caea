"""`rheo eval RUN`: the run folder knows everything; nothing of the model is asked.

With steer=... its policy is deployed through a chain of `policies.steer`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from rheo.algos.contract import Algorithm
from rheo.envs.chunk import ChunkEnv
from rheo.envs.encoded import Encoded
from rheo.envs.noise import TILE
from rheo.envs.rollout import (
    Deploy,
    Episode,
    as_rows,
    evaluate,
    heeding,
    rows_of,
    summary,
)
from rheo.envs.scores import REFERENCES, scaled
from rheo.errors import MACHINE, NUMERICS, EnvFault, RheoError, nearest
from rheo.policies.flow import FlowPolicy
from rheo.policies.normalize import REACH, affine
from rheo.policies.steer import Chain, Settings

from .assemble import entered, executed, make_eval_env, prepare, refuse_mute, revived
from .config.build import build
from .config.compose import allow_typed
from .config.top import EVAL_SEED, HOME, PLACES
from .config.verbs import Evaluation, References
from .fast import fast_deploy
from .store.provenance import starts_of, versions
from .store.run import Run
from .store.where import stored
from .worlds import elsewhere, refuse_other_world

log = logging.getLogger("rheo")
DECISIONS = 50  # timed
REFERENCE = "steer.reference"
SUCCESS = {"success_once": "at any step", "success_at_end": "at the last step"}


def main(asked: Evaluation) -> int:
    """Evaluates the last checkpoint of a run and prints and stores the result."""
    allow_typed(asked.world)
    run = Run.open(asked.name, [*asked.flagged, *asked.values])
    trained, changed = dict(run.config["env"] or {}), changes(asked)
    if asked.world:
        run.config["env"] = elsewhere(trained, asked.world, asked.flagged)
    given = asked.episodes, asked.references, changed, asked.steer, asked.seed
    figures = evaluate_folder(run, *given)
    print(report(run, figures | told_apart(run.config["env"], trained, asked.seed)))
    return 0


def changes(asked: Evaluation) -> list[str]:
    """The words of an evaluation that set it apart from the run's own; those of steer= are not."""
    seed = [f"seed={asked.seed}"] if asked.seed != EVAL_SEED else []
    return [
        *(word for word in asked.values if word.partition("=")[0] not in PLACES),
        *asked.world,
        *seed,
    ]


def label_of_all(asked: Evaluation) -> str:
    """What the file of an evaluation is called after its step and number of episodes."""
    steer = [f"{key}={value}" for key, value in asked.steer.items()]
    return "-".join(map(label_of, [*changes(asked), *steer]))


def known_references(node: Mapping[str, Any]) -> References | None:
    """D4RL's references for an environment, if it has any and is used as D4RL does."""
    if node["id"] not in REFERENCES or set(node.get("options") or ()) - {"render_mode"}:
        return None
    return References(*REFERENCES[node["id"]], "D4RL")


def evaluate_folder(
    run: Run,
    episodes: int,
    references: References | None = None,
    changed: Sequence[str] = (),
    steer: Mapping[str, str] | None = None,
    seed: int = EVAL_SEED,
) -> dict[str, Any]:
    """Figures of `episodes` episodes of a run's last checkpoint; per-episode rows are stored.

    references: what the score is computed with, D4RL's for the environment by default. changed:
    values of the run that are other ones here, steer: words of steer=; the stored file is named
    after them. A policy that is deployed as the best of several samples is evaluated with one
    sample too ("single/...").
    """
    config = run.config
    algo, env = made(run, episodes)
    env = entered(algo, env, seed)
    if steer:
        algo = steered(algo, steer, env.execute)
        changed = [*changed, *(f"{key}={value}" for key, value in steer.items())]
    used = references or known_references(config["env"])
    figures: dict[str, Any] = {"env": env.env.id, "changed": list(changed)}
    try:
        rows = episodes_of(env, algo, episodes, config["fast"], seed)
        figures |= score(rows, used) | {"decision_ms": decision_ms(env, algo)}
        candidates = algo.deploy_one()
        if candidates > 1:
            figures["candidates"] = candidates
            single = score(episodes_of(env, algo, episodes, config["fast"], seed), used)
            figures |= {name.replace("eval/", "single/"): x for name, x in single.items()}
    except FloatingPointError as error:  # the guard before the physics
        raise RheoError(f"{run.path}, step {run.step}: {error}", NUMERICS) from error
    except EnvFault as error:
        raise RheoError(str(error), MACHINE) from error
    finally:
        env.close()
    figures = titled(figures, env)
    if used is not None:
        figures["references"] = used._asdict()
    label = "-".join([f"{episodes}", *map(label_of, changed)])
    file = run.record_eval(run.step, as_rows(rows), label=label, **figures)
    return figures | {"step": run.step, "file": str(file)}


def made(run: Run, episodes: int) -> tuple[Any, ChunkEnv]:
    """The algorithm of a run's last checkpoint, and environments for it. Raises RheoError."""
    refuse_mute(run)
    prepare(run.config)
    env = make_eval_env(run.config, episodes)
    if env is None:
        raise RheoError(
            f"{run.path} was trained on data without an environment (env.id is null), so there is "
            "nothing to evaluate it in; train with env=NAME to evaluate"
        )
    warn_of_versions(run)
    algo, sizes = revived(run)
    refuse_other_world(env, sizes, run)
    warn_of_tails(run, algo, env.execute)
    return algo, env


def decision_ms(env: Any, algo: Any) -> float:
    """Milliseconds of a deployed decision for one observation, the median of DECISIONS.

    Of a corrected base its plan counts too, as where a new one is due; and what encodes images for
    a policy that is shown their features.
    """
    device, times = algo.generator.device, []
    obs, generator = torch.zeros((1, env.obs_dim), device=device), torch.Generator(device)
    plan, inner = getattr(env, "plan", None), env.env
    image = torch.zeros((1, inner.env.obs_dim)) if isinstance(inner, Encoded) else None
    for _ in range(DECISIONS):
        start = perf_counter()
        if image is not None:
            inner.see(image)
        if plan is not None:
            plan(obs[:, : env.base_dim], generator)
        algo.deploy(obs, generator).cpu()  # waits for a GPU
        times.append(perf_counter() - start)
    return 1e3 * float(np.median(times))


def label_of(word: str) -> str:
    """A changed value as a part of a file's name: the key's last part and the value."""
    key, _, value = word.partition("=")
    return f"{key.rpartition('.')[2]}={value.replace('/', '_')}"


def told_apart(node: Mapping[str, Any], trained: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What the report says of an environment or a seed that is not the run's own."""
    words = []
    if node.get("options", {}) != trained.get("options", {}):
        words.append(f"options {node.get('options', {})}")
    if words or node["id"] != trained.get("id"):
        words.append(f"trained in {trained.get('id') or 'none'}")
        if trained.get("options"):
            words[-1] += f" with options {trained['options']}"
    words += [f"seed {seed}"] if seed != EVAL_SEED else []
    return {"apart": f" ({'; '.join(words)})"} if words else {}


def episodes_of(
    env: Any,
    algo: Any,
    episodes: int,
    mode: str | bool,
    seed: int = EVAL_SEED,
    halt: Callable[[], bool] = lambda: False,
) -> list[Episode]:
    """Episodes of the deployed policy from the fixed initial states; same rows every time.

    Says so when the policy met observations far outside the data that it was fitted on. Raises
    Halted where `halt` says so before a decision.
    """
    deploy = heeding(fast_deploy(algo, mode, TILE), halt)  # of no fewer rows does `evaluate` ask
    norm = getattr(algo.policy, "obs_norm", None)
    watched = None if norm is None or norm.kind == "none" else Watched(deploy, norm)
    where = str(algo.generator.device)
    spread = rows_of(episodes)
    rows = evaluate(env, watched or deploy, episodes, seed, where, algo.ended, rows=spread)
    if watched is not None:
        watched.tell()
    return rows


class Watched:
    """A deployed behaviour, and the largest normalised observation that it was asked about."""

    def __init__(self, deploy: Deploy, norm: Any) -> None:
        self.deploy, self.norm, self.numbers = deploy, norm, affine(norm)
        self.most = torch.zeros_like(self.numbers.scale)  # [Do], in scales

    def __call__(self, obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.most = torch.maximum(self.most, self.numbers.scaled(self.norm.own(obs)).abs().amax(0))
        return self.deploy(obs, generator)

    def tell(self) -> None:
        """Warns of observations beyond REACH scales."""
        dims = (self.most > REACH).nonzero().flatten().tolist()
        if dims:
            unit = "standard deviations" if self.norm.kind == "gaussian" else "half ranges"
            text = "observations lie up to %.0f %s from the policy's data (dimensions %s): it was "
            text += "never trained there, and beyond %g all count as %g; compare the data and the "
            text += "environment in these dimensions"
            log.warning(text, float(self.most.max()), unit, dims, REACH, REACH)


def score(rows: list[Episode], references: References | None) -> dict[str, float]:
    """Summary of evaluation episodes, with the normalised score where there are references."""
    figures = summary(rows)
    if references is None:
        return figures
    low, high, _ = references
    return figures | {"eval/score": scaled(figures["eval/return"], low, high)}


def titled(figures: Mapping[str, Any], env: Any) -> dict[str, Any]:
    """Figures of an evaluation under the name that says whether they are imagined."""
    prefix = "imagined/" if env.env.imagined else "eval/"
    return {name.replace("eval/", prefix): value for name, value in figures.items()}


def warn_of_versions(run: Run) -> None:
    """Says which packages changed since the run's last start: physics and returns may differ."""
    try:
        before = starts_of(run.path / "run.json")[-1]["versions"] or {}
    except (ValueError, KeyError, IndexError) as error:
        text = "%s: tells no versions (%s), so these are not compared"
        log.warning(text, run.path / "run.json", error)
        return
    now = versions()
    for name in ("mujoco", "gymnasium", "torch"):
        if before.get(name) != now[name]:
            text = "%s %s made this run and %s evaluates it: results may differ"
            log.warning(text, name, before.get(name), now[name])


def warn_of_tails(run: Run, algo: Algorithm, execute: int) -> None:
    """Says where steps of a plan are executed that were not when the run learned."""
    taught = executed(stored(run.path))
    if algo.executed is not None and execute > taught:
        text = "%s executed %d of the steps of a plan when it learned, which taught it nothing of "
        log.warning(text + "the others that env.execute=%d executes", run.path, taught, execute)


def report(run: Run, figures: dict[str, Any]) -> str:
    """Lines for a person."""
    where = figures["env"] + figures.get("apart", "")
    kind = "imagined return" if "imagined/return" in figures else "return"
    figures = {name.replace("imagined/", "eval/"): value for name, value in figures.items()}
    lines = [
        f"{run.path}, step {figures['step']}, {where}, {figures['eval/episodes']:.0f} episodes",
        f"{kind} {figures['eval/return']:.1f}  95 % interval "
        f"[{figures['eval/return_low']:.1f}, {figures['eval/return_high']:.1f}]  "
        f"(bootstrap over episodes; standard deviation {figures['eval/return_std']:.1f})",
        f"length {figures['eval/length']:.1f}, {figures['decision_ms']:.2f} ms per decision for "
        "one observation (median)",
    ]
    if "eval/cost" in figures:
        lines.append(
            f"cost {figures['eval/cost']:.1f} an episode  95 % interval "
            f"[{figures['eval/cost_low']:.1f}, {figures['eval/cost_high']:.1f}]; "
            f"{100 * figures['eval/unsafe']:.0f} % of the episodes cost anything"
        )
    if "eval/broken" in figures:
        lines.append(
            f"{figures['eval/broken']:.0f} episodes were cut because the physics broke, an "
            "observation or a reward was not sound, or a worker process failed"
        )
    if "candidates" in figures:
        lines.append(
            f"the policy takes the best of {figures['candidates']} samples; with one sample: "
            f"return {figures['single/return']:.1f} [{figures['single/return_low']:.1f}, "
            f"{figures['single/return_high']:.1f}]"
        )
    lines += [success_line(figures, name) for name in SUCCESS if f"eval/{name}" in figures]
    if "eval/score" in figures:
        low, high, origin = figures["references"].values()
        lines.append(
            f"score {figures['eval/score']:.1f} for return {figures['eval/return']:.1f} in "
            f"{where} (0 is {low:g}, 100 is {high:g}: {origin})"
        )
    lines.append(f"episodes in {figures['file']}")
    return "\n".join(lines)


def success_line(figures: dict[str, Any], name: str) -> str:
    """A success rate with its interval."""
    rate, low, high = (100 * figures[f"eval/{name}{end}"] for end in ("", "_low", "_high"))
    return (
        f"success {SUCCESS[name]} {rate:.1f} %  95 % interval [{low:.1f}, {high:.1f}]  "
        f"(Wilson, {figures['eval/episodes']:.0f} episodes)"
    )


# ---- steering ------------------------------------------------------------------------------------


def settings(words: Mapping[str, str]) -> Settings:
    """The numbers of configs/steer.yaml with those of `steer.KEY=VALUE`. Raises RheoError."""
    values = yaml.safe_load((HOME / "steer.yaml").read_text())
    values["words"] = words["steer"].split(",")
    for key, text in words.items():
        name = key.partition(".")[2]
        if key in ("steer", REFERENCE):
            continue
        if name not in values or name == "words":
            numbers = [each for each in values if each not in ("_target_", "words")]
            known = [f"steer.{each}" for each in [*numbers, "reference"]]
            raise RheoError(f"unknown option {key!r}{nearest(key, known)}")
        kind = type(values[name])
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise RheoError(f"{key}={text}: a number ({kind.__name__}) is needed") from error
    return build(values, key="steer")


def steered(algo: Algorithm, words: Mapping[str, str], execute: int) -> Any:
    """What is evaluated in place of an algorithm. Raises RheoError for what cannot be steered."""
    policy, critic = algo.deployed(), algo.action_critic()
    if not isinstance(policy, FlowPolicy):
        raise RheoError(f"steer={words['steer']}: of flow and diffusion policies; this run's is a "
                        f"{type(policy).__name__}")  # fmt: skip
    given = words.get(REFERENCE)
    try:
        numbers = settings(words)
        other = None if given is None else reference(given, policy)
        chain = Chain(policy, critic, other, numbers, execute)
    except ValueError as error:
        raise RheoError(str(error)) from error
    if algo.beyond:
        text = "steer=%s: what the run deploys is %s; this is its base alone, from its own noise"
        log.warning(text, words["steer"], algo.beyond)
    own = {"svdd", "doob"} & set(chain.words)  # whose steps have noise of their own
    if algo.noisy_steps and policy.eta > 0 and not own:
        text = "steer=%s: the run's own actions have the noise of its steps (policy.eta=%g), which "
        text += "this leaves out: actions are narrower. steer=svdd and steer=doob have such noise"
        log.warning(text, words["steer"], policy.eta)
    ends = {"ended": chain.ended, "deploy_one": lambda: 1}
    return SimpleNamespace(deploy=chain, generator=algo.generator, policy=None, **ends)


def reference(name: str, policy: FlowPolicy) -> FlowPolicy:
    """The deployed policy of another run. Raises RheoError where the two do not fit."""
    run = Run.open(name, [])
    algo, _ = revived(run, f"{REFERENCE}={name}: that run has no checkpoint yet")
    if algo.beyond:
        raise RheoError(
            f"{REFERENCE}={name}: what this {type(algo).__name__} run deploys is {algo.beyond}; "
            "name a run whose policy acts alone, as the base that it started from"
        )
    other = algo.deployed()
    mine, theirs = (each_shape(each) for each in (policy, other))
    if mine != theirs:
        raise RheoError(f"{REFERENCE}={name}: its policy is {theirs}, this run's is {mine}")
    return other


def each_shape(policy: Any) -> str:
    """What two policies have to share to be combined step by step."""
    path = type(getattr(policy, "path", None)).__name__
    return f"{type(policy).__name__} of {policy.horizon} x {policy.action_dim} on {path}"
