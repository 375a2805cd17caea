"""The zoo on disk: recipes of policies, and where those that were built from them lie.

~/.rheo/zoo/NAME-DIGEST/        RHEO_ZOO names another folder than ~/.rheo/zoo
            policy/             the run that is meant by zoo/NAME
            ...                 what it was built from
            stages.json         what is done of it, in seconds
            card.json           written last: a folder without one is not whole
"""

import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rheo.envs.paths import expanded
from rheo.errors import RheoError, command, nearest

from ..config.top import HOME

FILE = HOME / "zoo.yaml"
PREFIX = "zoo/"
POLICY, CARD = "policy", "card.json"
PRODUCT = re.compile(r"\{([\w.-]+)\}")  # of a stage, or the policy of another recipe


class Recipe(NamedTuple):
    """How a policy is made.

    stages: what each makes -> the command that makes it; the last one is `policy`. expected: what
    was measured here, None where nothing was.
    """

    name: str
    about: str
    kind: str  # from scratch, clone, tuned or steered
    field: str  # locomotion or manipulation
    task: str
    metric: str  # of an evaluation: return, success_once or success_at_end
    stages: dict[str, str]
    expected: dict[str, Any] | None = None

    @property
    def before(self) -> list[str]:
        """The recipes that this one goes on from."""
        used = [name for text in self.stages.values() for name in PRODUCT.findall(text)]
        return [name for name in dict.fromkeys(used) if name not in self.stages]

    @property
    def digest(self) -> str:
        """Of all commands, those of the recipes before too: another one is another policy."""
        told = [self.stages, *(recipe(name).digest for name in self.before)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where it is built."""
        home = expanded(os.environ.get("RHEO_ZOO") or "~/.rheo/zoo")
        return home / f"{self.name}-{self.digest}"

    @property
    def ready(self) -> bool:
        """Whether it was built to its end."""
        return (self.folder / CARD).is_file()

    def card(self) -> dict[str, Any]:
        """What the evaluation of the built policy gave. Raises RheoError for one that is not."""
        try:
            return json.loads((self.folder / CARD).read_text())
        except (OSError, ValueError) as error:
            raise unbuilt(self) from error


@cache
def recipes() -> dict[str, Recipe]:
    """All of configs/zoo.yaml."""
    found = yaml.safe_load(FILE.read_text())
    return {name: Recipe(name, **values) for name, values in found.items()}


def recipe(name: str) -> Recipe:
    """One recipe. Raises RheoError for one that there is not."""
    known = recipes()
    if name not in known:
        raise RheoError(f"zoo/{name}: there is no such recipe{nearest(name, known)}")
    return known[name]


def built(name: str) -> Path:
    """The run of zoo/NAME. Raises RheoError where it is not built to its end."""
    one = recipe(name.removeprefix(PREFIX))
    if not one.ready:
        raise unbuilt(one)
    return one.folder / POLICY


def unbuilt(one: Recipe) -> RheoError:
    """The message for a policy that is not there, or half of it."""
    state = "half built" if (one.folder / "stages.json").exists() else "not built yet"
    return RheoError(f"zoo/{one.name} is {state}: {command('zoo', 'build', one.name)}")
