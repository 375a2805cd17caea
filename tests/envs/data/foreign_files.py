"""Writers of other people's formats, by their documentation and without the code that reads them.

Every step's numbers tell where they belong: obs = 10 episode + step / 100 + dimension / 1000.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

STATE, ACTION = 4, 2


def states(episode: int, length: int, dims: int = STATE) -> np.ndarray:
    """Numbers that tell where they belong, [L, D]."""
    place = 10 * episode + np.arange(length)[:, None] / 100
    return (place + np.arange(dims) / 1000).astype(np.float32)


def slowing(episode: int, length: int, dims: int = STATE) -> np.ndarray:
    """Numbers whose steps become smaller, so that none in the middle looks like a jump, [L, D]."""
    place = 10 * episode + np.sqrt(np.arange(length))[:, None]
    return (place + np.arange(dims) / 1000).astype(np.float32)


def actions(episode: int, length: int, scale: float = 0.9, dims: int = ACTION) -> np.ndarray:
    """Actions within +-scale, [L, Da]."""
    phase = np.arange(length)[:, None] / 7 + np.arange(dims) + episode
    return (scale * np.sin(phase)).astype(np.float32)


def lerobot(folder: Path, lengths: list[int], version: str = "v2.1", **change: Any) -> Path:
    """A LeRobot data set. v2: a parquet file an episode; v3: one file of two episodes each.

    change: scale of actions, columns of a frame to add, entries of info.json.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scale, extra = change.pop("scale", 0.9), change.pop("extra", {})
    per_file, row = 1 if version.startswith("v2") else 2, 0
    for first in range(0, len(lengths), per_file):
        tables = []
        for episode in range(first, min(first + per_file, len(lengths))):
            count = lengths[episode]
            columns: dict[str, Any] = {
                "action": actions(episode, count, scale).tolist(),
                "observation.environment_state": states(episode + 5, count, 2).tolist(),
                "observation.state": states(episode, count).tolist(),
                "timestamp": (np.arange(count) / 10).astype(np.float32),
                "frame_index": np.arange(count),
                "episode_index": np.full(count, episode),
                "index": row + np.arange(count),
                "task_index": np.zeros(count, np.int64),
                **{key: make(episode, count) for key, make in extra.items()},
            }
            row += count
            tables.append(pa.table(columns))
        name = f"episode_{first:06d}" if per_file == 1 else f"file-{first // 2:03d}"
        file = folder / "data" / "chunk-000" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), file)
    features = {"observation.image": {"dtype": "video", "shape": [96, 96, 3]}}
    info = {"codebase_version": version, "fps": 10, "total_episodes": len(lengths)}
    info |= {"total_frames": row, "robot_type": "so100", "features": features, **change}
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    if per_file == 2:  # another parquet file that is no data
        (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        table = pa.table({"episode_index": list(range(len(lengths))), "length": lengths})
        pq.write_table(table, folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return folder


def zarr_array(folder: Path, values: np.ndarray, rows: int) -> None:
    """An array of zarr format 2, in chunks of some rows, compressed by blosc."""
    import numcodecs

    codec = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    folder.mkdir(parents=True)
    told = {
        "chunks": [rows, *values.shape[1:]],
        "compressor": codec.get_config(),
        "dtype": values.dtype.str,
        "fill_value": 0,
        "filters": None,
        "order": "C",
        "shape": list(values.shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(told))
    for number, start in enumerate(range(0, len(values), rows)):
        chunk = np.zeros((rows, *values.shape[1:]), values.dtype)
        piece = values[start : start + rows]
        chunk[: len(piece)] = piece
        name = ".".join(map(str, [number] + [0] * (values.ndim - 1)))
        (folder / name).write_bytes(codec.encode(chunk))


def pusht(folder: Path, lengths: list[int], **arrays: Any) -> Path:
    """PushT's replay buffer: pixels, agent and block as `state`, key points, images."""
    steps = sum(lengths)
    held: dict[str, Any] = {
        "state": np.concatenate([states(e, n, 5) for e, n in enumerate(lengths)]),
        "action": 256 + np.concatenate([actions(e, n, 200.0) for e, n in enumerate(lengths)]),
        "keypoint": np.ones((steps, 9, 2), np.float32) * np.arange(steps)[:, None, None],
        "n_contacts": np.zeros((steps, 1), np.float32),
        "img": np.zeros((steps, 4, 4, 3), np.float32),
    } | arrays
    for key, values in held.items():
        if values is not None:
            zarr_array(folder / "data" / key, values, 7)
    zarr_array(folder / "meta" / "episode_ends", np.cumsum(lengths).astype(np.int64), 100)
    for group in (folder, folder / "data", folder / "meta"):
        (group / ".zgroup").write_text('{"zarr_format": 2}')
    return folder


def zipped(folder: Path, root: str = "") -> Path:
    """A folder as an archive beside it."""
    file = folder.with_name(folder.name + ".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for one in sorted(folder.rglob("*")):
            if one.is_file():
                archive.write(one, root + one.relative_to(folder).as_posix())
    return file


def aloha(folder: Path, lengths: list[int], scale: float = 1.4, dims: int = 14) -> Path:
    """ALOHA's episodes: joint positions and velocities, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for episode, length in enumerate(lengths):
        with h5py.File(folder / f"episode_{episode}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = True, True
            file["observations/qpos"] = states(episode, length, dims)
            file["observations/qvel"] = states(episode, length, dims) + 0.5
            file["observations/effort"] = np.zeros((length, dims))
            file["observations/images/top"] = np.zeros((length, 50), np.uint8)  # compressed
            file["action"] = actions(episode, length, scale, dims)
            file["compress_len"] = np.full((1, length), 50)
    return folder


def maniskill(file: Path, lengths: list[int], nested: bool = True, **info: Any) -> Path:
    """ManiSkill's trajectories with the JSON beside them; the first one fails."""
    with h5py.File(file, "w") as out:
        for episode, length in enumerate(lengths):
            trajectory = out.create_group(f"traj_{episode}")
            whole = states(episode, length + 1, 6)
            if nested:
                trajectory["obs/agent/qpos"] = whole[:, :4]
                trajectory["obs/extra/is_grasped"] = np.zeros(length + 1, bool)
                trajectory["obs/extra/tcp_pose"] = whole[:, 4:]
                trajectory["obs/sensor_data/base/rgb"] = np.zeros((length + 1, 4, 4, 3), np.uint8)
            else:
                trajectory["obs"] = whole
            trajectory["actions"] = actions(episode, length, 0.9, 3)
            ended = (np.arange(length) == length - 1) & (episode > 0)
            trajectory["terminated"], trajectory["success"] = ended, ended
            trajectory["truncated"] = np.zeros(length, bool)
            trajectory["rewards"] = ended.astype(np.float32)
            trajectory["env_states/actors/cube"] = np.zeros((length + 1, 13))
    episodes = [{"episode_id": i, "control_mode": "pd_ee_delta_pos"} for i in range(len(lengths))]
    told = {"env_info": {"env_id": "PickCube-v1", "env_kwargs": info}, "episodes": episodes}
    file.with_suffix(".json").write_text(json.dumps(told))
    return file
