"""ALOHA's HDF5: one episode a file, observations/{qpos, qvel, effort, images/*} and action.

Layout as in tonyzhaozh/act, record_sim_episodes.py.
"""

from collections.abc import Iterator

import h5py
import numpy as np

from .columns import EndToEnd, beside, chosen, left_out, numbers, refuse_rows, table
from .containers import hdf5_attributes, hdf5_column
from .recording import Column, Reading

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


def aloha(path: str, file: h5py.File, reading: Reading) -> EndToEnd:
    """The episode of a file: observations are qpos, qvel, effort and the others, side by side."""
    group, action = file["observations"], file["action"]
    assert isinstance(group, h5py.Group) and isinstance(action, h5py.Dataset)
    usable, others = tables(group, ("images", "images_depth", "depth_images", "video_paths"))
    usual = sorted(usable, key=lambda key: (USUAL.index(key) if key in USUAL else 9, key))
    keys = chosen(path, reading.obs_keys, usual, usable, others)
    done = table(path, hdf5_column(action), "action")
    steps = done.shape[0]
    for key in keys:
        refuse_rows(path, hdf5_column(usable[key]), steps, f"observations/{key}")
    told = hdf5_attributes(path, file)
    rate = next((told[key] for key in RATES if key in told), None)
    beyond = sorted(key for key in map(str, file) if key not in ("observations", "action"))
    about = {
        **{"format": "ALOHA", "path": path, "env_id": None, "obs_keys": keys},
        "left_out": [*left_out(keys, usable, others), *beyond],
        **({"sim": told["sim"]} if "sim" in told else {}),
        **({"dt": 1 / rate} if rate else {}),
    }
    read = [usable[key] for key in keys]
    width = sum((*one.shape[1:], 1)[0] for one in read)
    seen = Column((steps, width), np.dtype(np.float64), lambda: [beside([one[()] for one in read])])
    return EndToEnd(
        path, {"observations": seen, "actions": done}, about, reading, np.array([steps])
    )
