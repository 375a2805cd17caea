"""robomimic's layout, written: demonstrations that its own tools read, learn from and play back.

data/demo_i/{obs/*, next_obs/*, actions, rewards, dones, states}, their attributes num_samples and
model_file, those of `data` total and env_args, mask/train and mask/valid (ARISE-Initiative's
robomimic, docs/datasets/overview.md). Three attributes of `data` are ours: `action_scale`,
`obs_keys`, the observations of a policy in order, and `dones_are`, which says that `dones` are set
where the task ended and nowhere else.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ...files import ask_for
from ..parts import places, read_parts
from ..pixels import unpacked
from .catalogue import ROBOSUITE
from .recording import Recording, refuse
from .sheltered import book

log = logging.getLogger("rheo")
DONES = "terminated"  # of the attribute dones_are
GYM_TYPE, ROBOSUITE_TYPE = 2, 1  # robomimic's numbers of kinds of environments
FLAT = "flat"  # its name of an observation without parts
HELD_OUT = 10  # one of so many demonstrations validates


class Demo(NamedTuple):
    """One demonstration of L steps."""

    obs: Mapping[str, NDArray]  # [L + 1, ...] each; [L, ...] where what followed is not known
    action: NDArray  # [L, Da] in [-1, 1], as executed
    reward: NDArray | None  # [L]
    terminated: bool  # whether the task ended it
    states: NDArray | None = None  # [L, n] the simulator's, before each action
    model: str | None = None  # its XML


def write_demos(
    path: Path,
    demos: Iterable[Demo],
    env_args: Mapping[str, Any] | None,
    attributes: Mapping[str, Any],
    names: Sequence[str] | None = None,
    masks: Mapping[str, Sequence[str]] | None = None,
) -> tuple[int, int]:
    """Writes demonstrations as they come; how many, and their steps.

    names: of the demonstrations, demo_0, demo_1 ... without. masks: lists of demonstrations; none:
    `train` and, of every tenth, `valid`. Raises Refused where there is no demonstration.
    """
    total, written = 0, []
    with book(path) as pages:
        for i, demo in enumerate(demos):
            name = f"demo_{i}" if names is None else names[i]
            with pages.piece() as file:
                put(file.create_group(f"data/{name}"), demo)
            total += len(demo.action)
            written.append(name)
        if not written:
            raise refuse(path, "no demonstration to write")
        told = {"total": total, "action_scale": "unit", "dones_are": DONES, **attributes}
        told |= {} if env_args is None else {"env_args": json.dumps(env_args, indent=4)}
        with pages.piece() as file:
            for key, value in told.items():
                text = json.dumps(value) if isinstance(value, dict | list) else value
                file["data"].attrs[key] = text
            for key, members in (split(written) if masks is None else masks).items():
                file[f"mask/{key}"] = np.array(members, dtype="S")
    return len(written), total


def put(group: h5py.Group, demo: Demo) -> None:
    """One demonstration. Pictures are compressed."""
    steps = len(demo.action)
    for key, values in demo.obs.items():
        how = {"compression": "lzf"} if values.dtype == np.uint8 and values.ndim > 2 else {}
        group.create_dataset(f"obs/{key}", data=values[:steps], **how)
        if len(values) > steps:
            group.create_dataset(f"next_obs/{key}", data=values[1:], **how)
    group["actions"] = demo.action
    if demo.reward is not None:
        group["rewards"] = demo.reward
    dones = np.zeros(steps, np.int64)
    dones[-1] = demo.terminated
    group["dones"] = dones
    if demo.states is not None:
        group["states"] = demo.states
    group.attrs["num_samples"] = steps
    if demo.model is not None:
        group.attrs["model_file"] = demo.model


def split(names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The demonstrations that train, and every tenth (of fewer the last), which validates."""
    if len(names) < 2:
        return {"train": names}
    held = set(names[HELD_OUT - 1 :: HELD_OUT] or names[-1:])
    return {
        "train": [name for name in names if name not in held],
        "valid": [name for name in names if name in held],
    }


def write_robomimic(path: Path, recording: Recording, attributes: Mapping[str, Any]) -> None:
    """Any recording in robomimic's layout, its observations under the names of their parts.

    Without parts they are `flat`. The episodes whose last observation is not known have no
    next_obs.
    """
    about = recording.about
    unknown = int((recording.successor < 0).sum())
    if unknown:
        text = "%s: what was observed after %d of %d episodes is not known: they have no next_obs"
        log.warning(text, about.get("path", path), unknown, len(recording.ends))
    if recording.cost is not None:
        text = "%s: robomimic's layout has no place for costs, so they are left out; .hdf5 has one"
        log.warning(text, about.get("path", path))
    ask_for(least(recording), path.parent)
    attributes = {**attributes, "obs_keys": list(parts_of(recording))}
    names, masks = None, None
    if "filters" in about and "demos" in about:
        names = list(about["demos"])
        masks = masked(about["filters"], set(names))
    write_demos(path, demos_of(recording), env_args_of(about), attributes, names, masks)


def least(recording: Recording) -> int:
    """Bytes that the file of a recording takes at least: pictures are compressed, all else not."""
    steps, followed = len(recording.action), recording.lengths[recording.successor >= 0].sum()
    rewards = 0 if recording.reward is None else recording.reward.nbytes
    rows = (steps + int(followed)) * recording.state[:1].nbytes
    return rows + recording.action.nbytes + rewards


def masked(filters: Mapping[str, Sequence[str]], names: set[str]) -> dict[str, list[str]]:
    """Lists of demonstrations without those that are not there."""
    kept = {key: [one for one in members if one in names] for key, members in filters.items()}
    return {key: members for key, members in kept.items() if members}


def demos_of(recording: Recording) -> Iterator[Demo]:
    """The episodes of a recording."""
    parts, images = parts_of(recording), recording.images
    for part in recording.parts():
        rows = part.obs
        if part.successor is not None:
            rows = np.concatenate([rows, part.successor[None]])
        obs = {key: rows[:, at : at + width] for key, (at, width) in places(parts).items()}
        obs |= {key: unpacked(obs[key], size[0]) for key, size in images.items() if key in obs}
        yield Demo(obs, part.action, part.reward, part.terminated)


def parts_of(recording: Recording) -> dict[str, int]:
    """The parts of its observations with their widths; all is FLAT where it tells none."""
    parts, width = read_parts(recording.about), recording.obs.shape[1]
    return parts if sum(parts.values()) == width else {FLAT: width}


def env_args_of(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What robomimic makes the environment of a recording from, None where it is not known."""
    told, env_id = about.get("env_args"), about.get("env_id")
    if isinstance(told, Mapping):
        return dict(told)
    if env_id is None:
        return None
    name = env_id.removeprefix("robosuite/").removesuffix("-v0")
    if name not in ROBOSUITE:
        options = dict(about.get("env_options") or {})
        return {"env_name": env_id, "type": GYM_TYPE, "env_kwargs": options}
    text = "%s: nothing tells what %s was made with, so robomimic's tools cannot make it"
    log.warning(text, about.get("path"), env_id)
    return {"env_name": name, "type": ROBOSUITE_TYPE, "env_kwargs": {}}
