"""What `rheo suite` was asked: a suite's tasks and protocol as the words of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rheo.errors import RheoError, nearest

from . import programs, sweeps
from .inherit import word
from .launchers import key_of
from .top import HOME
from .words import as_flags, flags

FILE = HOME / "suites.yaml"
USAGE = {
    "suite": """\
usage: rheo suite                                      the suites, with their tasks
       rheo suite NAME algo=A[,B] [seed=0,1,2] [name=NAME-A] [key=value ...] [launcher=basic]
       a sweep over the tasks of a suite by its protocol; what is typed stands above both; the same
       command again goes on; `rheo report runs/NAME-A` makes pages of it"""
}


def suites() -> dict[str, Any]:
    """All of configs/suites.yaml."""
    found = yaml.safe_load(FILE.read_text())
    assert isinstance(found, dict)
    return found


def suite(argv: Sequence[str]) -> sweeps.Sweep | None:
    """`rheo suite`: the sweep; None: the list is asked for. Raises RheoError."""
    if not argv:
        return None
    folders, words = flags(argv)
    name, typed = (words[0], words[1:]) if words else ("", [])
    known = suites()
    if name not in known:
        raise RheoError(f"suite {name!r}: there is none{nearest(name, known)}\n{USAGE['suite']}")
    keys = {key_of(each) for each in typed}
    if "algo" not in keys and "recipe" not in keys:
        raise RheoError(f"suite {name}: algo=NAME says what is trained\n{USAGE['suite']}")
    whole = [*expanded(known[name], keys), *typed]
    if "name" not in keys:
        whole.append(f"name={default_name(name, typed)}")
    flags_again = [*as_flags(folders), *programs.as_flags()]
    return sweeps.sweep([*flags_again, *whole])


def expanded(one: Mapping[str, Any], typed: set[str]) -> list[str]:
    """A suite's words, but for the keys that were typed."""
    tasks = {key: ",".join(values) for key, values in one["tasks"].items()}
    every = {**one["words"], **tasks}
    return [f"{key}={word(value)}" for key, value in every.items() if key not in typed]


def default_name(name: str, typed: Sequence[str]) -> str:
    """locomotion-v5-sac: the suite and what is trained."""
    made = [each.partition("=")[2] for each in typed if key_of(each) in ("algo", "recipe")]
    return "-".join([name, *made]).replace(",", "-").replace("/", "-")
