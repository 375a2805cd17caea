"""What recorded data tell of the environment that they were recorded in; without torch."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.types import Override

from . import rules
from .inherit import environment_of
from .top import HOME, files_of, inside, suite_of

log = logging.getLogger("rheo")


def played(overrides: list[Override]) -> Any:
    """What the data tell of the environment that they were recorded in; None without data."""
    given: dict[str, Any] = {o.key_or_group.rpartition(".")[2]: o.value() for o in overrides}
    keys = given.get("obs_keys")
    return told_by(given.get("data"), keys if isinstance(keys, list) else None)


def told_by(data: Any, keys: list[str] | None) -> Any:
    """What data, read by these keys, tell of their environment; None where there are none."""
    if not data:
        return None
    from rheo.envs.data.read import played_in  # h5py takes 0.1 s; not torch

    try:
        return played_in(data, keys)
    except ValueError:  # the checks say what is wrong with the file
        return None


def compared(chosen: list[str], overrides: list[Override], errors: list[str]) -> list[str]:
    """The choices, with what the algorithm is where data are pairs (`configs/algo/pairs`).

    That is where data= is a file of them and no source= is named, or source=pairs is. Adds an error
    for an algorithm that is nothing there.
    """
    named = {word.partition("=")[0]: word.partition("=")[2] for word in chosen}
    algo, source = named.get("algo"), named.get("source")
    data = next((o.value() for o in reversed(overrides) if o.key_or_group == "data"), None)
    known = sorted(file.stem for file in (HOME / "algo" / "pairs").glob("*.yaml"))
    if algo in of_pairs():
        return chosen
    if source not in (None, "pairs") or source is None and algo not in known:
        return chosen
    if algo not in known:
        which = f"algo={algo} does" if algo else "this algorithm does"
        names = ", ".join([*known, *of_pairs()])
        errors.append(f"source=pairs: algo={names} learn from pairs, {which} not")
        return chosen
    if source is None and not is_pairs(data):
        return chosen
    return [*(word for word in chosen if word != f"algo={algo}"), f"algo=pairs/{algo}"]


@lru_cache
def of_pairs() -> list[str]:
    """Algorithms that learn from nothing but pairs."""
    files = sorted((HOME / "algo").glob("*.yaml"))
    return [file.stem for file in files if "/source: pairs" in file.read_text()]


def is_pairs(data: Any) -> bool:
    """Whether data are a file of pairs."""
    if not isinstance(data, str):
        return False
    from rheo.envs.data import pairs  # h5py takes 0.1 s; not torch

    return pairs.is_pairs(data)


def recorded_there(tree: Mapping[str, Any]) -> bool:
    """Whether the data of a run tell its environment."""
    keys = rules.settings_of_reader(tree.get("source"), tree.get("data")).get("obs_keys")
    told = told_by(tree.get("data"), keys)
    return told is not None and told.env_id == inside(tree, "env.id")


def recorded_in(told: Any) -> list[str]:
    """The choice of the environment that the data were recorded in, when there is a file for it.

    So a D4RL set is scored without being told where.
    """
    if told is None or told.env_id is None:
        return []
    found = files_of(told.env_id)
    if found and not told.alike:
        text = "the data tell %s, which has other sizes here: the run is not evaluated there"
        log.warning(text, told.env_id)
        return []
    lacking = rules.environment({"env": {"id": told.env_id}}) if found else []
    if lacking:
        log.warning("%s; without it the run is not evaluated in the data's environment", lacking[0])
    return [f"env={found[0]}"] if found and not lacking else []


def made_as_recorded(
    base: dict[str, Any], told: Any, overrides: list[Override], chosen: list[str]
) -> None:
    """Gives the environment of the data what their file says that it was made with, and costs.

    Where the file of its suite leaves the id open, and none is typed, that is the data's.
    """
    env, values = base.get("env"), {one.key_or_group: one.value() for one in overrides}
    if told is None or told.env_id is None or not isinstance(env, dict):
        return
    suite = f"env={suite_of(told.env_id)}"
    if "env.id" not in values and env.get("id") == "???" and suite in chosen:
        env["id"] = told.env_id
    if environment_of(base, values) == told.env_id and "options" in env:
        env["options"] = {**told.options, **(env.get("options") or {})}
        typed = any(key.split(".")[:2] == ["env", "cost"] for key in values)
        free = not typed and not env.get("cost")
        backend = values.get("env.backend", env.get("backend"))
        if told.cost and free and backend in ("auto", "native"):
            env["cost"] = dict(told.cost)


def kept_of_base(base: Mapping[str, Any], told: Any, values: list[Override]) -> None:
    """Says which options of the data's environment the base of init=RUN has otherwise.

    They are the base's, whose actions they say the meaning of; `values` are typed.
    """
    env, typed = base.get("env") or {}, {one.key_or_group for one in values}
    if told is None or told.env_id != env.get("id") or "init" not in typed:
        return
    for key, value in told.options.items():
        mine = env["options"].get(key)
        if mine != value and not {"env.options", f"env.options.{key}"} & typed:
            log.warning(
                "env.options.%s=%s: that of init=, where data= were recorded with %s",
                *(key, mine, value),
            )
