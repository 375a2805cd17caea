"""Packages that need not be there: what they are for, and how they are installed. Imports none."""

import importlib.util
import sys

# Environment families outside gymnasium: id prefix -> (module that registers them, pip name).
ELSEWHERE = {
    "AdroitHand": ("gymnasium_robotics", "gymnasium-robotics"),
    "AntMaze": ("gymnasium_robotics", "gymnasium-robotics"),
    "Fetch": ("gymnasium_robotics", "gymnasium-robotics"),
    "FrankaKitchen": ("gymnasium_robotics", "gymnasium-robotics"),
    "HandManipulate": ("gymnasium_robotics", "gymnasium-robotics"),
    "HandReach": ("gymnasium_robotics", "gymnasium-robotics"),
    "PointMaze": ("gymnasium_robotics", "gymnasium-robotics"),
    "antmaze-": ("ogbench", "ogbench"),
    "antsoccer-": ("ogbench", "ogbench"),
    "cube-": ("ogbench", "ogbench"),
    "dm_control/": ("dm_control", "'rheo-rl[dmc]'"),
    "gym_aloha/": ("gym_aloha", "gym-aloha"),
    "gym_pusht/": ("gym_pusht", "gym-pusht"),
    "humanoidmaze-": ("ogbench", "ogbench"),
    "kitchen/": ("gymnasium_robotics", "gymnasium-robotics"),
    "metaworld/": ("metaworld", "metaworld"),
    "pointmaze-": ("ogbench", "ogbench"),
    "puzzle-": ("ogbench", "ogbench"),
    "robosuite/": ("robosuite", "robosuite"),
    "scene-": ("ogbench", "ogbench"),
    "visual-": ("ogbench", "ogbench"),
}
# Packages that read recorded data: module -> pip name.
READERS = {
    "minari": "'rheo-rl[minari]'",
    "ogbench": "'rheo-rl[ogbench]'",
    "pyarrow": "'rheo-rl[formats]'",
    "zarr": "'rheo-rl[formats]'",
}
# Where metrics can be sent to: module -> pip name.
TRACKERS = {name: f"'rheo-rl[{name}]'" for name in ("wandb", "trackio", "mlflow")}
# Backends of their own package: name -> (its modules, pip name, the first Python it runs on).
ENGINES = {"warp": (("warp", "mujoco_warp"), "'rheo-rl[warp]'", (3, 11))}
# Packages that run on older versions of MuJoCo only: those of constraints-manipulation.txt.
BOUND = ("robosuite", "metaworld")
APART = (
    "python3 -m venv .venv-manipulation && .venv-manipulation/bin/pip install "
    "-c constraints-manipulation.txt 'rheo-rl[manipulation]'"
)


def home(env_id: str) -> tuple[str, str]:
    """Module and pip name of the package of an id; gymnasium's own when nobody claims it."""
    claims = (ELSEWHERE[prefix] for prefix in ELSEWHERE if env_id.startswith(prefix))
    return next(claims, ("gymnasium", "gymnasium"))


def importable(module: str) -> bool:
    """Whether a package is there; it is not imported. A folder of its name is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def bound_packages() -> list[str]:
    """Which of BOUND are installed."""
    return [name for name in BOUND if importlib.util.find_spec(name) is not None]


def pip_install(package: str) -> str:
    """The command that adds a package and leaves MuJoCo as it is where others depend on it.

    One of BOUND goes into a virtual environment of its own, unless this is that one.
    """
    if package in BOUND and not bound_packages():
        return APART
    held = "-c constraints-manipulation.txt " if bound_packages() else ""
    return f"pip install {held}{package}"


def engine_lacks(backend: str) -> str | None:
    """What keeps a backend from running here, with the remedy; None where nothing is missing."""
    if backend not in ENGINES:
        return None
    modules, package, python = ENGINES[backend]
    if sys.version_info < python:
        least, here = (".".join(map(str, v[:2])) for v in (python, sys.version_info))
        return (
            f"env.backend={backend}: its engine needs Python {least} and this is {here}; use a "
            "newer Python, or env.backend=native"
        )
    if all(importlib.util.find_spec(module) is not None for module in modules):
        return None
    bound = bound_packages()
    if bound:
        return (
            f"env.backend={backend}: its engine needs a newer MuJoCo than {bound[0]}, which is "
            f"installed here, runs on; use a virtual environment without it (pip install {package})"
        )
    return lacking(f"env.backend={backend}", package)


def lacking(what: str, package: str) -> str:
    """The message where a package is not installed."""
    return f"{what} needs a package that is missing: {pip_install(package)}"
