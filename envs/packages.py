"""Packages that need not be there: what they are for, and how they are installed. Imports none."""

import importlib.util

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
    "pyarrow": "'rheo-rl[formats]'",
    "zarr": "'rheo-rl[formats]'",
}
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


def lacking(what: str, package: str) -> str:
    """The message where a package is not installed."""
    return f"{what} needs a package that is missing: {pip_install(package)}"
