"""Data sets with a public name: where they lie, where they come from, and their environments."""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from ..paths import expanded
from .foreign import hub
from .recording import refuse

# Addresses as in Farama-Foundation/D4RL, d4rl/gym_mujoco/__init__.py and
# d4rl/hand_manipulation_suite/__init__.py.
SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
ROBOTS = ("hopper", "halfcheetah", "walker2d", "ant")
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert")
HANDS = ("pen", "hammer", "door", "relocate")
TEACHERS = ("human", "cloned", "expert")
# OGBench's sets of states (arXiv:2410.20092): kinds of data, and the worlds recorded with each.
OGBENCH = "https://rail.eecs.berkeley.edu/datasets/ogbench"
MAZES = {
    **dict.fromkeys(("pointmaze", "antmaze"), ("medium", "large", "giant", "teleport")),
    **{"humanoidmaze": ("medium", "large", "giant"), "antsoccer": ("arena", "medium")},
}
TABLES = {
    **{"cube": ("single", "double", "triple", "quadruple"), "scene": ("",)},
    **{"puzzle": ("3x3", "4x4", "4x5", "4x6")},
}
KINDS = {
    **{"navigate": MAZES, "stitch": MAZES, "explore": {"antmaze": ("medium", "large", "teleport")}},
    **{"play": TABLES, "noisy": TABLES},
}
SINGLE_TASK = re.compile(
    rf"((?:{'|'.join([*MAZES, *TABLES])})(?:-[a-z]+|-\dx\d)??)"
    rf"(?:-({'|'.join(KINDS)}))?-singletask(-task[1-5])?-v0"
)
# The v4 environments share physics and rewards with the ones D4RL's sets were recorded in.
RECORDED_IN = {
    **dict(zip(ROBOTS, ("Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Ant-v4"), strict=True)),
    **{hand: f"AdroitHand{hand.capitalize()}-v1" for hand in HANDS},
}
# robosuite's tasks of robomimic's sets, as `robosuite/NAME-v0`
ROBOSUITE = ("Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport")
VERSIONS = ("v0", "v1", "v2")  # of D4RL's sets, not of environments


class World(NamedTuple):
    """Sizes of an environment, and its time limit where recordings keep to it.

    Adroit's demonstrations and the maze sets are longer than their environments allow here.
    """

    obs_dim: int
    action_dim: int
    limit: int | None


WORLDS = {
    "AdroitHandDoor-v1": World(39, 28, None),
    "AdroitHandHammer-v1": World(46, 26, None),
    "AdroitHandPen-v1": World(45, 24, None),
    "AdroitHandRelocate-v1": World(39, 30, None),
    "Ant-v4": World(27, 8, 1000),
    "Ant-v5": World(105, 8, 1000),
    "AntMaze_Large-v5": World(109, 8, None),
    "AntMaze_Medium-v5": World(109, 8, None),
    "AntMaze_UMaze-v5": World(109, 8, None),
    "HalfCheetah-v4": World(17, 6, 1000),
    "HalfCheetah-v5": World(17, 6, 1000),
    "Hopper-v4": World(11, 3, 1000),
    "Hopper-v5": World(11, 3, 1000),
    "Humanoid-v5": World(348, 17, 1000),
    "HumanoidStandup-v5": World(348, 17, 1000),
    "InvertedDoublePendulum-v5": World(9, 1, 1000),
    "InvertedPendulum-v5": World(4, 1, 1000),
    "PointMaze_Large-v3": World(6, 2, None),
    "PointMaze_Medium-v3": World(6, 2, None),
    "PointMaze_UMaze-v3": World(6, 2, None),
    "Pusher-v5": World(23, 7, 100),
    "Reacher-v5": World(10, 2, 50),
    "Swimmer-v5": World(8, 2, 1000),
    "Walker2d-v4": World(17, 6, 1000),
    "Walker2d-v5": World(17, 6, 1000),
    "dm_control/cartpole-swingup-v0": World(5, 1, 1000),
    "dm_control/cheetah-run-v0": World(17, 6, 1000),
    "dm_control/finger-spin-v0": World(9, 2, 1000),
    "dm_control/finger-turn_hard-v0": World(12, 2, 1000),
    "dm_control/fish-swim-v0": World(24, 5, 1000),
    "dm_control/fish-upright-v0": World(21, 5, 1000),
    "dm_control/hopper-hop-v0": World(15, 4, 1000),
    "dm_control/humanoid-walk-v0": World(67, 21, 1000),
    "dm_control/walker-run-v0": World(24, 6, 1000),
    "dm_control/walker-walk-v0": World(24, 6, 1000),
    "gym_pusht/PushT-v0": World(5, 2, None),
}


class SingleTask(NamedTuple):
    """One of OGBench's single tasks, as its name tells."""

    name: str
    world: str  # cube-single
    kind: str | None  # of the data, play; None: an environment's name without it
    task: str  # "-task2", or "": the usual one

    @property
    def env_name(self) -> str:
        """The environment as the package registers it."""
        return f"{self.world}-singletask{self.task}-v0"

    @property
    def data_set(self) -> str:
        """The set that holds its data."""
        return f"{self.world}-{self.kind}-v0"


def single_task(name: str | None) -> SingleTask | None:
    """What the name of one of OGBench's single tasks tells (cube-single-play-singletask-v0)."""
    found = SINGLE_TASK.fullmatch(name or "")
    return found and SingleTask(found[0], found[1], found[2], found[3] or "")


def world_of(data_set: str) -> str:
    """Where one of OGBench's sets was recorded: cube-single-play-v0 -> cube-single."""
    return data_set.rsplit("-", 2)[0]


def addresses() -> dict[str, str]:
    """Name -> address of every data set that can be fetched by name."""
    robots = {
        f"{robot}-{quality}-v2": f"gym_mujoco_v2/{robot}_{quality.replace('-', '_')}-v2.hdf5"
        for robot in ROBOTS
        for quality in QUALITIES
    }
    hands = {
        f"{hand}-{teacher}-v1": f"hand_dapg_v1/{hand}-{teacher}-v1.hdf5"
        for hand in HANDS
        for teacher in TEACHERS
    }
    d4rl = {name: f"{SERVER}/{rest}" for name, rest in (robots | hands).items()}
    return d4rl | {name: f"{OGBENCH}/{name}.npz" for name in ogbench_sets()}


def ogbench_sets() -> list[str]:
    """OGBench's sets of states, by world."""
    every = [
        ("-".join(filter(None, (robot, size))), kind)
        for kind, worlds in KINDS.items()
        for robot, sizes in worlds.items()
        for size in sizes
    ]
    return [f"{world}-{kind}-v0" for world, kind in every]


def known(name: str) -> str | None:
    """The data set's name for one of its spellings (hopper_medium-v2.hdf5), or None.

    Of a single task that of the set which holds its data.
    """
    task, plain = single_task(name), spelled(name)
    plain = task.data_set if task else plain
    if plain.endswith(".npz") and plain.removesuffix(".npz") in ogbench_sets():
        plain = plain.removesuffix(".npz")
    return plain if plain in addresses() else None


def spelled(name: str) -> str:
    """A file's name as D4RL spells those of its sets."""
    return re.sub(r"\.(hdf5|h5|part)$", "", os.path.basename(name)).replace("_", "-").lower()


def file_name(name: str) -> str:
    """The file name of a known data set, as its server spells it."""
    return addresses()[name].rpartition("/")[2]


def home() -> Path:
    """Where fetched data sets are kept: RHEO_DATASETS or ~/.rheo/datasets."""
    return expanded(os.environ.get("RHEO_DATASETS") or "~/.rheo/datasets")


def folders(data_set: str) -> list[Path]:
    """Where a data set is looked for by name, the first wins."""
    if data_set in ogbench_sets():
        return [expanded("~/.ogbench/data"), home()]
    d4rl = os.environ.get("D4RL_DATASET_DIR")
    named = [expanded(d4rl)] if d4rl else []
    return [*named, expanded("~/.d4rl/datasets"), home()]


def file_remedy(path: str | os.PathLike) -> str:
    """How to come by a file that is missing or damaged."""
    name = known(str(path))
    if name is None and not Path(path).exists() and hub(str(path)) is not None:
        return f"{hub(str(path))}"
    if name is None:
        return "give the path of an .npz or .hdf5 file, or fetch or write it again"
    there = f" --to {shlex.quote(str(Path(path).parent))}" if Path(path).parent.name else ""
    command = f"run `rheo data fetch {name}{there}`"
    return f"delete it and {command}" if Path(path).exists() else command


def find(name: str) -> Path:
    """The file of a path or of a known data set's name (hopper-medium-v2).

    Names are looked for in D4RL_DATASET_DIR, ~/.d4rl/datasets (OGBench's: ~/.ogbench/data), then
    RHEO_DATASETS or ~/.rheo/datasets. Raises Refused with the command that fetches it.
    """
    path = expanded(name)
    if path.exists():
        return path
    data_set = known(name)
    if data_set is None or path.name != name:
        return path  # its reader says that it is missing
    for folder in folders(data_set):
        for spelling in (file_name(data_set), f"{data_set}.hdf5"):
            if (folder / spelling).is_file():
                return folder / spelling
    looked = ", ".join(map(str, folders(data_set)))
    raise refuse(name, f"not found in {looked}; run `rheo data fetch {data_set}`")


def file_of(name: str) -> str:
    """The file of a path, or of the set that holds a single task's data. Raises Refused."""
    return name if single_task(name) is None else str(find(name))


def env_by_name(name: str) -> str | None:
    """The environment of one of D4RL's sets: hopper_medium-v2.hdf5 -> Hopper-v4.

    A single task's is called as the task, where that names data. Only full names tell:
    hopper_v5_mine.npz and Ant_maze_u-maze_noisy.hdf5 may be anything.
    """
    task = single_task(name)
    if task and task.kind:
        return task.name
    body, _, quality = re.sub(r"\.npz$", "", spelled(name)).partition("-")
    quality, _, version = quality.rpartition("-")
    told = quality in (QUALITIES if body in ROBOTS else TEACHERS) and version in VERSIONS
    return RECORDED_IN.get(body) if told else None


def fits(env_id: str | None, obs_dim: int, action_dim: int) -> bool:
    """Whether data of these sizes can come from an environment, as far as its sizes are known."""
    world = WORLDS.get(env_id or "")
    return world is None or (world.obs_dim, world.action_dim) == (obs_dim, action_dim)


def limit_of(env_id: str | None) -> int | None:
    """The time limit of an environment of gymnasium's own; None: none, or not known."""
    if env_id is None or env_id in WORLDS:
        return WORLDS[env_id].limit if env_id else None
    from gymnasium import registry  # only here: `rheo data` answers without it

    spec = registry.get(env_id)
    own = spec is not None and str(spec.entry_point).startswith("gymnasium.")
    return spec.max_episode_steps if own and spec is not None else None
