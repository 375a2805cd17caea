"""Manipulation suites behind gymnasium's interface: robosuite, Meta-World and Franka Kitchen.

`register(module)` makes a suite's tasks known to gymnasium; the package is imported then. robosuite
and Meta-World need the versions of constraints-manipulation.txt.
"""

import importlib

# module of a suite's package -> the file here that registers its tasks
SUITES = {
    "robosuite": "robosuite_tasks",
    "metaworld": "metaworld_tasks",
    "gymnasium_robotics": "kitchen",
}


def register(module: str) -> None:
    """Registers a suite's tasks. Raises ImportError where its package cannot be imported."""
    importlib.import_module(f"{__package__}.{SUITES[module]}").register()
