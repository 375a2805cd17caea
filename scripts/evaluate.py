"""`rheo eval RUN`: the run folder knows everything; nothing of the model is asked."""

from typing import Any

import torch

from rheo.envs.rollout import as_rows

from .assemble import Sizes, make_algo, make_env, restore
from .errors import RheoError, nearest
from .run import Run
from .train import evaluate_run, score

OPTIONS = {"episodes": 50}


def main(argv: list[str]) -> int:
    """Evaluates the last checkpoint of a run and prints and stores the result."""
    if not argv or "=" in argv[0]:
        raise RheoError("usage: rheo eval RUN [episodes=50]")
    options = parse(argv[1:])
    run = Run.open(argv[0])
    figures = evaluate_folder(run, options["episodes"])
    print(report(run, figures))
    return 0


def parse(argv: list[str]) -> dict[str, int]:
    """`key=value` options. Raises RheoError naming the bad one."""
    options = dict(OPTIONS)
    for text in argv:
        key, _, value = text.partition("=")
        if key not in options:
            raise RheoError(f"unknown option {key!r}{nearest(key, options)}")
        if not value.isdigit() or int(value) < 1:
            raise RheoError(f"{key}={value}: a positive whole number is needed")
        options[key] = int(value)
    return options


def evaluate_folder(run: Run, episodes: int) -> dict[str, Any]:
    """Figures of `episodes` episodes of a run's last checkpoint; per-episode rows are stored."""
    config = run.config
    tree = run.load()
    if tree is None:
        raise RheoError(f"{run.path} has no checkpoint yet; train it first")
    env = make_env(config, min(episodes, 64))
    if env is None:
        raise RheoError(
            f"{run.path} was trained on data without an environment (env.id is null), so there is "
            "nothing to evaluate it in; train with env=NAME to evaluate"
        )
    torch.set_num_threads(config["threads"])
    algo = make_algo(config, Sizes(**tree["sizes"]), config["steps"])
    restore(algo, tree["algo"])
    rows = evaluate_run(env, algo, episodes, algo.generator.device)
    figures: dict[str, Any] = {"env": env.env.id, **score(env.env.id, rows)}
    file = run.record_eval(run.step, as_rows(rows), label=f"{episodes}", **figures)
    return figures | {"step": run.step, "file": str(file)}


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
    if "eval/score" in figures:
        lines.append(f"normalised score {figures['eval/score']:.1f} (0 random, 100 expert, D4RL)")
    lines.append(f"episodes in {figures['file']}")
    return "\n".join(lines)
