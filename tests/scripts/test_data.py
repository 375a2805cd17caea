"""`rheo data info`, `check` and `convert`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.scripts.cli import main
from rheo.scripts.data import worded

LENGTHS = [5, 8, 4]


def content(obs_dim: int = 11, action_dim: int = 3, **changes: Any) -> dict[str, Any]:
    """Seventeen steps with the returns 5, 8 and 4."""
    steps = sum(LENGTHS)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(steps, obs_dim)).astype(np.float32)
    return {
        "observations": obs,
        "actions": rng.uniform(-0.9, 0.9, (steps, action_dim)),
        "rewards": np.ones(steps),
        "terminals": np.arange(steps) == 4,
        "timeouts": np.isin(np.arange(steps), np.cumsum(LENGTHS) - 1),
        "next_observations": np.concatenate([obs[1:], obs[:1]]),
    } | changes


def hdf5(path: Path, **changes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in content(**changes).items():
            file[key] = value
    return path


def test_info_tells_what_is_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hdf5(tmp_path / "hopper_medium-v2.hdf5", costs=np.arange(17) % 2)
    with h5py.File(path, "a") as file:
        file.attrs["dt"] = 0.008
    assert main(["data", "info", str(path)]) == 0
    out = capsys.readouterr().out
    for text in (
        str(path),
        "format       d4rl, 0.0 MB, 0.0 MB in memory",
        "environment  Hopper-v4",
        "time step    0.008 s",
        "steps        17 in 3 episodes",
        "ends         1 by the task, 2 cut off; the observation after 3 of them is known",
        "length       min 4, 25 % 4.5, median 5, 75 % 6.5, max 8; mean 5.66667",
        "return       min 4, 25 % 4.5, median 5, 75 % 6.5, max 8; mean 5.66667 (D4RL score 0.8",
        "cost         min 2, 25 % 2, median 2, 75 % 3, max 4; mean 2.66667",
        "observations 11 dimensions, -",
        "actions      3 dimensions, -0.",
        "0.0 % at a bound",
    ):
        assert text in out


def test_info_goes_on_after_a_broken_file_and_shows_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = content()["actions"]
    bad[7] = 1.79
    (tmp_path / "none.npz").write_bytes(b"")
    np.savez(tmp_path / "a.npz", observations=bad, actions=bad, episode_ends=[17])
    files = [str(tmp_path / name) for name in ("none.npz", "a.npz")]
    assert main(["data", "info", *files]) == 2
    out = capsys.readouterr().out
    assert "none.npz: error: empty; the file has 0 bytes" in out
    assert "return       no rewards" in out and "environment  not told" in out
    assert "error        actions, episode 0, step 7, value 1.79: 3 of 51 entries" in out


def test_check_prints_one_line_for_each_fault_of_a_folder_of_broken_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = hdf5(tmp_path / "sub.h5").read_bytes()
    (tmp_path / "sub.h5").unlink()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "half.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "page.hdf5").write_bytes(b"<html>404</html>")
    (tmp_path / "notes.txt").write_bytes(b"no data")
    rewards = np.ones(17)
    rewards[6] = np.nan
    hdf5(tmp_path / "nan.hdf5", rewards=rewards)
    hdf5(tmp_path / "lengths.hdf5", rewards=np.ones(16))
    hdf5(tmp_path / "ends.hdf5", timeouts=np.zeros(17), terminals=np.zeros(17))
    assert main(["data", "check", str(tmp_path)]) == 2
    lines = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().out.splitlines()]
    starts = [
        "empty.npz: error: empty; the file has 0 bytes; give the path",
        "ends.hdf5: error: timeouts: no step is terminal,",
        "lengths.hdf5: error: rewards: 16 rows but 17 actions;",
        "nan.hdf5: error: rewards, episode 1, step 1, value nan: not a finite number",
        "page.hdf5: error: an HTML page (a server's answer), not data; the file has 16 bytes",
        f"sub/half.hdf5: error: truncated: it should have {len(whole):,} bytes",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_check_is_content_with_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, odd = hdf5(tmp_path / "good.hdf5"), hdf5(tmp_path / "odd.hdf5", terminals=np.zeros(17))
    assert main(["data", "check", str(good), str(odd)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{good}: ok: 17 steps in 3 episodes",
        f"{odd}: note: terminals: no episode ended by the task; each counts as cut off, "
        "and its value goes on",
        f"{odd}: ok: 17 steps in 3 episodes",
    ]


def test_options_reach_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hdf5(tmp_path / "a.hdf5", timeouts=np.zeros(17), terminals=np.zeros(17))
    with h5py.File(path, "a") as file:
        del file["next_observations"]
    assert main(["data", "check", str(path), "--time-limit", "6"]) == 0
    assert f"{path}: ok: 17 steps in 3 episodes" in capsys.readouterr().out
    assert main(["data", "convert", str(path), str(tmp_path / "b.npz")]) == 2
    assert "there are no episodes; give --time-limit N" in capsys.readouterr().err


def test_a_remedy_is_an_option_of_the_verb_or_a_key_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = content()["actions"]
    actions[7] = 1.79
    bad = str(hdf5(tmp_path / "bad.hdf5", actions=actions))
    loose = str(hdf5(tmp_path / "loose.hdf5", timeouts=np.zeros(17), terminals=np.zeros(17)))
    with h5py.File(loose, "a") as file:
        del file["next_observations"]
    assert main(["data", "check", bad, loose]) == main(["data", "info", loose]) == 2
    told = capsys.readouterr().out
    assert "data.on_bad=clip cuts them" in told and "give --time-limit N" in told  # check: no such
    assert main(["data", "convert", bad, str(tmp_path / "b.npz")]) == 2
    assert "--on-bad clip cuts them, --on-bad drop leaves" in capsys.readouterr().err
    assert main(["train", "algo=iql", f"data={bad}", "env=none"]) == 2
    assert "data.on_bad=clip cuts them" in capsys.readouterr().err
    assert main(["train", "algo=iql", f"data={loose}", "env=none"]) == 2
    error = capsys.readouterr().err
    assert "give data.time_limit=N" in error and "source." not in error


def test_lists_in_a_remedy_are_written_as_the_option_takes_them() -> None:
    options = {"obs_keys": None, "time_limit": None}
    text = "data.obs_keys=[a,b] or data.on_bad=drop; data.obs_keys can name c"
    assert worded(text, options) == "--obs-keys a,b or data.on_bad=drop; --obs-keys can name c"


def test_a_conversion_there_and_back_loses_nothing(tmp_path: Path) -> None:
    costs = {"costs": np.arange(17.0)}
    path = hdf5(tmp_path / "walker2d_medium-v2.hdf5", obs_dim=17, action_dim=6, **costs)
    there, back = tmp_path / "there.npz", tmp_path / "back.hdf5"
    assert main(["data", "convert", str(path), str(there)]) == 0
    assert main(["data", "convert", str(there), str(back)]) == 0
    first, last = read(str(path)), read(str(back))
    for field in ("obs", "action", "reward", "terminated", "ends", "successor", "cost"):
        np.testing.assert_array_equal(getattr(first, field), getattr(last, field))
    assert last.about["env_id"] == "Walker2d-v4" and last.about["format"] == "rheo"


def test_a_conversion_never_writes_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = hdf5(tmp_path / "a.hdf5"), tmp_path / "b.npz"
    out.write_text("mine")
    assert main(["data", "convert", str(path), str(out)]) == 2
    assert "exists; remove it or choose another name" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["data", "convert", str(path), str(tmp_path / "b.zarr")]) == 2
    assert "there are .hdf5, .h5, .npz" in capsys.readouterr().err


def test_a_conversion_refuses_clips_or_keeps_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = content()["actions"]
    actions[7] = 1.79
    path = hdf5(tmp_path / "a.hdf5", actions=actions)
    words = ["data", "convert", str(path)]
    assert main([*words, str(tmp_path / "b.npz")]) == 2
    assert "--on-bad clip cuts them" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
    assert main([*words, str(tmp_path / "clip.npz"), "--on-bad", "clip"]) == 0
    assert read(str(tmp_path / "clip.npz")).action.max() == 1
    assert main([*words, str(tmp_path / "keep.npz"), "--on-bad", "keep"]) == 0
    with np.load(tmp_path / "keep.npz") as kept:
        np.testing.assert_array_equal(kept["actions"], actions.astype("f4"))
    jump = content()["next_observations"]
    jump[2] = 9
    words[2] = str(hdf5(tmp_path / "c.hdf5", next_observations=jump))
    assert main([*words, str(tmp_path / "d.npz"), "--on-bad", "keep"]) == 2
    assert "cannot be kept; --on-bad drop" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "usage: rheo data info"),
        (["--help"], 0, "usage: rheo data info"),
        (["inspect"], 2, "unknown verb 'data inspect'; there are: check, convert, corrupt, fetch"),
        (["info"], 2, "usage: rheo data info"),
        (
            ["check", "x", "--time-limit", "ten"],
            2,
            "time_limit=ten: a positive whole number",
        ),
        (["check", "."], 2, "an empty folder; give a file or a folder of files"),
        (["check", "gone.npz"], 2, "gone.npz: error: no such file"),
    ],
)
def test_mistakes_are_answered_by_name(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *words]) == code
    assert message in "".join(capsys.readouterr())


SPY = """
import json, sys
from rheo.scripts.cli import main
from rheo.scripts.data import worded
code = main(sys.argv[1:])
print(json.dumps([code, sorted({"torch", "gymnasium", "mujoco", "hydra"} & set(sys.modules))]))
"""


def test_the_verb_answers_without_torch_also_when_something_is_wrong(tmp_path: Path) -> None:
    good, bad = hdf5(tmp_path / "good.hdf5"), hdf5(tmp_path / "bad.hdf5", rewards=np.ones(16))
    words = [sys.executable, "-c", SPY, "data", "check", str(good), str(bad)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [2, []]
