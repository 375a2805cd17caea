"""ALOHA's HDF5: one episode a file, observations/{qpos, qvel, effort, images/*} and action.

Layout as in tonyzhaozh/act, record_sim_episodes.py.
"""

from collections.abc import Iterator

import h5py
import numpy as np

from .columns import beside, chosen, held, left_out, numbers, one_piece
from .containers import hdf5_attributes
from .flat import Flat
from .recording import Reading, refuse

USUAL = ("qpos", "qvel", "effort")  # then the others, sorted
RATES = ("fps", "hz", "control_freq")


def is_aloha(file: h5py.File) -> bool:
    """Whether there is a group `observations` beside a table `action`."""
    action = isinstance(file.get("action"), h5py.Dataset)
    return action and isinstance(file.get("observations"), h5py.Group)


def datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset below a group by its path."""
    for name in map(str, group):
        item = group.get(name)
        if isinstance(item, h5py.Dataset):
            yield prefix + name, item
        elif isinstance(item, h5py.Group):
            yield from datasets(item, f"{prefix}{name}/")


def tables(
    group: h5py.Group, cameras: tuple[str, ...]
) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
    """Datasets below a group that are tables of numbers [L, ...], and why the others are none.

    cameras: subgroups of images, also where those are compressed to rows of bytes.
    """
    usable, others = {}, {}
    for key, item in datasets(group):
        if key.partition("/")[0] in cameras or item.ndim >= 4:
            others[key] = "an image"
        elif item.ndim not in (1, 2) or not numbers_only(item):
            others[key] = f"{item.shape} of type {item.dtype}"
        else:
            usable[key] = item
    return usable, others


def numbers_only(item: h5py.Dataset) -> bool:
    """Whether a dataset holds plain numbers with something in each row."""
    return numbers(item.dtype) and 0 not in item.shape[1:]


def aloha(path: str, file: h5py.File, reading: Reading) -> Flat:
    """The episode of a file: observations are qpos, qvel, effort and the others, side by side."""
    group, action = file["observations"], file["action"]
    assert isinstance(group, h5py.Group) and isinstance(action, h5py.Dataset)
    usable, others = tables(group, ("images", "images_depth", "depth_images", "video_paths"))
    usual = sorted(usable, key=lambda key: (USUAL.index(key) if key in USUAL else 9, key))
    keys = chosen(path, reading.obs_keys, usual, usable, others)
    steps = len(action)
    if action.ndim != 2 or not numbers_only(action):
        text = f"has shape {action.shape} and type {action.dtype}, expected numbers [steps, dims]"
        raise refuse(path, text, "action")
    for key in keys:
        if len(usable[key]) != steps:
            text = f"has {len(usable[key])} rows and {steps} actions; every step needs one of each"
            raise refuse(path, text, f"observations/{key}")
    told = hdf5_attributes(file)
    rate = next((told[key] for key in RATES if isinstance(told.get(key), int | float)), None)
    beyond = sorted(key for key in map(str, file) if key not in ("observations", "action"))
    attributes = {
        "obs_keys": keys,
        "left_out": [*left_out(keys, usable, others), *beyond],
        **({"sim": bool(told["sim"])} if "sim" in told else {}),
        **({"dt": 1 / rate} if rate else {}),
    }
    read = [usable[key] for key in keys]
    width = sum(table.shape[1] if table.ndim > 1 else 1 for table in read)
    columns = {
        "observations": one_piece((steps, width), lambda: beside([table[()] for table in read])),
        "actions": one_piece(action.shape, lambda: action[()]),
        "episode_ends": held(np.array([steps], np.int64)),
    }
    return Flat(path, "ALOHA", columns, attributes, reading)
