"""Hydra's launchers and sweepers: what each needs, is told, and may be told by hand."""

import importlib.util
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from rheo.envs.memory import cores
from rheo.errors import RheoError

from ..store.where import one_line

HYDRAS = ("hydra.launcher.", "hydra.sweeper.", "hydra/sweeper/")
SPACES = ("params", "search_space", "custom_search_space")  # Optuna's other ways to name values


class Launcher(NamedTuple):
    """How one of Hydra's launchers is installed, and told how many jobs run at once."""

    module: str  # of the plugin
    package: str  # as pip takes it
    here: bool  # its jobs share the cores of this machine
    words: tuple[str, ...]  # Hydra's; {jobs} at once


APART = (  # why Ray's launcher is not installed beside the tested set
    "'rheo-rl[ray]', in a virtual environment of its own and without constraints.txt (it needs "
    "cloudpickle<3, and boto3 an older python-dateutil)"
)
FOREVER = 60 * 24 * 365  # minutes
LAUNCHERS = {
    "basic": Launcher("hydra", "hydra-core", True, ()),
    "joblib": Launcher(
        "hydra_plugins.hydra_joblib_launcher",
        "'rheo-rl[sweep]'",
        True,
        ("hydra.launcher.n_jobs={jobs}",),
    ),
    "submitit_local": Launcher(
        "hydra_plugins.hydra_submitit_launcher",
        "'rheo-rl[slurm]'",
        True,
        (f"hydra.launcher.timeout_min={FOREVER}",),
    ),
    "submitit_slurm": Launcher(
        "hydra_plugins.hydra_submitit_launcher",
        "'rheo-rl[slurm]'",
        False,
        ("hydra.launcher.array_parallelism={jobs}", "hydra.launcher.max_num_timeout=1000"),
    ),
    "ray": Launcher(
        "hydra_plugins.hydra_ray_launcher",
        APART,
        True,
        (
            "++hydra.launcher.ray.init.num_cpus={jobs}",
            "++hydra.launcher.ray.init.include_dashboard=false",
            "++hydra.launcher.ray.remote.num_cpus=1",
        ),
    ),
}
OPTUNA = Launcher("hydra_plugins.hydra_optuna_sweeper", "'rheo-rl[optuna]'", True, ())
QUEUED = 256  # jobs of a cluster at once, unless said


def key_of(word: str) -> str:
    """The key of a word."""
    return word.partition("=")[0].lstrip("+")


def refuse_hydras(words: list[str], hydras: list[str], launcher: str, searching: bool) -> None:
    """Raises RheoError for settings of Hydra's that are said otherwise here."""
    for word in words:
        if key_of(word) in ("hydra/launcher", "hydra/sweeper"):
            which = key_of(word).removeprefix("hydra/")
            raise RheoError(f"{word}: here it is {which}={word.partition('=')[2]}")
    for word in hydras:
        key = key_of(word)
        if key.startswith("hydra.launcher.") and launcher == "basic":
            raise RheoError(f"{word}: launcher=basic has no settings; name a launcher")
        if key.startswith("hydra.launcher."):
            continue
        if not searching:
            raise RheoError(f"{word}: is for sweeper=optuna; name it")
        if key.removeprefix("hydra.sweeper.").partition(".")[0] in SPACES:
            raise RheoError(f"{word}: write it as a word, algo.critic_lr=interval(1e-4,1e-2)")


def refuse_missing(what: str, plugin: Launcher) -> None:
    """Raises RheoError where the package of a launcher or sweeper is not installed."""
    try:
        there = importlib.util.find_spec(plugin.module) is not None
    except ModuleNotFoundError:  # of the folder that all plugins are in
        there = False
    if not there:
        raise RheoError(f"{what} needs a package that is missing: pip install {plugin.package}")


def at_once(launcher: str, runs: int) -> int:
    """How many jobs run at once where nobody says it."""
    most = cores() if LAUNCHERS[launcher].here else QUEUED
    return 1 if launcher == "basic" else min(most, runs)


def launching(launcher: str, jobs: int, searching: bool, typed: list[str]) -> list[str]:
    """Hydra's words for a launcher and a sweeper, before those that were typed."""
    found = [f"hydra/launcher={launcher}", *LAUNCHERS[launcher].words]
    if any(key_of(word) == "hydra.launcher.ray.init.address" for word in typed):
        found = [word for word in found if ".num_cpus={jobs}" not in word]  # the cluster's own
    if searching:
        found += ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"]
        found += ["hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.max_failure_rate=1.0"]
        if not any(word.endswith("sampler=grid") for word in typed):
            found.append("hydra.sweeper.sampler.seed=0")  # so that a second call asks the same
    elif launcher == "submitit_local":
        found.append("hydra.sweeper.max_batch_size={jobs}")
    return [word.format(jobs=jobs) for word in found]


def settings(hydras: list[str], typed: list[str]) -> Any:
    """Hydra's own configuration. Raises RheoError for typed words that it does not know."""
    try:
        with initialize(version_base="1.3", config_path=None, job_name="rheo"):
            config = hydra_compose(overrides=hydras, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise RheoError(f"{', '.join(typed)}: {one_line(error)}") from error
    return config.hydra


def direction_of(sweeper: Any) -> str:
    """Whether Optuna looks for the largest or the smallest return."""
    direction = sweeper["direction"]
    return getattr(direction, "name", str(direction)).lower()
