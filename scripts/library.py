"""What `import rheo` offers: the verbs of the command line as functions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from rheo.envs import families
from rheo.errors import RheoError, nearest

from .config import compose, programs
from .config.inherit import word
from .config.top import EVAL_SEED, HOME, files_of
from .config.words import as_flags
from .store import zoo
from .store.run import Run
from .store.where import default_name, locate, place_of

if TYPE_CHECKING:
    from .policy import Policy

Folders = Sequence[str | Path]


def train(
    *words: str,
    config_dir: Folders = (),
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """`rheo train`: trains a new run to its end and returns it.

    rheo.train(algo="rfm", env="hopper", steps=100_000, policy={"steps": 4})

    settings: the keys of the command line; a key inside another one as a mapping, in overrides
    ({"algo.lr": 1e-4}) or as a word of the command line ("algo.lr=1e-4"). config_dir: folders of
    your own classes and values. Raises RheoError for what the command line refuses, and for a run
    that stops before its end (its `code` is the exit code there).
    """
    given = [*words, *typed(settings), *typed(overrides or {})]
    config = compose.train([*as_flags([str(each) for each in config_dir]), *given])
    config["name"] = config["name"] or default_name(config)
    from .train import main  # here, so that a mistake is told before torch is there

    code = main((config, False))
    run = Run.open(str(locate(config["name"])), as_flags(config["config_dir"]))
    if code:
        raise RheoError(f"{run.path} was stopped before its end: {run.resume_command()}", code)
    return run


def load(
    run: str | Path | Run,
    *,
    execute: int | None = None,
    seed: int = EVAL_SEED,
    config_dir: Folders = (),
    program: str | Path | Folders = (),
) -> "Policy":
    """The policy of a run's last checkpoint, ready to act; see `Policy`.

    run: its name or folder, or zoo/NAME: a recipe of `rheo zoo`, which is built when it is loaded
    for the first time. execute: steps of a plan that are executed, as the run does when None.
    seed: of its noise. config_dir: of a run that was made with one. program: what --program names,
    of a run that calls one. Raises RheoError.
    """
    from .policy import Policy

    for each in [program] if isinstance(program, str | Path) else program:
        programs.trust(str(each))
    name = str(run.path) if isinstance(run, Run) else str(run)
    if name.startswith(zoo.PREFIX) and not place_of(Path(name)).exists():
        from .zoo import build

        name = str(build(zoo.recipe(name.removeprefix(zoo.PREFIX))))
    return Policy(name, execute=execute, seed=seed, flags=as_flags([str(x) for x in config_dir]))


def make_env(env: str, **options: Any) -> gymnasium.Env:
    """An environment by its name on the command line (`hopper`) or its id (`metaworld/push-v3`).

    As gymnasium makes it, with an observation as the policies here are shown it: a vector, several
    parts side by side. options: its own (env.options.KEY), above those of its file. Raises
    RheoError for an unknown name or option, and for a missing package.
    """
    file = HOME / "env" / f"{env}.yaml"
    start = [env] if file.exists() else files_of(env)[:1]
    words = [f"env={start[0] if start else 'gym'}"] + ([] if file.exists() else [f"env.id={env}"])
    node = compose.compose(["algo=sac", *words, *typed({"env": {"options": options}})])["env"]
    if node is None or node["id"] is None:
        known = sorted(each.stem for each in (HOME / "env").glob("*.yaml"))
        raise RheoError(f"{env!r} is no environment{nearest(env, known)}")
    families.register(node["id"])
    return families.make(node["id"], node["options"] or {})


def typed(settings: Mapping[str, Any], within: str = "") -> list[str]:
    """Settings as words of the command line: {"policy": {"steps": 4}} -> policy.steps=4."""
    words = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            words += typed(value, f"{within}{key}.")
        else:
            words.append(f"{within}{key}={word(value)}")
    return words
