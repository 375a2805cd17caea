"""Manipulation suites behind gymnasium's interface: robosuite, Meta-World and Franka Kitchen.

`register(module)` makes a suite's tasks known to gymnasium; the package is imported then. robosuite
and Meta-World need the versions of constraints-manipulation.txt.
"""

import importlib
from collections.abc import Mapping
from typing import Any

# module of a suite's package -> the file here that registers its tasks
SUITES = {
    "robosuite": "robosuite_tasks",
    "metaworld": "metaworld_tasks",
    "gymnasium_robotics": "kitchen",
}


def register(module: str) -> None:
    """Registers a suite's tasks. Raises ImportError where its package cannot be imported."""
    importlib.import_module(f"{__package__}.{SUITES[module]}").register()


def told_of(env_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What recorded data say of the environment they are of, so that it can be made anew.

    env_options: with what it is made here, if anything. env_args: robosuite's tasks in robomimic's
    words.
    """
    suite, _, task = env_id.partition("/")
    if suite != "robosuite":
        return {"env_options": dict(options)} if options else {}
    tasks = importlib.import_module(f"{__package__}.{SUITES[suite]}")
    args = tasks.described(task.removesuffix("-v0"), **options)
    return {"env_args": args, "env_options": {**options, "env_args": args}}
