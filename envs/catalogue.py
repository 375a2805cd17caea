"""Data sets with a public name: where they lie, where they come from, and their environments."""

import os
import re
from pathlib import Path

from .record import as_env_error, refuse

# Addresses as in Farama-Foundation/D4RL, d4rl/gym_mujoco/__init__.py and
# d4rl/hand_manipulation_suite/__init__.py.
SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
ROBOTS = ("hopper", "halfcheetah", "walker2d", "ant")
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "full-replay", "expert")
HANDS = ("pen", "hammer", "door", "relocate")
TEACHERS = ("human", "cloned", "expert")
# The v4 environments share physics and rewards with the ones the v2 sets were recorded in.
RECORDED_IN = {
    **dict(zip(ROBOTS, ("Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Ant-v4"), strict=True)),
    **{hand: f"AdroitHand{hand.capitalize()}-v1" for hand in HANDS},
}


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
    return {name: f"{SERVER}/{rest}" for name, rest in (robots | hands).items()}


def known(name: str) -> str | None:
    """The data set's name for one of its spellings (hopper_medium-v2.hdf5), or None."""
    plain = re.sub(r"\.(hdf5|h5|part)$", "", os.path.basename(name)).replace("_", "-").lower()
    return plain if plain in addresses() else None


def file_name(name: str) -> str:
    """The file name of a known data set, as its server spells it."""
    return addresses()[name].rpartition("/")[2]


def home() -> Path:
    """Where fetched data sets are kept: RHEO_DATASETS or ~/.rheo/datasets."""
    return Path(os.environ.get("RHEO_DATASETS") or "~/.rheo/datasets").expanduser()


def folders() -> list[Path]:
    """Where data sets are looked for by name, the first wins."""
    d4rl = os.environ.get("D4RL_DATASET_DIR")
    named = [Path(d4rl).expanduser()] if d4rl else []
    return [*named, Path("~/.d4rl/datasets").expanduser(), home()]


def file_remedy(path: str | os.PathLike) -> str:
    """How to come by a file that is missing or damaged."""
    name = known(str(path))
    if name is None:
        return "give the path of an .npz or .hdf5 file, or fetch or write it again"
    there = f" --to {Path(path).parent}" if Path(path).parent.name else ""
    command = f"run `rheo data fetch {name}{there}`"
    return f"delete it and {command}" if Path(path).exists() else command


def find(name: str) -> Path:
    """The file of a path or of a known data set's name. Raises Refused with the fetch command."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    data_set = known(name)
    if data_set is None or path.name != name:
        return path  # its reader says that it is missing
    for folder in folders():
        for spelling in (file_name(data_set), f"{data_set}.hdf5"):
            if (folder / spelling).is_file():
                return folder / spelling
    looked = ", ".join(map(str, folders()))
    raise refuse(name, f"not found in {looked}; run `rheo data fetch {data_set}`")


@as_env_error()
def locate(name: str) -> Path:
    """The file of a path or of a known data set's name (hopper-medium-v2).

    Names are looked for in D4RL_DATASET_DIR, ~/.d4rl/datasets, then RHEO_DATASETS or
    ~/.rheo/datasets. Raises EnvError with the command that fetches it.
    """
    path = find(name)
    if not path.exists():
        raise refuse(name, f"no such file or data set; {file_remedy(path)}")
    return path


def env_by_name(name: str) -> str | None:
    """The environment that a file's name tells: hopper_medium-v2.hdf5 -> Hopper-v4."""
    found = re.match(rf"({'|'.join(RECORDED_IN)})[-_]", os.path.basename(name).lower())
    return RECORDED_IN[found[1]] if found else None
