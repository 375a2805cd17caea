"""LeRobot folders and parquet files, written by pyarrow alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.envs.data.formats import head
from rheo.envs.data.read import played_in, read
from rheo.envs.data.recording import Reading
from rheo.errors import EnvError

LENGTHS = [4, 6, 5]


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_every_version_is_read_frame_by_frame(tmp_path: Path, foreign: Any, version: str) -> None:
    path = str(foreign.lerobot(tmp_path / "set", LENGTHS, version))
    recording = read(path)
    assert recording.ends.tolist() == [4, 10, 15] and recording.obs.shape == (15, 6)
    for episode, (end, length) in enumerate(zip(recording.ends, LENGTHS, strict=True)):
        rows = slice(end - length, end)
        np.testing.assert_allclose(recording.obs[rows, :4], foreign.states(episode, length))
        np.testing.assert_allclose(recording.obs[rows, 4:], foreign.states(episode + 5, length, 2))
        np.testing.assert_allclose(recording.action[rows], foreign.actions(episode, length))
    about = recording.about
    assert about["obs_keys"] == ["observation.state", "observation.environment_state"]
    assert about["left_out"] == ["observation.image (a video)"]
    assert (about["dt"], about["robot"], about["format"]) == (0.1, "so100", "LeRobot")
    assert recording.reward is None and (recording.successor == -1).all()
    arrays = [value for value in recording if isinstance(value, np.ndarray)]
    assert head(path, Reading()).sizes.nbytes == sum(array.nbytes for array in arrays)
    assert played_in(path)[0] is None


def test_obs_keys_choose_and_order_the_columns(tmp_path: Path, foreign: Any) -> None:
    path = str(foreign.lerobot(tmp_path / "set", LENGTHS))
    keys = ["observation.environment_state"]
    np.testing.assert_allclose(read(path, obs_keys=keys).obs[:4], foreign.states(5, 4, 2))
    assert "observation.state" in read(path, obs_keys=keys).about["left_out"]
    with pytest.raises(EnvError, match=r"observation.image: a video; .*name observation.state"):
        read(path, obs_keys=["observation.image"])
    with pytest.raises(EnvError, match="observation.states: not there"):
        read(path, obs_keys=["observation.states"])


def flags(*ends: bool) -> Any:
    """A column that is set at the last frame of the episodes that are listed."""
    return lambda episode, count: (np.arange(count) == count - 1) & ends[episode]


def reward(*last: float) -> Any:
    return lambda episode, count: np.where(np.arange(count) == count - 1, last[episode], -1.0)


ALL = flags(True, True, True)


@pytest.mark.parametrize(
    ("extra", "ended"),
    [
        ({"next.done": ALL}, [True, True, True]),
        (
            {"next.done": flags(True, True, True), "next.reward": reward(0, 1, 1)},
            [False, True, True],
        ),
        (
            {"next.done": ALL, "next.success": flags(False, False, True)},
            [False, False, True],
        ),
        ({"next.success": flags(True, False, False)}, [True, False, False]),
        ({"next.reward": reward(1, 1, 1)}, [False, False, False]),
    ],
)
def test_which_episodes_the_task_ended(
    tmp_path: Path, foreign: Any, extra: dict[str, Any], ended: list[bool]
) -> None:
    recording = read(str(foreign.lerobot(tmp_path / "set", LENGTHS, extra=extra)))
    assert recording.terminated[recording.ends - 1].tolist() == ended
    assert recording.terminated.sum() == sum(ended)
    if "next.reward" in extra:
        assert recording.reward is not None and recording.reward[0] == -1


def test_columns_of_one_number_of_tables_and_of_text(tmp_path: Path, foreign: Any) -> None:
    extra = {
        "observation.gripper": lambda episode, count: np.arange(count) % 2 == 0,
        "observation.points": lambda episode, count: [[[1.0, 2.0], [3.0, 4.0]]] * count,
        "observation.language": lambda episode, count: ["push"] * count,
        "complementary_info.penalty": lambda episode, count: np.zeros(count),
    }
    recording = read(str(foreign.lerobot(tmp_path / "set", LENGTHS, extra=extra)))
    assert recording.about["obs_keys"][2:] == ["observation.gripper", "observation.points"]
    np.testing.assert_allclose(recording.obs[:2, 6:], [[1, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    told = recording.about["left_out"]
    assert "observation.language (of type string)" in told
    assert "complementary_info.penalty (no observation)" in told


def test_frames_are_put_in_order(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setattr(foreign, "states", foreign.slowing)
    folder = foreign.lerobot(
        tmp_path / "set", LENGTHS, "v3.0", extra={"next.reward": reward(1, 2, 3)}
    )
    first = read(str(folder))
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order), file)
    again = read(str(folder))
    for mine, theirs in zip(again[:6], first[:6], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    cut = read(str(folder), time_limit=3)  # the frame behind a cut follows in time, not in the file
    assert cut.ends.tolist() == [3, 4, 7, 10, 13, 15] and cut.successor[1] == -1
    np.testing.assert_array_equal(cut.obs[cut.successor[[0, 2, 4]]], first.obs[[3, 7, 13]])


def test_one_parquet_file_of_a_set_is_read_and_the_folder_is_named(
    tmp_path: Path, foreign: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = foreign.lerobot(tmp_path / "set", LENGTHS)
    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    recording = read(str(file))
    assert recording.ends.tolist() == [6] and recording.about["dt"] == 0.1
    assert f"is one of 3 files of a LeRobot data set; data={folder} reads them all" in caplog.text


def lost(folder: Path) -> str:
    (folder / "data" / "chunk-000" / "episode_000002.parquet").unlink()
    return r"info.json tells of 15 frames, 2 files hold 10; a part is missing: download it again"


def pointer(folder: Path) -> str:
    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    return r"episode_000001.parquet: a Git LFS pointer, not the data; run `git lfs pull`"


def cut(folder: Path) -> str:
    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    return r"episode_000001.parquet: not a readable parquet file \(.*\); download it again"


def no_files(folder: Path) -> str:
    for file in folder.rglob("*.parquet"):
        file.unlink()
    return "without parquet files below data/; download it again"


def bad_info(folder: Path) -> str:
    (folder / "meta" / "info.json").write_text("{")
    return r"info.json: not readable as JSON"


def gap(folder: Path) -> str:
    import pyarrow.parquet as pq

    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([0, 1, 3, 4, 5, 5]), file)
    return "frame_index, episode 1, step 2, value 3: frame 2 is not there .episode_index 1.;"


def empty_rows(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    rows = [None, *table.column("observation.state").to_pylist()[1:]]
    place = table.column_names.index("observation.state")
    pq.write_table(table.set_column(place, "observation.state", pa.array(rows)), file)
    return "episode_000001.parquet: observation.state: 1 rows are empty"


def ragged(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    table = pq.read_table(file)
    rows = [[1.0], [1.0] * 3, *table.column("action").to_pylist()[2:]]  # as many in all
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(rows)), file)
    return "episode_000001.parquet: action: its rows have different lengths"


def other_columns(folder: Path) -> str:
    import pyarrow.parquet as pq

    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    pq.write_table(pq.read_table(file).drop(["observation.state"]), file)
    return "episode_000001.parquet: its columns differ from those of .*: observation.state"


def aborting(folder: Path) -> str:
    """A bit of a description, by which what it tells of a column's rows is one number too long."""
    file = folder / "data" / "chunk-000" / "episode_000001.parquet"
    optional, name = b"\x35\x02", b"\x18\x11observation.state"
    assert file.read_bytes().count(optional + name) == 1
    file.write_bytes(file.read_bytes().replace(optional + name, b"\x35\x00" + name))
    return r"episode_000001.parquet: makes the Parquet library crash \(SIGABRT\): damaged"


@pytest.mark.parametrize(
    "harm",
    [lost, pointer, cut, no_files, bad_info, gap, empty_rows, ragged, other_columns, aborting],
    ids=lambda harm: harm.__name__,
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, foreign: Any, harm: Any) -> None:
    folder = foreign.lerobot(tmp_path / "set", LENGTHS)
    message = harm(folder)
    with pytest.raises(EnvError, match=message):
        read(str(folder))


def test_a_table_of_other_columns_is_not_taken_for_a_recording(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"price": [1.0], "observation.state": [[1.0]]}), tmp_path / "a.parquet")
    with pytest.raises(EnvError, match=r"other columns \(price, observation.state\).* and action"):
        read(str(tmp_path / "a.parquet"))


def test_several_tasks_are_said_to_be_learned_as_one(
    tmp_path: Path, foreign: Any, caplog: pytest.LogCaptureFixture
) -> None:
    read(str(foreign.lerobot(tmp_path / "set", LENGTHS, total_tasks=3)))
    assert "its 3 tasks are learned as one" in caplog.text
    assert json.loads((tmp_path / "set" / "meta" / "info.json").read_text())["total_tasks"] == 3
