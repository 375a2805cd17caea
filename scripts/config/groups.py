"""Files of the groups that were chosen -> one plain tree, by Hydra.

It takes Hydra some tenths of a second, so a choice among the shipped files is composed once in a
process: the runs of a sweep differ in values only.
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rheo.errors import RheoError

from ..store.where import one_line
from .top import HOME
from .wording import report


def compose_groups(choices: list[str], folders: list[Path], errors: list[str]) -> dict[str, Any]:
    """The composed files as a plain tree, interpolations not yet resolved."""
    try:
        if folders:
            return by_hydra(choices, folders)
        return deepcopy(shipped(tuple(choices), HOME, dated(HOME)))
    except (HydraException, OmegaConfBaseException) as error:
        raise RheoError(report([*errors, one_line(error)])) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise RheoError(report([*errors, f"a YAML file is broken: {one_line(error)}"])) from error


def dated(home: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files of a folder, by which a changed one is seen."""
    found = ((file, file.stat()) for file in sorted(home.rglob("*.yaml")))
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in found)


@lru_cache(maxsize=256)
def shipped(choices: tuple[str, ...], home: Path, dates: tuple[Any, ...]) -> dict[str, Any]:
    """Files of `home` alone, composed once in a process: a sweep's runs differ in values only."""
    return by_hydra(choices, [])


def by_hydra(choices: Sequence[str], folders: list[Path]) -> dict[str, Any]:
    """Composes files of `HOME` and of folders, which takes Hydra some tenths of a second."""
    paths = ",".join("'file://" + str(folder).replace("'", "\\'") + "'" for folder in folders)
    search = [f"hydra.searchpath=[{paths}]"] if folders else []
    with initialize_config_dir(str(HOME), version_base=None, job_name="rheo"):
        config = hydra_compose("config", overrides=[*search, *choices])
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}
