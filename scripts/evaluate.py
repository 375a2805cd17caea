"""`rheo eval RUN`: the run folder knows everything; nothing of the model is asked."""

import json
import logging
from typing import Any

from rheo.envs.rollout import Episode, as_rows, evaluate, summary
from rheo.envs.scores import normalized_score

from .assemble import EVAL_SEED, Sizes, make_algo, make_env, prepare
from .errors import NUMERICS, RheoError, nearest
from .fast import fast_deploy
from .overrides import flags
from .record import versions
from .run import Run
from .state import restore

log = logging.getLogger("rheo")
MAX_ENVS = 64  # environments of an evaluation at a time
USAGE = "usage: rheo eval RUN [episodes=50] [device=cpu]"


def main(argv: list[str]) -> int:
    """Evaluates the last checkpoint of a run and prints and stores the result."""
    folders, words = flags(argv)
    if not words or "=" in words[0]:
        raise RheoError(USAGE)
    episodes, values = parse(words[1:])
    flagged = [word for folder in folders for word in ("--config-dir", folder)]
    run = Run.open(words[0], [*flagged, *values])
    print(report(run, evaluate_folder(run, episodes)))
    return 0


def parse(words: list[str]) -> tuple[int, list[str]]:
    """The number of episodes, and values to change. Raises RheoError naming the bad word."""
    episodes, values = 50, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "device":
            values.append(word)
        elif key != "episodes":
            known = nearest(key, ["episodes", "device"])
            raise RheoError(f"unknown option {key!r}{known}; the run's own values are used")
        elif not value.isdecimal() or int(value) < 1:
            raise RheoError(f"{word}: a positive whole number is needed")
        else:
            episodes = int(value)
    return episodes, values


def evaluate_folder(run: Run, episodes: int) -> dict[str, Any]:
    """Figures of `episodes` episodes of a run's last checkpoint; per-episode rows are stored."""
    config = run.config
    prepare(config)
    env = make_env(config, min(episodes, MAX_ENVS))
    if env is None:
        raise RheoError(
            f"{run.path} was trained on data without an environment (env.id is null), so there is "
            "nothing to evaluate it in; train with env=NAME to evaluate"
        )
    tree = run.load()
    if tree is None:
        raise RheoError(f"{run.path} has no checkpoint yet; train it first")
    warn_of_versions(run)
    algo = make_algo(config, Sizes(**tree["sizes"]), config["steps"])
    restore(algo, tree["algo"], generators=False)
    try:
        rows = episodes_of(env, algo, episodes, config["fast"])
    except FloatingPointError as error:  # the guard before the physics
        raise RheoError(f"{run.path}, step {run.step}: {error}", NUMERICS) from error
    figures: dict[str, Any] = {"env": env.env.id, **score(env.env.id, rows)}
    file = run.record_eval(run.step, as_rows(rows), label=f"{episodes}", **figures)
    env.close()
    return figures | {"step": run.step, "file": str(file)}


def episodes_of(env: Any, algo: Any, episodes: int, mode: str | bool) -> list[Episode]:
    """Episodes of the deployed policy from the fixed initial states; same rows every time."""
    deploy = fast_deploy(algo, mode, env.num_envs)
    return evaluate(env, deploy, episodes, EVAL_SEED, str(algo.generator.device))


def score(env_id: str, rows: list[Episode]) -> dict[str, float]:
    """Summary of evaluation episodes, with the normalised score where one is defined."""
    figures = summary(rows)
    normalized = normalized_score(env_id, figures["eval/return"])
    return figures if normalized is None else figures | {"eval/score": normalized}


def warn_of_versions(run: Run) -> None:
    """Says which packages changed since the run's last start: physics and returns may differ."""
    file = run.path / "run.json"
    try:
        before = json.loads(file.read_text())["starts"][-1]["versions"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        log.warning("%s: not readable (%s), so versions are not compared", file, error)
        return
    now = versions()
    for name in ("mujoco", "gymnasium", "torch"):
        if before.get(name) != now[name]:
            text = "%s %s made this run and %s evaluates it: results may differ"
            log.warning(text, name, before.get(name), now[name])


def report(run: Run, figures: dict[str, Any]) -> str:
    """Lines for a person."""
    lines = [
        f"{run.path}, step {figures['step']}, {figures['env']}, "
        f"{figures['eval/episodes']:.0f} episodes",
        f"return {figures['eval/return']:.1f}  95 % interval "
        f"[{figures['eval/return_low']:.1f}, {figures['eval/return_high']:.1f}]  "
        f"(bootstrap over episodes; standard deviation {figures['eval/return_std']:.1f})",
        f"length {figures['eval/length']:.1f}",
    ]
    if "eval/broken" in figures:
        lines.append(f"{figures['eval/broken']:.0f} episodes were cut because the physics broke")
    if "eval/score" in figures:
        lines.append(f"normalised score {figures['eval/score']:.1f} (0 random, 100 expert, D4RL)")
    lines.append(f"episodes in {figures['file']}")
    return "\n".join(lines)
